"""What clients may send: OpenAI's fields, each typed strictly and bounded.

Strictly: "1.5" and true are no numbers, NaN is none, and a field that is not listed here is refused by name, so that
nobody believes in a setting that does nothing. Fields that OpenAI's clients send and that cannot change a text here
(`user`, `store`, `metadata`, …) are taken and ignored. Lists fail at their first mistake: two megabytes of mistakes
would else take ten seconds and a gigabyte to tell.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpt2.config.commands import LARGEST_TEMPERATURE
from gpt2.serve.limits import (
    LONGEST_STOP,
    MOST_ALTERNATIVES,
    MOST_BIASES,
    MOST_CHOICES,
    MOST_IDS,
    MOST_MESSAGES,
    MOST_PROMPTS,
    MOST_STOPS,
)

INT64 = 2**63
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Ids = Annotated[list[TokenId], Field(min_length=1, max_length=MOST_IDS, fail_fast=True)]


class Strict(BaseModel):
    """Nothing is guessed: no text becomes a number, no unknown field is passed over."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class StreamOptions(Strict):
    """How a stream is made."""

    include_usage: bool | None = Field(default=None, description="one more piece at the end, with `usage`")
    include_obfuscation: bool | None = Field(default=None, description="without effect")


class Drawn(Strict):
    """The model, and how a token is drawn from what it expects."""

    model: Name = Field(description="as /v1/models names it")
    temperature: Annotated[float, Field(ge=0.0, le=LARGEST_TEMPERATURE)] | None = Field(
        default=None, description="1 by default; 0: always the likeliest token"
    )
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        default=None, description="choose among the likeliest tokens that share this probability"
    )
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        default=None, description="choose among this many likeliest tokens; 0: all. Not OpenAI's"
    )


class Sampled(Drawn):
    """What completions and chat have in common."""

    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = Field(default=None, description="answers to each prompt")
    stream: bool | None = Field(default=None, description="send the text while it is written, as server-sent events")
    stream_options: StreamOptions | None = Field(default=None, description="only with `stream`")
    stop: StopString | Annotated[list[StopString], Field(max_length=MOST_STOPS, fail_fast=True)] | None = Field(
        default=None, description="texts that end an answer and are not part of it"
    )
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = Field(
        default=None, description="the same seed gives the same text; with `n`, answer i has seed + i"
    )
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        default=None, description="only tokens this likely beside the likeliest. Not OpenAI's"
    )
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10.0)] | None = Field(
        default=None, description="above 1: tokens that were there become rarer. Not OpenAI's"
    )
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,7}$")],
                Annotated[float, Field(ge=-100.0, le=100.0)],
            ],
            Field(max_length=MOST_BIASES),
        ]
        | None
    ) = Field(default=None, description="token id → number added to its logit")

    user: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="without effect")
    store: bool | None = Field(default=None, description="without effect: nothing is kept")
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = Field(default=None, description="without effect")
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = Field(
        default=None, description="without effect"
    )
    safety_identifier: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="without effect")
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="without effect")

    @model_validator(mode="after")
    def _streamed(self) -> "Sampled":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only possible with stream")
        return self


class CompletionRequest(Sampled):
    """POST /v1/completions: continue a text."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    ) = Field(description="text to continue, or several, or their token ids; an empty text begins a new document")
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(default=None, description="16 by default")
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = Field(
        default=None, description="log-probabilities of the tokens, and of this many others at each place"
    )
    echo: bool | None = Field(default=None, description="the prompt before the answer; not with logprobs")
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = Field(default=None, description="only equal to `n`")
    suffix: None = Field(default=None, description="not possible with GPT-2")

    @model_validator(mode="after")
    def _possible(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of can only be equal to n")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo is not possible with logprobs")
        return self


class TextPart(Strict):
    """A part of a message. Only text: nothing is fetched from anywhere."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]


class Said(Strict):
    """A message of the user, or instructions."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: Annotated[str, Field(max_length=256)] | None = Field(default=None, description="without effect")


class Answered(Strict):
    """A message of the model, as it may be sent back."""

    role: Literal["assistant"]
    content: Content
    name: Annotated[str, Field(max_length=256)] | None = Field(default=None, description="without effect")
    refusal: None = None
    audio: None = None
    tool_calls: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


Message = Annotated[Said | Answered, Field(discriminator="role")]


class ResponseFormat(Strict):
    """Only text."""

    type: Literal["text"]


class ChatRequest(Sampled):
    """POST /v1/chat/completions: answer a message."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        default=None, description="what the context has room for, by default"
    )
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        default=None, description="the newer name of max_tokens"
    )
    logprobs: bool | None = Field(default=None, description="log-probabilities of the tokens")
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = Field(
        default=None, description="and of this many others at each place; only with logprobs"
    )
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = Field(default=None, description="none are possible")
    tool_choice: Literal["none", "auto"] | None = Field(default=None, description="without effect")
    parallel_tool_calls: bool | None = Field(default=None, description="without effect")

    @model_validator(mode="after")
    def _possible(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only possible with logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self


class LookRequest(Drawn):
    """POST /v1/look: what goes on in the model at a text. Not OpenAI's."""

    prompt: str | None = Field(default=None, description="the text; of a long one its end is looked at")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)] | None = Field(
        default=None, description="or a conversation"
    )
    answer: str | None = Field(default=None, description="what the model wrote after it")

    @model_validator(mode="after")
    def _one(self) -> "LookRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


FIELDS = frozenset(
    name
    for schema in (CompletionRequest, ChatRequest, LookRequest, StreamOptions, Said, Answered, TextPart, ResponseFormat)
    for name in schema.model_fields
)
"""All names that a request can hold, at any depth."""
