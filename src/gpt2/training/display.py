"""What a user sees of a run while it trains: one live line in a terminal, a line now and then in a log."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from gpt2.console import console, say
from gpt2.training.metrics import Record

LOG_SECONDS = 30.0
NARROW = 100
"""Columns below which a terminal shows less of a step, so that the bar and the time left have room."""
MANY = 9_999
"""Steps above which it has no room for the step of the last validation either."""


class Display:
    """A tracker that shows step, epoch, losses, learning rate, speed and time left.

    Args:
        steps: last step of the run.
        done: steps made before.
        val_loss: the last one measured.
        val_step: when that was.
        clock: seconds; another one in tests.
    """

    def __init__(
        self,
        steps: int,
        done: int,
        val_loss: float | None,
        val_step: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps = steps
        self.val_loss = val_loss
        self.val_step = val_step
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[left]}"),
            console=console(),
            disable=not console().is_terminal,
            refresh_per_second=4,
        )
        self._task: TaskID = self._bar.add_task("starting", total=steps, completed=done, left="")
        self._sum = self._weight = 0.0
        self._clock = clock
        self._logged = clock()
        self._first: tuple[int, float] | None = None
        """The first step of this command, and when it was done: set-up is over then."""

    def __enter__(self) -> "Display":
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def change_steps(self, steps: int) -> None:
        """The run was given another end."""
        self.steps = steps
        self._bar.update(self._task, total=steps)

    def log(self, record: Record) -> None:
        """Show a step."""
        # A mean over about five steps, corrected for its start: in a short run a longer one would lag far behind.
        self._sum, self._weight = 0.8 * self._sum + 0.2 * record.train_loss, 0.8 * self._weight + 0.2
        if record.val_loss is not None:
            self.val_loss, self.val_step = record.val_loss, record.step
        self._first = self._first or (record.step, self._clock())
        left = self.left(record.step)
        self._bar.update(self._task, completed=record.step, description=self.line(record), left=left)
        if self._bar.disable and (record.val_loss is not None or self._clock() - self._logged > LOG_SECONDS):
            self._logged = self._clock()
            say(f"{self.line(record)}  {left}")

    def line(self, record: Record) -> str:
        """The step in one line."""
        narrow = console().is_terminal and console().width < NARROW
        losses = f"train {self._sum / self._weight:.3f}"
        if self.val_loss is not None:
            losses += f"  val {self.val_loss:.3f}"
            if self.val_step != record.step and not (narrow and self.steps > MANY):
                losses += f" at {self.val_step}"
        speed = f"{_short(record.tokens_per_second)} tokens/s"
        if narrow:
            return f"{record.step}/{self.steps}  {losses}  {speed}"
        return f"step {record.step}/{self.steps}  epoch {record.epoch:.1f}  {losses}  lr {record.lr:.1e}  {speed}"

    def left(self, step: int) -> str:
        """The time left in words, by the mean pace of this command's steps with the validations between them."""
        if self._first is None or step == self._first[0]:
            return ""
        seconds = (self.steps - step) * (self._clock() - self._first[1]) / (step - self._first[0])
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return "left " + (f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}")


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"
