"""The machine: bf16 is chosen where it gains, not wherever there are instructions for it."""

import pytest
import torch

from gpt2 import runtime
from gpt2.runtime import gains_from_bf16, pick_matrix_precision, pick_precision, pick_weight_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("instructions", "amx", "seconds_in_bf16", "training", "reading"),
    [
        (True, False, 0.5, "bf16", "bf16"),
        (True, False, 2.0, "fp32", "bf16"),
        (True, True, 2.0, "bf16", "bf16"),  # not tried: its products are many times as fast
        (False, False, 0.5, "fp32", "fp32"),
    ],
)
def test_a_cpu_trains_in_bf16_only_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, instructions: bool, amx: bool, seconds_in_bf16: float, training: str, reading: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    took = {torch.bfloat16: seconds_in_bf16, torch.float32: 1.0}
    monkeypatch.setattr(runtime, "seconds_of_product", took.__getitem__)
    gains_from_bf16.cache_clear()
    try:
        assert pick_precision("auto", CPU) == training
        assert pick_matrix_precision("auto", "auto", CPU) == training
        assert pick_weight_precision("auto", CPU) == reading
        assert pick_precision("bf16", CPU) == "bf16"
    finally:
        gains_from_bf16.cache_clear()
