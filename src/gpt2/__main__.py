"""`python -m gpt2` is `gpt2`, and so is the installed command: Ctrl-C gets an answer from the first moment on."""

# Built in: while Python reads the file of `signal`, there would be no answer yet.
import _signal  # pyright: ignore[reportMissingImports]

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from collections.abc import Sequence

from gpt2 import signals


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line, else that of this process; a Ctrl-C before it is ready to answer ends the process at once."""
    signals.end_at_once()
    from gpt2 import cli

    try:
        cli.main(argv)
    except SystemExit as leaving:
        if isinstance(leaving.code, int) and leaving.code > 128:  # by a signal
            signals.leave(leaving.code)
        raise


if __name__ == "__main__":
    main()
