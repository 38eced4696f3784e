"""run.json, by which a run is repeated, and run_state.json, how it ended: also where they are damaged."""

from pathlib import Path
from typing import Any

from gpt2.config.schema import Settings
from gpt2.errors import RunError, UserError
from gpt2.files import read_json


def read_record(folder: Path) -> dict[str, Any]:
    """run.json of a run.

    Raises:
        RunError: it is damaged.
    """
    path = folder / "run.json"
    try:
        record = read_json(path)
        Settings.model_validate(record["settings"])
    except (UserError, ValueError, KeyError, TypeError) as error:
        what = error.what if isinstance(error, UserError) else f"{path} does not hold the settings of a run."
        raise RunError(what, f"Its checkpoints have copies: cp {folder}/last/run.json {path}") from None
    return record


def read_status(folder: Path) -> str | None:
    """How a run ended, by run_state.json; None where that is not there, or damaged: what counts are the checkpoints."""
    try:
        return read_json(folder / "run_state.json").get("status")
    except (FileNotFoundError, UserError, AttributeError):
        return None
