"""The order of samples: a bijection in every epoch, the same for a seed, for any number of processes."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.loader import Loader, permute
from gpt2.errors import ConfigError, DataError


class Row:
    """Tokens in memory: 0, 1, 2, …, so that a token says where it stood."""

    def __init__(self, n, fingerprint="row"):
        self.ids, self.fingerprint = np.arange(n, dtype=np.uint32), fingerprint

    def __len__(self):
        return len(self.ids)

    def read(self, start, stop):
        assert 0 <= start <= stop <= len(self)
        return self.ids[start:stop].copy()


def make(n=500, length=4, stride=None, batch_size=6, seed=1, **ranks):
    return Loader(Row(n), length, stride, batch_size, seed, **ranks)


def epoch_starts(loader, epochs):
    """First token of every window of some epochs, one row an epoch."""
    n = loader.windows_per_epoch
    assert n * epochs % loader._batch_size == 0
    rows = [loader.next_batch()[0][:, 0] for _ in range(n * epochs // loader._batch_size)]
    return torch.cat(rows).reshape(epochs, n).numpy()


@pytest.mark.parametrize("n", [*range(1, 601), 4096, 4097, 10**5 + 3])
def test_an_order_is_a_bijection(n):
    for seed, epoch in ((0, 0), (7, 3)):
        order = permute(np.arange(n), n, seed, epoch)
        assert np.array_equal(np.sort(order), np.arange(n))


@settings(deadline=None)
@given(n=st.integers(1, 2**62), data=st.data())
def test_an_order_stays_in_range_and_apart_for_huge_ranges(n, data):
    positions = data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=20))
    order = permute(np.array(positions, dtype=np.int64), n, 5, 1).tolist()
    assert len(set(order)) == len(positions)
    assert all(0 <= i < n for i in order)


def test_orders_are_fixed_for_good():
    assert permute(np.arange(10), 10, 1, 0).tolist() == [8, 5, 2, 9, 4, 7, 3, 0, 1, 6]


def test_orders_look_shuffled():
    orders = np.stack([permute(np.arange(1000), 1000, 3, epoch) for epoch in range(50)]).astype(np.int64)
    assert len({order.tobytes() for order in orders}) == 50
    # Neighbours are not kept together (2 in 1000 by chance), and no position prefers a part of the range.
    assert (np.abs(np.diff(orders, axis=1)) == 1).mean() < 0.01
    assert abs(np.corrcoef(np.arange(1000), orders.mean(axis=0))[0, 1]) < 0.15
    assert abs(orders[:, 0].mean() - 500) < 160
    # Even a range of four comes in every order.
    assert len({tuple(permute(np.arange(4), 4, 3, epoch).tolist()) for epoch in range(500)}) == 24


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    first, again, other = make(), make(), make(seed=2)
    for _ in range(50):
        batch = first.next_batch()
        assert all(torch.equal(a, b) for a, b in zip(batch, again.next_batch(), strict=True))
    assert not torch.equal(make().next_batch()[0], other.next_batch()[0])


def test_batches_are_windows_and_their_targets():
    inputs, targets = make().next_batch()
    assert inputs.shape == targets.shape == (6, 4)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs - inputs[:, :1], torch.arange(4).expand(6, 4))
    assert targets.is_contiguous()


def test_every_epoch_has_each_window_once_on_a_grid_of_its_own():
    loader = make(n=4 * 61 + 1, batch_size=6)
    assert loader.windows_per_epoch == 60
    starts = epoch_starts(loader, 40)
    offsets = set()
    for order in starts:
        offset = order.min()
        assert np.sort(order).tolist() == list(range(offset, offset + 4 * 60, 4))
        offsets.add(int(offset))
    assert offsets == {0, 1, 2, 3, 4}
    assert len({order.tobytes() for order in starts - starts.min(axis=1, keepdims=True)}) == 40


@pytest.mark.parametrize(("n", "offsets"), [(4 * 10 + 1, {0}), (4 * 10 + 3, {0, 1, 2})])
def test_few_windows_move_only_within_what_is_left_over(n, offsets):
    loader = make(n=n, batch_size=5)
    assert loader.windows_per_epoch == 10
    assert {int(order.min()) for order in epoch_starts(loader, 60)} == offsets


def test_every_token_is_a_target_about_once_an_epoch():
    loader = make(n=4 * 101 + 1, batch_size=10)
    counts = np.zeros(4 * 101 + 1)
    for _ in range(10 * 50):
        np.add.at(counts, loader.next_batch()[1].numpy().ravel(), 1)
    assert counts.sum() == 50 * 100 * 4
    assert counts[5:-4].min() == counts[5:-4].max() == 50
    assert counts[1:5].min() > 0
    assert counts[-4:].min() > 0


def test_windows_may_overlap():
    loader = make(n=4 + 1 + 3 * 20, stride=3, batch_size=7)
    assert loader.windows_per_epoch == 21
    assert np.sort(epoch_starts(loader, 1)[0]).tolist() == list(range(0, 61, 3))


def test_a_restored_loader_goes_on_as_if_never_stopped():
    whole, stopped = make(), make()
    for _ in range(33):  # into the second epoch
        whole.next_batch()
        stopped.next_batch()
    state = json.loads(json.dumps(stopped.state()))
    resumed = make()
    resumed.restore(state)
    assert resumed.epoch == whole.epoch == 33 * 6 / 123
    for _ in range(30):
        assert all(torch.equal(a, b) for a, b in zip(whole.next_batch(), resumed.next_batch(), strict=True))
    larger = make(batch_size=12)
    larger.restore(state)
    again = make()
    again.restore(state)
    assert torch.equal(larger.next_batch()[0], torch.cat([again.next_batch()[0], again.next_batch()[0]]))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_ranks_together_are_one_rank(world_size):
    alone = make()
    ranks = [make(rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(45):
        inputs, targets = zip(*(loader.next_batch() for loader in ranks), strict=True)
        expected = alone.next_batch()
        assert torch.equal(torch.cat(inputs), expected[0])
        assert torch.equal(torch.cat(targets), expected[1])
    assert {json.dumps(loader.state()) for loader in ranks} == {json.dumps(alone.state())}


def test_a_batch_may_span_several_short_epochs():
    loader = make(n=2 * 4 + 1, batch_size=6)
    assert loader.windows_per_epoch == 2
    starts = loader.next_batch()[0][:, 0].reshape(3, 2)
    assert starts.sort(dim=1).values.tolist() == [[0, 4]] * 3
    assert loader.epoch == 3.0
    assert make(n=5).next_batch()[0].tolist() == [[0, 1, 2, 3]] * 6


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (Loader(Row(500, "another row"), 4, None, 6, 1), "tokens"),
        (make(n=501), "tokens"),
        (make(length=5, stride=4), "context length"),
        (make(stride=3), "stride"),
        (make(seed=2), "seed"),
    ],
)
def test_another_order_cannot_be_continued(other, what):
    with pytest.raises(DataError, match=what):
        make().restore(other.state())


@pytest.mark.parametrize("samples", [None, -1, 1.5, True, "3"])
def test_a_damaged_position_is_refused(samples):
    with pytest.raises(DataError, match="position in the data"):
        make().restore({**make().state(), "samples": samples})


def test_too_few_tokens_or_a_batch_that_cannot_be_divided_are_said():
    with pytest.raises(DataError, match=r"4 tokens do not fill one window: a context length of 4 needs 5"):
        make(n=4)
    with pytest.raises(ConfigError, match="batch of 6 sequences cannot be divided evenly among 4 processes"):
        make(world_size=4)
