"""Tokens on disk: one part of a corpus ("train", "validation") as shards that name, measure and check themselves.

    NAME-00000.bin   a header of 1,024 bytes, then the tokens: uint16 where 65,536 ids suffice, else uint32
    NAME-00000.idx   uint64: where each document ends that ends in this shard
    MANIFEST.json    {"parts": {NAME: the entry that ShardWriter.close returns}}, written last, by who writes all parts

All numbers are little-endian. An end-of-text id stands between two documents, none before the first or after the last.
A document ends where its own tokens do: its end is the position after its last token, so the mark that follows stands
at its end and belongs to no document, and the next document begins one position further. Ends in a file count from the
shard's first token; a document may go on from one shard into the next.

The manifest keeps the sha256 of each 16 MiB of tokens. A reader checks a block when it first reads from it, so that
opening a terabyte is instant and a flipped bit is still found before it is learned from.
"""

import hashlib
import json
import os
import struct
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from gpt2.errors import DataError, UserError
from gpt2.files import atomic_open, disk_error, fsync_folder, named, read_json

MANIFEST_FILE = "MANIFEST.json"
MAGIC = 0x32545047  # "GPT2" in a hex dump
VERSION = 1
HEADER_BYTES = 256 * 4
BLOCK_BYTES = 16 * 2**20
_HEADER = struct.Struct("<iiiiQQ8sQ")  # magic, version, bytes a token, 0, tokens, documents, tokenizer, vocab_size


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _header(vocab_size: int, tokenizer_fingerprint: str, tokens: int, documents: int) -> bytes:
    width = token_dtype(vocab_size).itemsize
    tokenizer = bytes.fromhex(tokenizer_fingerprint)
    packed = _HEADER.pack(MAGIC, VERSION, width, 0, tokens, documents, tokenizer, vocab_size)
    return packed.ljust(HEADER_BYTES, b"\0")


def unusable(folder: Path, what: str) -> DataError:
    """Prepared data that is not as it was written."""
    fix = f"Remove {folder}, and repeat the command, or --resume the run: it is made again from the sources."
    return DataError(what, fix)


