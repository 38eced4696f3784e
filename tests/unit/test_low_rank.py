"""LoRA: only what is thin is learned, and merged it is the same model."""

import copy

import pytest
import torch

from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.model.low_rank import merged, with_low_rank
from gpt2.training.loss import NextTokenLoss
from gpt2.weights.huggingface import export_tensors, hf_config

CONFIG = GPT2Config(vocab_size=40, context_length=16, n_layer=2, n_head=2, n_embd=12)
RANK, ALPHA, FIRST = 3, 6.0, 36


def plain() -> GPT2:
    model = GPT2(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


def thin(trained: bool = True) -> GPT2:
    """A model with LoRA; trained: its products are no longer nothing."""
    model = with_low_rank(plain(), RANK, ALPHA, FIRST, torch.Generator().manual_seed(1))
    if trained:
        noise = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0.0, 0.1, generator=noise)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, CONFIG.vocab_size, (3, 17), generator=torch.Generator().manual_seed(3))
    return ids[:, :-1], ids[:, 1:]


def test_untrained_it_is_the_model_that_it_was() -> None:
    inputs, _ = batch()
    assert torch.equal(thin(trained=False)(inputs), plain()(inputs))


def test_merged_it_is_the_same_model_under_the_old_names() -> None:
    inputs, _ = batch()
    model = thin()
    whole = merged(model)
    torch.testing.assert_close(whole(inputs), model(inputs))
    assert not torch.allclose(whole(inputs), plain()(inputs))
    assert whole.state_dict().keys() == plain().state_dict().keys()
    assert merged(whole) is whole
    assert all(weight.device.type == "cpu" for weight in whole.state_dict().values())


def test_thin_products_and_the_last_rows_are_learned_and_nothing_else() -> None:
    model = thin()
    before = copy.deepcopy(model.state_dict())
    learned = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {name.rpartition(".")[2] for name, _ in learned} == {"down", "up", "rows"}
    assert len(learned) == 2 * 4 * 2 + 1
    loss, _ = NextTokenLoss(model)(*batch())
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {name for name, _ in learned}


def test_loss_and_gradients_are_those_of_peft() -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    model = thin()
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**hf_config(CONFIG, 0)))
    start = plain()
    with torch.no_grad():
        start.wte.weight[FIRST:] = model.wte.rows  # type: ignore[assignment, union-attr]
    theirs.load_state_dict(export_tensors(start.state_dict()), strict=False)
    theirs.tie_weights()
    targets = ["c_attn", "c_proj", "c_fc"]
    theirs = peft.get_peft_model(
        theirs, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, fan_in_fan_out=True)
    ).eval()
    ours = dict(model.named_parameters())
    pairs = []
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            mine = name.removeprefix("base_model.model.transformer.")
            mine = mine.replace("lora_A.default.weight", "down").replace("lora_B.default.weight", "up")
            parameter.data.copy_(ours[mine])
            pairs.append((ours[mine], parameter))
    assert len(pairs) == 16

    inputs, expected = batch()
    total, counted = NextTokenLoss(model)(inputs, expected)
    total.backward()
    reference = torch.nn.functional.cross_entropy(theirs(inputs).logits.flatten(0, 1), expected.flatten())
    reference.backward()
    torch.testing.assert_close(total / counted, reference, rtol=1e-5, atol=1e-6)
    for mine, other in pairs:
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad / counted, other.grad, rtol=1e-4, atol=1e-7)
