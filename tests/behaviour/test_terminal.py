"""A conversation at a real terminal: keys, not lines from a pipe."""

import os
import select
import sys
import time
from pathlib import Path

import pytest
from tests.serve.tiny import tiny_folder

pty = pytest.importorskip("pty")
pytest.importorskip("readline")
SECONDS = 60  # for what takes a few, unless others keep the machine busy


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *argv: str) -> None:
        self.process, self._end = pty.fork()
        if self.process == 0:
            os.execve(sys.executable, [sys.executable, *argv], {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"})
        self.shown = ""

    def until(self, text: str) -> str:
        """What is shown up to a text, which has to come."""
        ends = time.monotonic() + SECONDS
        while text not in self.shown:
            left = max(0.0, ends - time.monotonic())
            assert select.select([self._end], [], [], left)[0], f"no {text!r} in {self.shown!r}"
            try:
                self.shown += os.read(self._end, 65536).decode("utf-8", "replace")
            except OSError:  # it has ended
                raise AssertionError(f"no {text!r} in {self.shown!r}") from None
        before, _, self.shown = self.shown.partition(text)
        return before

    def press(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def ended(self) -> int:
        """Its exit code."""
        while select.select([self._end], [], [], SECONDS)[0]:
            try:
                if not os.read(self._end, 65536):
                    break
            except OSError:
                break
        os.close(self._end)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def test_ctrl_c_stops_the_answer_and_the_arrow_brings_the_message_back(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    chat = Terminal("-m", "gpt2", "chat", str(folder), "--max-tokens", "1000000", "--temperature", "5")
    assert "This is a base model" in chat.until("> ")
    for keys in ("Once upon a time", "\x1b[A"):  # typed; then the arrow upwards
        chat.press(keys)
        chat.until("Once upon a time")
        chat.press("\r")
        chat.until("\n")
        chat.until("\n")  # more than a line of the answer
        chat.press("\x03")
        chat.until("Stopped.")
        chat.until("> ")
    chat.press("/undo\r")
    chat.until("Taken back: Once upon a time")
    chat.until("> ")
    chat.press("/quit\r")
    assert chat.ended() == 0
