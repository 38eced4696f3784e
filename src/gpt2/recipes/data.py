"""Sources → prepared tokens, and the words about them. No torch: a wrong path is answered at once."""

import os
from collections.abc import Sequence
from pathlib import Path

from gpt2.chat.prepare import CUT, prepare_conversations
from gpt2.config.schema import Settings, TuningSettings
from gpt2.console import counted, say, table, warn
from gpt2.corpus.conversations import Conversations, open_conversations
from gpt2.corpus.doctor import Report, examine
from gpt2.corpus.fields import Fields
from gpt2.corpus.prepare import Prepared, prepare
from gpt2.corpus.python_docs import EMBEDDED
from gpt2.corpus.sources import Sources, find_in_folder, open_sources
from gpt2.tokenizer.roles import RoleTokenizer, roles_of
from gpt2.tokenizer.store import load_tokenizer

DATA = Path("data")


def choose_sources(given: Sequence[str]) -> tuple[str, ...]:
    """The given sources; without any the files in data/; without those the embedded corpus. What was chosen is said."""
    if given:
        return tuple(given)
    there = find_in_folder(DATA) if DATA.is_dir() else []
    if there:
        say(f"No source given: training on the {len(there)} file{'s' * (len(there) > 1)} in {DATA}/.")
        return (str(DATA),)
    say(
        f"No source given, and no text or table in {DATA}/: training on the manuals inside this Python. "
        "For your own text: gpt2 train FOLDER"
    )
    return (EMBEDDED,)


def open_chosen(sources: Sequence[str], settings: Settings) -> Sources:
    """Open sources as `choose_sources` names them."""
    return open_sources(() if tuple(sources) == (EMBEDDED,) else sources, settings.data)


def absolute(sources: Sequence[str]) -> tuple[str, ...]:
    """Paths that still lead there when the run is resumed from another folder."""
    return tuple(source if source == EMBEDDED else os.path.abspath(source) for source in sources)


def prepare_data(settings: Settings, root: Path) -> tuple[Prepared, Sources | Conversations]:
    """Open the sources of a run and lay their tokens down under `root`; what was noticed on the way is said."""
    if settings.tuning is not None:
        return _prepare_conversations(settings, settings.tuning, root)
    sources = open_chosen(settings.sources, settings)
    validation = (
        open_sources(settings.data.validation_source, settings.data) if settings.data.validation_source else None
    )
    for note in (*sources.notes, *(validation.notes if validation else ())):
        say(note, style="dim")
    prepared = prepare(sources, validation, settings.tokenizer, settings.data, root)
    if settings.tokenizer == "auto" and prepared.tokenizer.name != "gpt2":
        say(
            f"Tokenizer {prepared.tokenizer.name}, learned from this text: GPT-2's own 50,257 ids would be most of a "
            "small model (--tokenizer gpt2 takes them all the same).",
            style="dim",
        )
    _say_counts(prepared)
    return prepared, sources


def _prepare_conversations(settings: Settings, tuning: TuningSettings, root: Path) -> tuple[Prepared, Conversations]:
    fields = Fields(tuning.prompt, tuning.response, tuning.context, tuning.system, tuning.rejected)
    opened = [
        open_conversations(paths, fields, settings.data, tuning.template)
        for paths in (settings.sources, settings.data.validation_source)
        if paths
    ]
    for note in (note for each in opened for note in each.notes):
        say(note, style="dim")
    sources, validation = (*opened, None)[:2]
    assert sources is not None and settings.model.context_length
    tokenizer = load_tokenizer(Path(tuning.base))
    prepared = prepare_conversations(
        sources,
        validation,
        tokenizer if roles_of(tokenizer) else RoleTokenizer(tokenizer),
        settings.model.context_length,
        settings.data,
        root,
    )
    _say_counts(prepared)
    if prepared.stats.counts.get(CUT):
        say(
            f"The context of the base, {settings.model.context_length:,} tokens, is the longest a conversation can be: "
            "a base that was trained with a longer --model.context-length would see more of them whole.",
            style="dim",
        )
    return prepared, sources


def _say_counts(prepared: Prepared) -> None:
    counts = [(count, what) for what, count in prepared.stats.counts.items() if what != "documents" and count]
    noticed = [counted(count, what.removesuffix("s")) for count, what in counts]
    if noticed:
        say(f"Noticed on the way: {', '.join(noticed)}.", style="dim")


def show(report: Report) -> None:
    """The table of the data beside the model, and what is doubtful about it."""
    stats = report.stats
    table("Data", report.rows(), ("", "training", "validation"))
    say(f"Validation: {stats.split}. Tokenizer: {stats.tokenizer}, {stats.vocab_size:,} ids.", style="dim")
    for sentence in examine(report):
        warn(sentence)
