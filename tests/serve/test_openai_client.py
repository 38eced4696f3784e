"""What OpenAI's own Python client does with this server, waiting and not: on a real engine with a tiny model."""

import asyncio
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from gpt2.generation.engine import Engine
from tests.serve.fake import BYTES, FakeEngine
from tests.serve.harness import MODEL, SECONDS, Running, serving, until
from tests.serve.tiny import CONTEXT, tiny_model

KEY = "a key that is long enough"
A, B = {"97": 100.0}, {"98": 100.0}
"""Biases under which a model can only say one letter."""
LETTERS = {str(letter): 100.0 for letter in range(97, 123)}
"""With these it can only say letters."""


class Caller:
    """Calls methods of a client by their path, such as chat.completions.create."""

    def __init__(self, running: Running, waits: bool, **options: Any) -> None:
        self._options = {"base_url": f"{running.url}/v1", "api_key": running.key or "-", "max_retries": 0, **options}
        self._waits = waits

    def _make(self) -> Any:
        """A client that does not read the certificates of the world, which takes a tenth of a second."""
        if self._waits:
            return openai.OpenAI(**self._options, http_client=openai.DefaultHttpxClient(verify=False))
        return openai.AsyncOpenAI(**self._options, http_client=openai.DefaultAsyncHttpxClient(verify=False))

    def __call__(self, path: str, **arguments: Any) -> Any:
        """The result; of a stream all pieces."""
        if not self._waits:
            return asyncio.run(self._without_waiting(path, arguments))
        with self._make() as client:
            result = functools.reduce(getattr, path.split("."), client)(**arguments)
            return list(result) if arguments.get("stream") or path.endswith("list") else result

    async def _without_waiting(self, path: str, arguments: dict[str, Any]) -> Any:
        async with self._make() as client:
            result = functools.reduce(getattr, path.split("."), client)(**arguments)
            if path.endswith("list"):
                return [item async for item in result]
            result = await result
            return [piece async for piece in result] if arguments.get("stream") else result

    def chat(self, said: str | list[Any] = "hello", **arguments: Any) -> Any:
        """A chat completion."""
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
        return self("chat.completions.create", **{"model": MODEL, "messages": messages, **arguments})

    def complete(self, prompt: Any = "hello", **arguments: Any) -> Any:
        """A completion."""
        return self("completions.create", **{"model": MODEL, "prompt": prompt, **arguments})


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A server with a real engine."""
    with serving(Engine(tiny_model(), BYTES, slots=4), key=KEY, context_length=CONTEXT) as made:
        yield made


@pytest.fixture(params=[True, False], ids=["sync", "async"])
def waits(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def ask(running: Running, waits: bool) -> Caller:
    return Caller(running, waits)


def test_models(ask: Caller) -> None:
    (card,) = ask("models.list")
    assert (card.id, card.object) == (MODEL, "model")
    assert ask("models.retrieve", model=MODEL) == card
    with pytest.raises(openai.NotFoundError):
        ask("models.retrieve", model="gpt-5")


def test_a_completion(ask: Caller) -> None:
    answer = ask.complete(max_tokens=9, temperature=0)
    assert answer.object == "text_completion" and answer.model == MODEL and answer.id.startswith("cmpl-")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 9, 14)
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert ask.complete(max_tokens=9, temperature=0).choices == answer.choices
    assert ask.complete(list(b"hello"), max_tokens=9, temperature=0).choices == answer.choices
    assert ask.complete(logit_bias=A).usage.completion_tokens == 16  # OpenAI's default


def test_a_chat(ask: Caller) -> None:
    answer = ask.chat(max_tokens=9, temperature=0)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert (choice.message.role, choice.finish_reason, choice.message.refusal) == ("assistant", "length", None)
    said = [{"role": "user", "content": "hello"}, choice.message.model_dump(), {"role": "user", "content": "more"}]
    following = ask.chat(said, max_completion_tokens=9)
    assert following.usage.prompt_tokens > answer.usage.prompt_tokens + 9
    parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    assert ask.chat(parts, max_tokens=9, temperature=0).choices == answer.choices
    everything = ask.chat(temperature=0, logit_bias=A)  # as much as the context holds
    assert everything.usage.total_tokens == CONTEXT


def test_the_pieces_of_a_stream_are_the_whole_answer(ask: Caller) -> None:
    for options in (
        {"temperature": 0},
        {"seed": 3, "temperature": 1.5, "top_p": 0.9},
        {"seed": 4, "stop": ["e", "zz"]},
    ):
        whole = ask.chat(max_tokens=20, **options)
        pieces = ask.chat(max_tokens=20, stream=True, stream_options={"include_usage": True}, **options)
        *written, last = pieces
        assert "".join(piece.choices[0].delta.content for piece in written) == whole.choices[0].message.content
        assert [piece.choices[0].delta.role for piece in written][:2] == ["assistant", None][: len(written)]
        assert [piece.choices[0].finish_reason for piece in written[:-1]] == [None] * (len(written) - 1)
        assert written[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert (last.choices, last.usage) == ([], whole.usage)
        assert len({piece.id for piece in pieces}) == 1

        whole = ask.complete(max_tokens=20, echo=True, **options)
        pieces = ask.complete(max_tokens=20, echo=True, stream=True, **options)
        assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
        assert whole.choices[0].text.startswith("hello")
        assert all(piece.usage is None for piece in pieces)


def test_n_and_seed(ask: Caller) -> None:
    texts = [choice.message.content for choice in ask.chat(n=4, seed=7, max_tokens=12).choices]
    assert len(set(texts)) == 4
    assert [choice.message.content for choice in ask.chat(n=4, seed=7, max_tokens=12).choices] == texts
    assert ask.chat(seed=9, max_tokens=12).choices[0].message.content == texts[2]  # answer i has seed + i
    streamed = ["", "", "", ""]
    for piece in ask.chat(n=4, seed=7, max_tokens=12, stream=True):
        streamed[piece.choices[0].index] += piece.choices[0].delta.content
    assert streamed == texts
    answer = ask.complete(["hello", "world!"], n=2, seed=7, max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 12)


def test_stop(ask: Caller) -> None:
    answer = ask.complete(stop="aaa", logit_bias=A, max_tokens=20)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    answer = ask.chat(stop=["x", "bbbb"], logit_bias=B, max_tokens=3)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("bbb", "length")


def test_logprobs(ask: Caller) -> None:
    logprobs = ask.complete(max_tokens=5, logprobs=3, temperature=0).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 5
    for token, chosen, others in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert len(others) == 3 and max(others.values()) == others[token] == chosen <= 0
    for asked, most in (({"logprobs": 0}, 1), ({"logprobs": 2, "temperature": 2, "seed": 3}, 3)):
        # The token stands among the likeliest, or beside them.
        drawn = ask.complete(max_tokens=8, **asked).choices[0].logprobs
        for token, chosen, others in zip(drawn.tokens, drawn.token_logprobs, drawn.top_logprobs, strict=True):
            assert others[token] == chosen
            assert len(others) in (most, most - 1 or 1)

    ask.chat(max_tokens=1)  # from now on its beginning has been read, and PyTorch rounds a shorter piece otherwise
    content = ask.chat(max_tokens=5, logprobs=True, top_logprobs=2, temperature=0).choices[0].logprobs.content
    assert all(bytes(entry.bytes).decode("utf-8", "replace") == entry.token for entry in content)
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in content)
    pieces = ask.chat(max_tokens=5, logprobs=True, top_logprobs=2, temperature=0, stream=True)
    streamed = [entry for piece in pieces for entry in piece.choices[0].logprobs.content]
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in content]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_of_the_text_and_of_nothing_behind_it(ask: Caller, stream: bool) -> None:
    def tokens(**asked: Any) -> tuple[str, list[str], list[int]]:
        answer = ask.complete(**{"logprobs": 0, "seed": 4, "stream": stream, "logit_bias": LETTERS} | asked)
        choices = [piece.choices[0] for piece in (answer if stream else [answer])]
        told = [choice.logprobs for choice in choices]
        return (
            "".join(choice.text for choice in choices),
            [token for part in told for token in part.tokens],
            [offset for part in told for offset in part.text_offset],
        )

    whole, spelled, offsets = tokens(max_tokens=8)
    assert whole.find(whole[3:6]) == 3
    assert "".join(spelled) == whole
    assert offsets == list(range(8))
    assert tokens(max_tokens=8, stop=[whole[3:6]]) == (whole[:3], spelled[:3], offsets[:3])
    # What looks like the stop string until the end is text after all.
    assert tokens(max_tokens=8, stop=[whole[-2:] + "x"]) == (whole, spelled, offsets)
    assert tokens(max_tokens=3, stop=["bb"], logit_bias=B) == ("", [], [])


def test_errors_are_those_that_the_client_knows(running: Running, ask: Caller, waits: bool) -> None:
    for wrong, kind, param in (
        ({"temperature": 9}, openai.BadRequestError, "temperature"),
        ({"model": "gpt-5"}, openai.NotFoundError, "model"),
        ({"max_tokens": CONTEXT * 2}, openai.BadRequestError, "max_tokens"),
        ({"extra_body": {"frobnicate": 1}}, openai.BadRequestError, "frobnicate"),
    ):
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                ask.complete(stream=stream, **wrong)
            assert caught.value.param == param
            assert caught.value.type in ("invalid_request_error", "not_found_error")
    with pytest.raises(openai.AuthenticationError):
        Caller(running, waits, api_key="wrong").complete()


def test_a_failure_in_the_midst_of_a_stream_is_an_error(waits: bool) -> None:
    with serving(FakeEngine(seconds=0.005)) as running:
        engine = running.engine
        engine.says = lambda request: setattr(engine, "fail", RuntimeError("x")) or b"abcdef"
        with pytest.raises(openai.APIError):
            Caller(running, waits).complete(max_tokens=20, stream=True)


def test_a_full_queue_is_a_rate_limit_and_the_client_comes_again(waits: bool) -> None:
    long = {"model": MODEL, "prompt": "x", "max_tokens": 450, "stream": True}
    with (
        serving(FakeEngine(slots=1, seconds=0.05), queue=1) as running,
        running.client() as other,
        other.stream("POST", "/v1/completions", json=long) as first,
    ):
        pieces = first.iter_bytes()  # held: a stream whose iterator is forgotten is closed
        next(pieces)
        with pytest.raises(openai.RateLimitError):
            Caller(running, waits).complete(n=2)

        def leave() -> None:
            until(lambda: running.service.metrics.refused._value.get() >= 2)
            first.close()

        with ThreadPoolExecutor(1) as pool:
            left = pool.submit(leave)
            assert Caller(running, waits, max_retries=5).complete(n=2, max_tokens=1).usage.completion_tokens == 2
            left.result()


def test_a_timeout_frees_the_slot(waits: bool) -> None:
    engine = FakeEngine(slots=1, seconds=0.05)
    with serving(engine) as running:
        with pytest.raises(openai.APITimeoutError):
            Caller(running, waits, timeout=1.5).complete(max_tokens=400)
        until(lambda: len(engine.cancelled) == 1)
        assert engine.active == 0


def test_closing_a_stream_frees_the_slot() -> None:
    engine = FakeEngine(slots=1, seconds=0.05)
    with serving(engine) as running, openai.OpenAI(base_url=f"{running.url}/v1", api_key="-") as client:
        stream = client.completions.create(model=MODEL, prompt="x", max_tokens=400, stream=True)
        assert next(iter(stream)).choices[0].text
        stream.close()
        until(lambda: engine.active == 0)
        assert len(engine.cancelled) == 1


def test_cancelling_a_task_frees_the_slot() -> None:
    engine = FakeEngine(slots=2, seconds=0.05)

    async def cancel(running: Running) -> None:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="-") as client:
            ask = functools.partial(client.chat.completions.create, model=MODEL, max_tokens=400)
            task = asyncio.create_task(ask(messages=[{"role": "user", "content": "x"}]))
            while engine.active == 0:
                await asyncio.sleep(0.01)
            task.cancel()
            while engine.active == 1:
                await asyncio.sleep(0.01)

    with serving(engine) as running:
        asyncio.run(asyncio.wait_for(cancel(running), SECONDS))
        assert len(engine.cancelled) == 1


def test_a_model_of_running_text_continues_the_conversation() -> None:
    with serving(FakeEngine(says=lambda request: b"  on and on"), template=None) as running:
        answer = Caller(running, True).chat("Once upon a time")
        assert answer.choices[0].message.content == "  on and on"
        assert running.engine.seen[-1].prompt_ids == (BYTES.end_of_text, *b"Once upon a time")


def test_a_template_shapes_the_conversation_and_its_space_is_not_shown() -> None:
    said: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " one "},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "three "},
        {"role": "developer", "content": "Really."},
        {"role": "user", "content": "four"},
    ]
    with serving(FakeEngine(says=lambda request: b" \n five")) as running:
        for stream in (False, True):
            answer = Caller(running, True).chat(said, stream=stream)
            text = (
                "".join(piece.choices[0].delta.content for piece in answer)
                if stream
                else answer.choices[0].message.content
            )
            assert text == "five"
        ids = running.engine.seen[-1].prompt_ids
        assert BYTES.decode(ids) == "Q: Be brief.\nReally.\n\n one \ntwo\nA: threeQ: four\nA:"
        assert ids.index(BYTES.end_of_text) == 0 and ids.count(BYTES.end_of_text) == 2
