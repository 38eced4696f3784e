"""Is this data fit to train on? Counts, a table, warnings, and a clear stop where it cannot work."""

from dataclasses import asdict, dataclass, field
from typing import Any

from gpt2.config.presets import PRESETS
from gpt2.errors import DataError
from gpt2.model.cost import block_parameters

FAR_TOO_LARGE = 20
"""Parameters for each training token from which the model can only learn the text by heart."""

FEW_TOKENS = 16
"""Tokens of a document with fewer of which there is hardly anything to predict from."""


@dataclass(frozen=True, slots=True)
class Part:
    """One side of the split."""

    documents: int
    characters: int
    text_bytes: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What preparation counted; stored beside the shards."""

    documents: int
    duplicates: int
    leaked: int
    """Validation documents that also stand in the training part (only possible with a validation source)."""
    split: str
    """How the validation part was chosen, in words."""
    tokenizer: str
    vocab_size: int
    unknown_share: float
    """Share of the validation tokens that are the unknown character (char tokenizer only)."""
    counts: dict[str, int]
    """What reading left out: skipped and short rows, empty documents."""
    lengths: dict[str, int]
    train: Part
    validation: Part

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Stats":
        """Back from JSON values."""
        parts = {name: Part(**values[name]) for name in ("train", "validation")}
        return cls(**{**values, **parts})

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """The data beside the model that is to learn it."""

    stats: Stats
    context_length: int
    parameters: int
    train_windows: int
    validation_windows: int
    steps: int
    batch_size: int
    warnings: tuple[str, ...] = field(default=())

    @property
    def epochs(self) -> float:
        """Passes over the training part that the run implies."""
        return self.steps * self.batch_size / self.train_windows

    @property
    def tokens_per_parameter(self) -> float:
        """Different training tokens for each weight of the model."""
        return self.stats.train.tokens / self.parameters

    def to_json(self) -> dict[str, Any]:
        """JSON values, the derived numbers included."""
        return asdict(self) | {
            "epochs": round(self.epochs, 3),
            "tokens_per_parameter": round(self.tokens_per_parameter, 5),
            "characters_per_token": round(characters_per_token(self.stats.train), 3),
        }

    def rows(self) -> list[tuple[str, str, str]]:
        """The table that is shown before training: name, training part, validation part."""
        train, validation = self.stats.train, self.stats.validation
        return [
            ("documents", f"{train.documents:,}", f"{validation.documents:,}"),
            ("characters", f"{train.characters:,}", f"{validation.characters:,}"),
            ("tokens", f"{train.tokens:,}", f"{validation.tokens:,}"),
            ("characters a token", f"{characters_per_token(train):.2f}", f"{characters_per_token(validation):.2f}"),
            (f"windows of {self.context_length} tokens", f"{self.train_windows:,}", f"{self.validation_windows:,}"),
            ("duplicate documents", f"{self.stats.duplicates:,}", ""),
            ("tokens per parameter", f"{self.tokens_per_parameter:.3g}", ""),
            ("epochs", f"{self.epochs:.3g}", ""),
        ]


def characters_per_token(part: Part) -> float:
    """How much text a token stands for."""
    return part.characters / max(part.tokens, 1)


def require_enough(stats: Stats, context_length: int) -> None:
    """Stop where a part cannot fill one window.

    Raises:
        DataError: a part is empty, or shorter than one window and its last target; with the numbers.
    """
    needed = context_length + 1
    for name, part in (("training", stats.train), ("validation", stats.validation)):
        if part.tokens == 0:
            raise DataError(
                f"The {name} part is empty: {stats.documents:,} documents, validation: {stats.split}.",
                "Give more text, another --data.validation share, or a file with --data.validation-source.",
            )
        if part.tokens < needed:
            most = min(stats.train.tokens, stats.validation.tokens) // 4
            share_is_small = name == "validation" and stats.train.tokens > 10 * needed
            remedy = "Give it a larger share (--data.validation), or more text" if share_is_small else "Give more text"
            raise DataError(
                f"The {name} part has {part.tokens:,} token{'s' * (part.tokens != 1)}; "
                f"one window of --model.context-length {context_length} "
                f"needs {needed:,}.",
                remedy
                + (f", or --model.context-length {most} at most: four windows in each part." if most >= 2 else "."),
            )


def examine(report: Report) -> tuple[str, ...]:
    """What will work, but probably not as wished; each a sentence that says what to do."""
    stats, found = report.stats, []
    if report.parameters > FAR_TOO_LARGE * stats.train.tokens:
        ratio = report.parameters / stats.train.tokens
        smallest = min(PRESETS, key=lambda name: PRESETS[name].n_embd)
        shape = PRESETS[smallest]
        least = (stats.vocab_size + shape.context_length) * shape.n_embd + shape.n_layer * block_parameters(
            shape.n_embd
        )
        found.append(
            f"The model is far too large for this text: {report.parameters:,} parameters, {ratio:,.0f} for each "
            "training token. It will learn the text by heart. Give more text, or a smaller model "
            + (
                f"(the smallest preset is --model.preset {smallest})."
                if report.parameters > 1.1 * least
                else "(--model.n-layer, --model.n-embd)."
            )
        )
    if stats.duplicates > 0.05 * stats.documents:
        found.append(
            f"{stats.duplicates:,} of {stats.documents:,} documents repeat an earlier one; the model will repeat them "
            "too."
        )
    if stats.leaked:
        found.append(
            f"Validation documents that also stand in the training part: {stats.leaked:,}. The validation loss will "
            "look better than it is. Remove them from one of the two."
        )
    if report.validation_windows < 10:
        few = f"{report.validation_windows} window{'s' * (report.validation_windows != 1)}"
        found.append(f"The validation part has only {few}: its loss will be a rough figure.")
    if stats.validation.tokens < FEW_TOKENS * stats.validation.documents:
        found.append(
            f"A validation document has {stats.validation.tokens / stats.validation.documents:.0f} tokens on average: "
            "its loss says little. Give longer documents, or a file with --data.validation-source."
        )
    if stats.unknown_share > 0.001:
        found.append(
            f"{stats.unknown_share:.1%} of the validation characters never occur in the training part; the char "
            "tokenizer cannot spell them. A bpe:N tokenizer can."
        )
    if characters_per_token(stats.train) < 1.5 and stats.tokenizer == "gpt2":
        found.append(
            f"GPT-2's vocabulary spells this text with {characters_per_token(stats.train):.2f} characters a token: it "
            "was made for English. --tokenizer bpe:8192 will learn the words of this one."
        )
    return tuple(found)
