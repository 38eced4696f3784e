"""What a user sees of a run while it trains: one live line in a terminal, a line now and then in a log."""

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gpt2.console import console, say
from gpt2.training.metrics import Record

LOG_SECONDS = 30.0


class Display:
    """A tracker that shows step, epoch, losses, learning rate, speed and time left."""

    def __init__(self, steps: int, done: int, val_loss: float | None) -> None:
        self.steps = steps
        self.val_loss = val_loss
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console(),
            disable=not console().is_terminal,
            refresh_per_second=4,
        )
        self._task: TaskID = self._bar.add_task("starting", total=steps, completed=done)
        self._sum = self._weight = 0.0
        self._logged = time.monotonic()

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
            self.val_loss = record.val_loss
        self._bar.update(self._task, completed=record.step, description=self.line(record))
        if self._bar.disable and (record.val_loss is not None or time.monotonic() - self._logged > LOG_SECONDS):
            self._logged = time.monotonic()
            left = self._seconds_left(record)
            say(f"{self.line(record)}  left {int(left // 60)}:{int(left % 60):02d}")

    def line(self, record: Record) -> str:
        """The step in one line."""
        losses = f"train {self._sum / self._weight:.3f}"
        if self.val_loss is not None:
            losses += f"  val {self.val_loss:.3f}"
        return (
            f"step {record.step}/{self.steps}  epoch {record.epoch:.1f}  {losses}"
            f"  lr {record.lr:.1e}  {_short(record.tokens_per_second)} tokens/s"
        )

    def _seconds_left(self, record: Record) -> float:
        return (self.steps - record.step) * record.tokens / record.step / max(record.tokens_per_second, 1e-9)


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"
