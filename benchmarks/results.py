"""RESULTS.md: a section for each benchmark, each written by its own program, joined in the order of their names."""

import os
import platform
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
MARK = "<!-- {} -->"
ABOUT = (
    "`make bench` writes this, and `benchmarks/step.py --device cuda` the section of a GPU; ratios are of the same",
    "run, both sides in turn. *Remarks* are kept by hand: what the same commands wrote on other machines.",
)


def machine() -> str:
    """The day and the machine, as every section states them."""
    models = [line for line in _cpu_info() if line.startswith("model name")]
    name = models[0].split(":")[1].strip() if models else platform.machine()
    return f"{date.today()}, {name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def write_section(key: str, title: str, lines: list[str], path: Path = HERE / "RESULTS.md") -> None:
    """Put a section into RESULTS.md, in place of what stood there under the same key."""
    sections = _sections(path.read_text(encoding="utf-8")) if path.exists() else {}
    sections[key] = "\n".join([f"## {title}", "", *lines]).strip()
    page = ["# Results", "", *ABOUT]
    for name in sorted(sections):
        page += ["", MARK.format(name), sections[name]]
    path.write_text("\n".join(page) + "\n", encoding="utf-8")


def _sections(page: str) -> dict[str, str]:
    parts = page.split("<!-- ")[1:]
    return {part.split(" -->")[0]: part.split(" -->", 1)[1].strip() for part in parts}
