"""`python chatbot_trained.py [RUN]` is `gpt2 chat [RUN]`; without RUN it is the newest one."""

import sys

from gpt2.__main__ import main

if __name__ == "__main__":
    main(["chat", *sys.argv[1:]])
