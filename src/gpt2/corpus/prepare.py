"""Documents → tokens on disk: a pure function of the sources and the settings, kept under its fingerprint.

    runs/.prepared/FINGERPRINT/   train-00000.bin …  validation-00000.bin …  tokenizer.json  MANIFEST.json
                                  train-origins.bin  train-origins.json  …

Three passes over the sources, none of which holds them: scan (hashes and lengths, for the split), tokenizer training
(only for one that learns), encoding.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.config.resolve import resolve_tokenizer
from gpt2.config.schema import DataSettings
from gpt2.console import progress, say
from gpt2.corpus.doctor import Part, Stats
from gpt2.corpus.origins import OriginWriter
from gpt2.corpus.shards import ShardWriter, unusable
from gpt2.corpus.sources import Sources
from gpt2.corpus.split import (
    ALL_TRAIN,
    ALL_VALIDATE,
    Scan,
    Side,
    Split,
    describe,
    plan_split,
    scan,
    summary_of_lengths,
)
from gpt2.errors import DataError, UserError
from gpt2.files import alone, atomic_folder, read_json, sweep_temporaries, write_json
from gpt2.tokenizer.base import Tokenizer
from gpt2.tokenizer.store import load_tokenizer, tokenizer_from_spec

FORMAT = 2
"""Raised whenever the same sources and settings would give other bytes."""

SIDES: tuple[Side, Side] = ("train", "validation")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Token shards on disk, the tokenizer that made them, and what was counted."""

    folder: Path
    fingerprint: str
    tokenizer: Tokenizer
    stats: Stats
    reused: bool


