"""Runs `gpt2 …` in forks of a process that has imported everything: a run costs half a second, and can be killed.

This program reads one JSON request a line and answers each with one line. A process of its own, because torch can
compute in a fork only where the parent has not computed yet.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TypedDict

SAVES = "%file,write,pwrite64,fsync,fdatasync,ftruncate,close"
"""The system calls of a save: all that name a file, and what is done to an open one."""


class Ended(TypedDict):
    """How a run ended."""

    code: int
    """Exit code; minus the signal that killed it."""
    said: str


class Zygote:
    """The other side of the pipe: for tests."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, folder: Path, *argv: str, **how: Any) -> Ended:
        """Run `gpt2 train …` in a folder, to its end.

        Args:
            folder: to be in.
            argv: what follows `gpt2 train`.
            how: `save` and `call`: kill it at this system call of this save, both counted from 1; or
                `seconds`: kill it then; `ranks`: as so many processes, of which the first is the one to be killed;
                `before`: name of a function of tests/distributed/meddling.py that each process calls first.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"folder": str(folder), "argv": argv, **how}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)


def _child(request: dict[str, Any], environment: dict[str, str], log: Path) -> None:
    """In the fork: the command line, its output in a file."""
    code = 99
    try:
        os.chdir(request["folder"])
        os.environ.update(environment)
        with log.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        showing.plot_run = lambda *arguments: []  # half of the time of a run, and no part of its state
        if "save" in request and environment.get("RANK", "0") == "0":
            _stop_at_save(request["save"])
        if "before" in request:
            getattr(importlib.import_module("tests.distributed.meddling"), request["before"])()
        try:
            main(["train", *request["argv"]])
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    except BaseException:  # noqa: BLE001 - the parent shows it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _stop_at_save(number: int) -> None:
    """Halt this process where the N-th save begins, until a tracer has come."""
    from gpt2.training import checkpoint

    save, begun = checkpoint.save, 0

    def halting(*arguments: Any) -> Path:
        nonlocal begun
        begun += 1
        if begun == number:
            os.kill(os.getpid(), signal.SIGSTOP)
        return save(*arguments)

    checkpoint.save = halting


def _run(request: dict[str, Any]) -> Ended:
    ranks = request.get("ranks", 1)
    logs = [Path(request["folder"]) / f"log-{rank}.txt" for rank in range(ranks)]
    port = str(free_port())
    children = []
    for rank in range(ranks):
        numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        environment = {**numbers, "MASTER_ADDR": "localhost", "MASTER_PORT": port} if ranks > 1 else {}
        pid = os.fork()
        if pid == 0:
            _child(request, environment, logs[rank])
        children.append(pid)
    if "save" in request:
        status = _killed_at_call(children[0], request["call"])
    else:
        if "seconds" in request:
            time.sleep(request["seconds"])
            os.kill(children[0], signal.SIGKILL)
        _, status = os.waitpid(children[0], 0)
    code = os.waitstatus_to_exitcode(status)
    patience = 0 if code < 0 else 60
    for pid in children[1:]:
        _ended(pid, patience)
    return Ended(code=code, said="".join(log.read_text(errors="replace") for log in logs if log.exists()))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as tried:
        tried.bind(("localhost", 0))
        return tried.getsockname()[1]


def _ended(pid: int, seconds: float) -> None:
    """Wait for a process whose first one has ended; then kill it, as torchrun does."""
    until = time.monotonic() + seconds
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() >= until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.01)


def _killed_at_call(pid: int, call: int) -> int:
    """Let a process that halts at a save go on with a tracer that kills it at a system call: how it ended."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        return status
    inject = ["-e", f"trace={SAVES}", "-e", f"inject={SAVES}:signal=SIGKILL:when={call}"]
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-o", os.devnull, *inject, "-p", str(pid)])
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        assert tracer.poll() is None, "strace ended by itself"
        time.sleep(0.002)
    for _ in range(1000):  # attached to every thread, not only to the first
        threads = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/status")]
        if not any("TracerPid:\t0\n" in thread for thread in threads):
            break
        time.sleep(0.002)
    os.kill(pid, signal.SIGCONT)
    _, status = os.waitpid(pid, 0)
    tracer.wait()
    return status


if __name__ == "__main__":
    import torch.distributed.fsdp  # noqa: F401

    sys.path.append(str(Path(__file__).parents[1]))

    import gpt2.recipes.resume
    import gpt2.recipes.train
    import gpt2.training.plots  # noqa: F401
    from gpt2.cli import main
    from gpt2.recipes import showing

    sys.stdout.flush()
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)
