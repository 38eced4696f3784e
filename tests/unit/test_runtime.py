"""The machine: bf16 is chosen where it gains, not wherever there are instructions for it."""

import pytest
import torch

from gpt2 import runtime
from gpt2.runtime import pick_matrix_precision, pick_precision, pick_weight_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("instructions", "amx", "vendor", "training", "reading"),
    [
        (True, False, "AuthenticAMD", "bf16", "bf16"),
        (True, False, "GenuineIntel", "fp32", "bf16"),
        (True, True, "GenuineIntel", "bf16", "bf16"),
        (False, False, "AuthenticAMD", "fp32", "fp32"),
    ],
)
def test_a_cpu_trains_in_bf16_only_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, instructions: bool, amx: bool, vendor: str, training: str, reading: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(runtime, "cpu_vendor", lambda: vendor)
    assert pick_precision("auto", CPU) == training
    assert pick_matrix_precision("auto", "auto", CPU) == training
    assert pick_weight_precision("auto", CPU) == reading
    assert pick_precision("bf16", CPU) == "bf16"
