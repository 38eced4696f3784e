"""Defaults < TOML file < command line: read as plain values, laid over each other, then checked once by the schema.

tyro parses the command line and writes the help, pydantic judges the values. tyro sees every value as text: so a wrong
one gets the same message whether it stood in a file or on the command line, and only what was typed overrides the file.
"""

import contextlib
import dataclasses
import difflib
import glob
import io
import itertools
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gpt2.config.schema import NOT_TYPED
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}.", "Mend that line.") from None


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
    }.get(problem["type"], message.replace("Input should be", "must be"))
    return f"{name}: {wanted}" + (f", not {given!r}." if problem["type"] != "missing" else "."), ""


def command_line(
    schema: type[BaseModel], argv: Sequence[str], prog: str, positional: Sequence[str] = ()
) -> dict[str, Any]:
    """What was typed, as nested values; what was not typed is absent.

    Prints help and leaves with 0 on --help.

    Raises:
        ConfigError: an option is unknown (the nearest one is named), or it or a word is missing or too much.
    """
    import tyro  # 0.1 s, needed only where a command line is parsed

    mirror = _as_text(schema, tuple(positional))
    words = _spelled_out(argv, _options(schema, switches=True))
    options = [word for word in words[: words.index("--") if "--" in words else None] if word.startswith("--")]
    if "-h" in words or "--help" in options:
        tyro.cli(mirror, args=words, prog=prog, description=schema.__doc__)
    known = _options(schema)
    for option in options:
        _require_known(option.partition("=")[0].replace("_", "-"), known, prog, getattr(schema, "ELSEWHERE", {}))
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            parsed = tyro.cli(mirror, args=words, prog=prog, description=schema.__doc__)
    except SystemExit:
        said_of = _unboxed(said.getvalue())
        if missing := re.search(r"Missing value for argument '(--[^']+)'", said_of):
            raise ConfigError(*_without_value(schema, missing[1], prog)) from None
        raise ConfigError(f"This command line cannot be read: {said_of}", _usage(prog)) from None
    given = _given(parsed)
    _require_all(schema, given, prog, positional)
    return given


def _require_all(schema: type[BaseModel], given: Mapping[str, Any], prog: str, positional: Sequence[str]) -> None:
    """Stop where something is missing: each by its name, with what it is."""
    missing = {
        name.upper() if name in positional else f"--{name.replace('_', '-')}": field
        for name, field in schema.model_fields.items()
        if field.is_required() and name not in given
    }
    if missing:
        width = max(map(len, missing))
        lines = [
            f"  {name:<{width}}  {field.description}" + (f": {', '.join(choices(field))}" if choices(field) else "")
            for name, field in missing.items()
        ]
        raise ConfigError("\n".join([f"{prog} needs:", *lines]), _usage(prog))


def _without_value(schema: type[BaseModel], option: str, prog: str) -> tuple[str, str]:
    """What is missing behind an option, and how it is written: (what, fix)."""
    owner: Any = schema
    *sections, name = option.removeprefix("--").replace("-", "_").split(".")
    for section in sections:
        owner = owner.model_fields[section].annotation
    field = next(field for own, field in owner.model_fields.items() if name in (own, field.alias))
    words = _metavar(field)[0].replace("TEXT", "…")
    return f"{option} needs a value: {field.description}.", f"Write it behind: {prog} {option} {words}"


def _require_known(option: str, known: set[str], prog: str, elsewhere: Mapping[str, str]) -> None:
    """Stop at an option that there is not; it may be one of another section, a command's, or a slip of the fingers."""
    if option in known:
        return
    last = option.lstrip("-").rpartition(".")[2]
    same = sorted(name for name in known if name.lstrip("-").rpartition(".")[2] == last)
    said = [fix for beginning, fix in elsewhere.items() if option.startswith(beginning)]
    if said and not same:
        raise ConfigError(f"There is no option {option}.", said[0])
    guess = same or [name for name in [nearest(option, sorted({*known, "--help"}))] if name]
    fix = f"Did you mean {' or '.join(guess)}?" if guess else f"All options: {prog} --help"
    raise ConfigError(f"There is no option {option}.", fix)


