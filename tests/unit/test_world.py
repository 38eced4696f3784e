"""What several processes tell each other, where one of them has gone."""

from typing import NoReturn

import pytest
import torch.distributed as dist

from gpt2.distributed import World
from gpt2.errors import RunError


@pytest.fixture(autouse=True)
def _gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **more: object) -> NoReturn:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1234")

    monkeypatch.setattr(dist, "broadcast_object_list", refuse)


def test_what_ended_the_main_process_is_not_hidden_by_the_others_being_gone() -> None:
    """Ctrl-C goes to all of them at once."""

    def stopped() -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        World(0, 2, 0).from_main(stopped)


@pytest.mark.parametrize("rank", [0, 1])
def test_that_another_has_gone_is_said(rank: int) -> None:
    with pytest.raises(RunError, match="Another process has ended before training began"):
        World(rank, 2, rank).from_main(lambda: 1)


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **more: object) -> NoReturn:
        raise RuntimeError("no such group")

    monkeypatch.setattr(dist, "broadcast_object_list", refuse)
    with pytest.raises(RuntimeError, match="no such group"):
        World(0, 2, 0).from_main(lambda: 1)
