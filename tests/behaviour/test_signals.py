"""Signals before the first step: an answer at every moment, and no traceback."""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import SMALL, Answer, make_text

from gpt2.files import read_json
from gpt2.signals import SIGNALS, answered
from gpt2.training import checkpoint
from gpt2.training.interrupt import StopRequest

Cli = Callable[..., Answer]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def test_a_run_that_is_stopped_before_its_first_step_says_how_to_go_on(
    cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(job: object) -> None:
        raise KeyboardInterrupt

    (workplace / "notes.txt").write_text(make_text(600))
    with monkeypatch.context() as patched:
        patched.setattr("gpt2.recipes.begun.run", stopped)
        answer = cli("train", "notes.txt", "--run", "small", *SMALL, "--train.steps", "2")
    assert answer.code == 130
    assert "Stopped before the first step. Go on with: gpt2 train --resume runs/small" in answer.err
    assert cli("train", "--resume", "runs/small").code == 0


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("gpt2.config.schema", signal.SIGINT),  # before the command line is read
        ("gpt2.recipes.plot", signal.SIGTERM),
        # numpy asks for it from inside its C code, and takes what goes wrong there for a broken installation
        ("numpy.exceptions", signal.SIGINT),
    ],
)
def test_a_signal_while_importing_is_answered_at_once(module: str, number: signal.Signals) -> None:
    pressed = f"""
import runpy, signal, sys
class Pressed:
    def find_spec(self, name, *rest):
        if name == {module!r}:
            signal.raise_signal({int(number)})
sys.meta_path.insert(0, Pressed())
runpy.run_module("gpt2", run_name="__main__")
"""
    argv = [sys.executable, "-c", pressed, "plot", "nothing"]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ended.stderr == "Stopped.\n"
    assert ended.returncode == 128 + number


