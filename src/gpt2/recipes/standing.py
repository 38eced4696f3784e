"""How a run stands, for whoever watches it; and what is told where its disk takes no more."""

from pathlib import Path
from typing import Any, NoReturn

from gpt2.console import warn
from gpt2.distributed import World
from gpt2.errors import RunError, UserError
from gpt2.files import FULL, disk_error, write_json
from gpt2.training import checkpoint


def require_room(folder: Path, expected: int) -> None:
    """Stop before the first step where not even one checkpoint could be saved."""
    try:
        checkpoint.require_room(folder, expected)
    except OSError as error:
        refuse(folder, f"No space left for a checkpoint in {folder}: {error.strerror}.")


def refuse(folder: Path, what: str) -> NoReturn:
    """End the run.

    Raises:
        RunError: always: what happened, and how to go on when that is mended.
    """
    first = "Free some disk space, then" if what.startswith("No space") else "When that is mended"
    raise RunError(what, f"{first}: gpt2 train --resume {folder}") from None


def name(step: int) -> str:
    """What a checkpoint is called in a message."""
    return f"The checkpoint of step {step}"


def why(error: BaseException, doing: str = "") -> str:
    """In a sentence, why a checkpoint could not be written."""
    if isinstance(error, OSError):
        return disk_error(error, doing or "saving").what
    if isinstance(error, UserError):
        return error.what
    return f"{type(error).__name__}{f': {error}' if str(error) else ''}."


def is_full(error: BaseException) -> bool:
    """Whether it says that the disk has no more room."""
    return isinstance(error, OSError) and error.errno in FULL


def step_on_disk(folder: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    there = checkpoint.list_checkpoints(folder)
    return checkpoint.step_of(there[-1]) or 0 if there else 0


def left(folder: Path) -> str:
    """In a sentence, what of the run is on the disk."""
    step = step_on_disk(folder)
    return f"The checkpoint of step {step:,} is intact." if step else "There is no checkpoint yet."


def write_state(folder: Path, world: World, status: str, step: int) -> None:
    """run_state.json: how the run stands, for whoever watches it."""
    if world.is_main:
        write(folder, "run_state.json", {"status": status, "step": step})


def write(folder: Path, name: str, value: dict[str, Any]) -> None:
    """Write one of the run's files. Where the disk refuses it, the one before stays: no reason to lose the run."""
    try:
        write_json(folder / name, value)
    except OSError as error:
        warn(disk_error(error, f"writing {name}").what)
