"""The commands in the documentation are real: every one parses, and the page's first example runs."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2.cli import COMMANDS
from gpt2.config.command_line import command_line
from gpt2.config.load import read_toml, validate
from gpt2.config.resolve import resolve_model
from gpt2.config.schema import Settings
from gpt2.model.cost import parameters
from gpt2.model.plan import Shape
from tests.conftest import SMALL, Answer, make_text

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
POSITIONAL = {
    "train": ["sources"],
    "tune": ["base", "sources"],
    "generate": ["run", "prompt"],
    "explain": ["run", "prompt"],
    "chat": ["run"],
    "serve": ["run"],
    "export": ["run"],
    "plot": ["runs"],
    "corpus": ["folder"],
    "plan": [],
}


def commands(page: Path) -> list[str]:
    """Lines of fenced blocks that begin with gpt2, python main.py or python chatbot_trained.py."""
    found = []
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+#.*", "", line.removeprefix("$ ")).strip()
            line = re.sub(r"^python main\.py", "gpt2 train", line)
            line = re.sub(r"^python chatbot_trained\.py", "gpt2 chat", line)
            if line.startswith("gpt2 "):
                found.append(line)
    return found


ALL = [(page.relative_to(ROOT), line) for page in PAGES for line in commands(page)]


def test_there_are_commands() -> None:
    assert len(ALL) > 10


@pytest.mark.parametrize(("page", "line"), ALL, ids=lambda value: str(value)[:60])
def test_every_command_parses(page: Path, line: str) -> None:
    words = shlex.split(line)
    if words[1].startswith("-"):
        return
    command = COMMANDS[words[1]]
    arguments = [word for word in words[2:] if word != "--help"]
    validate(command.schema, command_line(command.schema, arguments, "gpt2", POSITIONAL[words[1]]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} → {target}"


def test_the_tree_of_a_run_is_that_of_a_run(cli: Callable[..., Answer], workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    answer = cli("train", "notes.txt", "--run", "my-folder", *SMALL, "--train.steps", "2", "--train.eval-every", "2")
    assert answer.code == 0, answer.err
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"```\nruns/my-folder/\n(.*?)```", page, flags=re.DOTALL)
    for path in (workplace / "runs/my-folder").iterdir():
        if not path.name.startswith("."):
            assert re.search(rf"\b{re.escape(path.name.replace('loss.svg', 'loss.png .svg'))}", tree), path.name
    for path in (workplace / "runs").iterdir():
        assert f"runs/{path.name}/" in page


def test_the_size_of_the_demo_is_what_is_said_of_it() -> None:
    settings = validate(Settings, read_toml(ROOT / "configs/demo.toml"))
    sizes = resolve_model(settings.model)
    assert sizes.context_length and sizes.n_layer and sizes.n_embd
    count = parameters(
        Shape(int(settings.tokenizer.removeprefix("bpe:")), sizes.context_length, sizes.n_layer, sizes.n_embd)
    )
    said = f"model of {count / 1e6:.1f} million parameters"
    assert said in (ROOT / "configs/demo.toml").read_text(encoding="utf-8")
    assert said in (ROOT / "README.md").read_text(encoding="utf-8")


def test_make_targets_in_the_documentation_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), flags=re.M):
            assert target in targets, f"{page.name}: make {target}"
