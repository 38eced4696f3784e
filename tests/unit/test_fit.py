"""The one loop, with a trainer that only counts: when it validates, looks and saves, and why it ends."""

import signal
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from gpt2.training.fit import Progress, Rhythm, fit
from gpt2.training.interrupt import StopRequest
from gpt2.training.metrics import Record


class Counter:
    """A trainer of nothing, with an epoch of so many steps."""

    def __init__(self, epoch_steps: int) -> None:
        self.step = 0
        self.loader = SimpleNamespace(epoch=0.0)
        self.epoch_steps = epoch_steps

    def train_step(self) -> Record:
        self.step += 1
        self.loader.epoch = self.step / self.epoch_steps
        return Record(self.step, self.loader.epoch, self.step, 0.0, 5.0 - 0.1 * self.step, 0.1, 1.0, 1.0)


class Diary:
    """What the loop did, and the answers it gets."""

    def __init__(self, losses: Iterable[float], refused: Iterable[int] = ()) -> None:
        self.losses = iter(losses)
        self.refused = set(refused)
        self.validated: list[int] = []
        self.saved: list[tuple[int, bool]] = []
        self.words: list[str] = []
        self.trainer: Any = None

    def run(self, rhythm: Rhythm, progress: Progress, epoch_steps: int = 10**6, stop_at: int = 0) -> str:
        self.trainer = Counter(epoch_steps)
        stop = StopRequest()

        def log(record: Record) -> None:
            if record.step == stop_at:
                stop.received = signal.SIGINT

        return fit(
            self.trainer,
            rhythm,
            progress,
            [SimpleNamespace(log=log)],
            self._validate,
            lambda record: None,
            self._save,
            self.words.append,
            stop,
        )

    def _validate(self) -> float:
        self.validated.append(self.trainer.step)
        return next(self.losses)

    def _save(self, best: bool) -> bool:
        self.saved.append((self.trainer.step, best))
        return self.trainer.step not in self.refused


def test_it_validates_at_its_rhythm_at_epochs_and_at_the_end() -> None:
    diary = Diary([4.0, 3.0, 3.5, 2.0, 1.0])
    assert diary.run(Rhythm(10, 4, None, None), Progress(), epoch_steps=6) == "completed"
    assert diary.validated == [4, 6, 8, 10]
    assert diary.saved == [(4, True), (6, True), (8, False), (10, True)]


def test_a_short_epoch_is_measured_but_not_saved() -> None:
    diary = Diary([9.0] * 9)
    diary.run(Rhythm(6, 4, None, None), Progress(), epoch_steps=2)
    assert diary.validated == [2, 4, 6]
    assert [step for step, _ in diary.saved] == [4, 6]


def test_a_best_that_could_not_be_saved_is_not_the_best() -> None:
    """Else the record would speak of a checkpoint that is not there, and `best` would lead to a worse one for good."""
    diary, progress = Diary([4.0, 2.0, 3.0], refused=[2]), Progress()
    diary.run(Rhythm(3, 1, None, None), progress)
    assert (progress.best_loss, progress.best_step) == (3.0, 3)
    assert diary.saved == [(1, True), (2, True), (3, True)]


def test_patience_ends_it_after_so_many_validations_without_a_new_best() -> None:
    diary, progress = Diary([3.0, 2.0, 2.5, 2.6, 1.0]), Progress()
    assert diary.run(Rhythm(50, 5, None, 2), progress) == "stopped early"
    assert diary.trainer.step == 20
    assert progress.best_step == 10


def test_a_stop_is_saved_within_the_step() -> None:
    diary = Diary([])
    assert diary.run(Rhythm(50, 20, None, None), Progress(), stop_at=7) == "interrupted"
    assert diary.saved == [(7, False)]


def test_overfitting_is_said_once_in_words() -> None:
    diary = Diary([3.0, 2.0, 2.1, 2.2, 2.3, 2.4])
    diary.run(Rhythm(6, 1, None, None), Progress())
    assert len(diary.words) == 1
    assert "since step 2" in diary.words[0]