def fingerprint(sources: Sources, validation: Sources | None, tokenizer: str, settings: DataSettings) -> str:
    """16 hexadecimal digits that name the prepared data: contents and every setting that changes a token."""
    parts = {
        "format": FORMAT,
        "sources": sources.fingerprint(),
        "validation": validation.fingerprint() if validation else f"{settings.split} {settings.validation}",
        "tokenizer": tokenizer,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def open_prepared(folder: Path) -> Prepared:
    """What `prepare` left in a folder.

    Raises:
        DataError: it is damaged.
    """
    try:
        stats = Stats.from_json(read_json(folder / "MANIFEST.json")["stats"])
        return Prepared(folder, folder.name, load_tokenizer(folder), stats, reused=True)
    except UserError as error:  # its own advice is about checkpoints
        raise unusable(folder, error.what) from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise unusable(folder, f"{folder / 'MANIFEST.json'} is damaged.") from None


def prepare(
    sources: Sources, validation: Sources | None, tokenizer_spec: str, settings: DataSettings, root: Path
) -> Prepared:
    """Tokens of a corpus, split into two parts; made now, or found under `root` as they were made before.

    Args:
        sources: what to train on.
        validation: what to validate on, in place of a share of the sources.
        tokenizer_spec: auto, gpt2, char or bpe:N.
        settings: how to split.
        root: folder that keeps prepared data by fingerprint.

    Raises:
        DataError: nothing to split, or a source changed while it was read.
    """
    name = fingerprint(sources, validation, tokenizer_spec, settings)
    folder = root / name
    if (folder / "MANIFEST.json").is_file():
        return open_prepared(folder)

    busy = partial(say, "Another command is preparing the same text: waiting for it …", style="dim")
    with alone(root / f".{name}.lock", busy):
        if (folder / "MANIFEST.json").is_file():
            return open_prepared(folder)
        sweep_temporaries(root, of=name)
        sweep_temporaries(root, older_than=86_400)
        return _prepare(sources, validation, tokenizer_spec, settings, folder)


def _prepare(
    sources: Sources, validation: Sources | None, tokenizer_spec: str, settings: DataSettings, folder: Path
) -> Prepared:
    found = _scan(sources, "Reading")
    found_validation = _scan(validation, "Reading validation") if validation else None
    split = ALL_TRAIN if validation else plan_split(found, settings.split, settings.validation)
    streams = [(sources, found, split)]
    if validation and found_validation:
        streams.append((validation, found_validation, ALL_VALIDATE))

    spec = resolve_tokenizer(tokenizer_spec, found.text_bytes)
    with progress(f"Learning the {spec} tokenizer", int(found.characters.sum())) as advance:
        tokenizer = tokenizer_from_spec(spec, lambda: _train_texts(sources, found, split, advance))

    with atomic_folder(folder) as temporary:
        entries, parts, unknown = _encode(streams, tokenizer, temporary)
        leaked = int(np.isin(found_validation.hashes, found.hashes).sum()) if found_validation else 0
        stats = Stats(
            documents=len(found.hashes),
            duplicates=found.duplicates,
            leaked=leaked,
            split="a file of its own" if validation else describe(found, split),
            tokenizer=tokenizer.name,
            vocab_size=tokenizer.vocab_size,
            unknown_share=unknown / max(parts["validation"].tokens, 1),
            counts=dict(sources.counts),
            lengths=summary_of_lengths(found.characters),
            train=parts["train"],
            validation=parts["validation"],
        )
        for file, value in tokenizer.to_files(1024).items():
            write_json(temporary / file, value)
        write_json(
            temporary / "MANIFEST.json",
            {"format": FORMAT, "fingerprint": folder.name, "stats": stats.to_json(), "parts": entries},
        )
    return Prepared(folder, folder.name, tokenizer, stats, reused=False)


def _scan(sources: Sources, description: str) -> Scan:
    with progress(description) as advance:
        return scan(_counted(sources, advance))


def _counted(sources: Sources, advance: Callable[[int], None]) -> Iterator[Any]:
    for document in sources.documents():
        advance(1)
        yield document


def _train_texts(sources: Sources, found: Scan, split: Split, advance: Callable[[int], None]) -> Iterator[str]:
    """The text of the training part: a tokenizer is not to learn from what it is judged by."""
    for number, document in enumerate(sources.documents()):
        for side, pieces in split.parts(document, int(found.hashes[number]), int(found.characters[number])):
            if side == "train":
                for piece in pieces:
                    advance(len(piece))
                    yield piece


def _encode(
    streams: list[tuple[Sources, Scan, Split]], tokenizer: Tokenizer, folder: Path
) -> tuple[dict[str, Any], dict[Side, Part], int]:
    """Write the shards of both sides; → manifest entries, counts of each side, unknown validation tokens."""
    writers = {
        side: ShardWriter(folder, side, tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint())
        for side in SIDES
    }
    origins = {side: OriginWriter(folder, side) for side in SIDES}
    parts: dict[Side, Part] = {side: Part(0, 0, 0, 0) for side in SIDES}
    unknown_id = getattr(tokenizer, "unknown", None)
    unknown = 0

    def encoded(side: Side, pieces: Any) -> Iterator[np.ndarray]:
        nonlocal unknown
        characters, text_bytes = 0, 0
        for piece in pieces:
            ids = tokenizer.encode(piece)
            characters += len(piece)
            text_bytes += len(piece.encode("utf-8", "surrogatepass"))
            if side == "validation" and unknown_id is not None:
                unknown += int((ids == unknown_id).sum())
            advance(len(piece))
            yield ids
        part = parts[side]
        parts[side] = replace(
            part,
            documents=part.documents + (characters > 0),
            characters=part.characters + characters,
            text_bytes=part.text_bytes + text_bytes,
        )

    total = sum(int(found.characters.sum()) for _, found, _ in streams)
    with progress("Encoding", total) as advance:
        for sources, found, split in streams:
            number = -1
            for number, document in enumerate(sources.documents()):
                if number >= len(found.hashes):
                    break
                for side, pieces in split.parts(document, int(found.hashes[number]), int(found.characters[number])):
                    if writers[side].add_document(encoded(side, pieces)):
                        origins[side].add(document.origin, document.row)
            if number + 1 != len(found.hashes):
                raise DataError(
                    "A source changed while it was being prepared: it has more or fewer documents than before.",
                    "Start again once the files are complete.",
                )
    read = sum(part.characters for part in parts.values())
    if read != total:
        raise DataError(
            f"A source changed while it was being prepared: {total:,} characters at first, then {read:,}.",
            "Start again once the files are complete.",
        )
    entries = {side: writer.close() for side, writer in writers.items()}
    for side in SIDES:
        origins[side].close()
        parts[side] = replace(parts[side], tokens=int(entries[side]["tokens"]))
    return entries, parts, unknown