class ShardWriter:
    """Writes one part, document by document, in memory for one block. The same documents give the same bytes.

    Each shard appears under its name when it is complete and synced. Used as a context, it sweeps up after an error.

    Args:
        folder: where the shards go; it exists.
        name: of the part.
        vocab_size: every id is below it.
        end_of_text: the id between documents.
        tokenizer_fingerprint: 16 hexadecimal digits.
        shard_tokens: tokens in every shard but the last.

    Raises:
        UserError: from every method, when the disk is full or may not be written.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        vocab_size: int,
        end_of_text: int,
        tokenizer_fingerprint: str,
        shard_tokens: int = 2**27,
    ) -> None:
        assert shard_tokens > 0, "a shard has room for a token"
        assert len(bytes.fromhex(tokenizer_fingerprint)) == 8, "a fingerprint has 16 hexadecimal digits"
        self.folder, self.name = folder, name
        self._vocab_size, self._fingerprint = vocab_size, tokenizer_fingerprint
        self._shard_tokens = shard_tokens
        self._mark = np.array([end_of_text])
        self._block = np.empty(BLOCK_BYTES // token_dtype(vocab_size).itemsize, token_dtype(vocab_size))
        self._filled = 0  # tokens in the block
        self._file: Any = None  # the open shard
        self._tokens = 0  # in the open shard
        self._ends = array("Q")  # in the open shard
        self._hashes: list[str] = []  # of the open shard
        self._shards: list[dict[str, Any]] = []  # complete ones
        self._documents = 0

    def add_document(self, chunks: Iterable[np.ndarray]) -> int:
        """Append one document, given as arrays of ids in a row; → its tokens. One without any is left out."""
        tokens = 0
        for chunk in chunks:
            if len(chunk) == 0:
                continue
            if tokens == 0 and self._documents:
                self._append(self._mark)
            self._append(chunk)
            tokens += len(chunk)
        if tokens:
            self._documents += 1
            self._ends.append(self._tokens)
        return tokens

    def _append(self, ids: np.ndarray) -> None:
        assert 0 <= int(ids.min()) <= int(ids.max()) < self._vocab_size, "an id lies outside the vocabulary"
        while len(ids):
            if self._tokens == self._shard_tokens:
                self._end_shard()
            room = min(len(self._block) - self._filled, self._shard_tokens - self._tokens)
            part, ids = ids[:room], ids[room:]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            self._tokens += len(part)
            if self._filled == len(self._block):
                self._write_block()

    def _path(self, ending: str) -> Path:
        return self.folder / f"{self.name}-{len(self._shards):05d}.{ending}"

    def _temporary(self) -> Path:
        return self.folder / f".{self._path('bin').name}.tmp"

    def _write_block(self) -> None:
        data = self._block[: self._filled].tobytes()
        self._hashes.append(hashlib.sha256(data).hexdigest())
        try:
            if self._file is None:
                self._file = self._temporary().open("wb")
                self._file.write(bytes(HEADER_BYTES))  # its counts are known at the end
            self._file.write(data)
        except OSError as error:
            raise disk_error(named(error, self._path("bin")), f"writing the tokens of {self.name}") from error
        self._filled = 0

    def _end_shard(self) -> None:
        if self._filled:
            self._write_block()
        ends = np.array(self._ends, "<u8").tobytes()
        try:
            self._file.seek(0)
            self._file.write(_header(self._vocab_size, self._fingerprint, self._tokens, len(self._ends)))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            with atomic_open(self._path("idx")) as file:
                file.write(ends)
            os.replace(self._temporary(), self._path("bin"))
            fsync_folder(self.folder)
        except OSError as error:
            raise disk_error(named(error, self._path("bin")), f"writing the tokens of {self.name}") from error
        self._shards.append(
            {
                "file": self._path("bin").name,
                "bytes": HEADER_BYTES + self._tokens * self._block.itemsize,
                "tokens": self._tokens,
                "documents": len(self._ends),
                "sha256": self._hashes,
                "ends_sha256": hashlib.sha256(ends).hexdigest(),
            }
        )
        self._file, self._tokens, self._ends, self._hashes = None, 0, array("Q"), []

    def close(self) -> dict[str, Any]:
        """Complete the last shard. Returns the part's entry for the manifest."""
        if self._tokens:
            self._end_shard()
        return {
            "version": VERSION,
            "vocab_size": self._vocab_size,
            "tokenizer": self._fingerprint,
            "tokens": sum(shard["tokens"] for shard in self._shards),
            "documents": self._documents,
            "shards": self._shards,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        self._temporary().unlink(missing_ok=True)


class TokenShards:
    """Reads one part: a sequence of ids of any length, mapped from disk and checked as it is touched.

    Args:
        folder: it holds MANIFEST.json and the shards.
        name: of the part.
        tokenizer_fingerprint: of the tokenizer that the ids must come from; None: of any.

    Raises:
        DataError: a file is missing, of another size or format than the manifest says, or from another tokenizer.
    """

    def __init__(self, folder: Path, name: str, tokenizer_fingerprint: str | None = None) -> None:
        self.folder, self.name = folder, name
        entry = _entry(folder, name)
        if tokenizer_fingerprint not in (None, entry["tokenizer"]):
            given = entry["tokenizer"]
            raise unusable(
                folder, f"The tokens in {folder} come from the tokenizer {given}, not {tokenizer_fingerprint}."
            )
        self.vocab_size: int = entry["vocab_size"]
        self.documents: int = entry["documents"]
        self.fingerprint: str = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:16]
        """16 hexadecimal digits of everything in this part, down to each token."""
        self._shards: list[dict[str, Any]] = entry["shards"]
        self._starts = np.cumsum([0, *(shard["tokens"] for shard in self._shards)])
        self._maps = [self._open(shard, entry["tokenizer"]) for shard in self._shards]
        self._checked = [np.zeros(len(shard["sha256"]), dtype=bool) for shard in self._shards]
        self._block_tokens = BLOCK_BYTES // token_dtype(self.vocab_size).itemsize

    def __len__(self) -> int:
        """Number of tokens, end-of-text ids included."""
        return int(self._starts[-1])

    def _open(self, shard: dict[str, Any], tokenizer: str) -> np.ndarray:
        path = self.folder / shard["file"]
        header = _header(self.vocab_size, tokenizer, shard["tokens"], shard["documents"])
        try:
            size = path.stat().st_size
            if size != shard["bytes"]:
                raise unusable(self.folder, f"{path} has {size:,} bytes; the manifest says {shard['bytes']:,}.")
            with path.open("rb") as file:
                if file.read(HEADER_BYTES) != header:
                    raise unusable(self.folder, f"{path} does not begin with the header that the manifest says.")
            dtype = token_dtype(self.vocab_size)
            mapped = np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(shard["tokens"],))
            return np.asarray(mapped)  # the same memory; a plain array is sliced several times faster
        except OSError as error:
            raise unusable(self.folder, f"{path} cannot be read: {error.strerror}.") from error

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of the ids [start, stop), shape (stop - start,), dtype uint16 or uint32.

        Raises:
            DataError: a block is not as it was written; its file and number are named.
        """
        assert 0 <= start <= stop <= len(self), f"[{start}, {stop}) lies outside {len(self)} tokens"
        out = np.empty(stop - start, token_dtype(self.vocab_size))
        at = int(np.searchsorted(self._starts, start, side="right")) - 1
        done = 0
        while done < len(out):
            begin = start + done - int(self._starts[at])
            part = self._touched(at, begin, min(begin + len(out) - done, self._shards[at]["tokens"]))
            out[done : done + len(part)] = part
            done += len(part)
            at += 1
        return out

    def _touched(self, at: int, start: int, stop: int) -> np.ndarray:
        size = self._block_tokens
        for block in range(start // size, (stop - 1) // size + 1):
            if not self._checked[at][block]:
                data = self._maps[at][block * size : (block + 1) * size]
                if hashlib.sha256(data.data).hexdigest() != self._shards[at]["sha256"][block]:
                    path = self.folder / self._shards[at]["file"]
                    raise unusable(self.folder, f"{path} is damaged: block {block} is not as it was written.")
                self._checked[at][block] = True
        return self._maps[at][start:stop]

    def document_ends(self) -> np.ndarray:
        """Where each document ends: positions after its last token in the whole part, shape (documents,), uint64.

        Raises:
            DataError: a file of ends is missing or damaged.
        """
        ends = [np.empty(0, "<u8")]
        for shard, start in zip(self._shards, self._starts[:-1], strict=True):
            path = (self.folder / shard["file"]).with_suffix(".idx")
            try:
                data = path.read_bytes()
            except OSError as error:
                raise unusable(self.folder, f"{path} cannot be read: {error.strerror}.") from error
            if hashlib.sha256(data).hexdigest() != shard["ends_sha256"]:
                raise unusable(self.folder, f"{path} is damaged: it is not as it was written.")
            ends.append(np.frombuffer(data, "<u8") + np.uint64(start))
        return np.concatenate(ends)


def _entry(folder: Path, name: str) -> dict[str, Any]:
    """The manifest's entry of a part, found to be sound."""
    path = folder / MANIFEST_FILE
    try:
        manifest = read_json(path)
    except OSError as error:
        raise unusable(folder, f"{folder} holds no prepared data: {path} cannot be read.") from error
    except UserError as error:  # too large, or no JSON
        raise unusable(folder, error.what) from error
    try:
        entry = manifest["parts"][name]
        if entry["version"] != VERSION:
            raise unusable(folder, f"{path} is of version {entry['version']}; this program reads {VERSION}.")
        _check_entry(entry, name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unusable(folder, f"{path} does not describe the part {name}: {_said(error)}.") from error
    return entry


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"


def _check_entry(entry: dict[str, Any], name: str) -> None:
    if len(bytes.fromhex(entry["tokenizer"])) != 8:
        raise ValueError("the tokenizer's fingerprint has not 16 digits")
    dtype = token_dtype(entry["vocab_size"])
    for number, shard in enumerate(entry["shards"]):
        blocks = -(-shard["tokens"] * dtype.itemsize // BLOCK_BYTES)
        expected = (f"{name}-{number:05d}.bin", HEADER_BYTES + shard["tokens"] * dtype.itemsize, blocks)
        if (shard["file"], shard["bytes"], len(shard["sha256"])) != expected or shard["tokens"] < 1:
            raise ValueError(f"shard {number} contradicts itself")
    for count in ("tokens", "documents"):
        if entry[count] != sum(shard[count] for shard in entry["shards"]):
            raise ValueError(f"its shards have another number of {count}")
