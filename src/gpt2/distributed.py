"""The processes of a run: which one this is, sums over all of them, and a model laid over them.

torchrun starts the processes and tells each its number; alone, everything here is free and does nothing.
"""

import contextlib
import ctypes
import functools
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt2.errors import ConfigError, RunError, UserError
from gpt2.runtime import is_out_of_memory

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
Strategy = Literal["ddp", "fsdp"]
Translation = Callable[[Callable[..., Any]], Callable[..., Any]]

LONGEST_WORK_OF_ONE = timedelta(days=30)
"""That the others wait for. The main process may prepare terabytes of text; if it dies, they hear of it at once."""


@dataclass(frozen=True, slots=True)
class World:
    """All processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    patient: dist.ProcessGroup | None = None
    """All of them, where one is waited for longer than a step can take: `LONGEST_WORK_OF_ONE`."""

    @property
    def is_main(self) -> bool:
        """Whether this process speaks, writes files and takes decisions."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def from_main(self, make: Callable[[], Any]) -> Any:
        """What the main process makes, in all of them: JSON values.

        Raises:
            UserError: in the main process, what `make` raised. The others end with the same exit code, silently.
            RunError: another process has ended meanwhile.
        """
        if self.size == 1:
            return make()
        answer: list[str | None] = [None]
        failure: BaseException | None = None
        if self.is_main:
            try:
                answer = [json.dumps({"made": make()})]
            except BaseException as error:  # noqa: BLE001 - the others wait for an answer, whatever happened
                answer = [json.dumps({"code": error.exit_code if isinstance(error, UserError) else 1})]
                failure = error
        try:
            dist.broadcast_object_list(answer, group=self.patient)
        except RuntimeError as error:  # Ctrl-C goes to all of them, and may have ended the others already
            if failure is None and lost_another(error):
                raise RunError(
                    "Another process has ended before training began.",
                    "If it has not said why, it was killed, perhaps because memory ended. Repeat the command.",
                ) from None
            if failure is None:
                raise
        if failure is not None:
            raise failure
        heard = json.loads(answer[0] or "{}")
        if "code" in heard:
            raise SystemExit(heard["code"])
        return heard["made"]


