"""The one loop, with a trainer that only counts: when it validates, looks and saves, and why it ends."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from gpt2.errors import RunError
from gpt2.training.fit import Progress, Rhythm, fit, passed_over
from gpt2.training.guard import DivergedError
from gpt2.training.metrics import Record
from gpt2.training.trainer import StopWished


class Counter:
    """A trainer of nothing, with an epoch of so many steps."""

    def __init__(self, epoch_steps: int) -> None:
        self.step = 0
        self.epoch = self.seconds = 0.0
        self.stop_wished = False
        self.stop_at = 0
        self.bad_at: set[int] = set()
        self.epoch_steps = epoch_steps

    def train_step(self) -> Record:
        if self.step + 1 in self.bad_at:
            self.bad_at.remove(self.step + 1)
            raise DivergedError("no number.")
        self.step += 1
        self.epoch = self.step / self.epoch_steps
        self.stop_wished = self.step == self.stop_at
        return Record(self.step, self.epoch, self.step, 0.0, 5.0 - 0.1 * self.step, 0.1, 1.0, 1.0)


class Diary:
    """What the loop did, and the answers it gets; a validation whose loss is None is broken off."""

    def __init__(self, losses: Iterable[float | None]) -> None:
        self.losses = iter(losses)
        self.validated: list[int] = []
        self.saved: list[tuple[int, float | None]] = []
        self.waited_for: list[int] = []
        self.looked_at: list[int] = []
        self.words: list[str] = []
        self.trainer: Any = None

    def run(
        self,
        rhythm: Rhythm,
        progress: Progress,
        epoch_steps: int = 10**6,
        stop_at: int = 0,
        bad_at: Iterable[int] = (),
        start_at: int = 0,
    ) -> str:
        self.trainer = Counter(epoch_steps)
        self.trainer.step = start_at
        self.trainer.stop_at, self.trainer.bad_at = stop_at, set(bad_at)
        return fit(
            self.trainer,
            rhythm,
            progress,
            [],
            self._validate,
            lambda record: self.looked_at.append(record.step),
            self._save,
            self._roll_back,
            self.words.append,
        )

    def _save(self, val_loss: float | None, ends: bool) -> None:
        self.saved.append((self.trainer.step, val_loss))
        if ends:
            self.waited_for.append(self.trainer.step)

    def _roll_back(self) -> int | None:
        if not self.saved:
            return None
        self.trainer.step = self.saved[-1][0]
        return self.trainer.step

    def _validate(self) -> float:
        self.validated.append(self.trainer.step)
        loss = next(self.losses)
        if loss is None:
            raise StopWished
        return loss


def test_it_validates_at_its_rhythm_at_epochs_and_at_the_end() -> None:
    diary = Diary([4.0, 3.0, 3.5, 2.0, 1.0])
    assert diary.run(Rhythm(10, 4, None, None), Progress(), epoch_steps=6) == "completed"
    assert diary.validated == [4, 6, 8, 10]
    assert diary.saved == [(4, 4.0), (6, 3.0), (8, 3.5), (10, 2.0)]
    assert diary.waited_for == [10]


def test_a_short_epoch_is_measured_but_not_saved() -> None:
    diary = Diary([9.0] * 9)
    diary.run(Rhythm(12, 8, None, None), Progress(), epoch_steps=5)
    assert diary.validated == [5, 8, 10, 12]
    assert [step for step, _ in diary.saved] == [8, 12]
    assert diary.looked_at == [8, 12]


def test_the_best_is_kept_though_it_stands_between_the_regular_validations() -> None:
    diary, progress = Diary([4.0, 3.0, 3.5, 3.6]), Progress()
    assert diary.run(Rhythm(400, 400, None, None), progress, epoch_steps=100) == "completed"
    assert diary.saved == [(100, 4.0), (200, 3.0), (300, 3.5), (400, 3.6)]
    assert (progress.best_step, progress.best_loss) == (200, 3.0)
    assert diary.looked_at == [400]
    diary = Diary([4.0, 3.0, 3.5, 3.6])
    assert diary.run(Rhythm(600, 600, None, patience=2), Progress(), epoch_steps=100) == "stopped early"
    assert diary.saved[-1] == (400, 3.6)


def test_the_ends_of_epochs_add_twenty_checkpoints_at_most() -> None:
    diary = Diary([9.0] * 99)
    diary.run(Rhythm(1000, 1000, None, None), Progress(), epoch_steps=20)
    assert len(diary.validated) == 50
    assert [step for step, _ in diary.saved] == [*range(60, 1000, 60), 1000]


@pytest.mark.parametrize("epoch_steps", [0.25, 1, 4])
def test_an_epoch_of_a_few_steps_is_not_even_measured(epoch_steps: int) -> None:
    diary = Diary([9.0] * 9)
    diary.run(Rhythm(12, 8, None, None), Progress(), epoch_steps=epoch_steps)
    assert diary.validated == [8, 12]


def test_it_goes_back_to_the_last_checkpoint_when_the_numbers_go_bad_and_not_for_ever() -> None:
    diary = Diary([4.0, 3.0, 2.0])
    assert diary.run(Rhythm(12, 4, None, None), Progress(), bad_at=[6, 11]) == "completed"
    assert [step for step, _ in diary.saved] == [4, 8, 12]
    assert "checkpoint of step 4" in diary.words[0]
    assert "checkpoint of step 8" in diary.words[1]
    with pytest.raises(RunError, match="no number"):
        Diary([4.0] * 9).run(Rhythm(12, 2, None, None), Progress(), bad_at=[3, 5, 7, 9])


def test_bad_numbers_before_the_first_checkpoint_end_the_run() -> None:
    with pytest.raises(RunError, match="no number"):
        Diary([]).run(Rhythm(12, 4, None, None), Progress(), bad_at=[2])


def test_patience_ends_it_after_so_many_validations_without_a_new_best() -> None:
    diary, progress = Diary([3.0, 2.0, 2.5, 2.6, 1.0]), Progress()
    assert diary.run(Rhythm(50, 5, None, 2), progress) == "stopped early"
    assert diary.trainer.step == 20
    assert diary.waited_for == [20]
    assert progress.best_step == 10


@pytest.mark.parametrize(("eval_every", "save_every"), [(20, None), (20, 7), (7, None)])
def test_a_stop_is_saved_within_the_step_and_waited_for(eval_every: int, save_every: int | None) -> None:
    diary = Diary([4.0])
    assert diary.run(Rhythm(50, eval_every, save_every, None), Progress(), stop_at=7) == "preempted"
    assert diary.saved == [(7, 4.0 if eval_every == 7 else None)]
    assert diary.waited_for == [7]


def test_a_validation_that_is_broken_off_is_saved_as_owed_and_made_first_of_all() -> None:
    diary, progress = Diary([4.0, None]), Progress()
    assert diary.run(Rhythm(12, 4, None, None), progress) == "preempted"
    assert diary.saved == [(4, 4.0), (8, None)]
    assert diary.waited_for == [8]
    assert progress.told(8) == 7
    saved, again = json.loads(json.dumps(progress.to_json())), Progress()
    again.restore(saved)
    resumed = Diary([3.0, 5.0])
    assert resumed.run(Rhythm(12, 4, None, None), again, start_at=8) == "completed"
    assert resumed.validated == [8, 12]
    assert resumed.saved == [(8, 3.0), (12, 5.0)]
    unbroken = Progress()
    Diary([4.0, 3.0, 5.0]).run(Rhythm(12, 4, None, None), unbroken)
    assert again == unbroken
    assert again.told(12) == 12


def test_overfitting_is_said_once_in_words() -> None:
    diary = Diary([3.0, 2.0, 2.1, 2.2, 2.3, 2.4])
    diary.run(Rhythm(6, 1, None, None), Progress())
    assert len(diary.words) == 1
    assert "since step 2 the validation loss rose from 2.000 to 2.300 (step 5)" in diary.words[0]
    assert "training loss fell from 4.800 to 4.500. The checkpoint of step 2 stays `best`." in diary.words[0]


def test_overfitting_is_taken_back_when_validation_gets_better_than_ever_and_may_begin_again() -> None:
    diary = Diary([3.0, 2.0, 2.1, 2.2, 2.3, 1.9, 1.8, 1.9, 2.0, 2.1])
    diary.run(Rhythm(10, 1, None, None), Progress())
    assert [("looks like" in words, "no overfitting so far" in words) for words in diary.words] == [
        (True, False),
        (False, True),
        (True, False),
    ]
    assert "1.900 at step 6" in diary.words[1]


def test_batches_passed_over_are_told_with_the_values_in_a_sentence() -> None:
    assert passed_over(140, 1, "the loss jumped").startswith(
        "A batch was passed over before step 140: the loss jumped."
    )
    assert passed_over(140, 2, "").startswith("2 batches were passed over before step 140: ")
