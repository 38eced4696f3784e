"""POST /v1/look: the engine's thread looks, another one searches, and neither a flood nor a mistake harms others."""

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2.chat.conversation import Unanswered, answered_ids, prompt_ids
from gpt2.chat.template import ChatFormat, RoleFormat
from gpt2.corpus.shards import ShardWriter, TokenShards
from gpt2.files import write_json
from gpt2.generation.engine import Engine
from gpt2.inspection.trace import trace
from gpt2.inspection.view import origins
from gpt2.recipes.inspector import EngineInspector
from gpt2.serve.limits import MOST_LOOKS, MOST_LOOKS_OF_ONE
from gpt2.tokenizer.roles import RoleTokenizer
from tests.serve import tiny
from tests.serve.fake import BYTES, FakeEngine, FakeInspector
from tests.serve.harness import MODEL, SECONDS, TEMPLATE, completion, post, serving, status_of, until

ASKED = {"model": MODEL, "prompt": "Once", "answer": " upon"}


def test_the_model_is_looked_into_and_the_training_text_searched(tmp_path: Path) -> None:
    model = tiny.tiny_model()
    with ShardWriter(tmp_path, "train", BYTES.vocab_size, BYTES.end_of_text, "0" * 16) as writer:
        writer.add_document(iter([np.frombuffer(b"Once upon a time there was a long winter.", np.uint8).astype("u4")]))
        entry = writer.close()
    write_json(tmp_path / "MANIFEST.json", {"parts": {"train": entry}})
    shards = TokenShards(tmp_path, "train")
    engine = Engine(model, BYTES, slots=2)
    prompt, answer = "Once", " upon a time there was a long summer"
    with (
        serving(engine, context_length=tiny.CONTEXT, inspector=EngineInspector(engine, shards)) as running,
        running.client() as client,
    ):
        before = client.post("/v1/completions", json=completion(max_tokens=20, temperature=0)).json()["choices"]
        asked = {"model": MODEL, "prompt": prompt, "answer": answer, "temperature": 0.5, "top_k": 3}
        view = client.post("/v1/look", json=asked).json()
        after = client.post("/v1/completions", json=completion(max_tokens=20, temperature=0)).json()["choices"]
    assert before == after
    ids = list((prompt + answer).encode())
    assert [token["id"] for token in view["tokens"]] == ids
    assert [token["written"] for token in view["tokens"]] == [False] * 4 + [True] * len(answer)
    seen = trace(model, ids)
    attention = np.frombuffer(base64.b64decode(view["attention"]), "<u2").reshape(seen.attention.shape) / 65535
    assert np.abs(attention - seen.attention.numpy()).max() < 1e-5
    assert view["sampling"] == {"temperature": 0.5, "top_k": 3, "top_p": 1.0}
    assert view["origins"] == origins(BYTES, ids, len(answer), shards)
    assert view["origins"]["spans"]


def test_who_runs_the_model_and_who_searches() -> None:
    inspector = FakeInspector()
    with serving(inspector=inspector) as running, running.client() as client:
        assert client.post("/v1/look", json=ASKED).status_code == 200
        until(lambda: running.service.worker.outstanding == 0)
    assert inspector.looked == {"engine"}
    assert {name.partition("_")[0] for name in inspector.searched} == {"origins"}


@pytest.mark.parametrize("form", [RoleFormat(), ChatFormat.from_template(TEMPLATE), ChatFormat()])
def test_an_answered_conversation_ends_with_the_answer(form: Any) -> None:
    tokenizer = RoleTokenizer(BYTES) if isinstance(form, RoleFormat) else BYTES
    conversation = Unanswered("", [("one", "two")], "three ")
    asked = prompt_ids(conversation, form, tokenizer, 500)
    ids, written = answered_ids(conversation, "four", form, tokenizer, 500)
    assert ids[:-written] == asked
    assert tokenizer.decode(ids[-written:]).strip() == "four"
    assert answered_ids(conversation, "", form, tokenizer, 500)[1] <= 1


