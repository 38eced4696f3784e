"""The mean of the weights over the last part of a run: what is measured, shown and saved in their place."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from gpt2.optim.optimizer import Optimizer


class Averaging:
    """Keeps the mean beside the optimizers' other notes on each weight, so that it is saved and restored with them.

    Args:
        optimizers: of the weights.
        share: step made → how far the mean moves to where the weights stand; 0 at each: no mean is kept.
    """

    def __init__(self, optimizers: Sequence[Optimizer], share: Callable[[int], float]) -> None:
        self.optimizers = optimizers
        self.share = share

    def take(self, step: int) -> None:
        """Take the weights after this step into the mean."""
        if share := self.share(step):
            for optimizer in self.optimizers:
                optimizer.take_into_means(share)

    def exchange(self, step: int) -> None:
        """Put the mean where the weights are, or both back. In a checkpoint the mean stands where they are."""
        if self.share(step):
            for optimizer in self.optimizers:
                optimizer.exchange_means()

    def restored(self, step: int) -> None:
        """After weights and optimizers came from a checkpoint: put both back. Where no mean is kept, go on with it.

        Then it is the weights, and those are forgotten.
        """
        self.exchange(step)
        if not self.share(step):
            for optimizer in self.optimizers:
                optimizer.forget_means()

    @contextlib.contextmanager
    def in_place(self, step: int) -> Iterator[None]:
        """While active, the model's weights are their mean, where one is kept."""
        self.exchange(step)
        try:
            yield
        finally:
            self.exchange(step)