def world_from_environment(environment: Mapping[str, str] = os.environ) -> World:
    """The world as torchrun describes it in environment variables; alone without them.

    Raises:
        ConfigError: they are incomplete or no numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR")
    if "WORLD_SIZE" not in environment and "RANK" not in environment:
        return World()
    try:
        rank, size, local_rank, _, _ = (*(int(environment[name]) for name in names[:-1]), environment[names[-1]])
        return World(rank, size, local_rank)
    except (KeyError, ValueError):
        given = ", ".join(f"{name}={environment.get(name, '(not set)')}" for name in names)
        raise ConfigError(
            f"The environment describes a distributed run, but not wholly: {given}.",
            "Start it with torchrun, or with --distributed.processes N; alone, unset these variables.",
        ) from None


@contextlib.contextmanager
def joined(world: World, cuda: bool) -> Iterator[World]:
    """The world, while the block runs, with processes that can talk: by NCCL between GPUs, by gloo between CPUs."""
    if world.size == 1:
        yield world
        return
    _end_with_parent()
    if cuda:
        torch.cuda.set_device(world.local_rank)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=_met(world), rank=world.rank, world_size=world.size)
    try:
        yield replace(world, patient=dist.new_group(backend="gloo", timeout=LONGEST_WORK_OF_ONE))
        dist.barrier()  # a process that leaves while another still talks takes it down (3 of 10 runs over gloo)
    finally:
        dist.destroy_process_group()


def _met(world: World) -> dist.Store:  # pyright: ignore[reportPrivateImportUsage]
    """What all processes write into and read from, once all of them are here.

    PyTorch would wait for the others where no signal is heard: Ctrl-C while one of them was still being imported ended
    that one, and left the others waiting.
    """
    lies_with_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world.size,
        is_master=world.rank == 0 and not lies_with_torchrun,
        wait_for_workers=False,
    )
    attempt = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store = dist.PrefixStore(attempt, store)  # pyright: ignore[reportPrivateImportUsage]
    store.set(f"{world.rank}", "here")
    while not store.check([f"{rank}" for rank in range(world.size)]):
        time.sleep(0.02)
    return store


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when its launcher is killed: nobody else would stop it."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Spread:
    """A model laid over the processes."""

    forward: nn.Module
    """What computes the loss; its backward sums gradients over the processes and divides by their number."""
    in_training: Callable[..., Any]
    """The same, translated."""
    without_sum: Callable[[], contextlib.AbstractContextManager[Any]]
    """While active, backward keeps gradients to this process: for all micro-batches but the last."""
    independent: bool = False
    """Whether all but that sum is computed without the other processes."""
    ended: Callable[[], bool] | None = None
    """Where processes compute together: whether memory has ended in this one, in the forward pass just made. What that
    pass returned means nothing then, but the others have not been left waiting."""
    release: Callable[[], None] = lambda: None
    """Forget gathered weights that a pass without backward has left: they are about to change."""


def spread(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    world: World,
    strategy: Strategy,
    precision: str,
    device: torch.device,
    translated: Translation | None = None,
) -> Spread:
    """Lay a model over the processes; its parameters are the ones to optimize, afterwards.

    `ddp` keeps all weights in each process (Li et al. 2020); `fsdp` a share of each (Rajbhandari et al. 2020, stage 3;
    FSDP2), gathered block by block when needed.

    Args:
        model: on the CPU, equal in all processes.
        blocks: parts of it that are gathered one at a time.
        world: the processes.
        strategy: which of the two.
        precision: `bf16` lets fsdp gather weights in bf16.
        device: of this process, to which they move.
        translated: a forward pass → the same for training, such as compiled. With fsdp it gets the blocks, between
            whose passes the processes meet: what fails in one process is then made again without the others.
    """
    translated = translated or (lambda forward: forward)
    if world.size == 1:
        alone = model.to(device)
        return Spread(alone, translated(alone), contextlib.nullcontext)
    if strategy == "ddp":
        # One bucket would wait for all gradients; the default of 25 MB overlaps the sums with backward.
        with warnings.catch_warnings():  # torch 2.13 has a new name for broadcast_buffers, which 2.11 does not know
            warnings.simplefilter("ignore", FutureWarning)
            parallel = DistributedDataParallel(
                model.to(device),
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        return Spread(parallel, translated(parallel), parallel.no_sync, independent=True)
    # 0.9 s of imports, which a run of one process does not wait for.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (world.size,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None, reduce_dtype=torch.float32
    )
    # Each call moves its part to the device, where only this process's share of it stays: the whole need not fit there.
    parts = list(blocks)
    for block in parts:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    in_step = _InStep(model, parts, translated)
    assert isinstance(model, FSDPModule)
    sharded = model

    @contextlib.contextmanager
    def without_sum() -> Iterator[None]:
        sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            sharded.set_requires_gradient_sync(True)

    return Spread(model, model, without_sum, ended=lambda: in_step.ended, release=sharded.reshard)


class _InStep:
    """A model whose forward pass goes through all of its blocks, also when memory ends in this process on the way.

    Each block's weights are gathered from all processes before it computes, so a process that gave up in the midst
    would leave the others waiting. It goes on, gathers with them, and computes nothing: its answer is of no use.

    Args:
        model: returns two scalars. It is changed in place, and so are the blocks.
        blocks: parts of it, in the order in which they compute, from activations to activations.
        translated: a block's forward pass → the same for training.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        translated: Translation,
    ) -> None:
        self.ended = False
        self._blocks = blocks
        self._passed = 0
        for block in blocks:
            block.forward = functools.partial(self._through_block, block.forward, translated(block.forward))
        model.forward = functools.partial(self._through_all, model.forward)

    def _through_all(self, forward: Callable[..., tuple[Tensor, Tensor]], *given: Tensor) -> tuple[Tensor, Tensor]:
        self.ended, self._passed = False, 0
        answer = self._unless_memory_ends(lambda: forward(*given))
        if answer is not None:
            return answer
        nothing = torch.zeros(2, device=given[0].device)
        for block in self._blocks[self._passed :]:
            block(nothing)
        return nothing[0], nothing[1]

    def _through_block(
        self, plain: Callable[..., Tensor], translated: Callable[..., Tensor], x: Tensor, *more: Any
    ) -> Tensor:
        forward = translated if torch.is_grad_enabled() else plain
        y = None if self.ended else self._unless_memory_ends(lambda: forward(x, *more))
        self._passed += 1
        return x if y is None else y

    def _unless_memory_ends(self, compute: Callable[[], T]) -> T | None:
        try:
            return compute()
        except RuntimeError as error:
            # A pass without backward is of a validation, which is not made again.
            if not (is_out_of_memory(error) and torch.is_grad_enabled()):
                raise
            self.ended = True
        return None


def lost_another(error: BaseException) -> bool:
    """Whether an error says that another process has gone, in the middle of something that all do together."""
    return any(words in str(error) for words in ("by peer", "Broken pipe", "remote process exited"))


def _is_share(tensor: Tensor) -> TypeGuard["DTensor"]:
    """Whether this is a process's share of a larger tensor; where nothing has imported the class, none is."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, where processes hold shares of it; they must all call this."""
    return tensor.full_tensor() if _is_share(tensor) else tensor


def like(tensor: Tensor, reference: Tensor) -> Tensor:
    """This process's share of a tensor that all processes hold whole, divided as `reference` is."""
    if not _is_share(reference):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)
