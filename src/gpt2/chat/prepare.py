"""Conversations → tokens on disk: the shards of `corpus/prepare.py`, each document a conversation with its marks.

Of two answers to choose from, each has a document: the better one first.

    runs/.prepared/FINGERPRINT/   train-00000.bin …  validation-00000.bin …  tokenizer.json  MANIFEST.json

What of it is to be learned is not stored: it follows from the marks of speakers, which no text can spell.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.chat.template import conversation_ids
from gpt2.config.schema import DataSettings
from gpt2.console import progress
from gpt2.corpus.conversations import Conversations
from gpt2.corpus.doctor import Part, Stats
from gpt2.corpus.document import Document
from gpt2.corpus.fields import Sample
from gpt2.corpus.origins import OriginWriter
from gpt2.corpus.prepare import SIDES, Prepared, open_prepared
from gpt2.corpus.shards import ShardWriter
from gpt2.corpus.split import ALL_TRAIN, ALL_VALIDATE, FEW, Scan, Side, Split, plan_split, scan, summary_of_lengths
from gpt2.errors import DataError
from gpt2.files import atomic_folder, write_json
from gpt2.tokenizer.base import Tokenizer

FORMAT = 1
"""Raised whenever the same conversations and settings would give other bytes."""

CUT = "cut at the context's end"
"""Name of the count of conversations that were."""


@dataclass(frozen=True, slots=True)
class _Stream:
    """Conversations from one place, and the rule by which each gets its side."""

    conversations: Conversations
    found: Scan
    split: Split

    def sides(self) -> Iterator[tuple[Side, Document, Sample]]:
        """Each record and its conversations with their side, by the hash of their text."""
        for number, (document, sample) in enumerate(self.conversations.read()):
            if sample is not None:
                validating = int(self.found.hashes[number]) <= self.split.threshold
                yield "validation" if validating else "train", document, sample


def fingerprint(
    conversations: Conversations,
    validation: Conversations | None,
    tokenizer: str,
    context_length: int,
    settings: DataSettings,
) -> str:
    """16 hexadecimal digits that name the prepared conversations."""
    parts = {
        "conversations": FORMAT,
        "sources": conversations.fingerprint(),
        "validation": validation.fingerprint() if validation else settings.validation,
        "tokenizer": tokenizer,
        "context_length": context_length,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def prepare_conversations(
    conversations: Conversations,
    validation: Conversations | None,
    tokenizer: Tokenizer,
    context_length: int,
    settings: DataSettings,
    root: Path,
) -> Prepared:
    """The tokens of conversations, split into two parts; made now, or found under `root` as they were made before.

    Args:
        conversations: what to tune on.
        validation: what to validate on, in place of a share of them.
        tokenizer: has the marks of speakers.
        context_length: what is longer is cut; where no answer is left, it is left out. Both are counted.
        settings: which share validates.
        root: folder that keeps prepared data by fingerprint.

    Raises:
        DataError: there are fewer than two different conversations.
    """
    name = fingerprint(conversations, validation, tokenizer.fingerprint(), context_length, settings)
    folder = root / name
    if (folder / "MANIFEST.json").is_file():
        return open_prepared(folder)
    with progress("Reading") as advance:
        streams = [_stream(conversations, None if validation else settings.validation, advance)]
        if validation:
            own = _stream(validation, None, advance)
            streams.append(replace(own, split=ALL_VALIDATE))
    hashes = [stream.found.hashes for stream in streams]
    with atomic_folder(folder) as temporary:
        entries, parts, lengths, counts = _encode(streams, tokenizer, context_length, temporary)
        stats = Stats(
            documents=sum(part.documents for part in parts.values()),
            duplicates=streams[0].found.duplicates,
            leaked=int(np.isin(hashes[1], hashes[0]).sum()) if validation else 0,
            split="a file of its own" if validation else "whole conversations, chosen by the hash of their content",
            tokenizer=tokenizer.name,
            vocab_size=tokenizer.vocab_size,
            unknown_share=0.0,
            counts=counts,
            lengths=summary_of_lengths(lengths),
            train=parts["train"],
            validation=parts["validation"],
        )
        for file, value in tokenizer.to_files(context_length).items():
            write_json(temporary / file, value)
        write_json(
            temporary / "MANIFEST.json",
            {"format": FORMAT, "fingerprint": name, "stats": stats.to_json(), "parts": entries},
        )
    return Prepared(folder, name, tokenizer, stats, reused=False)


def _stream(conversations: Conversations, share: float | None, advance: Any) -> _Stream:
    def documents() -> Iterator[Document]:
        for document, _ in conversations.read():
            advance(1)
            yield document

    found = scan(documents())
    if share is None:
        return _Stream(conversations, found, ALL_TRAIN)
    distinct = len(np.unique(found.hashes))
    if distinct < 2:
        raise DataError(
            f"There is only {distinct} conversation: none is left to validate on.",
            "Give more of them, or a file of its own with --data.validation-source.",
        )
    return _Stream(conversations, found, plan_split(found, "auto" if distinct >= FEW else "documents", share))


def _encode(
    streams: list[_Stream], tokenizer: Tokenizer, context_length: int, folder: Path
) -> tuple[dict[str, Any], dict[Side, Part], Any, dict[str, int]]:
    """Write the shards of both sides; → manifest entries, counts of each side, lengths in characters, what was cut."""
    writers = {
        side: ShardWriter(folder, side, tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint())
        for side in SIDES
    }
    origins = {side: OriginWriter(folder, side) for side in SIDES}
    parts: dict[Side, Part] = {side: Part(0, 0, 0, 0) for side in SIDES}
    counts = {CUT: 0, "left out, as their answer would begin beyond it": 0}
    lengths = []
    with progress("Encoding", sum(len(stream.found.hashes) for stream in streams)) as advance:
        for stream in streams:
            for side, document, sample in stream.sides():
                advance(1)
                rows = [conversation_ids(conversation, tokenizer) for conversation in sample]
                if max(map(len, rows)) > context_length + 1:  # the last one is a target only
                    opening = itertools.takewhile(lambda message: message.role != "assistant", sample[0])
                    begins = len(conversation_ids(list(opening), tokenizer)) + 1
                    if begins > context_length:
                        counts["left out, as their answer would begin beyond it"] += 1
                        continue
                    counts[CUT] += 1
                    rows = [ids[: context_length + 1] for ids in rows]
                for ids in rows:
                    writers[side].add_document([np.array(ids)])
                    origins[side].add(document.origin, document.row)
                text = "".join(message.content for conversation in sample for message in conversation)
                lengths.append(len(text))
                part = parts[side]
                parts[side] = Part(
                    part.documents + 1,
                    part.characters + len(text),
                    part.text_bytes + len(text.encode("utf-8", "surrogatepass")),
                    part.tokens + sum(map(len, rows)),
                )
            for what, count in stream.conversations.counts.items():
                counts[what] = counts.get(what, 0) + count
    entries = {side: writer.close() for side, writer in writers.items()}
    for side, part in parts.items():
        origins[side].close()
        if not part.documents:
            raise DataError(
                f"No conversation is left for the {side} part: of {len(lengths) + sum(counts.values()):,}, "
                + ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
                + ".",
                "Give more conversations, or a model with a longer context.",
            )
    return entries, parts, np.array(lengths, dtype=np.int64), {what: n for what, n in counts.items() if n}
