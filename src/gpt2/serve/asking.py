"""From what a client sends to what the engine is asked. Text stays text: only token ids can name a special token."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from gpt2.chat.conversation import Unanswered, answered_ids, conversation_of, prompt_ids
from gpt2.config.commands import LARGEST_SEED
from gpt2.corpus.fields import Message
from gpt2.generation.request import Request, Sampling
from gpt2.serve.errors import ApiError
from gpt2.serve.limits import MOST_PROMPTS
from gpt2.serve.model import ServedModel, beside
from gpt2.serve.schemas import Answered, ChatRequest, CompletionRequest, LookRequest, Said, Sampled

Number = TypeVar("Number", int, float)

DEFAULT_MAX_TOKENS = 16
"""Of a completion, as OpenAI has it."""
ROOM_FOR_ANSWER = 256
"""Tokens kept free for an answer in a conversation whose client names no number; half of a small context."""


class Asked(NamedTuple):
    """The engine's requests for one call: `n` for each prompt, those of a prompt side by side."""

    requests: list[Request]
    prompt_tokens: int
    echoes: list[str]
    """What stands before the text of each answer."""


async def for_completion(body: CompletionRequest, model: ServedModel) -> Asked:
    """The requests for POST /v1/completions.

    Raises:
        ApiError: 400, naming the field.
    """
    prompts = _prompts(body)
    for prompt in prompts:
        if isinstance(prompt, str):
            model.check_length(prompt, "prompt")
    n = body.n or 1
    if len(prompts) * n > MOST_PROMPTS:
        raise ApiError(400, f"prompts × n is {len(prompts) * n}; at most {MOST_PROMPTS} are possible.", "n")
    size = sum(len(prompt) for prompt in prompts)
    prompt_ids = await beside(lambda: [_ids(prompt, model) for prompt in prompts], size)
    requests, echoes = [], []
    for prompt, ids in zip(prompts, prompt_ids, strict=True):
        room = model.context_length - len(ids)
        limit = body.max_tokens or max(1, min(DEFAULT_MAX_TOKENS, room))
        if limit > room:
            count = f"{len(ids):,} token{'s' * (len(ids) != 1)}"
            what = f"The prompt of {count}, with {limit:,} more for the answer (max_tokens),"
            raise model.too_long(what, "max_tokens" if room > 0 else "prompt")
        requests += _requests(body, ids, limit, body.logprobs, model)
        echo = (prompt if isinstance(prompt, str) else model.tokenizer.decode(ids)) if body.echo else ""
        echoes += [echo] * n
    return Asked(requests, sum(map(len, prompt_ids)), echoes)


