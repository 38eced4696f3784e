import json
import math
from pathlib import Path

import numpy as np
import pytest

from gpt2.evaluation.baselines import Baselines, baselines, kept


@pytest.mark.parametrize(
    "damaged", [None, b"", b"[]", b'{"uniform": 1}', b'{"uniform": "x", "unigram": 1, "bigram": 1}']
)
def test_kept_lines_that_are_damaged_are_counted_anew(tmp_path: Path, damaged: bytes | None) -> None:
    path = tmp_path / "baselines.json"
    if damaged is not None:
        path.write_bytes(damaged)
    assert kept(path) is None
    path.write_text(json.dumps(Baselines(3.0, 2.0, 1.0)._asdict()))
    assert kept(path) == (3.0, 2.0, 1.0)


def test_random_tokens_cannot_be_predicted() -> None:
    draw = np.random.default_rng(0)
    lines = baselines(draw.integers(0, 8, 200_000), draw.integers(0, 8, 50_000), 8)
    assert lines == pytest.approx((math.log(8),) * 3, abs=0.01)


def test_a_chain_of_pairs_is_known_to_the_bigram_alone() -> None:
    draw = np.random.default_rng(0)
    chain = [0]
    for coin in draw.random(100_000):  # 0 → 1 → 2 → 3 → 0, and one time in ten a repetition
        chain.append(chain[-1] if coin < 0.1 else (chain[-1] + 1) % 4)
    lines = baselines(np.array(chain[:90_000]), np.array(chain[90_000:]), 4)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert lines.unigram == pytest.approx(math.log(4), abs=0.01)
    assert lines.bigram == pytest.approx(entropy, abs=0.02)


def test_the_bigram_model_is_a_distribution() -> None:
    """Over all followers of a context the probabilities add up to one."""
    draw = np.random.default_rng(1)
    train = draw.integers(0, 6, 200)
    for context in range(7):  # 6 was never seen
        total = sum(math.exp(-baselines(train, np.array([context, after]), 7).bigram) for after in range(7))
        assert total == pytest.approx(1.0, abs=1e-9)


def test_unseen_tokens_have_a_finite_loss() -> None:
    lines = baselines(np.array([0, 1, 0, 1]), np.array([5, 6, 0]), 8)
    assert all(math.isfinite(line) for line in lines)
