"""`python -m gpt2` is `gpt2`, and so is the installed command: Ctrl-C is quiet from the first moment on."""

import signal


def main() -> None:
    """Run the command line of this process; a Ctrl-C before it is ready to answer ends the process at once."""
    heard = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gpt2 import cli

    signal.signal(signal.SIGINT, heard)
    cli.main()


if __name__ == "__main__":
    main()
