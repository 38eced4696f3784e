"""MANIFEST.json: size and sha256 of each file of a folder, taken as they are written, compared as they are read."""

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import CheckpointError, UserError
from gpt2.files import read_json, sha256_file, write_json

MANIFEST = "MANIFEST.json"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64"}
"""Those of weights and optimizers, as a safetensors file names them."""


class NewFolder:
    """The files of a checkpoint that is being written, hashed as they are handed over and not as they are read back.

    Args:
        folder: where they go; empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, dict[str, Any]] = {}

    def text(self, name: str, text: str) -> None:
        """Write a text, as UTF-8."""
        self._write(name, [text.encode()])

    def tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write named tensors as a safetensors file: the length of a JSON header, it, and then their bytes."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor_name, tensor in tensors.items():
            place = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)}
            header[tensor_name] = {**place, "data_offsets": [end, end := end + tensor.nbytes]}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        flat = (tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data for tensor in tensors.values())
        self._write(name, itertools.chain([len(encoded).to_bytes(8, "little"), encoded], flat))

    def _write(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        digest, size = hashlib.sha256(), 0
        with (self._folder / name).open("xb") as file:
            for part in parts:
                digest.update(part)
                file.write(part)
                size += len(part)
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "linux":  # what is read to verify it is what lies on the disk, not what is in memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._files[name] = {"size": size, "sha256": digest.hexdigest()}

    def complete(self) -> None:
        """Write the manifest, and read everything once.

        Raises:
            CheckpointError: what was read is not what was written.
        """
        write_json(self._folder / MANIFEST, {"format": 1, "files": dict(sorted(self._files.items()))})
        verify(self._folder)


def verify(folder: Path) -> None:
    """Compare each file with the manifest.

    Raises:
        CheckpointError: there is no manifest, or a file is missing or differs; the file is named.
    """
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was never completed.")
    try:
        files = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest_files(folder)}
    except UserError as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{folder / MANIFEST} is damaged: it does not list files with sizes and sums.") from None
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
        if path.stat().st_size != size or sha256_file(path) != sha256:
            raise CheckpointError(f"{path} is damaged: its bytes are not those that were saved.")


def manifest_files(folder: Path) -> Any:
    """Each file's name, with its size and hash, as the manifest has them; not checked."""
    return read_json(folder / MANIFEST)["files"].items()


def lacks_nothing(folder: Path) -> bool:
    """Whether each file is there in its size. Hashing old checkpoints at each save would take longer than saving."""
    try:
        return all((folder / name).stat().st_size == entry["size"] for name, entry in manifest_files(folder))
    except (OSError, UserError, KeyError, TypeError, AttributeError):
        return False
