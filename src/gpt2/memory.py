"""The machine's memory, as far as this process may have it: its control groups may allow less than there is.

Linux tells it in files; where there are none, the whole is all that is known.
"""

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def whole(root: Path = ROOT) -> int:
    """Bytes that this process and its group can have in use at once.

    Args:
        root: of the file system that is asked.
    """
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        there = 8 * 2**30
    return min([there, *(limit for limit, _ in _groups(root))])


def free(root: Path = ROOT) -> int:
    """Bytes that can still be taken: of the machine, and of every group's share. Files kept in memory give way.

    Args:
        root: of the file system that is asked.
    """
    available = _fields(root / "proc/meminfo").get("MemAvailable:")
    there = whole(root) if available is None else available * 1024
    return max(0, min([there, *(limit - used for limit, used in _groups(root))]))


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """The control groups of this process that have a limit, in version 2 or 1: bytes allowed, and bytes in use."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, most, now, files = "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            mount, most, now, files = (
                "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_",
            )  # fmt: skip
        else:
            continue
        own = Path(path.lstrip("/"))
        # A container may see its own group as the root, under whatever path the machine knows it by.
        for group in (own, *own.parents):
            folder = root / mount / group
            limit, used = _number(folder / most), _number(folder / now)
            if limit is not None and used is not None:
                kept = _fields(folder / "memory.stat")
                yield limit, used - sum(kept.get(f"{files}{age}_file", 0) for age in ("active", "inactive"))


def _number(path: Path) -> int | None:
    """What a file says; None, if there is none, or it says `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
        return {line[0]: int(line[1]) for line in lines if len(line) > 1}
    except (OSError, ValueError):
        return {}
