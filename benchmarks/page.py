"""How soon the page of `gpt2 serve` is there: the browser's own first contentful paint, on loopback, nothing cached.

    python benchmarks/page.py

Needs Chromium. Each round is a browser context of its own.
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from results import machine, write_section
from server import ServerProcess, make_folder

PAINTED = """() => new Promise(found => {
    const first = () => performance.getEntriesByName("first-contentful-paint")[0];
    const look = () => first() ? found(first().startTime) : setTimeout(look, 5);
    look();
})"""
WEIGHT = """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .reduce((sum, entry) => sum + entry.transferSize, 0)"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    painted: list[float] = []
    weights: list[int] = []
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        server = ServerProcess(make_folder(Path(temporary), "gpt2-micro"), slots=1)
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for _ in range(1 + rounds):  # the first one warms the browser up
            context = browser.new_context()
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{server.port}/", wait_until="networkidle")
            painted.append(page.evaluate(PAINTED))
            weights.append(page.evaluate(WEIGHT))
            context.close()
        browser.close()
        server.end()
    counted = painted[1:]
    lines = [
        f"`python benchmarks/page.py` on {machine()}; {rounds} rounds, each in a fresh browser context, on loopback.",
        "",
        f"First contentful paint after {statistics.median(counted):.0f} ms (median; worst {max(counted):.0f} ms, the "
        f"very first one {painted[0]:.0f} ms); {weights[0] / 1024:.0f} KiB in all.",
    ]
    print(*lines, sep="\n")
    write_section("page", "The page", lines)


if __name__ == "__main__":
    main()
