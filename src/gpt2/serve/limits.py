"""What a client may ask for, and how long anything may take. Every number is a bound that some attack is known for."""

from dataclasses import dataclass

MOST_CHOICES = 4
"""Answers to one prompt (`n`)."""
MOST_PROMPTS = 16
"""Prompts in one request; and answers in one, all prompts together."""
MOST_STOPS = 4
LONGEST_STOP = 64
"""Characters of a stop string."""
MOST_BIASES = 300
MOST_MESSAGES = 1000
MOST_IDS = 2**15
"""Token ids of a prompt; far above any context, and far below what would keep the parser busy."""
MOST_ALTERNATIVES = 20
"""Log-probabilities of other tokens that may be asked for beside each token."""
MOST_LOOKS = 4
"""Looks inside on their way at once, all clients together: each holds tens of megabytes until it is sent."""
MOST_LOOKS_OF_ONE = 2
"""Of which one client may have so many, who may take minutes to read each."""
INLINE_CHARACTERS = 4096
"""A text up to so long is encoded at once (a millisecond); a longer one in a thread, so that others do not wait."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one server. Times are in seconds, sizes in bytes."""

    body_bytes: int = 2 * 2**20
    header_bytes: int = 16 * 2**10
    headers: int = 100
    connections: int = 1000
    receive_seconds: float = 10.0
    """From the first byte of a request (or the connection, if none comes) to its last."""
    write_seconds: float = 30.0
    """How long a reader may take nothing of what lies ready for it."""
    idle_seconds: int = 20
    """How long a connection may stay open between two requests."""
    answer_seconds: float = 600.0
    """From the arrival of a request to the end of its answer. Its reader gets `write_seconds` more for the rest."""
    queue: int = 64
    """Answers that may wait for a place in the engine, all clients together."""
    drain_seconds: float = 30.0
    """How long answers may go on after SIGTERM."""

    @property
    def connections_of_one(self) -> int:
        """Connections that one address may hold: half are always left to the others."""
        return max(1, self.connections // 2)

    def share(self, slots: int) -> int:
        """Answers that one client may have running and waiting: half of the queue is always left to the others."""
        return slots + max(1, self.queue // 2)


def connections_that_fit(wanted: int = 1000) -> int:
    """As many connections as wanted, or fewer where the system gives this process fewer descriptors."""
    try:
        import resource
    except ImportError:  # Windows, which counts them otherwise
        return wanted
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if allowed == resource.RLIM_INFINITY else max(16, min(wanted, allowed - 64))
