"""What a process of a run can be made to do first: note what it sees, or get into trouble. Called in a fork."""

import functools
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RANK = int(os.environ.get("RANK", "0"))


def digest(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def note(kind: str, value: object) -> None:
    """A line of this process, in the folder of the run's text."""
    with Path(f"{kind}-{RANK}.jsonl").open("a") as file:
        file.write(json.dumps(value) + "\n")


def note_batches() -> None:
    """For each step its number and the sequences of this process, hashed."""
    from gpt2.training.trainer import Trainer

    gradient = Trainer._gradient

    def noting(self: Trainer, batch: Any) -> Any:
        note("batches", [self.step, [digest(*pair) for pair in zip(batch.inputs, batch.targets, strict=True)]])
        return gradient(self, batch)

    Trainer._gradient = noting


def lose_a_gradient() -> None:
    """In the second process only, the gradient of the fifth batch is no number. All note their weights."""
    from gpt2.distributed import whole
    from gpt2.training.trainer import Trainer

    gradient, train_step, batches = Trainer._gradient, Trainer.train_step, 0

    def losing(self: Trainer, batch: Any) -> Any:
        nonlocal batches
        batches += 1
        objective = self.objective
        if RANK == 1 and batches == 5:

            def without_gradient(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
                total, counted = objective(inputs, targets)
                total.register_hook(lambda gradient: gradient * float("nan"))
                return total, counted

            self.objective = without_gradient
        try:
            return gradient(self, batch)
        finally:
            self.objective = objective

    def noting(self: Trainer) -> Any:
        record = train_step(self)
        note("weights", digest(*(whole(parameter) for parameter in self.model.parameters())))
        return record

    Trainer._gradient, Trainer.train_step = losing, noting


def ask_in_a_validation() -> None:
    """The second process alone is asked to stop, after the second batch of a validation. All note its batches."""
    from gpt2.training.trainer import Trainer

    heeding = Trainer.heeding

    def watched(self: Trainer, given: Iterable[Any]) -> Iterator[Any]:
        for position, batch in enumerate(heeding(self, given)):
            yield batch
            note("validated", [self.step, position])
            if RANK == 1 and position == 1:
                os.kill(os.getpid(), signal.SIGUSR1)

    Trainer.heeding = watched


def no_room(*arguments: object) -> None:
    """What a device says whose memory has ended."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def lack_memory() -> None:
    """The second process alone has no memory for more than a sequence at once, from the fifth step on."""
    _lack_memory(lambda begun, size: begun > 8 and size > 1)


def lack_memory_in_the_last_backward_pass() -> None:
    """The second process alone has none in the fifth step, when the others already sum their gradients."""
    _lack_memory(lambda begun, size: begun == 10, backward=True)


def lack_memory_in_any_backward_pass() -> None:
    """The second process alone has none for more than two sequences at once, from the second step on."""
    _lack_memory(lambda begun, size: begun > 2 and size > 2, backward=True)


def lack_memory_in_a_block() -> None:
    """The second process alone has none for more than a sequence in the second block, from the fifth step on."""
    from gpt2.model.gpt2 import MLP, Block

    block, mlp, begun, within = Block.forward, MLP.forward, 0, False

    def counting(self: Block, x: Tensor, *more: Any) -> Tensor:
        nonlocal begun, within
        within = torch.is_grad_enabled() and self.attn.layer == 1
        begun += within
        return block(self, x, *more)

    def tight(self: MLP, x: Tensor) -> Tensor:
        if RANK == 1 and within and begun > 8 and len(x) > 1:
            no_room()
        return mlp(self, x)

    Block.forward, MLP.forward = counting, tight


def lack_memory_in_the_loss() -> None:
    """The second process alone has none for the logits of more than a sequence, from the fifth step on."""
    from gpt2.training import loss

    cross_entropy, begun = loss.linear_cross_entropy, 0

    def tight(hidden: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        nonlocal begun
        begun += torch.is_grad_enabled()
        if RANK == 1 and torch.is_grad_enabled() and begun > 8 and len(hidden) > 1:
            no_room()
        return cross_entropy(hidden, *more)

    loss.linear_cross_entropy = tight


def _lack_memory(when: Callable[[int, int], bool], backward: bool = False) -> None:
    """Let memory end where `when` says so of the passes begun, with sums of little left out, and of their sequences."""
    from gpt2.training.loss import NextTokenLoss
    from gpt2.training.trainer import Trainer

    forward, sum_of_little, begun = NextTokenLoss.forward, Trainer._sum_of_little, 0

    def uncounted(self: Trainer, batch: Any) -> None:
        nonlocal begun
        sum_of_little(self, batch)
        begun -= 1

    Trainer._sum_of_little = uncounted

    def tight(self: NextTokenLoss, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal begun
        begun += torch.is_grad_enabled()
        lacks = RANK == 1 and torch.is_grad_enabled() and when(begun, len(inputs))
        if lacks and not backward:
            no_room()
        total, counted = forward(self, inputs, targets)
        if lacks:
            total.register_hook(no_room)
        return total, counted

    NextTokenLoss.forward = tight


def refuse_to_compile() -> None:
    """The second process alone finds no compiler; the first one's gives back what it is given."""

    def compiler(graph: Any, inputs: list[Tensor]) -> Any:
        note("compiled", len(graph.graph.nodes))
        if RANK == 1:
            raise OSError("there is no compiler")
        return graph.forward

    torch.compile = functools.partial(torch.compile, backend=compiler)


def refuse_to_move_whole() -> None:
    """No model moves to a device in one piece."""

    def refuse(self: torch.nn.Module, *arguments: object) -> None:
        raise AssertionError(f"{type(self).__name__} would have moved to {arguments}.")

    torch.nn.Module.to = refuse


def prepare_for_long() -> None:
    """The main process prepares its text for longer than a step may take, and then fails."""
    import torch.distributed as dist

    from gpt2.errors import UserError
    from gpt2.recipes import train

    init = dist.init_process_group

    def hasty(backend: str, **how: Any) -> None:
        init(backend, timeout=timedelta(seconds=6), **how)

    def prepare(*arguments: object) -> None:
        time.sleep(8)
        raise UserError("It took long.")

    dist.init_process_group, train.prepare_data = hasty, prepare
