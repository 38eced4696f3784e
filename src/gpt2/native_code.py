"""C++ of this package, compiled for this machine when it is first used, and kept."""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from gpt2.console import say
from gpt2.files import alone, atomic_open

OPTIONS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC")


class NativeCodeError(Exception):
    """It cannot be compiled here; the message says why."""


def load(source: Path, *options: str, announcement: str = "") -> ctypes.CDLL:
    """The functions of a C++ file.

    What was compiled ends with its sha256, which a loader does not read: what is damaged would be run until it crashes,
    so it is compiled again.

    Args:
        source: the file.
        options: of the compiler, beside `OPTIONS`.
        announcement: is said before it is compiled; not where that was done before.

    Raises:
        NativeCodeError: there is no compiler, it failed, or there is no place of one's own for what it makes.
    """
    compiler = _compiler()
    command = [*OPTIONS, *options]
    try:
        # What the compiler knows of itself and of this processor: another of either is another file.
        about = [*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
        known = subprocess.run(about, capture_output=True, check=True).stdout
        name = hashlib.sha256(source.read_bytes() + known + " ".join(command).encode()).hexdigest()[:16]
        folder = _folder()
        path = folder / f"{name}.so"
        if not _is_whole(path):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_own(folder)
            busy = partial(say, "Another command is compiling the same: waiting for it …", style="dim")
            with alone(path.with_suffix(".lock"), busy):
                if not _is_whole(path):  # another command may have compiled it meanwhile
                    if announcement:
                        say(announcement, style="dim")
                    _compile([*compiler, *command], source, path)
        _require_own(folder)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().partition("\n")[0].rstrip(".")[:300]
        raise NativeCodeError(f"the C++ compiler {shlex.join(compiler)} failed: {said or error.returncode}") from error
    except OSError as error:
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        where = "in XDG_CACHE_HOME, else ~/.cache"
        raise NativeCodeError(f"{what} (compiled code is kept {where}; CXX names the compiler)") from error
    except RuntimeError as error:  # a user without a name has no home
        raise NativeCodeError(str(error).rstrip(".")) from error


def _compiler() -> list[str]:
    """The command of the compiler: CXX, which may have arguments, else the first of two that is there."""
    if given := shlex.split(os.environ.get("CXX", "")):
        return given
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        raise NativeCodeError("there is no C++ compiler (g++, clang++)")
    return [found]


def _compile(command: list[str], source: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        subprocess.run([*command, "-o", made, source], capture_output=True, check=True)
        code = made.read_bytes()
    if path.is_dir():
        shutil.rmtree(path)
    with atomic_open(path) as file:
        file.write(code + hashlib.sha256(code).digest())


def _is_whole(path: Path) -> bool:
    try:
        kept = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(kept[:-32]).digest() == kept[-32:]


def _folder() -> Path:
    """Where compiled code is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2-from-scratch"


def _require_own(folder: Path) -> None:
    """Nobody else may write there, since what lies there is run.

    Raises:
        PermissionError: the folder belongs to somebody else.
    """
    about = folder.stat()
    if hasattr(os, "getuid") and about.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    if about.st_mode & 0o077:
        folder.chmod(0o700)
