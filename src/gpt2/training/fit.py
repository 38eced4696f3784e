"""From the first step to the last: validate, look, save, and stop for the right reason. The only such loop there is."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from gpt2.training.interrupt import StopRequest
from gpt2.training.metrics import Record
from gpt2.training.trainer import Trainer

Outcome = Literal["completed", "stopped early", "interrupted"]


class Tracker(Protocol):
    """Something that wants to know of each step."""

    def log(self, record: Record) -> None:
        """Take note of a step."""
        ...


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When to do what, in optimizer steps."""

    steps: int
    eval_every: int
    save_every: int | None
    patience: int | None


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

    def to_json(self) -> dict[str, Any]:
        """JSON values; infinity as null."""
        return asdict(self) | {"best_loss": self.best_loss if math.isfinite(self.best_loss) else None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """Back from JSON values."""
        best = values["best_loss"]
        validations = [(int(step), float(train), float(val)) for step, train, val in values["validations"]]
        return cls(**{**values, "best_loss": math.inf if best is None else best, "validations": validations})


def overfitting(progress: Progress) -> str | None:
    """In words, when it begins: validation has been getting worse for three stops while training gets better."""
    if len(progress.validations) < 4:
        return None
    (_, train_before, _), *_, (step, train, val) = progress.validations[-4:]
    if progress.since_best < 3 or val < 1.005 * progress.best_loss or train >= train_before:
        return None
    return (
        f"Overfitting has begun: since step {progress.best_step} the validation loss rose from "
        f"{progress.best_loss:.3f} to {val:.3f} (step {step}) while the training loss fell to {train:.3f}. "
        f"The model is learning its text by heart. The checkpoint of step {progress.best_step} is kept as `best`. "
        "More text helps most; then more --model.dropout, a smaller --model.preset, or fewer steps."
    )


def fit(
    trainer: Trainer,
    rhythm: Rhythm,
    progress: Progress,
    trackers: list[Tracker],
    validate: Callable[[], float],
    look: Callable[[Record], None],
    save: Callable[[bool], bool],
    notify: Callable[[str], None],
    stop: StopRequest,
) -> Outcome:
    """Train to the last step, or until patience ends or a signal comes. In each case the state is saved.

    Every epoch's end and every `eval_every` steps the whole validation part is measured. At the latter (and at the
    former, where an epoch is no shorter than `eval_every`) it is also looked at and saved: a text of a few pages has
    an epoch in every step, and a plot and a checkpoint for each would take longer than the training.

    Args:
        trainer: makes the steps.
        rhythm: when to do what.
        progress: what is remembered; changed in place.
        trackers: get each record.
        validate: → mean validation loss.
        look: shows the run at this record: sample text, plots.
        save: writes a checkpoint; its argument tells whether it is the best so far. → whether it is now on disk.
        notify: tells the user something that happened.
        stop: a wish to end after the current step.
    """
    while trainer.step < rhythm.steps:
        epoch_before = math.floor(trainer.loader.epoch)
        record = trainer.train_step()
        progress.train_sum += record.train_loss
        progress.train_count += 1
        step = record.step
        epoch_ended = math.floor(trainer.loader.epoch) > epoch_before
        epoch_steps = step / max(trainer.loader.epoch, 1e-9)
        stop_here = (
            step % rhythm.eval_every == 0 or step == rhythm.steps or (epoch_ended and epoch_steps >= rhythm.eval_every)
        )
        if stop_here or epoch_ended:
            record.val_loss = validate()
        for tracker in trackers:
            tracker.log(record)
        if record.val_loss is not None and stop_here:
            progress.validations.append((step, progress.train_sum / progress.train_count, record.val_loss))
            progress.train_sum, progress.train_count = 0.0, 0
            kept = progress.best_loss, progress.best_step
            best = record.val_loss < progress.best_loss
            if best:
                progress.best_loss, progress.best_step, progress.since_best = record.val_loss, step, 0
            else:
                progress.since_best += 1
            words = overfitting(progress)
            if words and not progress.warned:
                progress.warned = True
                notify(words)
            look(record)  # before the checkpoint: what a resumed run finds beyond its step, it makes again
            if not save(best):
                progress.best_loss, progress.best_step = kept  # the best is what can be loaded
            if rhythm.patience is not None and progress.since_best >= rhythm.patience and step < rhythm.steps:
                return "stopped early"
        elif rhythm.save_every is not None and step % rhythm.save_every == 0:
            save(False)
        if stop.received is not None and step < rhythm.steps:
            if not stop_here:
                save(False)
            return "interrupted"
    return "completed"
