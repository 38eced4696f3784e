"""`python main.py …` is `gpt2 train …`."""

import sys

from gpt2.__main__ import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
