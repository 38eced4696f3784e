"""gpt2-from-scratch: from your own text and tables to a GPT-2 that you trained, understand and can talk to."""

import os

__version__ = "0.1.0"

# PyTorch's threads wait for each other at full speed, for milliseconds (libgomp reads this when torch is imported).
# Where other programs run, they wait so for a thread whose core they hold: beside two busy programs on two cores a
# training step takes 6 times as long as with this shorter wait, which costs nothing on a quiet machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