def test_what_is_looked_at() -> None:
    inspector = FakeInspector()
    chat = [{"role": "user", "content": "Why?"}]
    with serving(inspector=inspector) as running, running.client() as client:
        for body in ({"prompt": "Once"}, {"prompt": ""}, {"messages": chat}, {"messages": chat, "answer": "So."}):
            assert client.post("/v1/look", json={"model": MODEL, **body}).status_code == 200
        long = client.post("/v1/look", json={"model": MODEL, "prompt": "a" * 2000})
        assert long.status_code == 200  # its end is looked at
        wrong: list[Any] = [{}, {"prompt": "a", "messages": chat}, {"prompt": 1}, {"prompt": "a", "x": 1}]
        wrong += [{"prompt": "a", "n": 1}, {"messages": []}, {"messages": [{"role": "assistant", "content": "a"}]}]
        wrong += [{"prompt": "a", "temperature": 9.5}, {"prompt": "a" * 2**20}, {"prompt": "", "answer": "a" * 2**20}]
        for body in wrong:
            assert client.post("/v1/look", json={"model": MODEL, **body}).status_code == 400, str(body)[:100]
        assert client.post("/v1/look", json={"model": "other", "prompt": "a"}).status_code == 404
    seen = [(bytes(token for token in ids if token < 256), written) for ids, written in inspector.seen]
    assert seen[:4] == [(b"Once", 0), (b"", 0), (b"Q: Why?\nA:", 0), (b"Q: Why?\nA: So.", 4)]
    assert inspector.seen[1][0] == [BYTES.end_of_text]


def test_a_look_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with serving(inspector=FakeInspector(fail=RuntimeError("secret"))) as running, running.client() as client:
        for _ in range(2 * MOST_LOOKS):
            response = client.post("/v1/look", json=ASKED)
            assert response.status_code == 500
            assert "secret" not in response.text + caplog.text
        assert client.post("/v1/completions", json=completion()).status_code == 200
        assert running.service.worker.outstanding == 0


def test_looks_are_bounded_and_writing_goes_on_between_them() -> None:
    engine, inspector = FakeEngine(seconds=0.05), FakeInspector()
    held, steps, look_inside = threading.Event(), [], inspector.look
    inspector.look = lambda *asked: (steps.append(engine.steps), held.wait(SECONDS), look_inside(*asked))[-1]
    with (
        serving(engine, inspector=inspector, trusted_proxies=("127.0.0.1",)) as running,
        ThreadPoolExecutor(MOST_LOOKS + 3) as pool,
    ):

        def look(client: int) -> int:
            return status_of(running.raw(post(ASKED, "/v1/look", extra=f"X-Forwarded-For: 10.0.0.{client}\r\n")))

        def looks(clients: list[int]) -> list[int]:
            """At once: the first goes on when two were refused."""
            held.clear()
            asked = [pool.submit(look, client) for client in clients]
            until(lambda: sum(one.done() for one in asked) == 2)
            held.set()
            return sorted(one.result() for one in asked)

        writing = pool.submit(running.raw, post(completion(max_tokens=400)))
        until(lambda: engine.steps > 3)
        assert looks([*range(MOST_LOOKS + 2)]) == [200] * MOST_LOOKS + [429] * 2
        assert sorted({*steps}) == steps and not writing.done()
        engine.seconds = 0
        assert status_of(writing.result()) == 200
        assert looks([1] * MOST_LOOKS) == [200] * MOST_LOOKS_OF_ONE + [429] * 2  # one client's share
        assert look(1) == 200  # places are given back


def test_who_leaves_is_not_looked_for() -> None:
    held = threading.Event()
    inspector = FakeInspector()
    inspector.look = lambda ids, written: held.wait(SECONDS) and {}  # type: ignore[method-assign]
    with serving(inspector=inspector) as running:
        first = running.connect()
        first.sendall(post(ASKED, "/v1/look"))
        until(lambda: running.service.worker.outstanding == 1)
        gone = running.connect()
        gone.sendall(post({**ASKED, "prompt": "gone"}, "/v1/look"))
        until(lambda: running.service.worker.outstanding == 2)
        gone.close()
        first.close()
        held.set()
        until(lambda: running.service.worker.outstanding == 0)
        until(lambda: not running.service._looks._running)


def test_a_server_that_ends_does_not_wait_for_looks() -> None:
    begun, held = threading.Event(), threading.Event()
    inspector = FakeInspector()
    look = inspector.look
    inspector.look = lambda *asked: (begun.set(), held.wait(SECONDS), look(*asked))[-1]  # type: ignore[method-assign]
    with serving(inspector=inspector, trusted_proxies=("127.0.0.1",)) as running, ThreadPoolExecutor(4) as pool:
        worker = running.service.worker
        asked = [post(ASKED, "/v1/look", extra=f"X-Forwarded-For: 10.0.0.{client}\r\n") for client in range(3)]
        looks = [pool.submit(running.raw, request) for request in asked]
        until(lambda: worker.outstanding == 3)
        assert begun.wait(SECONDS)
        waiting = worker._inbox.qsize()
        stopped = pool.submit(worker.stop)
        until(lambda: worker._inbox.qsize() > waiting)
        held.set()
        stopped.result()
        assert sorted(status_of(look.result()) for look in looks) == [200, 503, 503]
