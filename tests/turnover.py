"""Requests that come and go while others are written."""

import random
from collections.abc import Sequence

from gpt2.generation.engine import Engine
from gpt2.generation.request import Delta, Request


def come_and_go(made: Engine, asked: Sequence[Request], seed: int) -> tuple[list[list[Delta]], set[int]]:
    """Step an engine until all is written: the deltas of each request, and the numbers of those that were cancelled.

    They come as rows become free, one a step, and in a twentieth of the steps one is cancelled.
    """
    draw, waiting, running = random.Random(seed), list(range(len(asked))), {}
    written: list[list[Delta]] = [[] for _ in asked]
    cancelled = set()
    while waiting or running:
        if waiting and (ticket := made.admit(asked[waiting[0]])) is not None:
            running[ticket] = waiting.pop(0)
        if running and draw.random() < 0.05:
            ticket = draw.choice(list(running))
            made.cancel(ticket)
            cancelled.add(running.pop(ticket))
        for ticket, delta in made.step():
            assert isinstance(delta, Delta), delta
            written[running[ticket]].append(delta)
            if delta.finish:
                del running[ticket]
    return written, cancelled
