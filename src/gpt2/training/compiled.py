"""A forward pass that torch.compile has translated."""

from collections.abc import Callable
from typing import Any

import torch

Forward = Callable[..., Any]


class Compiled:
    """Compiles when it is first called, the backward pass, too; where that fails, both are made as they are.

    Args:
        forward: tensors to tensors.
        failed: is told why, in a line.
    """

    def __init__(self, forward: Forward, failed: Callable[[str], None]) -> None:
        self._plain = forward
        self._forward: Forward = torch.compile(forward)
        # Else the backward pass is compiled when it is reached, where it is too late to do without.
        torch._functorch.config.force_non_lazy_backward_lowering = True  # pyright: ignore[reportAttributeAccessIssue]
        self._failed = failed

    def __call__(self, *given: Any) -> Any:
        """As `forward`."""
        try:
            return self._forward(*given)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # a second of imports, which torch.compile has made

            if not isinstance(error, TorchDynamoException):
                raise
            cause = getattr(error, "inner_exception", error)  # of what compiles, where it was not the tracing
            self._failed(str(cause).strip().partition("\n")[0].rstrip(".") + ".")
            self._forward = self._plain
        return self._plain(*given)
