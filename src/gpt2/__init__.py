"""gpt2-from-scratch: from your own text and tables to a GPT-2 that you trained, understand and can talk to."""

__version__ = "0.1.0"
