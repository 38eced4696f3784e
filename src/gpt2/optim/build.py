"""The optimizers of a run: which weight belongs to which."""

from collections.abc import Iterable

import torch
from torch import nn

from gpt2.config.schema import OptimSettings
from gpt2.optim.adamw import build_adamw
from gpt2.optim.muon import Muon
from gpt2.optim.optimizer import Optimizer


def build_optimizers(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    settings: OptimSettings,
) -> list[Optimizer]:
    """AdamW for all weights; or Muon for the matrices inside the blocks and AdamW for the rest.

    Each group keeps its peak rate as `peak_lr`; the trainer multiplies it by the schedule.

    Args:
        named_parameters: the model's, under OpenAI's names.
        settings: with the rates and the precision resolved.
    """
    named = list(named_parameters)
    matrices = [(n, p) for n, p in named if settings.name == "muon" and p.dim() == 2 and n.startswith("h.")]
    optimizers: list[Optimizer] = []
    if matrices:
        assert settings.matrix_lr is not None and settings.weight_decay is not None, "resolve the settings first"
        fused = [p for n, p in matrices if n.endswith("attn.c_attn.weight")]
        single = [p for n, p in matrices if not n.endswith("attn.c_attn.weight")]
        optimizers.append(
            Muon(
                [{"params": fused, "parts": 3}, {"params": single}],
                lr=settings.matrix_lr,
                weight_decay=settings.weight_decay,
                momentum=settings.momentum,
                precision=torch.bfloat16 if settings.matrix_precision == "bf16" else torch.float32,
            )
        )
    taken = {id(parameter) for _, parameter in matrices}
    optimizers.append(build_adamw([(n, p) for n, p in named if id(p) not in taken], settings))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
