"""Bad clients beside ordinary ones, for a minute, against a server in a process of its own: nothing is lost."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts in /proc")]


def test_bad_clients_cost_the_server_nothing() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--minutes", "1.5"], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    answered, differing = re.search(r"same request \| ([\d,]+); (\d+)", done.stdout).groups()  # pyright: ignore
    assert int(answered.replace(",", "")) > 50 and differing == "0"
    assert re.search(r"left early; read slowly.* \| [1-9][\d,]*; [1-9]", done.stdout)
    assert re.search(r"did not read.* \| [1-9]\d*; 0 \|", done.stdout)
