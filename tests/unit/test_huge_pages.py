"""Large tensors lie where large pages begin, and are what they were."""

import gc
import mmap

import pytest
import torch

from gpt2.model.huge_pages import PAGE, empty, in_huge_pages
from gpt2.model.kv_cache import KVCache

needs_huge_pages = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has none to ask for")


@needs_huge_pages
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.int64])
@pytest.mark.parametrize("shape", [(PAGE,), (3, 5, PAGE // 8 + 1), (PAGE // 2, 7)])
def test_large_tensors_begin_with_a_page(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    made = empty(shape, dtype)
    assert made.shape == shape and made.dtype == dtype and made.is_contiguous()
    assert made.data_ptr() % PAGE == 0
    made.fill_(3)  # all of it is ours to write
    assert made.double().sum() == 3 * made.numel()


@pytest.mark.parametrize("size", [8, PAGE])
def test_a_copy_has_the_same_numbers_and_outlives_the_first(size: int) -> None:
    first = torch.arange(size, dtype=torch.float32).view(2, -1).t()  # not contiguous
    copy = in_huge_pages(first)
    assert (copy is first) == (size == 8)
    expected = first.clone()
    del first
    gc.collect()
    assert torch.equal(copy, expected)


def test_a_cache_is_all_zeros() -> None:
    cache = KVCache(n_layer=2, n_head=4, head_size=64, capacity=1024, batch=3)
    assert not cache.keys.any() and not cache.values.any()
    assert cache.keys.data_ptr() != cache.values.data_ptr()
