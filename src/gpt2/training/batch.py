"""A batch of a run, and where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch on its way to the device, and where the data stands after it."""

    inputs: Tensor
    targets: Tensor
    loader: dict[str, Any]
    epoch: float


class Loader(Protocol):
    """Gives batches in an order that is a formula of its state."""

    @property
    def epoch(self) -> float:
        """Passes over the data done, a fraction."""
        ...

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of this process's part of the next batch, each of shape (B/W, T)."""
        ...

    def state(self) -> dict[str, Any]:
        """What continues the order from here."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from there."""
        ...
