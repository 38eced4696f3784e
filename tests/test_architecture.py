"""The shape of the system: who may import whom, how long a file may get, what help may load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from gpt2.cli import COMMANDS

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "gpt2").rglob("*.py"))


def test_imports_go_down_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_a_file_holds_one_thing(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 330, "a file this long holds more than one noun"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_neither_torch_nor_matplotlib(command: str) -> None:
    code = (
        "import sys, json\nfrom gpt2.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as leaving:\n    assert not leaving.code\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    argv = [sys.executable, "-c", code, *([command] if command else []), "--help"]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    loaded = set(json.loads(out.splitlines()[-1]))
    assert not loaded & {"torch", "matplotlib", "transformers", "tiktoken", "fastapi", "uvicorn"}
    assert "gpt2" in out.splitlines()[0] or "gpt2" in out


def test_nothing_is_pickled() -> None:
    for path in SOURCES:
        text = path.read_text()
        for word in ("import pickle", "from pickle", "torch.load(", "torch.save("):
            assert word not in text, f"{word} in {path}"
