"""The model that is served, as far as handlers need to know it: its name, its tokenizer, its template."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from gpt2.chat.template import Format
from gpt2.serve.errors import ApiError
from gpt2.serve.limits import INLINE_CHARACTERS
from gpt2.tokenizer.base import Tokenizer
from gpt2.tokenizer.bpe import LONGEST

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model with a name."""

    id: str
    created: int
    """Unix time of its checkpoint."""
    tokenizer: Tokenizer
    context_length: int
    format: Format
    turns: int | None = None
    """Turns of the longest conversation that it was tuned on; it is shown no more. None: as many as fit."""

    def check_length(self, text: str, param: str) -> None:
        """Refuse a text that no tokenizer could fit into the context, before any work is done for it.

        Raises:
            ApiError: 400.
        """
        if len(text.encode()) > self.context_length * LONGEST:
            raise self.too_long(f"This text of {len(text):,} characters", param)

    def too_long(self, what: str, param: str) -> ApiError:
        """The error for what does not fit into the context."""
        message = f"{what} does not fit into the model's context of {self.context_length:,} tokens."
        return ApiError(400, message, param, "context_length_exceeded")


async def beside(work: Callable[[], T], characters: int) -> T:
    """The result of work on a text: done at once if the text is short, else in a thread, so that others do not wait."""
    return work() if characters <= INLINE_CHARACTERS else await asyncio.to_thread(work)
