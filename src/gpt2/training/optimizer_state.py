"""The optimizers' state as named tensors, and back: the weights know their names, optimizers only the weights."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from gpt2.distributed import like, whole
from gpt2.optim.optimizer import Optimizer


def optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state as named tensors, `WEIGHT/KEY`, for a file without pickle; copies on the CPU.

    Where processes hold shares of it, they must all call this.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": whole(value).detach().to("cpu", copy=True).contiguous()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizers(model: nn.Module, optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put named tensors back into optimizers over the same weights."""
    parameters = dict(model.named_parameters())
    keeper = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for optimizer in optimizers:
        optimizer.state.clear()
    for name, tensor in tensors.items():
        weight, _, key = name.rpartition("/")
        parameter = parameters[weight]
        # A counter of steps lies where the optimizer keeps it, moments beside their weight. Cloned, because the tensors
        # of a safetensors file are views of one buffer.
        if tensor.dim() == 0:
            value = tensor.clone().to(parameter.device if keeper[parameter].counts_beside_weights else "cpu")
        else:
            value = like(tensor.clone().to(parameter.device), parameter)
        keeper[parameter].state[parameter][key] = value
