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