def _unboxed(text: str) -> str:
    """What tyro's message says, without its frame, heading and advice."""
    lines = [line.strip("│╭╮╰╯─| ") for line in text.splitlines()]
    _, *words = [line for line in lines if line.strip("-")] or [""]
    return " ".join(itertools.takewhile(lambda line: not line.startswith("For full helptext"), words)) or "no reason."


def _usage(prog: str) -> str:
    quoted = f'A prompt of several words stands in quotes: {prog} RUN "Once upon a time". ' * prog.endswith("generate")
    return f"{quoted}All options: {prog} --help"


def _options(schema: type[BaseModel], switches: bool = False, prefix: str = "--") -> set[str]:
    """The options that can be typed; only those that are true or false, where `switches`."""
    found: set[str] = set()
    for name, field in schema.model_fields.items():
        option = prefix + (field.alias or name).replace("_", "-")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _options(field.annotation, switches, f"{option}.")
        elif field.json_schema_extra != NOT_TYPED and (field.annotation is bool or not switches):
            found.add(option)
    return found


def _spelled_out(argv: Sequence[str], switches: set[str]) -> list[str]:
    """A switch that stands alone means true; so does one before another option, or before a source."""
    words: list[str] = []
    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue="-"):
        words.append(word)
        if word.replace("_", "-") not in switches:
            continue
        if following.startswith("-") or glob.has_magic(following) or os.path.exists(following):
            words.append("true")
    return words


def _as_text(schema: type[BaseModel], positional: tuple[str, ...]) -> Any:
    """A dataclass with the schema's names and help, where every value is text and absent unless typed."""
    import tyro

    fields: list[Any] = []
    for own_name, field in schema.model_fields.items():
        name = field.alias or own_name
        if field.json_schema_extra == NOT_TYPED:
            continue
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = _as_text(annotation, ())
            fields.append((name, section, dataclasses.field(default_factory=section)))
            continue
        metavar, many = _metavar(field)
        if name in positional:
            metavar = metavar.replace("TEXT", name.removesuffix("s").upper())
            metavar = metavar if field.is_required() else f"[{metavar}]"
        hint = "(required)" if field.is_required() else f"(default: {_shown(field.default)})"
        if field.default is None or (name in positional and field.default == ()):
            hint = ""
        options = tyro.conf.arg(metavar=metavar, help=field.description, help_behavior_hint=hint)
        kind: Any = tuple[str, ...] if many else str
        if name in positional:
            kind = tyro.conf.Positional[kind]
        default: Any = dataclasses.field(default=() if many else _ABSENT)
        fields.append((name, Annotated[kind, options], default))
    made = dataclasses.make_dataclass(schema.__name__, fields, kw_only=True)
    made.__doc__ = schema.__doc__
    return made


_ABSENT = "\0absent"  # no argument of a process can hold this character


def _metavar(field: FieldInfo) -> tuple[str, bool]:
    """How a value is shown in the help, and whether there can be several."""
    words = choices(field)
    if words:
        return "{" + ",".join(words) + "}", False
    annotation: Any = field.annotation
    parts = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not types.NoneType]
    kind = parts[0]
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    many = typing.get_origin(kind) is tuple
    return {int: "N", float: "X", bool: "{true,false}"}.get(kind, "TEXT" if not many else "TEXT ..."), many


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "none"
    if isinstance(default, bool):
        return str(default).lower()
    return str(default) if default != "" else "empty"


def _given(parsed: Any) -> dict[str, Any]:
    """The typed values of a parsed mirror, nested as in the schema."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(parsed):
        value = getattr(parsed, field.name)
        if dataclasses.is_dataclass(value):
            if below := _given(value):
                result[field.name] = below
        elif value != _ABSENT and value != ():
            result[field.name] = value
    return result
