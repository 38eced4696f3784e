"""What clients get, in the shapes of OpenAI's protocol."""

from typing import Literal

from pydantic import BaseModel, Field


class Part(BaseModel):
    """A part of a response."""


class Usage(Part):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(Part):
    """A list entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


FinishReason = Literal["stop", "length"]


class CompletionChoice(Part):
    """One answer, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(Part):
    """The answers to one request, or a piece of a stream of them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None


class Alternative(Part):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatToken(Alternative):
    """The token that was chosen, and others that might have been."""

    top_logprobs: list[Alternative]


class ChatLogprobs(Part):
    """An entry for each token."""

    content: list[ChatToken]
    refusal: None = None


class AssistantMessage(Part):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Part):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(Part):
    """The answers to one request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None


class ChatPiece(Part):
    """More of an answer; its first piece names the role."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=lambda role: role is None)
    content: str | None = None


class ChatChunkChoice(Part):
    """A piece of one answer."""

    index: int
    delta: ChatPiece
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Part):
    """A piece of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None


class ModelCard(Part):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "gpt2-from-scratch"
    context_length: int
    answers: bool = Field(
        description="tuned, or trained with a template, so that chat answers; else it continues the text"
    )
    turns: int | None = Field(
        default=None, description="of a conversation, that the model is shown at most; null: as many as fit"
    )


class ModelList(Part):
    """All models that are served: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class LookedToken(Part):
    """A token of a text that was looked into."""

    id: int
    text: str
    written: bool = Field(description="by the model")
    loss: float | None = Field(description="in nats; null for the first")
    rank: int | None = Field(description="how many tokens were thought likelier; null for the first")
    guesses: list[tuple[int, str, float]] = Field(description="expected after it: id, text, logit; best first")
    rest: list[tuple[float, int]] = Field(description="the other logits: value, how many")


class CopiedSpan(Part):
    """What stands word for word in the training text: tokens [start, stop), and the words around it there."""

    start: int
    stop: int
    document: str
    before: str
    text: str
    after: str


class NearPassage(Part):
    """A passage of the training text that has much in common."""

    document: str
    score: float
    text: str


class Origins(Part):
    """Where a text comes from."""

    spans: list[CopiedSpan]
    share: float
    characters: int
    tokens: int
    passages: list[NearPassage]


class LookSampling(Part):
    """How tokens are drawn."""

    temperature: float
    top_k: int
    top_p: float


class Look(Part):
    """What goes on in a model at a text."""

    layers: int
    heads: int
    tokens: list[LookedToken]
    lens: list[list[list[tuple[str, float]]]] = Field(description="depth, token → guesses: text, probability")
    attention: str = Field(description="base64 of little-endian uint16, shape (layers, heads, T, T); 65535 for all")
    origins: Origins | None = Field(description="null: the training text is not at hand")
    sampling: LookSampling


class Health(Part):
    """How the server is."""

    status: Literal["ok", "draining"]


class ErrorBody(Part):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Part):
    """An answer other than 200."""

    error: ErrorBody
