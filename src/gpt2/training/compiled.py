"""A forward pass that torch.compile has translated."""

from collections.abc import Callable

import torch
from torch import Tensor

from gpt2.training.trainer import Objective


class Compiled:
    """Compiles when it is first called. Where that fails, the pass is made as it is from then on.

    Args:
        forward: inputs and targets to the loss and its number of targets.
        failed: is told why, in a line.
    """

    def __init__(self, forward: Objective, failed: Callable[[str], None]) -> None:
        self._plain = forward
        self._forward: Objective = torch.compile(forward)
        self._failed = failed

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`."""
        try:
            return self._forward(inputs, targets)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # a second of imports, which torch.compile has made

            if not isinstance(error, TorchDynamoException):
                raise
            cause = getattr(error, "inner_exception", error)  # of what compiles, where it was not the tracing
            self._failed(str(cause).strip().partition("\n")[0].rstrip(".") + ".")
            self._forward = self._plain
        return self._plain(inputs, targets)
