"""What the settings leave open, chosen from the data and the machine. Pure functions: numbers in, settings out."""

import math

from gpt2.config.presets import PRESETS
from gpt2.config.schema import ModelSettings, OptimSettings, Settings
from gpt2.errors import ConfigError

GPT2_VOCABULARY_FROM = 20_000_000
"""Bytes of text from which GPT-2's own vocabulary is worth its 50,257 rows; below, one learned from the text."""


def resolve_tokenizer(spec: str, text_bytes: int) -> str:
    """`auto` → gpt2 for large text, else a BPE of 512 to 8,192 ids that grows with the text.

    About 256 bytes of text for each id: at 1 MB that is bpe:4096, where each id is still seen a hundred times.
    """
    if spec != "auto":
        return spec
    if text_bytes >= GPT2_VOCABULARY_FROM:
        return "gpt2"
    ids = 2 ** round(math.log2(max(text_bytes, 1) / 256))
    return f"bpe:{min(8192, max(512, ids))}"


def resolve_model(model: ModelSettings) -> ModelSettings:
    """Fill the open sizes from the preset.

    Raises:
        ConfigError: the heads do not divide the width.
    """
    preset = PRESETS[model.preset]
    sizes = {name: getattr(model, name) or getattr(preset, name) for name in preset._fields}
    if sizes["n_embd"] % sizes["n_head"]:
        fitting = [n for n in range(1, sizes["n_embd"] + 1) if sizes["n_embd"] % n == 0]
        nearest = sorted(sorted(fitting, key=lambda n: abs(n - sizes["n_head"]))[:5])
        raise ConfigError(
            f"model.n-embd is {sizes['n_embd']}, which {sizes['n_head']} heads (model.n-head) do not divide.",
            f"Heads that divide it, nearest to yours: {', '.join(map(str, nearest))}.",
        )
    return model.model_copy(update=sizes)


def resolve_context(preset: int, tokens: int) -> int:
    """The preset's context length, halved until four windows fit the smaller part of the data; 8 at least."""
    while preset > 8 and 4 * preset > tokens:
        preset //= 2
    return preset


def resolve_learning_rate(n_embd: int, beside_muon: bool) -> float:
    """Peak rate of AdamW by width: 3e-3 at 128, falling with the square root of the width (1.2e-3 at 768).

    Where Muon moves the blocks' matrices, what is left bears three times as much.
    """
    return float(f"{(1e-2 if beside_muon else 3e-3) * math.sqrt(128 / n_embd):.2g}")


