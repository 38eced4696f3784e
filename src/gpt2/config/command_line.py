"""What was typed behind a command: the schema's settings as options, their help, and the answer to each slip.

tyro parses the line and writes the help. It sees every value as text, to be judged where a file's values are, and only
what was typed is there: so it alone overrides the file.
"""

import contextlib
import dataclasses
import glob
import io
import itertools
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gpt2.config.load import choices, nearest
from gpt2.config.schema import NOT_TYPED
from gpt2.errors import ConfigError


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
    before = words[: words.index("--") if "--" in words else None]
    options = [word for word in before if word.startswith("--")]
    if "-h" in words or "--help" in options:
        tyro.cli(mirror, args=words, prog=prog, description=schema.__doc__)
    known = _options(schema)
    for word in before:
        if word.startswith("-") and word not in known and os.path.lexists(word):
            raise ConfigError(f"{word} is taken for an option.", f"If you mean the file: ./{word}")
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
