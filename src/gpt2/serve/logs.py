"""What the server writes down: a line a request on stderr, and what went wrong, without the words of its users."""

import logging
import sys

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class WithoutTraceback(logging.Filter):
    """Lets records pass without the values that a traceback's message may hold."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true; the record has lost its traceback."""
        record.exc_info = None
        return True


def configure() -> None:
    """Write to stderr: our own lines, and warnings of what carries us."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORMAT))
    handler.addFilter(WithoutTraceback())
    for name, level in (("gpt2.serve", logging.INFO), ("uvicorn.error", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