def even_share(needed: int, room: int) -> int:
    """Sequences of a micro-batch: the largest divisor of `needed` that fits, if it uses half of the room.

    Else as many as make all micro-batches of a step alike, which may make the step a little larger.
    """
    divisor = next((share for share in range(min(room, needed), room // 2, -1) if needed % share == 0), 0)
    return divisor or math.ceil(needed / math.ceil(needed / room))


def resolve_micro_batch(model: ModelSettings, vocab_size: int, batch_size: int, memory: int) -> int:
    """About as many sequences as have activations that fit `memory` bytes, in portions as even as the batch allows.

    What is compiled is compiled for each size of a portion.

    A token keeps about 34·C·L numbers of two bytes (Korthikanti et al. 2022, section 4, without attention's
    matrix), here counted with four, which leaves room for that matrix where a CPU keeps it, and its logits three
    times (themselves, their softmax, their gradient).
    """
    assert model.n_layer and model.n_embd and model.context_length, "resolve the model first"
    per_token = 4 * (17 * model.n_embd * model.n_layer + 3 * vocab_size)
    return even_share(batch_size, max(1, min(batch_size, memory // (per_token * model.context_length))))


LEAST_EVAL_EVERY = 10
"""Steps between validations, at least: in a run of 20 steps, one at each would take longer than the training."""

MUON_TOKENS_PER_WIDTH = 8
"""Muon's products cost about 5·width/tokens of a step's own: here under two thirds, and it needs half of the steps."""


def strain(model: ModelSettings, vocab_size: int, windows: int, epochs: float) -> float:
    """How much a run asks of its text: passes over it, times weights of the matrices for each of its tokens.

    Neither alone tells whether a text is learned by heart: eight passes of a large model over a small text are, and
    eight of a small model over a large text are not (docs/experiments.md).
    """
    assert model.n_layer and model.n_embd and model.context_length, "resolve the model first"
    weights = 12 * model.n_layer * model.n_embd**2 + vocab_size * model.n_embd
    return epochs * weights / (windows * model.context_length)


def resolve_dropout(strain: float) -> float:
    """By what is asked of the text: while there is enough of it, dropout only slows the learning."""
    return 0.0 if strain <= 240 else 0.1


def resolve_weight_decay(strain: float) -> float:
    """By what is asked of the text: what is read often is learned by heart, unless the weights are kept small."""
    return 0.1 if strain <= 120 else 0.5


def resolve_matrix_rate(steps: int) -> float:
    """Muon's peak rate, by the length of the run: 0.03 ends lower from 500 steps on (docs/experiments.md)."""
    return 0.05 if steps <= 300 else 0.03


def resolve_optim(optim: OptimSettings, n_embd: int, tokens: int, steps: int, strain: float) -> OptimSettings:
    """Fill the open rates, and choose the optimizer.

    Args:
        optim: as given.
        n_embd: the model's width.
        tokens: of an optimizer step.
        steps: of the run.
        strain: what the run asks of its text.
    """
    name = optim.name
    if name == "auto":
        name = "muon" if tokens >= MUON_TOKENS_PER_WIDTH * n_embd else "adamw"
    return optim.model_copy(
        update={
            "name": name,
            "lr": optim.lr or resolve_learning_rate(n_embd, name == "muon"),
            "matrix_lr": optim.matrix_lr or resolve_matrix_rate(steps),
            "weight_decay": optim.weight_decay if optim.weight_decay is not None else resolve_weight_decay(strain),
            "beta2": optim.beta2 if optim.beta2 is not None else (0.95 if name == "muon" else 0.99),
        }
    )


def resolve_training(settings: Settings, windows: int, vocab_size: int, memory: int, processes: int = 1) -> Settings:
    """Fill the open numbers of a run.

    Without steps or epochs: ten passes over the data, but no fewer than 1,000 steps (small text needs more passes
    to be learned at all) and no more than 10,000. Validation at each epoch's end, and twenty times a run of 200 steps
    and more.

    Args:
        settings: with the model resolved.
        windows: training windows of an epoch.
        vocab_size: ids of the tokenizer.
        memory: bytes to plan the activations into, of one process.
        processes: that share each batch.
    """
    train, model = settings.train, settings.model
    per_epoch = windows / train.batch_size  # optimizer steps of an epoch, not whole
    if train.steps is not None:
        steps = train.steps
    elif train.epochs is not None:
        steps = max(1, math.ceil(train.epochs * per_epoch))
    else:
        steps = min(10_000, max(1_000, math.ceil(10 * per_epoch)))
    assert model.n_embd and model.context_length, "resolve the model first"
    share = max(1, train.batch_size // processes)
    resolved = {
        "steps": steps,
        "epochs": None,
        "micro_batch_size": min(share, train.micro_batch_size or resolve_micro_batch(model, vocab_size, share, memory)),
        "eval_every": train.eval_every or max(min(steps, LEAST_EVAL_EVERY), steps // 20),
    }
    asked = strain(model, vocab_size, windows, steps / per_epoch)
    dropout = model.dropout if model.dropout is not None else resolve_dropout(asked)
    return settings.model_copy(
        update={
            "model": model.model_copy(update={"dropout": dropout}),
            "train": train.model_copy(update=resolved),
            "optim": resolve_optim(settings.optim, model.n_embd, train.batch_size * model.context_length, steps, asked),
        }
    )


def replanned(settings: Settings, at: int, until: int) -> Settings:
    """The settings of a run that, at a step, was given another end."""
    assert settings.train.steps
    plans = settings.schedule.replans or ((0, settings.train.steps),)
    plans = (*(plan for plan in plans if plan[0] < at), (at, until))
    return settings.model_copy(
        update={
            "schedule": settings.schedule.model_copy(update={"replans": plans}),
            "train": settings.train.model_copy(update={"steps": until}),
        }
    )