def test_ctrl_c_before_the_first_file_is_read_leaves_no_traceback() -> None:
    pressed = """
import os, runpy, sys
class Pressed:
    def find_spec(self, name, *rest):
        if name == "gpt2.signals":
            os.kill(os.getpid(), 2)
sys.meta_path.insert(0, Pressed())
runpy.run_module("gpt2", run_name="__main__")
"""
    ended = subprocess.run([sys.executable, "-c", pressed, "--help"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_first_step_is_answered(
    cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    monkeypatch.setattr("gpt2.recipes.train.prepare_data", lambda *_: signal.raise_signal(number))
    handlers = [signal.getsignal(each) for each in SIGNALS]
    answer = cli("train", "notes.txt", *SMALL)
    assert (answer.code, answer.err) == (128 + number, "Stopped.")
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with answered() as imported:
            signal.raise_signal(signal.SIGHUP)
            imported()
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_training_listens_to_no_signal_that_is_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)  # of SIGINT, a shell does so with `gpt2 train … &` in a script
    try:
        with StopRequest() as stop:
            signal.raise_signal(number)
            assert stop.received is None
    finally:
        signal.signal(number, before)


def test_rubbish_is_looked_for_again_once_a_command_is_imported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work = []
    monkeypatch.setattr("gpt2.cli._print", lambda text: at_work.append(gc.isenabled()))
    assert cli("--version").code == 0
    assert cli("no-such-command").code == 2
    assert (at_work, gc.isenabled()) == ([True], True)


def test_who_was_stopped_waits_for_no_thread() -> None:
    """Nor takes Python apart under it: a server that was opening when it was told twice ended by SIGSEGV."""
    working = """
import threading, time
from gpt2 import __main__, cli
def main(argv):
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("said", end="")
    raise SystemExit(143)
cli.main = main
__main__.main()
"""
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", working], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (143, "said")
    assert time.monotonic() - began < 50


def test_one_of_several_processes_dies_of_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with answered() as imported:
        imported()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@contextlib.contextmanager
def started(*argv: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-m", "gpt2", *argv], stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("library", ["_multiarray_umath", "_umath_linalg", "libtorch_cpu", "libtorch_python"])
@pytest.mark.parametrize("command", ["train", "generate", "plan"])
def test_ctrl_c_while_a_library_is_loaded(workplace: Path, command: str, library: str) -> None:
    """From outside, at the moment at which the library appears in the process."""
    (workplace / "notes.txt").write_text(make_text(600))
    argv = {
        "train": ("train", "notes.txt", *SMALL, "--train.steps", "1000000"),
        "generate": ("generate", "nothing"),
        "plan": ("plan", "--model", "gpt2", "--tokens", "1B", "--gpus", "1xH100"),
    }[command]
    with started(*argv) as process:
        while library not in Path(f"/proc/{process.pid}/maps").read_text():
            if process.poll() is not None:
                return  # it has no need of that library
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=180)
        assert (process.returncode, said) == (130, "Stopped.\n")


def test_a_run_goes_on_when_nobody_reads_what_it_says(workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(4000))
    argv = [sys.executable, "-m", "gpt2", "train", "notes.txt", "--run", "unread", *SMALL, "--train.steps", "30"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as training:
        assert training.stderr is not None
        training.stderr.readline()
        training.stderr.close()
        assert training.wait(180) == 0
    state = json.loads((workplace / "runs" / "unread" / "run_state.json").read_text())
    assert (state["status"], state["step"]) == ("completed", 30)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_run_goes_on_when_the_disk_of_its_log_is_full(workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(4000))
    argv = [sys.executable, "-m", "gpt2", "train", "notes.txt", "--run", "unread", *SMALL, "--train.steps", "30"]
    with Path("/dev/full").open("w") as log:
        assert subprocess.run(argv, stderr=log, check=False).returncode == 0
    assert read_json(workplace / "runs/unread/run_state.json") == {"status": "completed", "step": 30}


def test_a_stream_that_is_closed_gives_and_takes_nothing(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    assert cli("train", "notes.txt", "--run", "it", *SMALL, "--train.steps", "3").code == 0
    for command in ("chat it <&-", "generate it the --max-tokens 2 >&-", "generate it the --max-tokens 2 2>&-"):
        done = subprocess.run(
            f"exec {sys.executable} -m gpt2 {command}", shell=True, check=False, capture_output=True, text=True
        )
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


TWICE = """
import os, signal, sys, time
from gpt2.cli import main
from gpt2.training import checkpoint
save, saves = checkpoint.save, 0
def pressed_twice(run, step, write, *rest):
    def writing(place):
        write(place)
        print(step, flush=True)
        for _ in range(120):  # a disk that takes long: nobody waits for it
            # Another one comes from outside. To the process: raised in this thread, it would wake no other.
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    return save(run, step, writing if saves_now() == 2 else write, *rest)
def saves_now():
    global saves
    saves += 1
    return saves
checkpoint.save = pressed_twice
main(sys.argv[1:])
"""


def test_a_second_ctrl_c_ends_at_once_and_damages_nothing(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    command = ("train", "notes.txt", "--run", "twice", *SMALL, "--train.steps", "100000", "--train.eval-every", "5")
    with subprocess.Popen(
        [sys.executable, "-c", TWICE, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as training:
        run = workplace / "runs/twice"
        while not (run / "last").exists():
            assert training.poll() is None, training.communicate()
            time.sleep(0.01)
        training.send_signal(signal.SIGINT)
        said = training.communicate(timeout=180)
    print(said)
    assert training.returncode == 130
    last = "Stopped at once. The checkpoint of step 5 is intact. Go on with: gpt2 train --resume runs/twice\n"
    assert said[1].endswith(last) and "Traceback" not in said[1]
    for folder in checkpoint.list_checkpoints(run):
        checkpoint.verify(folder)
    assert [checkpoint.step_of(folder) for folder in checkpoint.list_checkpoints(run)] == [5]
    assert read_json(run / "run_state.json") == {"status": "preempted", "step": 5}
    assert cli("train", "--finish", "twice", "--train.steps", "3").code == 0
