"""From the first step to the last: validate, look, save, and stop for the right reason. The only such loop there is."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from gpt2.errors import RunError
from gpt2.training.guard import DivergedError
from gpt2.training.metrics import Record
from gpt2.training.trainer import StopWished, Trainer

Outcome = Literal["completed", "stopped early", "preempted"]
ROLLBACKS_AT_MOST = 3
LEAST_EPOCH = 5
"""Steps of an epoch that is worth a validation at its end; a text of a page has an epoch in every step."""
HALTS = 20
"""Checkpoints that the ends of epochs may add to a run whose regular ones are few: one of them may be the best."""
LEAST_APART = 10
"""Steps from the last checkpoint to one of these, at least, as between the regular ones of a short run."""


class Tracker(Protocol):
    """Something that wants to know of each step."""

    def log(self, record: Record) -> None:
        """Take note of a step."""
        ...


@dataclass(slots=True)
class Rhythm:
    """When to do what, in optimizer steps; `steps` may change on the way."""

    steps: int
    eval_every: int
    save_every: int | None
    patience: int | None


@dataclass(frozen=True, slots=True)
class Owed:
    """A validation that is due and not yet made: one that is broken off is made by whoever goes on with the run."""

    record: Record
    """Of the step before it; it is not told to anyone without its validation loss."""
    halts: bool
    """Whether it counts for the best, and the run is saved then."""
    looks: bool
    """Whether the run is also looked at."""


@dataclass(slots=True)
class Progress:
    """What the loop remembers from one validation to the next; saved with each checkpoint."""

    best_loss: float = math.inf
    best_step: int = 0
    since_best: int = 0
    warned: bool = False
    validations: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, mean training loss since the stop before, validation loss) of each stop."""
    train_sum: float = 0.0
    train_count: int = 0
    """Sum and number of the training losses since the last stop."""
    rollbacks: int = 0
    owed: Owed | None = None

    def told(self, step: int) -> int:
        """The last step, of so many, whose lines are in the run's files."""
        return step if self.owed is None else step - 1

    def note(self, step: int, val_loss: float) -> None:
        """Remember a validation."""
        self.validations.append((step, self.train_sum / self.train_count, val_loss))
        self.train_sum, self.train_count = 0.0, 0
        if val_loss < self.best_loss:
            self.best_loss, self.best_step, self.since_best = val_loss, step, 0
        else:
            self.since_best += 1

    def to_json(self) -> dict[str, Any]:
        """JSON values; infinity as null."""
        return asdict(self) | {"best_loss": self.best_loss if math.isfinite(self.best_loss) else None}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Remember what was saved, in place of what is remembered now."""
        for name, value in values.items():
            setattr(self, name, value)
        self.best_loss = math.inf if values["best_loss"] is None else values["best_loss"]
        self.validations = [(int(step), float(train), float(val)) for step, train, val in values["validations"]]
        owed = values.get("owed")
        self.owed = (
            None if owed is None else Owed(Record(**owed["record"]), owed["halts"], owed.get("looks", owed["halts"]))
        )


def overfitting(progress: Progress) -> str | None:
    """In words, when it begins: validation has been getting worse for three stops while training gets better.

    And when it turns out to have been none: validation has got better than ever since.
    """
    step, train, val = progress.validations[-1]
    if progress.warned and progress.since_best == 0:
        progress.warned = False
        return f"The validation loss is at its lowest again: {val:.3f} at step {step}. That was no overfitting so far."
    train_before = progress.validations[-4:][0][1]
    if progress.warned or progress.since_best < 3 or val < 1.005 * progress.best_loss or train >= train_before:
        return None
    progress.warned = True
    return (
        f"This looks like overfitting: since step {progress.best_step} the validation loss rose from "
        f"{progress.best_loss:.3f} to {val:.3f} (step {step}) while the training loss fell from {train_before:.3f} to "
        f"{train:.3f}. The checkpoint of step {progress.best_step} stays `best`. If it goes on like this, more text "
        "helps most; then more --model.dropout, a smaller --model.preset, or fewer steps."
    )


def passed_over(step: int, batches: int, why: str) -> str:
    """In words, that batches did not reach the weights, and why the last of them did not."""
    which = "A batch was" if batches == 1 else f"{batches} batches were"
    return (
        f"{which} passed over before step {step}: {why}. The next was taken in its place. This is harmless if it is "
        "rare; if it is not, halve the rate (--optim.lr, --optim.matrix-lr)."
    )


def fit(
    trainer: Trainer,
    rhythm: Rhythm,
    progress: Progress,
    trackers: list[Tracker],
    validate: Callable[[], float],
    look: Callable[[Record], None],
    save: Callable[[float | None, bool], None],
    roll_back: Callable[[], int | None],
    notify: Callable[[str], None],
    replan: Callable[[int, int], int | None] = lambda step, steps: None,
    paused: Callable[[float], None] = lambda seconds: None,
) -> Outcome:
    """Train to the last step, or until patience ends or a stop is wished. In each case the state is saved.

    A stop does not wait for a validation: it is broken off, and the run that goes on begins with it.

    Every `eval_every` steps the whole validation part is measured, and at the end of every epoch of at least
    `LEAST_EPOCH` steps. At the former (and at the latter, where an epoch is no shorter than `eval_every`) it is also
    looked at and saved. At the end of an epoch it is saved, too, a twentieth of the run after the last time: on a
    few pages a plot and a checkpoint for each epoch would take longer than the training.

    Args:
        trainer: makes the steps, and knows of wishes to stop.
        rhythm: when to do what.
        progress: what is remembered; changed in place.
        trackers: get each record.
        validate: → mean validation loss; raises `StopWished`, where a stop is.
        look: shows the run at this record: sample text, plots.
        save: writes a checkpoint, given the validation loss at this step, where it was measured, and whether training
            ends here: then it does not return before it knows whether that could be written.
        roll_back: puts everything back to the last good checkpoint, but goes on with other data → its step; None
            where there is none.
        notify: tells the user something that happened.
        replan: steps done, steps planned → another last step, or None; the schedule has followed.
        paused: is told how many seconds a validation took, with all that goes with it.

    Raises:
        RunError: the numbers went bad again and again.
    """
    if rhythm.patience is not None and progress.since_best >= rhythm.patience:
        return "stopped early"  # it was cut off after its last save, before it could say so
    while progress.owed is not None or trainer.step < rhythm.steps:
        try:
            record = _step(trainer, rhythm, progress, replan, notify) if progress.owed is None else progress.owed.record
            step, owed, before = record.step, progress.owed, time.monotonic()
            if owed is not None:
                record.seconds = trainer.seconds  # of this command
                record.val_loss = validate()
                if not math.isfinite(record.val_loss):
                    raise DivergedError(f"At step {step} the validation loss is {record.val_loss:g}.")
        except StopWished:
            save(None, True)
            return "preempted"
        except DivergedError as error:
            rolled_back = progress.rollbacks
            back = roll_back() if rolled_back < ROLLBACKS_AT_MOST else None
            if back is None:
                raise RunError(
                    str(error),
                    "The rate is probably too high: train again with half of --optim.lr (and --optim.matrix-lr), and "
                    "with the usual --optim.weight-decay." + " Checkpoints are intact." * (rolled_back > 0),
                ) from None
            progress.rollbacks = rolled_back + 1
            notify(f"{error} Going back to the checkpoint of step {back}, and on with the data after this.")
            continue
        progress.owed = None
        progress.train_sum += record.train_loss
        progress.train_count += 1
        for tracker in trackers:
            tracker.log(record)
        if record.val_loss is not None and owed is not None and owed.halts:
            progress.note(step, record.val_loss)
            if words := overfitting(progress):
                notify(words)
            if owed.looks:
                look(record)  # before the checkpoint: what a resumed run finds beyond its step, it makes again
            out_of_patience = rhythm.patience is not None and progress.since_best >= rhythm.patience
            save(record.val_loss, trainer.stop_wished or out_of_patience or step == rhythm.steps)
            if out_of_patience and step < rhythm.steps:
                return "stopped early"
        elif trainer.stop_wished or (rhythm.save_every is not None and step % rhythm.save_every == 0):
            save(None, trainer.stop_wished)
        if record.val_loss is not None:
            paused(time.monotonic() - before)
        if trainer.stop_wished and step < rhythm.steps:
            return "preempted"
    return "completed"


def _step(
    trainer: Trainer,
    rhythm: Rhythm,
    progress: Progress,
    replan: Callable[[int, int], int | None],
    notify: Callable[[str], None],
) -> Record:
    """One step; where a validation is due after it, that is owed from now on."""
    epoch_before = math.floor(trainer.epoch)
    record = trainer.train_step()
    step = record.step
    if record.skipped:
        notify(passed_over(step, record.skipped, trainer.objection))
    rhythm.steps = replan(step, rhythm.steps) or rhythm.steps
    epoch_ended = math.floor(trainer.epoch) > epoch_before
    regular = step % rhythm.eval_every == 0 or step == rhythm.steps
    looks = regular or (epoch_ended and step / trainer.epoch >= rhythm.eval_every)
    measured = looks or (epoch_ended and step / trainer.epoch >= LEAST_EPOCH)
    last = progress.validations[-1][0] if progress.validations else 0
    halts = looks or step - last >= max(LEAST_APART, rhythm.steps / HALTS)
    if measured:
        progress.owed = Owed(record, halts, looks)
    return record
