"""The engine: ids in, ids out; above it pieces of text, above those a string."""

import contextlib
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from gpt2.errors import CheckpointError, ConfigError
from gpt2.generation.sampling import Sampler
from gpt2.generation.stream import text_pieces
from gpt2.model.gpt2 import GPT2
from gpt2.model.kv_cache import KVCache
from gpt2.tokenizer.base import Tokenizer


class Engine:
    """A model and its tokenizer, ready to write.

    The text may grow beyond the model's context. Positions are absolute, so the window cannot slide; when it is
    full, its newest three quarters are read anew from position 0, and writing goes on from there.

    The model may be in the midst of training: each step of it runs in evaluation mode without gradients, and it is
    as before whenever the caller has the word.

    Args:
        model: may be wrapped by `torch.compile`; the plain module inside is used, since every length of text would
            be compiled anew.
        tokenizer: the one that the model was trained with.

    Raises:
        CheckpointError: the tokenizer has ids that the model does not know.
    """

    def __init__(self, model: GPT2, tokenizer: Tokenizer) -> None:
        self.model: GPT2 = getattr(model, "_orig_mod", model)
        self.tokenizer = tokenizer
        if tokenizer.vocab_size > self.model.config.vocab_size:
            raise CheckpointError(
                f"The tokenizer has {tokenizer.vocab_size:,} ids, the model {self.model.config.vocab_size:,}.",
                "Use the tokenizer that the model was trained with.",
            )

    @property
    def context_length(self) -> int:
        """Tokens that the model sees at once."""
        return self.model.config.context_length

    def generate(
        self, prompt_ids: Sequence[int], max_tokens: int, sampler: Sampler, stop_ids: Collection[int] = ()
    ) -> Iterator[int]:
        """The ids that follow the prompt, one by one, until a mark of the end or `max_tokens`.

        Args:
            prompt_ids: what was written so far; if empty, a new document begins. Beyond the context, the newest
                three quarters of a context are read.
            max_tokens: ids to give at most, 0 or more.
            sampler: chooses from the logits of the tokenizer's ids, shape (V,), float32 on the CPU.
            stop_ids: ids that end the text besides the tokenizer's end of text. None of them is given.

        Raises:
            ConfigError: `max_tokens` is negative.
            CheckpointError: the model's answer is no number.
        """
        if max_tokens < 0:
            raise ConfigError(f"max-tokens {max_tokens} is out of range.", "Choose a whole number from 0.")
        context = self.context_length
        ends = {self.tokenizer.end_of_text, *stop_ids}
        window = list(map(int, prompt_ids)) or [self.tokenizer.end_of_text]
        cache = self.model.new_cache(capacity=min(context, len(window) + max_tokens))
        unread = window
        for _ in range(max_tokens):
            if cache.length + len(unread) > context:
                window = window[-max(1, context * 3 // 4) :]
                unread = window
                cache.truncate(0)
            token = int(sampler(self._next_logits(unread, cache)))
            if token in ends:
                return
            yield token
            window.append(token)
            unread = [token]

    def stream(self, prompt: str, max_tokens: int, sampler: Sampler, stop: Sequence[str] = ()) -> Iterator[str]:
        """The text that follows the prompt, in pieces of whole characters, up to the first of the stop strings.

        Raises:
            ConfigError: `max_tokens` is negative, or a stop string is empty.
            CheckpointError: the model's answer is no number.
        """
        ids = self.tokenizer.encode(prompt).tolist()
        return text_pieces(self.generate(ids, max_tokens, sampler), self.tokenizer, stop)

    def complete(self, prompt: str, max_tokens: int, sampler: Sampler, stop: Sequence[str] = ()) -> str:
        """The text that follows the prompt, as one string. Arguments and errors are those of `stream`."""
        return "".join(self.stream(prompt, max_tokens, sampler, stop))

    def _next_logits(self, ids: list[int], cache: KVCache) -> Tensor:
        """Read ids behind the cached ones; the logits of what follows the last, shape (V,), float32 on the CPU."""
        # Both contexts end with this step: a generator that held them while the caller runs would leave a training
        # loop without dropout and without gradients.
        with _evaluating(self.model), torch.inference_mode():
            tokens = torch.tensor([ids], device=self.model.wte.weight.device)  # (1, T)
            logits = self.model(tokens, cache)[0, -1]  # (V,)
            cache.advance(len(ids))
            # A model may have more rows than its tokenizer has ids, for alignment; those mean nothing.
            logits = logits[: self.tokenizer.vocab_size].to("cpu", torch.float32)
        if not torch.isfinite(logits).all():
            raise CheckpointError(
                "The model's answer is not a number (NaN or infinity): its training has diverged.",
                "Use an earlier checkpoint, and train with a lower learning rate.",
            )
        return logits


@contextlib.contextmanager
def _evaluating(model: GPT2) -> Iterator[None]:
    """Run the model in evaluation mode (no dropout), then as it was."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
