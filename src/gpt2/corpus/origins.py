"""Where each document of a part came from, beside its shards.

    NAME-origins.bin    two uint32 a document, little-endian: number of its origin, row (0: it is no row of a table)
    NAME-origins.json   the origins

Tokens do not need it: folders that were prepared without are used as they are.
"""

import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from gpt2.errors import UserError
from gpt2.files import read_json, write_json


class OriginWriter:
    """Notes the origins of a part's documents, in their order.

    Args:
        folder: of the shards.
        name: of the part.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}-origins"
        self._numbers: dict[str, int] = {}
        self._pairs = array("I")

    def add(self, origin: str, row: int | None) -> None:
        """Note the next document: where it comes from, and the record of a table, from 1."""
        self._pairs.extend((self._numbers.setdefault(_short(origin), len(self._numbers)), row or 0))

    def close(self) -> None:
        """Write the files."""
        if sys.byteorder == "big":
            self._pairs.byteswap()
        self._path.with_suffix(".bin").write_bytes(self._pairs.tobytes())
        write_json(self._path.with_suffix(".json"), list(self._numbers))


class Origins(Sequence[str]):
    """Names of a part's documents, as the user would recognise them; none where they were not noted.

    Args:
        folder: of the shards.
        name: of the part.
    """

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / f"{name}-origins"
        try:
            self._names = read_json(path.with_suffix(".json"))
            self._pairs = np.fromfile(path.with_suffix(".bin"), "<u4").reshape(-1, 2)
        except (OSError, UserError, ValueError):
            self._names, self._pairs = [], np.empty((0, 2), "<u4")

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        number, row = self._pairs[index].tolist()
        name = self._names[number]
        return f"{name}, {'line' if name.endswith('.jsonl') else 'row'} {row:,}" if row else name


def _short(origin: str) -> str:
    """Without its folders: whoever may see passages need not see where files lie on this machine."""
    return Path(origin).name if Path(origin).is_absolute() else origin
