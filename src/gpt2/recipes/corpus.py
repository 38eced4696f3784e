"""Corpus: the embedded corpus as files, to look at or to train on like any other."""

from pathlib import Path

from gpt2.config.commands import CorpusSettings
from gpt2.console import say
from gpt2.corpus.python_docs import QA_TEMPLATE, as_csv, as_text
from gpt2.errors import RunError
from gpt2.files import atomic_open, require_folder


def write_corpus(settings: CorpusSettings) -> None:
    """Write python-docs.txt and python-qa.csv.

    Raises:
        RunError: the folder cannot be made, or has a file of that name with another content.
    """
    folder = Path(settings.folder)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; the corpus is written to a folder.", "Name one: gpt2 corpus data")
    require_folder(folder)
    written = {folder / "python-docs.txt": as_text(), folder / "python-qa.csv": as_csv()}
    for path, content in written.items():
        if path.exists() and not (path.is_file() and path.read_bytes() == content):
            raise RunError(
                f"{path} exists already, with another content.",
                "Rename it, or have the corpus written to another folder: gpt2 corpus FOLDER",
            )
    for path, content in written.items():
        with atomic_open(path) as file:
            file.write(content)
        say(f"{path}: {len(content) / 1e6:.1f} MB")
    text, table = written
    say(f"Train on them: gpt2 train {text} {table} --data.template {QA_TEMPLATE!r}")