async def for_chat(body: ChatRequest, model: ServedModel) -> Asked:
    """The requests for POST /v1/chat/completions: the newest turns that fit, the last message always.

    Raises:
        ApiError: 400, naming the field.
    """
    conversation = _conversation(body.messages)
    limit = body.max_completion_tokens or body.max_tokens
    room = model.context_length - (limit or min(ROOM_FOR_ANSWER, model.context_length // 2))
    size = _checked_size(conversation, model)
    ids = await beside(lambda: prompt_ids(conversation, model.format, model.tokenizer, room, model.turns), size)
    if len(ids) > room:
        answer = f", with {limit:,} more for the answer (max_tokens)," if limit else ", with room for an answer,"
        named = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        fits_alone = limit is not None and len(ids) < model.context_length
        instructed = any(message.role in ("system", "developer") for message in body.messages[:-1])
        what = "The last message, with the system message," if instructed else "The last message"
        raise model.too_long(f"{what} of {len(ids):,} tokens{answer}", named if fits_alone else "messages")
    alternatives = (body.top_logprobs or 0) if body.logprobs else None
    stops = frozenset(model.format.stops(model.tokenizer))
    requests = _requests(body, ids, limit or model.context_length - len(ids), alternatives, model, stops)
    return Asked(requests, len(ids), [""] * len(requests))


async def for_look(body: LookRequest, model: ServedModel) -> tuple[list[int], int]:
    """The ids for POST /v1/look, and how many of the last ones the model wrote.

    Raises:
        ApiError: 400, naming the field.
    """
    answer = body.answer or ""
    model.check_length(answer, "answer")
    if body.messages is None:
        prompt = body.prompt or ""
        model.check_length(prompt, "prompt")
        parts = await beside(
            lambda: [model.tokenizer.encode(text).tolist() for text in (prompt, answer)], len(prompt) + len(answer)
        )
        return (parts[0] or [model.tokenizer.end_of_text]) + parts[1], len(parts[1])
    conversation = _conversation(body.messages)
    size = _checked_size(conversation, model) + len(answer)
    form, tokenizer, room, turns = model.format, model.tokenizer, model.context_length, model.turns
    if not answer:
        return await beside(lambda: prompt_ids(conversation, form, tokenizer, room, turns), size), 0
    return await beside(lambda: answered_ids(conversation, answer, form, tokenizer, room, turns), size)


def _conversation(messages: Sequence[Said | Answered]) -> Unanswered:
    """Messages as turns.

    Raises:
        ApiError: 400, the last one is not the user's.
    """
    try:
        return conversation_of([_message(message) for message in messages])
    except ValueError as error:
        raise ApiError(400, f"messages: {error}.", "messages", "invalid_value") from None


def _checked_size(conversation: Unanswered, model: ServedModel) -> int:
    """Characters of a conversation of which each part that must be encoded may fit.

    Raises:
        ApiError: 400, one does not.
    """
    model.check_length(conversation.system, "messages")
    model.check_length(conversation.message, "messages")
    return len(conversation.system) + len(conversation.message) + sum(len(a) + len(b) for a, b in conversation.turns)


def _prompts(body: CompletionRequest) -> list[str] | list[list[int]]:
    """One prompt, or several, as a list."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]  # pyright: ignore[reportReturnType]  (the schema allows no mixture)
    return prompt  # pyright: ignore[reportReturnType]


def _ids(prompt: str | list[int], model: ServedModel) -> list[int]:
    """The ids of a prompt; of an empty one the mark that begins a document."""
    if isinstance(prompt, str):
        return model.tokenizer.encode(prompt).tolist() or [model.tokenizer.end_of_text]
    if (largest := max(prompt)) >= model.tokenizer.vocab_size:
        known = model.tokenizer.vocab_size
        raise ApiError(400, f"prompt: there is no token {largest}; there are {known:,}.", "prompt", "invalid_value")
    return prompt


def _message(said: Said | Answered) -> Message:
    text = said.content if isinstance(said.content, str) else "".join(part.text for part in said.content)
    return Message("system" if said.role == "developer" else said.role, text)


def _requests(
    body: Sampled,
    ids: list[int],
    limit: int,
    logprobs: int | None,
    model: ServedModel,
    stop_ids: frozenset[int] = frozenset(),
) -> list[Request]:
    """`n` requests for one prompt; with a seed, each next one has the next seed."""
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    if bias and (largest := max(bias)) >= model.tokenizer.vocab_size:
        known = model.tokenizer.vocab_size
        raise ApiError(400, f"logit_bias: there is no token {largest}; there are {known:,}.", "logit_bias")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return [
        Request(
            prompt_ids=tuple(ids),
            max_tokens=limit,
            sampling=Sampling(
                temperature=_given(body.temperature, 1.0),
                top_k=_given(body.top_k, 0),
                top_p=_given(body.top_p, 1.0),
                min_p=_given(body.min_p, 0.0),
                repetition_penalty=_given(body.repetition_penalty, 1.0),
                frequency_penalty=_given(body.frequency_penalty, 0.0),
                presence_penalty=_given(body.presence_penalty, 0.0),
                logit_bias=bias,
                seed=None if body.seed is None else (body.seed + number) % (LARGEST_SEED + 1),
            ),
            stop=stop,
            stop_ids=stop_ids,
            logprobs=logprobs,
        )
        for number in range(body.n or 1)
    ]


def _given(value: Number | None, otherwise: Number) -> Number:
    return otherwise if value is None else value
