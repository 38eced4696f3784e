"""Windows: targets are inputs one token on, and an evaluation counts every token but the first once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gpt2.data.dataset import IGNORED, GPTDataset, evaluation_windows
from gpt2.errors import DataError


class Row:
    """Tokens in memory: 0, 1, 2, …, so that a token says where it stood."""

    def __init__(self, n, dtype=np.uint16):
        self.ids = np.arange(n, dtype=dtype)

    def __len__(self):
        return len(self.ids)

    def read(self, start, stop):
        assert 0 <= start <= stop <= len(self)
        return self.ids[start:stop].copy()


def test_targets_are_inputs_one_token_on():
    dataset = GPTDataset(Row(12), 4, stride=2, offset=1)
    assert len(dataset) == 4
    inputs, targets = dataset[1]
    assert inputs.tolist() == [3, 4, 5, 6]
    assert targets.tolist() == [4, 5, 6, 7]
    assert inputs.dtype == targets.dtype == torch.int64
    assert dataset[-1][1].tolist() == [8, 9, 10, 11]
    assert len(list(dataset)) == 4
    for outside in (4, -5):
        with pytest.raises(IndexError):
            dataset[outside]


@settings(deadline=None)
@given(n=st.integers(2, 60), length=st.integers(1, 10), stride=st.integers(1, 12), offset=st.integers(0, 5))
def test_windows_are_all_the_whole_ones(n, length, stride, offset):
    starts = [start for start in range(offset, n, stride) if start + length + 1 <= n]
    if not starts:
        with pytest.raises(DataError):
            GPTDataset(Row(n), length, stride, offset)
        return
    dataset = GPTDataset(Row(n), length, stride, offset)
    assert [int(inputs[0]) for inputs, _ in dataset] == starts


def test_windows_do_not_overlap_unless_told_and_torch_can_batch_them():
    inputs, targets = next(iter(DataLoader(GPTDataset(Row(13, np.uint32), 4), batch_size=3)))
    assert inputs.flatten().tolist() == list(range(12))
    assert targets.flatten().tolist() == list(range(1, 13))


def test_too_few_tokens_are_said_with_both_numbers():
    with pytest.raises(DataError, match=r"4 tokens do not fill one window: a context length of 4 needs 5"):
        GPTDataset(Row(4), 4)
    with pytest.raises(DataError, match="3 tokens after the first 2"):
        GPTDataset(Row(5), 4, offset=2)
    assert len(GPTDataset(Row(5), 4)) == 1


@settings(deadline=None)
@given(n=st.integers(2, 80), length=st.integers(1, 12), batch_size=st.integers(1, 5), limit=st.none() | st.just(1000))
def test_an_evaluation_counts_every_token_but_the_first_once(n, length, batch_size, limit):
    seen, total, sizes = [], 0, []
    for inputs, targets, counted in evaluation_windows(Row(n), length, batch_size, limit):
        assert inputs.shape == targets.shape == (len(inputs), length)
        assert inputs.dtype == targets.dtype == torch.int64
        counts = targets != IGNORED
        assert counts.sum() == counted
        assert (inputs[counts] == targets[counts] - 1).all()
        assert (inputs[~counts] == 0).all()
        seen += targets[counts].tolist()
        total += counted
        sizes.append(len(inputs))
    assert seen == list(range(1, n))
    assert total == n - 1
    assert set(sizes[:-1]) <= {batch_size}
    assert 1 <= sizes[-1] <= batch_size


def test_a_limited_evaluation_takes_whole_windows_evenly_spaced():
    batches = list(evaluation_windows(Row(1005), 10, 2, 35))
    firsts = [int(row[0]) for inputs, _, _ in batches for row in inputs]
    assert firsts == [0, 330, 660]
    assert [counted for _, _, counted in batches] == [20, 10]
    assert all((inputs + 1 == targets).all() for inputs, targets, _ in batches)
    assert sum(counted for _, _, counted in evaluation_windows(Row(1005), 10, 2, 3)) == 10
    assert sum(counted for _, _, counted in evaluation_windows(Row(1005), 10, 2, 1004)) == 1004
    assert sum(counted for _, _, counted in evaluation_windows(Row(8), 10, 2, 3)) == 7


def test_one_token_is_too_few_to_measure():
    with pytest.raises(DataError, match="1 tokens are too few"):
        next(evaluation_windows(Row(1), 4, 2))
