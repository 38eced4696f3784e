"""The machine: bf16 is chosen where it gains, not wherever there are instructions for it."""

import pytest
import torch

from gpt2 import fp16, runtime
from gpt2.runtime import pick_matrix_precision, pick_precision, pick_weight_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("instructions", "amx", "half", "vendor", "training", "reading"),
    [
        (True, False, False, "AuthenticAMD", "bf16", "bf16"),
        (True, False, True, "AuthenticAMD", "bf16", "bf16"),
        (True, False, False, "GenuineIntel", "fp32", "bf16"),
        (True, False, True, "GenuineIntel", "fp16", "bf16"),
        (True, True, True, "GenuineIntel", "bf16", "bf16"),
        (False, False, False, "AuthenticAMD", "fp32", "fp32"),
    ],
)
def test_a_cpu_trains_in_what_is_fastest_there(
    monkeypatch: pytest.MonkeyPatch, instructions: bool, amx: bool, half: bool, vendor: str, training: str, reading: str
) -> None:
    monkeypatch.setattr(fp16, "missing", lambda: "" if half else "no instructions")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(runtime, "cpu_vendor", lambda: vendor)
    assert pick_precision("auto", CPU) == training
    assert pick_matrix_precision("auto", "auto", CPU) == ("bf16" if training == "bf16" else "fp32")
    assert pick_weight_precision("auto", CPU) == reading
    assert pick_precision("bf16", CPU) == "bf16"
