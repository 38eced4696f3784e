"""The command line: a command → its recipe, imported only then. A user's mistake is one message and exit code 2."""

import time

STARTED = time.monotonic()  # before the imports below: a run's seconds count them

import gc
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gpt2.config.agreement import require_effect, require_one_length
from gpt2.config.command_line import command_line
from gpt2.config.commands import (
    ChatSettings,
    CorpusSettings,
    ExplainSettings,
    ExportSettings,
    GenerateSettings,
    PlanSettings,
    PlotSettings,
    ServeSettings,
    TrainSettings,
)
from gpt2.config.load import nearest, overlay, read_run, read_toml, validate
from gpt2.config.schema import Section, Settings
from gpt2.config.tuning import TuneSettings
from gpt2.console import fail, say
from gpt2.errors import ConfigError, UserError
from gpt2.files import disk_error
from gpt2.signals import Signalled, answered

Ready = Callable[[], None]
"""What is left of a command once its line was read and its recipe imported."""


def _train(argv: Sequence[str]) -> Ready:
    typed = command_line(TrainSettings, argv, "gpt2 train", positional=["sources"])
    options = {name: typed.pop(name, None) for name in ("config", "auto_resume", *GOING_ON)}
    config, auto_resume = options.pop("config"), options.pop("auto_resume")
    asked = [name for name in GOING_ON if options[name] is not None]
    if asked:
        return _go_on(asked, options[asked[0]], typed, argv, alone=not config and not auto_resume)
    settings = validate(Settings, typed)  # a typed mistake is answered as typed, before the file's are
    if config is not None:
        path = Path(config)
        from_file = read_run(path) if path.suffix == ".json" else read_toml(path)
        alone = validate(Settings, from_file, origin=str(path))
        if path.suffix != ".json":
            require_effect(_unless_typed(from_file, typed), alone.optim, alone.schedule, origin=str(path))
        if alone.tuning is not None:
            raise ConfigError(
                f"{path} is the record of a tuned run; gpt2 train repeats runs on text.",
                "Repeat its command, gpt2 tune …; or go on from it: gpt2 train --fork RUN --train.steps …",
            )
        settings = validate(Settings, _laid_over(from_file, typed))
    require_one_length(settings.train)
    require_effect(typed, settings.optim, settings.schedule)
    if _is_launcher(settings.distributed.processes):
        return _launch(argv, settings.distributed.processes, "train")
    again = validate(TrainSettings, {} if auto_resume is None else {"auto_resume": auto_resume}).auto_resume
    from gpt2.recipes.train import train

    return partial(train, settings, STARTED, name_hint=_named_after(config), auto_resume=again)


LENGTHS = ("steps", "epochs", "minutes")
"""Settings that say how long a run is, each in another way."""


def _laid_over(from_file: dict[str, Any], typed: dict[str, Any]) -> dict[str, Any]:
    """The values of a file with those that were typed in their place; a length takes that of any other kind."""
    if typed.get("train", {}).keys() & set(LENGTHS):
        train = {name: value for name, value in from_file.get("train", {}).items() if name not in LENGTHS}
        schedule = {name: value for name, value in from_file.get("schedule", {}).items() if name != "replans"}
        from_file = {**from_file, "train": train, "schedule": schedule}
    return overlay(from_file, typed)


def _unless_typed(from_file: dict[str, Any], typed: dict[str, Any]) -> dict[str, Any]:
    """A file's sections but those of which another kind was typed: their settings may be for that, or for their own."""
    return {section: values for section, values in from_file.items() if "name" not in typed.get(section, {})}


def _named_after(config: str | None) -> str | None:
    """What a run is called where only its configuration has a name; run.json has that of its folder."""
    if config is None:
        return None
    path = Path(config)
    return path.absolute().parent.name if path.suffix == ".json" else path.stem


GOING_ON = {
    "resume": ["distributed", "train.device"],
    "finish": ["distributed", "train.device", "train.steps", "train.minutes"],
    "fork": None,
}
"""Ways to go on with a run, and what may be typed with each; None: anything."""


