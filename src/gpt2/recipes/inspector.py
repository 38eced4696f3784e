"""A look inside a model that is served, and the training text that its words may come from."""

from collections.abc import Sequence
from typing import Any

from gpt2.corpus.origins import Origins
from gpt2.corpus.shards import TokenShards
from gpt2.errors import DataError
from gpt2.generation.engine import Engine
from gpt2.inspection.view import look, origins
from gpt2.tokenizer.base import Tokenizer
from gpt2.training.checkpoint import OpenedCheckpoint


class EngineInspector:
    """Looks into the model of an engine: what `gpt2.serve.looking.Inspector` asks for.

    Args:
        engine: its thread alone calls `look`.
        shards: the training text; None: it is not at hand, or not to be shown.
    """

    def __init__(self, engine: Engine, shards: TokenShards | None) -> None:
        self._model = engine.model
        self._tokenizer = engine.tokenizer
        self._shards = shards

    def look(self, ids: Sequence[int], written: int) -> dict[str, Any]:
        """What the model makes of a text."""
        return look(self._model, self._tokenizer, ids, written)

    def origins(self, ids: Sequence[int], written: int) -> dict[str, Any] | None:
        """Where the text comes from, as far as the training text is at hand."""
        return (
            None
            if self._shards is None
            else origins(self._tokenizer, ids, written, self._shards, names_of(self._shards))
        )


def names_of(shards: TokenShards) -> Origins:
    """Where the documents of the training text came from."""
    return Origins(shards.folder, "train")


def training_text(checkpoint: OpenedCheckpoint, tokenizer: Tokenizer) -> TokenShards | None:
    """The tokens that the run was trained on, where they are still there."""
    data = checkpoint.settings.get("data")
    if checkpoint.run_folder is None or not isinstance(data, str):
        return None
    try:
        return TokenShards(checkpoint.run_folder.parent / ".prepared" / data, "train", tokenizer.fingerprint())
    except DataError:
        return None
