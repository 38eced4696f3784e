"""From the engine's deltas to what OpenAI's clients read: whole answers, or pieces of a stream."""

import functools
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from json.encoder import encode_basestring

from pydantic import BaseModel

from gpt2.generation.request import Delta, Finish, Token
from gpt2.serve.aligned import Aligned, Placed
from gpt2.serve.answer import Answer
from gpt2.serve.asking import Asked
from gpt2.serve.errors import ApiError
from gpt2.serve.model import ServedModel
from gpt2.serve.responses import (
    Alternative,
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatPiece,
    ChatToken,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Usage,
)

MARK = "\0"
"""Stands for a text in a frame. Quoted as JSON, it is nothing that names and numbers could contain."""


class Writer(ABC):
    """Writes the answers to one call, whole or in pieces.

    Args:
        asked: what was asked.
        model: who answers.
        with_logprobs: whether log-probabilities were asked for.
        with_usage: whether a stream ends with the number of tokens.
    """

    prefix = ""
    """Of the answers' ids."""

    def __init__(self, asked: Asked, model: ServedModel, with_logprobs: bool, with_usage: bool) -> None:
        self.model = model
        self.with_logprobs = with_logprobs
        self.with_usage = with_usage
        self.id = self.prefix + uuid.uuid4().hex
        self.created = int(time.time())
        self.asked = asked
        self.written = 0
        """Tokens so far, all answers together."""
        self._aligned = [Aligned() for _ in asked.requests]
        self._frames: dict[int, list[bytes]] = {}  # what stands around the text in the pieces of an answer

    @abstractmethod
    def piece(self, index: int, delta: Delta) -> BaseModel | None:
        """A piece of a stream; None if there is nothing to say."""

    @abstractmethod
    def settled(self, index: int) -> bool:
        """Whether pieces of an answer that has begun differ in nothing but their text from now on, up to its end."""

    @abstractmethod
    def last_piece(self) -> BaseModel:
        """The piece behind the end of the answers, with the usage."""

    @abstractmethod
    def whole(self, deltas: Sequence[Sequence[Delta]]) -> BaseModel:
        """The whole response, from all deltas of each answer."""

    def _placed(self, index: int, deltas: Sequence[Delta]) -> list[Placed]:
        """The tokens to report beside these deltas of an answer; none where nobody asked."""
        if not self.with_logprobs:
            return []
        return [placed for delta in deltas for placed in self._aligned[index].due(delta)]

    def usage(self) -> Usage:
        """Tokens read and written."""
        read = self.asked.prompt_tokens
        return Usage(prompt_tokens=read, completion_tokens=self.written, total_tokens=read + self.written)

    async def collect(self, answer: Answer) -> BaseModel:
        """Wait for all, and write the whole response."""
        deltas: list[list[Delta]] = [[] for _ in self.asked.requests]
        async for index, delta in answer:
            deltas[index].append(delta)
            self.written += len(delta.tokens)
        return self.whole(deltas)

    async def stream(
        self, first: tuple[int, Delta], answer: Answer, write: Callable[[bytes], bool] | None = None
    ) -> AsyncIterator[bytes]:
        """Server-sent events, one a piece: JSON, so that no text can break their frame. An error ends them.

        Args:
            first: what was read of the answer already.
            answer: the rest.
            write: sends what is behind all that was yielded, or says that it cannot now. What differs from a piece
                before in nothing but its text goes this way, and wakes nobody.
        """
        if write is not None:
            answer.hand_on = functools.partial(self._hand_on, write)
        try:
            if (event := self._event(*first)) is not None:
                yield event
            async for index, delta in answer:
                if (event := self._event(index, delta)) is not None:
                    yield event
        except ApiError as error:
            yield b"data: " + error.body() + b"\n\n"
            return
        if self.with_usage:
            yield self._framed(self.last_piece())
        yield b"data: [DONE]\n\n"

    def _hand_on(self, write: Callable[[bytes], bool], index: int, delta: Delta) -> bool:
        if index not in self._frames or not delta.text or not write(_quoted(delta.text).join(self._frames[index])):
            return False
        self.written += len(delta.tokens)
        return True

    def _event(self, index: int, delta: Delta) -> bytes | None:
        self.written += len(delta.tokens)
        plain = bool(delta.text) and delta.finish is None and not self.with_logprobs
        if plain and index in self._frames:
            return _quoted(delta.text).join(self._frames[index])
        piece = self.piece(index, delta)
        if piece is None:
            return None
        if plain and self.settled(index) and (following := self.piece(index, Delta(MARK, ()))) is not None:
            self._frames[index] = self._framed(following).split(_quoted(MARK))
        return self._framed(piece)

    def _framed(self, piece: BaseModel) -> bytes:
        without = set() if self.with_usage else {"usage"}
        return b"data: " + piece.model_dump_json(exclude=without).encode() + b"\n\n"


def _quoted(text: str) -> bytes:
    """As JSON. `json.dumps` would make an encoder each time, which takes longer than all else of a piece."""
    return encode_basestring(text).encode()


