"""What the tests share: a command line in this process, and small texts that are made here."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side; two threads each would only wait

import hypothesis
import pytest

from gpt2.cli import main
from tests.zygote import Zygote

# No test asserts a time: a busy machine takes what it takes.
hypothesis.settings.register_profile("timeless", deadline=None)
hypothesis.settings.load_profile("timeless")

WORDS = tuple(
    "the a cat dog bird sees hears likes old young green small river house and then under over with".split()  # noqa: SIM905
)


def pytest_configure() -> None:
    """Who starts the tests in the background, or under nohup, has them and their children ignore signals: no longer."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """What runs `gpt2 train …` without the seconds of its imports."""
    made = Zygote()
    yield made
    made.close()


def make_text(words: int, seed: int = 0) -> str:
    """Sentences of a small grammar: learnable, and different for each seed."""
    draw = random.Random(seed)
    lines = []
    while words > 0:
        length = min(words, draw.randint(4, 12))
        lines.append(" ".join(draw.choice(WORDS) for _ in range(length)).capitalize() + ".")
        words -= length
    return "\n".join(lines) + "\n"


@dataclass
class Answer:
    """What a command line gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def text() -> str:
    return make_text(4000)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def cli(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run `gpt2 …` in the workplace: exit code, stdout, stderr. A traceback would be an exception here."""

    def run(*argv: object) -> Answer:
        capsys.readouterr()
        try:
            main([str(arg) for arg in argv])
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        captured = capsys.readouterr()
        return Answer(code, captured.out, " ".join(captured.err.split()))

    return run


SMALL = (
    "--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "16", "--model.context-length", "16",
    "--train.batch-size", "4", "--train.sample-tokens", "8", "--tokenizer", "char",
)  # fmt: skip
"""Options of a run that takes a second."""
