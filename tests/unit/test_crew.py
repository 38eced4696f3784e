"""As many threads read as are fastest of late: all of them, or one."""

from collections import Counter

import pytest
import torch

from gpt2.generation.native import FEW, TRIED, Crew


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)


def readings(crew: Crew, tokens: int, together: float, alone: float, count: int = 10 * TRIED) -> Counter[int]:
    """How many readings were made by so many threads, where they take so many seconds."""
    made: Counter[int] = Counter()
    for _ in range(count):
        threads = crew.choose(tokens)
        made[threads] += 1
        crew.took(tokens, threads, alone if threads == 1 else together)
    return made


def test_on_a_quiet_machine_all_read_and_one_is_tried_now_and_then() -> None:
    assert readings(Crew(adapts=True), 1, together=1.0, alone=2.0) == {4: 10 * TRIED - 10, 1: 10}


def test_where_all_are_slower_one_reads_until_they_are_faster_again() -> None:
    crew = Crew(adapts=True)
    readings(crew, 1, together=1.0, alone=2.0)
    assert readings(crew, 1, together=9.0, alone=2.5)[1] >= 8 * TRIED
    assert readings(crew, 1, together=1.0, alone=2.0)[4] >= 8 * TRIED
    assert readings(crew, 2, together=1.0, alone=9.0, count=TRIED) == {4: TRIED - 1, 1: 1}, "other tokens, other times"


def test_large_models_and_long_pieces_are_read_by_all() -> None:
    assert readings(Crew(adapts=False), 1, together=9.0, alone=1.0) == {4: 10 * TRIED}
    assert readings(Crew(adapts=True), FEW + 1, together=9.0, alone=1.0) == {4: 10 * TRIED}
