"""The engine: requests in, tokens out. The one loop in this project that lets a model write.

Many texts are written side by side: `admit` takes a request where a row of the cache is free, `step` gives every
running text its next token, and requests come and go between steps (continuous batching, Yu et al. 2022, "Orca"). A
text that repeats itself is given several at once, which are those that it would have been given one by one.
Above that are conveniences for one text at a time: ids, pieces of text, a string.
"""

import contextlib
import itertools
from collections.abc import Collection, Generator, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from gpt2.errors import CheckpointError
from gpt2.generation.answer import Answer
from gpt2.generation.borrowing import LEAST, best_loan, common
from gpt2.generation.drafting import TOKENS
from gpt2.generation.reader import Piece, Reader
from gpt2.generation.request import Delta, Request, Sampling
from gpt2.model.gpt2 import GPT2
from gpt2.tokenizer.base import Tokenizer

CHUNK = 512
"""Tokens of prompts read in one step at most, so that those who are writing do not wait for a long prompt.

So many take 0.39 s of 124M in fp32 on two cores, 0.44 s in two steps.
"""


class Engine:
    """A model and its tokenizer, ready to write up to `slots` texts at once.

    The memory of a text is its row of the cache, made when the engine is: who was admitted never runs out of it.
    A text may grow beyond the model's context. Positions are absolute, so the window cannot slide; when it is
    full, its newest three quarters are read anew from position 0, and writing goes on from there.

    An answer does not depend on what else is being written: each row has its own past, positions, sampler and random
    numbers. What remains is rounding: matrix products of another batch size may differ in the last bit. Where the
    reader's do not, guesses are read behind the last token of a text, and as many are kept as were chosen anyway.

    The model may be in the midst of training: it is as before whenever the caller has the word. An engine belongs to
    one thread.

    Args:
        model: may be wrapped by `torch.compile`; the plain module inside is used, since every length of text would
            be compiled anew.
        tokenizer: the one that the model was trained with.
        slots: texts at once, from 1.
        reader: runs the model; else PyTorch does. It has `slots` rows.

    Raises:
        CheckpointError: the tokenizer has ids that the model does not know.
    """

    def __init__(self, model: GPT2, tokenizer: Tokenizer, slots: int = 1, reader: Reader | None = None) -> None:
        self.model: GPT2 = getattr(model, "_orig_mod", model)
        self.tokenizer = tokenizer
        if tokenizer.vocab_size > self.model.config.vocab_size:
            raise CheckpointError(
                f"The tokenizer has {tokenizer.vocab_size:,} ids, the model {self.model.config.vocab_size:,}.",
                "Use the tokenizer that the model was trained with.",
            )
        self.reader = Reader(self.model, slots) if reader is None else reader
        self._tickets = itertools.count()
        self._answers: dict[int, Answer] = {}  # by ticket: the oldest first
        self._free = list(range(slots))  # rows, the one that was free for longest first
        # The text in the model's window, by row. As many ids as the cache has tokens of the row have been read; in a
        # free row they stay, for a prompt that begins likewise.
        self._texts: list[list[int]] = [[] for _ in range(slots)]

    @property
    def context_length(self) -> int:
        """Tokens that the model sees at once."""
        return self.model.config.context_length

    @property
    def seen_of_longer(self) -> int:
        """Tokens that are read of a text that the context cannot hold: the newest three quarters of a context."""
        return max(1, self.context_length * 3 // 4)

    @property
    def slots(self) -> int:
        """Texts that can be written at once."""
        return len(self._texts)

    @property
    def active(self) -> int:
        """Texts that are being written."""
        return len(self._answers)

    def too_long(self, prompt_ids: Sequence[int]) -> str | None:
        """In words, that the model will see only the end of a prompt; None, where it sees all."""
        if len(prompt_ids) <= self.context_length:
            return None
        return (
            f"The model sees only the last {self.seen_of_longer:,} of this prompt's {len(prompt_ids):,} tokens: its "
            f"context holds {self.context_length:,}, and the rest of it is for what is written."
        )

    def admit(self, request: Request) -> int | None:
        """Take a request, if a row is free: its ticket, which `step` and `cancel` know it by; else None.

        Raises:
            ConfigError: an id of the prompt, of the bias or of the stop ids is none of the tokenizer's.
        """
        request.check_ids(self.tokenizer.vocab_size)
        if not self._free:
            return None
        text = list(request.prompt_ids) or [self.tokenizer.end_of_text]
        if len(text) > self.context_length:
            text = self._newest(text)
        row = max(self._free, key=lambda row: common(self._texts[row], text))  # of equals the first
        self._free.remove(row)
        cache = self.reader.cache
        cache.truncate(row, min(common(self._texts[row], text[:-1]), cache.lengths[row]))
        self._texts[row] = text
        ticket = next(self._tickets)
        self._answers[ticket] = Answer(request, row, text, self.tokenizer, self.reader.drafts)
        return ticket

    def cancel(self, ticket: int) -> None:
        """Forget a request; its row is free at once. A ticket that has finished is ignored."""
        answer = self._answers.pop(ticket, None)
        if answer is not None:
            row = answer.row
            del self._texts[row][self.reader.cache.lengths[row] :]
            self._free.append(row)

    def step(self) -> list[tuple[int, Delta | CheckpointError]]:
        """Read what is to be read, and write a token of every text whose prompt has been read, or several.

        Of prompts about 512 tokens are read in a step, first come, first served. Whatever is raised in here, such as
        Ctrl-C, cancels all requests.

        Returns:
            What was added, token by token, with tickets. A text that is still being read is not there; one that has
            finished is there for the last time, and so is one that has come to an error: the model's answer to it is
            no number. The others go on.
        """
        deltas: list[tuple[int, Delta | CheckpointError]] = []
        for ticket, answer in list(self._answers.items()):
            if answer.request.max_tokens == 0:
                self.cancel(ticket)
                deltas.append((ticket, Delta("", (), "length")))
        pieces = self._with_guesses(self._pieces())
        if pieces:
            logits = self._read([piece for _, piece in pieces])
            ends = itertools.accumulate(piece.answers for _, piece in pieces)
            for (ticket, piece), end in zip(pieces, ends, strict=True):
                own = logits[end - piece.answers : end]
                deltas += [(ticket, delta) for delta in self._write(ticket, piece, own)]
        return deltas

    def run(self, requests: Iterable[Request]) -> Generator[tuple[int, Delta], None, None]:
        """Answer requests, as many at once as there are slots: (number of the request, what was added).

        Nobody else may step the engine meanwhile. Requests are taken from the iterable as rows become free; those
        that are being answered are cancelled when the iterator is closed.

        Raises:
            ConfigError: as `admit`.
            CheckpointError: the model's answer is no number.
        """
        waiting = enumerate(requests)
        running: dict[int, int] = {}
        following = next(waiting, None)
        try:
            while running or following is not None:
                while following is not None and (ticket := self.admit(following[1])) is not None:
                    running[ticket] = following[0]
                    following = next(waiting, None)
                assert running, "an engine that others use has no room"
                for ticket, delta in self.step():
                    if isinstance(delta, CheckpointError):
                        raise delta
                    number = running.pop(ticket) if delta.finish else running[ticket]
                    yield number, delta
        finally:
            for ticket in running:
                self.cancel(ticket)

    def generate(
        self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling, stop_ids: Collection[int] = ()
    ) -> Generator[int, None, None]:
        """The ids that follow the prompt, one by one, until a mark of the end or `max_tokens`.

        Args:
            prompt_ids: what was written so far; if empty, a new document begins. Beyond the context, the newest
                three quarters of a context are read.
            max_tokens: ids to give at most, 0 or more.
            sampling: how to choose from the tokenizer's ids.
            stop_ids: ids that end the text besides the tokenizer's end of text. None of them is given.

        Raises:
            ConfigError: a value is out of range.
            CheckpointError: the model's answer is no number.
        """
        request = Request(tuple(prompt_ids), max_tokens, sampling, stop_ids=frozenset(stop_ids))
        with contextlib.closing(self.run([request])) as deltas:
            for _, delta in deltas:
                yield from (token.id for token in delta.tokens)

    def stream(
        self, prompt: str, max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()
    ) -> Generator[str, None, None]:
        """The text that follows the prompt, in pieces of whole characters, up to the first of the stop strings.

        Raises:
            ConfigError: a value is out of range, or a stop string is empty.
            CheckpointError: the model's answer is no number.
        """
        request = Request(tuple(self.tokenizer.encode(prompt).tolist()), max_tokens, sampling, tuple(stop))
        with contextlib.closing(self.run([request])) as deltas:
            for _, delta in deltas:
                if delta.text:
                    yield delta.text

    def complete(self, prompt: str, max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()) -> str:
        """The text that follows the prompt, as one string. Arguments and errors are those of `stream`."""
        return "".join(self.stream(prompt, max_tokens, sampling, stop))

    def _pieces(self) -> list[tuple[int, Piece]]:
        """What this step reads, with tickets: the last token of every text, and parts of prompts."""
        cache = self.reader.cache
        room = CHUNK
        pieces: list[tuple[int, Piece]] = []
        for ticket, answer in self._answers.items():
            row = answer.row
            if len(self._texts[row]) > self.context_length:
                self._texts[row] = self._newest(self._texts[row])
                cache.truncate(row, 0)
            unread = len(self._texts[row]) - cache.lengths[row]
            if unread > 1:
                if room < min(unread, CHUNK) or not self._borrow(answer):
                    continue
                # Borders of parts do not depend on other texts, so neither does the rounding in them.
                unread = min(len(self._texts[row]) - cache.lengths[row], CHUNK)
                room -= unread
            end = cache.lengths[row] + unread
            ids = self._texts[row][cache.lengths[row] : end]
            pieces.append((ticket, Piece(row, ids, answers=int(end == len(self._texts[row])))))
        return pieces

    def _with_guesses(self, pieces: list[tuple[int, Piece]]) -> list[tuple[int, Piece]]:
        """The same with guesses behind the last tokens of texts, where a step is short enough for them to pay."""
        room = TOKENS - sum(len(piece.ids) for _, piece in pieces)
        guessed: list[tuple[int, Piece]] = []
        for ticket, piece in pieces:
            if piece.answers and len(piece.ids) == 1:
                most = min(room, self.context_length - len(self._texts[piece.row]))
                ids = [*piece.ids, *self._answers[ticket].guess(len(pieces), most)]
                room -= len(ids) - 1
                piece = Piece(piece.row, ids, answers=len(ids))
            guessed.append((ticket, piece))
        return guessed

    def _borrow(self, answer: Answer) -> bool:
        """Copy the beginning of a prompt from who has most of it; False if that is just being read: wait for it."""
        if answer.searched:
            return True
        cache = self.reader.cache
        beginning = self._texts[answer.row][:-1]  # at least the last id is read, for its logits
        older = itertools.takewhile(lambda one: one is not answer, self._answers.values())
        being_read = {one.row for one in older if len(self._texts[one.row]) - cache.lengths[one.row] > 1}
        loan = best_loan(beginning, answer.row, self._texts, cache.lengths, being_read)
        if loan.length >= max(LEAST, cache.lengths[answer.row] + 1):
            if loan.there < loan.length:
                return False
            cache.copy(loan.row, answer.row, loan.length)
        answer.searched = True
        return True

    def _read(self, pieces: list[Piece]) -> NDArray[np.float32]:
        """Logits of the tokenizer's ids, shape (wanted, V)."""
        try:
            # A model may have more rows than its tokenizer has ids, for alignment; those mean nothing.
            return self.reader.read(pieces)[..., : self.tokenizer.vocab_size]
        except BaseException:  # Ctrl-C, too: what the cache holds is unknown now
            for ticket in list(self._answers):
                self.cancel(ticket)
            for row in range(self.slots):
                self.reader.cache.truncate(row, 0)
                self._texts[row] = []
            raise

    def _write(self, ticket: int, piece: Piece, logits: NDArray[np.float32]) -> Sequence[Delta | CheckpointError]:
        """The tokens behind a piece, from its logits, shape (answers, V), up to an end or one that was not guessed.

        Logits that are no numbers end the answer.
        """
        deltas: list[Delta] = []
        guesses = piece.ids[len(piece.ids) - piece.answers + 1 :]
        for following, guess in itertools.zip_longest(logits, guesses):
            delta = self._answers[ticket].write(following)
            if delta is None:
                self.cancel(ticket)
                self._texts[piece.row] = []
                self.reader.cache.wipe(piece.row)
                return [*deltas, _diverged()]
            deltas.append(delta)
            if deltas[-1].finish:
                break
            self._texts[piece.row].append(deltas[-1].tokens[0].id)
            if deltas[-1].tokens[0].id != guess:
                break
        cache = self.reader.cache
        cache.truncate(piece.row, cache.lengths[piece.row] - (piece.answers - len(deltas)))
        if deltas and deltas[-1].finish:
            self.cancel(ticket)
        return deltas

    def _newest(self, window: list[int]) -> list[int]:
        """What stays of a text that the context cannot hold."""
        return window[-self.seen_of_longer :]


def _diverged() -> CheckpointError:
    return CheckpointError(
        "The model's answer is not a number (NaN or infinity): its training has diverged.",
        "Use an earlier checkpoint, and train with a lower learning rate.",
    )
