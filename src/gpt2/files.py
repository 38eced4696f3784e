"""Files that appear whole or not at all: atomic writes, folders that are renamed into place, sha256, locks."""

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from gpt2.errors import RunError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room."""


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable (a rename is only safe once its folder has been synced)."""
    if os.name == "nt":  # Windows cannot open a folder; its renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_open(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block ends well, and leaves no trace when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        named(error, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    with atomic_open(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path, limit: int = 64 * 2**20) -> Any:
    """Read a JSON file of at most `limit` bytes.

    Raises:
        UserError: the file is larger than `limit`, or is no JSON.
    """
    size = path.stat().st_size
    if size > limit:
        raise UserError(f"{path} has {size:,} bytes; a file of its kind has at most {limit:,}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error


@contextlib.contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A new folder that appears under its `final` name, complete and synced, when the block ends well.

    Until then it lies beside it under a name that begins with a dot. An existing `final` folder is replaced.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        fsync_folder(temporary)
        if not final.exists():
            os.replace(temporary, final)
        elif not _exchanged(temporary, final):  # rename cannot replace a folder that has files
            old = final.with_name(f".{final.name}{_OLD}{uuid.uuid4().hex[:8]}")
            os.replace(final, old)
            try:
                os.replace(temporary, final)
            except OSError:
                os.replace(old, final)
                raise
            shutil.rmtree(old, ignore_errors=True)
        fsync_folder(final.parent)
    except OSError as error:
        named(error, final)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_OLD = ".tmp-old-"
"""In the name of a folder that another is taking the place of. Until that is there, it is the only one."""


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two folders have changed places, at once; not every system can do that."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    working_folder, exchange = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of stdio.h
    return renameat2(working_folder, os.fsencode(one), working_folder, os.fsencode(other), exchange) == 0


def named(error: OSError, path: Path) -> OSError:
    """A full disk's error with what was written in it: a file that is open knows its number only."""
    if error.filename is None and error.errno in FULL:
        error.filename = str(path)
    return error


def sweep_temporaries(folder: Path, of: str = "", older_than: float = 0.0) -> None:
    """Remove what an interrupted `atomic_folder` or `atomic_open` left behind. Only under the folder's lock.

    A folder that was about to be replaced, and was not, is put back.

    Args:
        folder: where to look.
        of: name of the file or folder that it was to become; empty: of any.
        older_than: seconds; what is younger may still be in use by a program that needs no lock.
    """
    for path in folder.glob(f".{glob.escape(of) or '*'}.*tmp*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime < older_than:
                continue
            final = path.with_name(path.name.partition(_OLD)[0].removeprefix("."))
            if _OLD in path.name and not final.exists():
                os.replace(path, final)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def require_folder(path: Path) -> None:
    """Stop where the folder that a file is to be written to is not there: a mistyped one is not made.

    Raises:
        RunError: it is not there; it is named.
    """
    parent = path.expanduser().absolute().parent
    if not parent.is_dir():
        raise RunError(f"There is no folder {parent}.", f"Make it, or choose another place for {path.name}.")


def require_own(path: Path, beginning: bytes, kind: str) -> None:
    """Stop where a file would be replaced that is none of ours.

    Args:
        path: that is to be written.
        beginning: what every file of the kind begins with.
        kind: in words, as "GGUF file".

    Raises:
        RunError: something else is there.
    """
    path = path.expanduser()
    if path.is_dir():
        raise RunError(f"{path} is a folder.", "Name a file.")
    if path.exists():
        with path.open("rb") as file:
            if file.read(len(beginning)) != beginning:
                raise RunError(f"{path} is there already, and is no {kind}.", "Choose another name for --out.")


@contextlib.contextmanager
def alone(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Wait until no other process is in such a block of the same path, which becomes an empty file.

    Args:
        path: of the lock.
        busy: is called where there is something to wait for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        busy()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold a file for this process, which adds to it.

    Raises:
        RunError: another process does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"Another process is writing {path}.", "Wait until it ends, or choose another file.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def locked(folder: Path, fix: str = "Wait until it ends, or choose another name with --run NAME.") -> Iterator[None]:
    """Hold a folder for this process. The lock ends with the process, however that ends.

    Args:
        folder: is made, if it is not there.
        fix: what to do where another process holds it.

    Raises:
        RunError: another process holds the folder; its number is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / ".lock-owner"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = owner.read_text(encoding="utf-8").strip() if owner.exists() else "another process"
        raise RunError(f"{folder} is in use by {holder}.", fix) from None
    try:
        owner.write_text(f"process {os.getpid()} on {os.uname().nodename if hasattr(os, 'uname') else 'this host'}\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


_INSIDE = re.compile(r"\.(.+?)\.(?:tmp|tmp-(?:old-)?[0-9a-f]{8}|[0-9a-f]{8}\.tmp|lock)|\.lock(?:-owner)?")
"""Names that only this program knows: of what is being written, and of locks."""


def _meant(path: Path) -> Path:
    """What the user knows of a path: the final file of a temporary one, the folder of a lock."""
    for place, part in enumerate(path.parts):
        if found := _INSIDE.fullmatch(part):
            return Path(*path.parts[:place], found[1] or "")
    return path


def disk_error(error: OSError, doing: str = "") -> UserError:
    """The message for a write that the operating system refused: full disk, no permission, read-only.

    Args:
        error: what it said.
        doing: such as "saving", where that is known.
    """
    path = _meant(Path(os.fsdecode(error.filename))) if isinstance(error.filename, str | bytes) else None
    where = f" while {doing}" + (f" ({path})" if path else "")
    if not doing:
        where = f": cannot {_tried(path)} {path.absolute()}" if path else ""
    if error.errno in FULL:
        known = error.strerror in (None, os.strerror(error.errno))
        much = "" if known else f": {error.strerror}"
        return UserError(f"No space left{where}{much}.", "Free some disk space, then start it again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        folder = path if path is None or path.is_dir() else path.parent
        look = "Work" if folder is None else f"See who may write there (ls -ld {folder}), or work"
        return UserError(f"No permission{where}: {error.strerror}.", f"{look} in a folder that is yours to write.")
    in_the_way = next((part for part in (path, *path.parents) if part.is_file()), None) if path else None
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and in_the_way:
        return UserError(f"{in_the_way} is a file, where a folder is needed.", "Move it, or work in another folder.")
    return UserError(
        f"The system refused{where}: {error.strerror or error}.", "Choose another place for it." if doing else ""
    )


def _tried(path: Path) -> str:
    """What was most likely refused: reading what is there and may not be read, else writing."""
    return "read" if path.is_file() and not os.access(path, os.R_OK) else "write"