def _go_on(asked: list[str], run: str, typed: dict[str, Any], argv: Sequence[str], alone: bool) -> Ready:
    """`--resume RUN`, `--finish RUN` or `--fork RUN`."""
    how, allowed = asked[0], GOING_ON[asked[0]]
    names = [f"{a}.{b}" for a, part in typed.items() if isinstance(part, dict) for b in part]
    names += [name for name, part in typed.items() if not isinstance(part, dict)]
    refused = [n for n in names if allowed is not None and n not in allowed and n.split(".")[0] not in allowed]
    if len(asked) > 1:
        both = " and ".join(f"--{name}" for name in asked)
        raise ConfigError(f"{both} exclude each other: each is another way to go on with a run.", "Give one of them.")
    if refused or not alone:
        may = (
            f"only {', '.join(f'--{name}' for name in allowed)} can be given" if allowed else "no --config can be given"
        )
        raise ConfigError(
            f"--{how} goes on with the settings that the run began with; {may} with it.",
            f"Leave the rest out: gpt2 train --{how} {run}. To change settings, --fork it: gpt2 train --fork {run} …",
        )
    settings = validate(Settings, typed)
    if _is_launcher(settings.distributed.processes):
        return _launch(argv, settings.distributed.processes, "train")
    from gpt2.recipes import resume

    device = settings.train.device if "device" in typed.get("train", {}) else None
    distributed = settings.distributed.model_dump(exclude_unset=True)
    if how == "resume":
        return partial(resume.resume, run, distributed, device, STARTED)
    if how == "finish":
        return partial(resume.finish, run, settings.train.steps, settings.train.minutes, distributed, device, STARTED)
    return partial(resume.fork, run, typed, STARTED)


def _is_launcher(processes: int) -> bool:
    """Whether the command is to be handed on to processes of its own."""
    return processes != 1 and "WORLD_SIZE" not in os.environ


def _launch(argv: Sequence[str], processes: int, command: str) -> Ready:
    from gpt2.recipes.launch import launch

    return partial(launch, argv, processes, command)


def _tune(argv: Sequence[str]) -> Ready:
    typed = command_line(TuneSettings, argv, "gpt2 tune", positional=["base", "sources"])
    config = typed.pop("config", None)
    settings = validate(TuneSettings, typed)
    if config is not None:
        from_file = read_toml(Path(config))
        alone = validate(TuneSettings, overlay(from_file, {"base": settings.base}), origin=config)
        require_effect(_unless_typed(from_file, typed), alone.optim, alone.schedule, origin=config)
        settings = validate(TuneSettings, _laid_over(from_file, typed))
    require_one_length(settings.train)
    require_effect(typed, settings.optim, settings.schedule)
    if _is_launcher(settings.distributed.processes):
        return _launch(argv, settings.distributed.processes, "tune")
    from gpt2.recipes.tune import tune

    return partial(tune, settings, STARTED)


def _generate(argv: Sequence[str]) -> Ready:
    typed = command_line(GenerateSettings, argv, "gpt2 generate", positional=["run", "prompt"])
    settings = validate(GenerateSettings, typed)
    from gpt2.recipes.generate import generate

    return partial(generate, settings)


def _chat(argv: Sequence[str]) -> Ready:
    settings = validate(ChatSettings, command_line(ChatSettings, argv, "gpt2 chat", positional=["run"]))
    from gpt2.recipes.chat import chat

    return partial(chat, settings)


def _explain(argv: Sequence[str]) -> Ready:
    typed = command_line(ExplainSettings, argv, "gpt2 explain", positional=["run", "prompt"])
    settings = validate(ExplainSettings, typed)
    from gpt2.recipes.explain import explain

    return partial(explain, settings)


def _serve(argv: Sequence[str]) -> Ready:
    settings = validate(ServeSettings, command_line(ServeSettings, argv, "gpt2 serve", positional=["run"]))
    try:
        from gpt2.recipes.serve import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "prometheus_client", "starlette"):
            raise
        raise ConfigError(
            f"The server needs {error.name}, which is not installed.", "pip install 'gpt2-from-scratch[serve]'"
        ) from None
    return partial(serve, settings)