class CompletionWriter(Writer):
    """POST /v1/completions."""

    prefix = "cmpl-"

    def __init__(self, asked: Asked, model: ServedModel, with_logprobs: bool, with_usage: bool) -> None:
        super().__init__(asked, model, with_logprobs, with_usage)
        self._echoes = list(asked.echoes)

    def piece(self, index: int, delta: Delta) -> Completion | None:
        """More of one answer; the first piece begins with the prompt, if that was asked for."""
        text, self._echoes[index] = self._echoes[index] + delta.text, ""
        placed = self._placed(index, [delta])
        if not (text or delta.finish or placed):
            return None
        choice = CompletionChoice(index=index, text=text, logprobs=self._logprobs(placed), finish_reason=delta.finish)
        return Completion(id=self.id, created=self.created, model=self.model.id, choices=[choice])

    def settled(self, index: int) -> bool:
        """From the first piece on."""
        return not self._echoes[index]

    def last_piece(self) -> Completion:
        """A piece without text, with the usage."""
        return Completion(id=self.id, created=self.created, model=self.model.id, choices=[], usage=self.usage())

    def whole(self, deltas: Sequence[Sequence[Delta]]) -> Completion:
        """All answers."""
        choices = [
            CompletionChoice(
                index=index,
                text=self._echoes[index] + _text(own),
                logprobs=self._logprobs(self._placed(index, own)),
                finish_reason=_finish(own),
            )
            for index, own in enumerate(deltas)
        ]
        return Completion(id=self.id, created=self.created, model=self.model.id, choices=choices, usage=self.usage())

    def _logprobs(self, placed: Sequence[Placed]) -> CompletionLogprobs | None:
        if not self.with_logprobs:
            return None
        spelled = [_spelled(token.bytes) for token, _ in placed]
        decode = self.model.tokenizer.decode_bytes
        return CompletionLogprobs(
            tokens=spelled,
            token_logprobs=[_logprob(token.logprob) for token, _ in placed],
            top_logprobs=[
                # The token itself stands among them, the likeliest or not.
                {_spelled(decode([other])): _logprob(value) for other, value in token.alternatives}
                | {text: _logprob(token.logprob)}
                for text, (token, _) in zip(spelled, placed, strict=True)
            ],
            text_offset=[offset for _, offset in placed],
        )


class ChatWriter(Writer):
    """POST /v1/chat/completions."""

    prefix = "chatcmpl-"

    def __init__(self, asked: Asked, model: ServedModel, with_logprobs: bool, with_usage: bool) -> None:
        super().__init__(asked, model, with_logprobs, with_usage)
        self._began = [False] * len(asked.requests)
        self._said = [False] * len(asked.requests)

    def piece(self, index: int, delta: Delta) -> ChatChunk | None:
        """More of one answer; the first piece names the role."""
        text = self._without_leading_space(index, delta.text)
        placed = self._placed(index, [delta])
        if self._began[index] and not (text or delta.finish or placed):
            return None
        role = None if self._began[index] else "assistant"
        self._began[index] = True
        choice = ChatChunkChoice(
            index=index,
            delta=ChatPiece(role=role, content=text),
            logprobs=self._logprobs(placed),
            finish_reason=delta.finish,
        )
        return ChatChunk(id=self.id, created=self.created, model=self.model.id, choices=[choice])

    def settled(self, index: int) -> bool:
        """From the first word on: the white space before it is not shown."""
        return self._said[index]

    def last_piece(self) -> ChatChunk:
        """A piece without text, with the usage."""
        return ChatChunk(id=self.id, created=self.created, model=self.model.id, choices=[], usage=self.usage())

    def whole(self, deltas: Sequence[Sequence[Delta]]) -> ChatCompletion:
        """All answers."""
        choices = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content=self._without_leading_space(index, _text(own))),
                logprobs=self._logprobs(self._placed(index, own)),
                finish_reason=_finish(own),
            )
            for index, own in enumerate(deltas)
        ]
        return ChatCompletion(
            id=self.id, created=self.created, model=self.model.id, choices=choices, usage=self.usage()
        )

    def _without_leading_space(self, index: int, text: str) -> str:
        """The text without the white space that a template has before an answer."""
        if not self._said[index] and self.model.format.answers:
            text = text.lstrip()
        self._said[index] = self._said[index] or bool(text)
        return text

    def _logprobs(self, placed: Sequence[Placed]) -> ChatLogprobs | None:
        if not self.with_logprobs:
            return None
        return ChatLogprobs(content=[self._entry(token) for token, _ in placed])

    def _entry(self, token: Token) -> ChatToken:
        decode = self.model.tokenizer.decode_bytes
        others = [_alternative(decode([other]), value) for other, value in token.alternatives]
        return ChatToken(**_alternative(token.bytes, token.logprob).model_dump(), top_logprobs=others)


def _alternative(spelling: bytes, logprob: float | None) -> Alternative:
    return Alternative(
        token=spelling.decode("utf-8", "replace"), logprob=_logprob(logprob), bytes=list(spelling) or None
    )


def _spelled(spelling: bytes) -> str:
    """A token as text; of half a character its bytes, as OpenAI writes them."""
    try:
        return spelling.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)


def _logprob(value: float | None) -> float:
    """A log-probability that JSON can hold; impossible is -9999, as OpenAI writes it."""
    return -9999.0 if value is None else max(-9999.0, value)


def _text(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def _finish(deltas: Sequence[Delta]) -> Finish:
    finish = deltas[-1].finish
    assert finish is not None, "an answer is complete before it is written"
    return finish
