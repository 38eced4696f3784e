"""Corpus: the embedded corpus as files, to look at or to train on like any other."""

from pathlib import Path

from gpt2.config.commands import CorpusSettings
from gpt2.console import say
from gpt2.corpus.python_docs import QA_TEMPLATE, write_csv, write_text
from gpt2.files import require_folder


def write_corpus(settings: CorpusSettings) -> None:
    """Write python-docs.txt and python-qa.csv."""
    require_folder(Path(settings.folder))
    text, table = Path(settings.folder) / "python-docs.txt", Path(settings.folder) / "python-qa.csv"
    write_text(text)
    write_csv(table)
    for path in (text, table):
        say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    say(f"Train on them: gpt2 train {text} {table} --data.template {QA_TEMPLATE!r}")
