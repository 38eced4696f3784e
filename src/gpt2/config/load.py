"""Defaults < TOML file < command line: read as plain values, laid over each other, then checked once by the schema.

pydantic judges the values: a wrong one gets the same message whether it stood in a file or on the command line.
"""

import difflib
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gpt2.errors import ConfigError
from gpt2.files import read_json

Schema = TypeVar("Schema", bound=BaseModel)


def nearest(name: str, names: Sequence[str]) -> str:
    """The name that `name` was most likely meant to be, or nothing."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return found[0] if found else ""


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The words that a setting can be, where it is one of a few."""
    return typing.get_args(field.annotation) if typing.get_origin(field.annotation) is Literal else ()


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        ConfigError: there is no such file, or it is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = sorted(str(file) for file in path.parent.glob("*.toml") if file.name != "pyproject.toml")
        fix = f"There are: {', '.join(there)}." if there else "Give the path of a TOML file."
        raise ConfigError(f"No configuration file {path}.", fix) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}.", "Mend that line.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8, as TOML is: byte {error.start:,}.", "Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Give the path of a TOML file.") from None


def read_run(path: Path) -> dict[str, Any]:
    """The settings in run.json of a run, to repeat it: all but its name.

    Raises:
        ConfigError: there is no such file, it is none of a run, or the run began from another's weights.
    """
    if not path.is_file():
        raise ConfigError(f"No configuration file {path}.", "Give the path of run.json in a run's folder.")
    record = read_json(path)
    if not (isinstance(record, dict) and isinstance(record.get("settings"), dict)):
        raise ConfigError(f"{path} is no run.json of a run.", "Give one, or a TOML file of settings.")
    if "forked_from" in record:
        raise ConfigError(
            f"{path} is of a run that began from the weights of another.",
            f"Begin there again: gpt2 train --fork {record['forked_from']} …",
        )
    settings = {**record["settings"], "run": None}
    if isinstance(settings.get("train"), dict):  # steps and replans say what the minutes came to
        settings["train"] = {**settings["train"], "minutes": None}
    return settings


def overlay(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`lower` with every value of `upper` in its place, table by table."""
    result = dict(lower)
    for key, value in upper.items():
        below = result.get(key)
        result[key] = overlay(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return result


def validate(schema: type[Schema], values: Mapping[str, Any], origin: str = "") -> Schema:
    """Values → settings.

    Raises:
        ConfigError: names every setting that is unknown (with the nearest known one) or has a wrong value.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = [_problem(schema, problem, typed=not origin) for problem in error.errors(include_url=False)]
        prefix = f"{origin}: " if origin else ""
        fixes = dict.fromkeys(fix for _, fix in problems if fix)
        raise ConfigError("\n".join(prefix + what for what, _ in problems), "\n".join(fixes)) from None


WORDS = ("sources", "base", "folder", "runs")
"""Settings that are typed without their name."""


def _problem(schema: type[BaseModel], problem: Any, typed: bool) -> tuple[str, str]:
    """One pydantic error as (what, fix); what was typed is named as it is typed."""
    path = [str(part) for part in problem["loc"]]
    named = [part for part in path if not part.isdigit() and "[" not in part]
    name = ".".join(part.replace("_", "-") for part in named)
    if problem["type"] == "extra_forbidden":
        owner: Any = schema
        for part in path[:-1]:
            owner = owner.model_fields[part].annotation
        known = list(owner.model_fields)
        guess = nearest(path[-1].replace("-", "_"), known)
        prefix = ".".join([*path[:-1], ""])
        return (
            f"There is no setting {name}.",
            f"Did you mean {prefix}{guess}?" if guess else f"Known: {', '.join(known)}.",
        )
    if typed and named and named[0] not in WORDS:
        name = f"--{name}"
    given = problem["input"]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        of_section = isinstance(problem["input"], Mapping)
        return (f"{message}." if of_section else f"{name}: {message}."), ""
    if problem["type"] == "literal_error":
        words = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        guess = nearest(str(given), words)
        return f"{name}: {given!r} is none of {', '.join(words)}.", f"Did you mean {guess}?" if guess else ""
    wanted = {
        "int_parsing": "a whole number is needed",
        "int_type": "a whole number is needed",
        "int_from_float": "a whole number is needed",
        "float_parsing": "a number is needed",
        "float_type": "a number is needed",
        "finite_number": "a finite number is needed",
        "bool_parsing": "true or false is needed",
        "missing": "is needed",
        "string_too_short": "something is needed",
        "model_type": f"a table of settings is needed, [{'.'.join(named)}]",
    }.get(problem["type"], message.replace("Input should be", "must be"))
    return f"{name}: {wanted}" + (f", not {given!r}." if problem["type"] != "missing" else "."), ""
