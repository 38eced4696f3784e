"""What clients get, in the shapes of OpenAI's protocol."""

from typing import Literal

from pydantic import BaseModel, Field


class Answer(BaseModel):
    """A part of a response."""


class Usage(Answer):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(Answer):
    """A list entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


FinishReason = Literal["stop", "length"]


class CompletionChoice(Answer):
    """One answer, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(Answer):
    """The answers to one request, or a piece of a stream of them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None


class Alternative(Answer):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatToken(Alternative):
    """The token that was chosen, and others that might have been."""

    top_logprobs: list[Alternative]


class ChatLogprobs(Answer):
    """An entry for each token."""

    content: list[ChatToken]
    refusal: None = None


class AssistantMessage(Answer):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Answer):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(Answer):
    """The answers to one request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None


class ChatPiece(Answer):
    """More of an answer; its first piece names the role."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Answer):
    """A piece of one answer."""

    index: int
    delta: ChatPiece
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Answer):
    """A piece of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None


class ModelCard(Answer):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "gpt2-from-scratch"
    context_length: int
    answers: bool = Field(description="trained on a template, so that chat answers; else it continues the text")


class ModelList(Answer):
    """All models that are served: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(Answer):
    """How the server is."""

    status: Literal["ok", "draining", "failed"]


class ErrorBody(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Answer):
    """An answer other than 200."""

    error: ErrorBody
