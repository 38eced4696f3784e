"""Whether settings agree with each other: one length, and nothing typed that would do nothing."""

from collections.abc import Mapping
from typing import Any

from gpt2.config.schema import OptimSettings, ScheduleSettings, TrainSettings
from gpt2.errors import ConfigError


def require_one_length(train: TrainSettings) -> None:
    """Stop where a run is to have so many steps and to take so many minutes.

    Raises:
        ConfigError: it is.
    """
    if train.minutes is not None and (train.steps or train.epochs) is not None:
        raise ConfigError(
            "The length of a run is given once: minutes come to as many steps as the machine makes in them.",
            "Give --train.minutes, --train.steps or --train.epochs.",
        )


def require_effect(typed: Mapping[str, Any], optim: OptimSettings, schedule: ScheduleSettings) -> None:
    """Stop where a setting was typed that another one leaves without effect.

    Args:
        typed: what was typed, nested; a file may hold what it does not use.
        optim: of the run.
        schedule: of the run.

    Raises:
        ConfigError: both are named.
    """
    idle = {
        "schedule": {"cooldown": "wsd"} if schedule.name != "wsd" else {},
        "optim": dict.fromkeys(("matrix_lr", "momentum", "matrix_precision"), "muon") if optim.name == "adamw" else {},
    }
    if schedule.name == "constant":
        idle["schedule"]["final"] = "linear"
    for section, names in idle.items():
        for name in names.keys() & typed.get(section, {}).keys():
            chosen = schedule.name if section == "schedule" else optim.name
            raise ConfigError(
                f"--{section}.{name.replace('_', '-')} does nothing with --{section}.name {chosen}.",
                f"Leave it out, or choose --{section}.name {names[name]}.",
            )
