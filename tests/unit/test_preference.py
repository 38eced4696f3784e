"""Preferences: the loss is that of the paper, and pairs stay pairs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2.chat.prepare import prepare_conversations
from gpt2.config.schema import DataSettings
from gpt2.corpus.conversations import open_conversations
from gpt2.corpus.fields import Fields
from gpt2.corpus.shards import TokenShards
from gpt2.data.conversations import ConversationLoader, conversation_batches
from gpt2.data.dataset import IGNORED
from gpt2.data.preferences import PreferenceRows
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.bpe import BytePairTokenizer
from gpt2.tokenizer.roles import RoleTokenizer
from gpt2.training.preference import PreferenceLoss
from gpt2.weights.huggingface import export_tensors, hf_config

BYTES = RoleTokenizer(BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)]))
CONFIG = GPT2Config(BYTES.vocab_size, context_length=48, n_layer=2, n_head=2, n_embd=16)
BETA = 0.3


def model(seed: int) -> GPT2:
    made = GPT2(CONFIG)
    made.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3.0)  # so that answers differ clearly in their probabilities
    return made.eval()


@pytest.fixture
def rows(tmp_path: Path) -> PreferenceRows:
    lines = [
        json.dumps({"prompt": "q" * (1 + n % 5), "chosen": f"yes {n}", "rejected": f"{'no' * (1 + n % 3)} {n}"})
        for n in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    data = DataSettings()
    conversations = open_conversations([str(tmp_path / "pairs.jsonl")], Fields(), data)
    made = prepare_conversations(conversations, None, BYTES, CONFIG.context_length, data, tmp_path / "prepared")
    assert made.stats.documents == 40
    return PreferenceRows(TokenShards(made.folder, "train"), BYTES.roles)


def test_pairs_stay_together_the_better_one_first(rows: PreferenceRows) -> None:
    assert len(rows) == 36
    for inputs, targets, count in conversation_batches(rows, 5):
        assert inputs.shape == targets.shape == (count, 2, inputs.shape[2])
        for pair in inputs:
            better, worse = (BYTES.decode([i for i in row.tolist() if i]) for row in pair)
            assert better.lstrip("q").startswith("yes") and worse.lstrip("q").startswith("no")
            assert better.split()[1] == worse.split()[1]
    loader = ConversationLoader(rows, batch_size=4, seed=0)
    seen = [BYTES.decode(pair[0].tolist()) for _ in range(9) for pair in loader.next_batch()[0]]
    assert len(set(seen)) == 36


def test_loss_and_gradients_are_those_of_the_formula_over_transformers(rows: PreferenceRows) -> None:
    transformers = pytest.importorskip("transformers")
    inputs, targets = rows.batch(np.array([0, 7, 3]))
    policy, reference = model(1), model(2)
    total, counted = PreferenceLoss(policy, reference, BETA)(inputs, targets)
    total.backward()
    assert counted == 3

    def theirs(ours: GPT2) -> torch.nn.Module:
        made = transformers.GPT2LMHeadModel(transformers.GPT2Config(**hf_config(CONFIG, 0)))
        made.load_state_dict(export_tensors(ours.state_dict()), strict=False)
        made.tie_weights()
        return made.eval()

    def log_probability(of: torch.nn.Module, row: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        chosen = of(row[None]).logits[0].log_softmax(-1)
        return sum(chosen[place, label] for place, label in enumerate(labels) if label != IGNORED)  # type: ignore[return-value]

    ours, fixed = theirs(policy), theirs(reference)
    expected = torch.zeros(())
    for pair, labels in zip(inputs, targets, strict=True):
        gains = [log_probability(ours, *one) - log_probability(fixed, *one) for one in zip(pair, labels, strict=True)]
        expected = expected - F.logsigmoid(BETA * (gains[0] - gains[1]))
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters()}
    for name, gradient in export_tensors({n: g for n, g in gradients.items() if g is not None}).items():
        torch.testing.assert_close(gradient, dict(ours.named_parameters())[name].grad, rtol=1e-3, atol=1e-5)
    assert len([g for g in gradients.values() if g is not None]) == len(gradients)
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_the_base_prefers_nothing_more_than_itself(rows: PreferenceRows) -> None:
    objective = PreferenceLoss(model(1), model(1), BETA)
    objective.train()
    assert objective.model.training and not objective.reference.training
    total, counted = objective(*rows.batch(np.arange(4)))
    assert total.item() == pytest.approx(4 * math.log(2))
    inputs, targets = rows.batch(np.arange(4))
    total, counted = objective(inputs, torch.full_like(targets, IGNORED))
    assert (total, counted) == (0, 0)


def test_a_question_is_no_term(rows: PreferenceRows) -> None:
    _, targets = rows.batch(np.arange(6))
    answers = targets != IGNORED
    assert answers.any(2).all()
    spoken = [BYTES.decode([t for t in row.tolist() if t != IGNORED]) for row in targets.flatten(0, 1)]
    assert all(text.startswith(("yes", "no")) for text in spoken)
