import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "there"), [(None, "10000"), ("7", "7")])
def test_threads_wait_briefly_unless_the_user_says_otherwise(given: str | None, there: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if given is not None:
        environment["GOMP_SPINCOUNT"] = given
    code = "import gpt2, os, sys; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [there, "False"]  # it is read when torch is loaded


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted by Linux")
def test_threads_that_helped_with_work_apart_end_with_it() -> None:
    code = """
import os, time, torch
from gpt2.runtime import apart
torch.set_num_threads(4)
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
print(*apart(lambda: (torch.ones(2000, 2000).sum().item(), threads() - before)))
end = time.monotonic() + 60
while threads() > before and time.monotonic() < end:
    time.sleep(0.01)
print(threads() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    product, during, after = done.stdout.split()
    assert product == "4000000.0"
    assert int(during) >= 4  # itself and its helpers
    assert after == "0"
