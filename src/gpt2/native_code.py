"""C++ of this package, compiled for this machine when it is first used, and kept."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from gpt2.console import say
from gpt2.files import alone

OPTIONS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC")


class NativeCodeError(Exception):
    """It cannot be compiled here; the message says why."""


def load(source: Path, *options: str, announcement: str = "") -> ctypes.CDLL:
    """The functions of a C++ file.

    Args:
        source: the file.
        options: of the compiler, beside `OPTIONS`.
        announcement: is said before it is compiled; not where that was done before.

    Raises:
        NativeCodeError: there is no compiler, it failed, or there is no place of one's own for what it makes.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NativeCodeError("there is no C++ compiler (g++, clang++)")
    command = [compiler, *OPTIONS, *options]
    try:
        # What the compiler knows of itself and of this processor: another of either is another file.
        about = [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
        known = subprocess.run(about, capture_output=True, check=True).stdout
        name = hashlib.sha256(source.read_bytes() + known + " ".join(command[1:]).encode()).hexdigest()[:16]
        path = _private_folder() / f"{name}.so"
        with alone(path.with_suffix(".lock")):
            if not path.exists():
                if announcement:
                    say(announcement, style="dim")
                with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                    made = Path(folder) / path.name
                    subprocess.run([*command, "-o", made, source], capture_output=True, check=True)
                    os.replace(made, path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip()[:300] or error.returncode
        raise NativeCodeError(f"{compiler} failed: {reason}") from error
    except (OSError, RuntimeError) as error:  # the latter, where a user without a name has no home
        raise NativeCodeError(str(error)) from error


def _private_folder() -> Path:
    """Where compiled code is kept: nobody else may write there, since what lies there is run.

    Raises:
        PermissionError: the folder belongs to somebody else.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2-from-scratch"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    folder.chmod(0o700)
    return folder