def _export(argv: Sequence[str]) -> Ready:
    settings = validate(ExportSettings, command_line(ExportSettings, argv, "gpt2 export", positional=["run"]))
    from gpt2.recipes.export import export

    return partial(export, settings)


def _plot(argv: Sequence[str]) -> Ready:
    settings = validate(PlotSettings, command_line(PlotSettings, argv, "gpt2 plot", positional=["runs"]))
    from gpt2.recipes.plot import plot

    return partial(plot, settings)


def _corpus(argv: Sequence[str]) -> Ready:
    settings = validate(CorpusSettings, command_line(CorpusSettings, argv, "gpt2 corpus", positional=["folder"]))
    from gpt2.recipes.corpus import write_corpus

    return partial(write_corpus, settings)


def _plan(argv: Sequence[str]) -> Ready:
    settings = validate(PlanSettings, command_line(PlanSettings, argv, "gpt2 plan"))
    from gpt2.recipes.plan import plan

    return partial(plan, settings)


class Command(NamedTuple):
    """A word after `gpt2`."""

    prepare: Callable[[Sequence[str]], Ready]
    """Its arguments → what is left to do; all that it imports, it imports here."""
    schema: type[Section]


COMMANDS = {
    "train": Command(_train, TrainSettings),
    "tune": Command(_tune, TuneSettings),
    "generate": Command(_generate, GenerateSettings),
    "chat": Command(_chat, ChatSettings),
    "explain": Command(_explain, ExplainSettings),
    "serve": Command(_serve, ServeSettings),
    "export": Command(_export, ExportSettings),
    "plot": Command(_plot, PlotSettings),
    "corpus": Command(_corpus, CorpusSettings),
    "plan": Command(_plan, PlanSettings),
}


def overview() -> str:
    """The commands, a line each."""
    lines = [f"  gpt2 {name:<9} {command.schema.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join(["From your own text and tables to a GPT-2 that you trained.", "", *lines, "", _MORE])


def _open_what_is_closed() -> None:
    """Let a stream that the caller closed be one that gives and takes nothing; else the next file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


_MORE = "Options of a command, with defaults and units: gpt2 COMMAND --help"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line and leave with its exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    _open_what_is_closed()
    with answered() as imported:
        try:
            ready = _prepare(argv)
            imported()
            ready()
        except UserError as error:
            fail(error.what, error.fix)
            raise SystemExit(error.exit_code) from None
        except OSError as error:
            if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as `| head` does
                raise SystemExit(0) from None
            if error.errno is None:
                raise
            shown = disk_error(error)
            fail(shown.what, shown.fix)
            raise SystemExit(shown.exit_code) from None
        except KeyboardInterrupt:
            say("Stopped.")
            raise SystemExit(130) from None
        except Signalled:
            say("Stopped.")
            raise


def _prepare(argv: Sequence[str]) -> Ready:
    """A line read and its recipe imported."""
    # Imports make many objects and leave no rubbish: to look for it among them is 0.6 s of the 2.95 that
    # `gpt2 generate` takes to its first word.
    gc.disable()
    try:
        return _command(argv)
    finally:
        gc.freeze()
        gc.enable()


def _command(argv: Sequence[str]) -> Ready:
    if not argv or argv[0] in ("-h", "--help", "help"):
        return partial(_print, overview())
    if argv[0] == "--version":
        from gpt2 import __version__

        return partial(_print, f"gpt2-from-scratch {__version__}")
    if argv[0] not in COMMANDS:
        guess = nearest(argv[0], list(COMMANDS))
        fix = f"Did you mean gpt2 {guess}?" if guess else f"Commands: {', '.join(COMMANDS)}."
        raise ConfigError(f"There is no command {argv[0]!r}.", fix)
    return COMMANDS[argv[0]].prepare(argv[1:])


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
