"""An answer on its way: how its tokens are chosen, what they spell, how they may go on, and when they end."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpt2.generation.drafting import Draft
from gpt2.generation.request import Delta, Finish, Request, Token
from gpt2.generation.sampling import Sampler, largest, log_softmax
from gpt2.generation.stream import TextStream
from gpt2.tokenizer.base import Tokenizer


class Answer:
    """Writes what is asked for, from the logits that it is given.

    Args:
        request: what is asked for.
        row: where the engine keeps the text.
        text: the ids before the answer.
        tokenizer: what ids mean.
        drafts: whether guesses are wanted.
    """

    def __init__(self, request: Request, row: int, text: Sequence[int], tokenizer: Tokenizer, drafts: bool) -> None:
        self.request = request
        self.row = row
        self.searched = False
        """Whether other texts were searched for the beginning of this prompt."""
        self._tokenizer = tokenizer
        self._sampler = Sampler(request.sampling, text, tokenizer.vocab_size)
        self._stream = TextStream(request.stop)
        self._ends = request.stop_ids | {tokenizer.end_of_text}
        self._draft = Draft(text) if drafts else None
        self._written = 0

    def guess(self, texts: int, most: int) -> list[int]:
        """The ids that may come next, where reading them is worth it: `most` at most, in a step of so many texts."""
        # Behind the guess there is one more, which is chosen.
        most = min(most, self.request.max_tokens - self._written - 1)
        return [] if self._draft is None or most < 1 else self._draft.guess(texts, most)

    def write(self, logits: NDArray[np.float32]) -> Delta | None:
        """Choose the next token from its logits, shape (V,); None: they are no numbers."""
        chosen = self._sampler(logits)
        if chosen is None:
            return None
        if chosen in self._ends:
            return Delta(self._stream.end(), (), "stop")
        token = self._token(chosen, logits)
        text = self._stream.feed(token.bytes)
        self._written += 1
        finish: Finish | None = None
        if self._stream.stopped:
            finish = "stop"
        elif self._written == self.request.max_tokens:
            finish = "length"
            text += self._stream.end()
        if self._draft is not None:
            self._draft.add(chosen)
        return Delta(text, (token,), finish)

    def _token(self, chosen: int, logits: NDArray[np.float32]) -> Token:
        """A token with what was asked about it."""
        spelled = self._tokenizer.decode_bytes([chosen])
        if self.request.logprobs is None:
            return Token(chosen, spelled)
        logprobs = log_softmax(logits)
        best = largest(logprobs, self.request.logprobs)
        alternatives = zip(best.tolist(), logprobs[best].tolist(), strict=True)
        return Token(chosen, spelled, float(logprobs[chosen]), tuple(alternatives))
