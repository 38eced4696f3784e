"""Whether settings agree with each other: one length, and nothing given that would do nothing."""

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


def require_effect(
    given: Mapping[str, Any], optim: OptimSettings, schedule: ScheduleSettings, origin: str = ""
) -> None:
    """Stop where a setting was given that another one leaves without effect.

    Args:
        given: what was typed, or stands in a file, nested.
        optim: of the run, or of the file by itself.
        schedule: the same.
        origin: the file; empty: typed.

    Raises:
        ConfigError: both are named.
    """
    rules = (
        ("schedule", schedule.name, "wsd", schedule.name != "wsd", ("cooldown",)),
        ("optim", optim.name, "muon", optim.name == "adamw", ("matrix_lr", "momentum", "matrix_precision")),
    )
    dashes, prefix = ("", f"{origin}: ") if origin else ("--", "")
    for section, chosen, other, idle, names in rules:
        for name in names if idle else ():
            if name in given.get(section, {}):
                raise ConfigError(
                    f"{prefix}{dashes}{section}.{name.replace('_', '-')} does nothing with "
                    f"{dashes}{section}.name {chosen}.",
                    f"Leave it out, or choose {dashes}{section}.name {other}.",
                )
