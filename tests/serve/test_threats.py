"""Each way to harm a server that is known from other servers, and what ours does about it."""

import contextlib
import json
import logging
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import ValidationError

from gpt2.chat.template import ChatFormat
from gpt2.errors import CheckpointError, UserError
from gpt2.generation.engine import Engine
from gpt2.generation.request import Delta
from gpt2.serve.gate import OPEN
from gpt2.serve.page import PAGE
from gpt2.serve.schemas import ChatRequest, CompletionRequest
from gpt2.serve.worker import HOPELESS
from gpt2.tokenizer.bpe import LONGEST
from gpt2.tokenizer.gpt2 import gpt2_tokenizer
from tests.serve import tiny
from tests.serve.fake import BYTES, CONTEXT, FakeEngine
from tests.serve.harness import MODEL, SECONDS, Running, completion, post, read_all, serving, status_of, until

KEY = "correct horse"


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    """A server without a key."""
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """A server with a key."""
    with serving(key=KEY, hosts=("model.example",)) as running:
        yield running


def error_of(response: Any) -> dict[str, Any]:
    """The error in a response: exactly OpenAI's four fields."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# ---- who may come in: key, host, origin ----------------------------------------------------------------------------


def test_every_route_but_health_and_the_page_needs_the_key(locked: Running) -> None:
    routes = [("GET", "/v1/models"), ("GET", f"/v1/models/{MODEL}"), ("POST", "/v1/completions")]
    routes += [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/look"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
    ]
    with locked.client() as client:
        for given in (None, "", "Bearer", "Bearer wrong", f"Bearer\t{KEY}", f"Bearer {KEY}x", f"Basic {KEY}"):
            client.headers.pop("Authorization", None)
            headers = {} if given is None else {"Authorization": given}
            for method, path in routes:
                response = client.request(method, path, headers=headers, json=completion())
                assert response.status_code == 401, (method, path, given)
                assert error_of(response)["type"] == "authentication_error"
            for path in OPEN:
                assert client.get(path, headers=headers).status_code == 200
    with locked.client() as client:
        assert client.get("/v1/models").status_code == 200
        for given in (f"bearer {KEY}", f"BEARER  {KEY}"):
            assert client.get("/v1/models", headers={"Authorization": given}).status_code == 200
        assert client.post("/v1/completions", json=completion(max_tokens=2)).status_code == 200


def test_the_key_is_compared_in_constant_time(locked: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr("gpt2.serve.gate.hmac.compare_digest", compare)
    with locked.client() as client:
        client.get("/v1/models")
    assert compared == [(KEY.encode(), KEY.encode())]


@pytest.mark.parametrize("key", ["clé ☃", "a\tb"])
def test_a_key_that_is_no_ascii_neither_opens_nor_breaks_the_door(key: str) -> None:
    with serving(key=key) as running:
        head = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\r\n"
        assert status_of(running.raw(head.encode())) == 200
        assert status_of(running.raw(head.replace(key, key + "é").encode("latin-1", "replace"))) == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "[::1", "a b"])
def test_a_name_that_is_not_ours_is_refused_as_in_dns_rebinding(locked: Running, host: str) -> None:
    for path in ("/", "/health", "/v1/models"):
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
        assert status_of(locked.raw(request.encode())) == 400, path


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:80", "127.0.0.1:8000", "[::1]:80", "model.example", "10.0.0.7"]
)
def test_our_names_and_ip_addresses_are_known(locked: Running, host: str) -> None:
    request = f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    assert status_of(locked.raw(request.encode())) == 200


def test_a_form_of_another_site_cannot_ask(plain: Running) -> None:
    with plain.client() as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
            body = json.dumps(completion()).encode()
            response = client.post("/v1/completions", content=body, headers={"Content-Type": kind})
            assert response.status_code == 415
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://[::1", ""):
            response = client.post("/v1/completions", json=completion(), headers={"Origin": origin})
            assert response.status_code == 403
        assert client.get("/health", headers={"Origin": plain.url}).status_code == 200


def test_no_head_of_a_request_breaks_the_door(locked: Running) -> None:
    draw = random.Random(3)
    names = ("Host", "Origin", "Authorization", "Content-Type", "Content-Length", "Transfer-Encoding", "Expect")
    parts = (
        "http://",
        "http://[",
        "[",
        "]",
        "::1",
        "127.0.0.1",
        ":",
        "@",
        "%",
        "/",
        "?",
        " ",
        "é",
        "\t",
        "Bearer",
        KEY,
        "chunked",
    )
    parts += (
        "application/json",
        "9" * 30,
        "-1",
        ",",
        ";",
        "100-continue",
        "\x7f",
        "\xff",
        "localhost",
        "8000",
        "#",
        "\\",
    )
    for _ in range(300):
        lines = [f"{draw.choice(names)}: {''.join(draw.choices(parts, k=draw.randint(0, 5)))}\r\n" for _ in range(3)]
        host = "Host: localhost\r\n" * draw.randint(0, 1)
        path = draw.choice(("/", "/v1/models", "/v1/completions", "/%ff%00", "/[", "*", "//x", "http://[/"))
        head = f"{draw.choice(('GET', 'POST', 'OPTIONS', 'HEAD'))} {path} HTTP/1.1\r\n{host}Connection: close\r\n"
        with locked.connect() as connection:
            with contextlib.suppress(OSError):  # it has answered and closed already
                connection.sendall((head + "".join(lines) + "\r\n").encode("latin-1"))
                connection.shutdown(socket.SHUT_WR)
            assert status_of(read_all(connection)) < 500, (head, lines)


def test_no_other_origin_is_told_that_it_may(plain: Running) -> None:
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    with plain.client() as client:
        responses = [client.options("/v1/completions", headers=asks), client.get("/health"), client.get("/v1/models")]
    assert responses[0].status_code == 403
    for response in responses:
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert "set-cookie" not in response.headers


def test_no_path_of_a_client_becomes_a_file(plain: Running) -> None:
    for path in (
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/app.js/../../app.py",
        "/web/app.js",
        "/%00",
    ):
        answer = plain.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert status_of(answer) == 404, path
        assert b"root:" not in answer


# ---- what a request may weigh, and how long it may take ------------------------------------------------------------


def test_a_body_that_is_too_large_is_refused_before_it_is_read(plain: Running) -> None:
    for length, status in (("2097153", 413), ("9" * 20, 413), ("9" * 30, 400)):
        answer = plain.raw(post(b"").replace(b"Content-Length: 0", f"Content-Length: {length}".encode()))
        assert status_of(answer) == status
        assert (b"body_too_large" in answer) == (status == 413)


def test_a_body_that_does_not_end_is_refused_when_it_is_too_long(plain: Running) -> None:
    head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked").replace(b"close", b"keep-alive")
    with plain.connect() as connection:
        connection.sendall(head)
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        sent = 0
        connection.setblocking(False)
        answer = b""
        while not answer and sent < 1000:
            try:
                connection.setblocking(True)
                connection.settimeout(SECONDS)
                connection.sendall(chunk)
                sent += 1
                connection.setblocking(False)
                answer = connection.recv(65536)
            except BlockingIOError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break
        connection.settimeout(SECONDS)
        answer = answer or read_all(connection)
    assert status_of(answer) == 413
    assert sent < 1000  # 2 MiB, and what lay in buffers, of 64


def test_a_length_that_lies_harms_only_its_connection() -> None:
    with serving(receive_seconds=1) as running:
        body = json.dumps(completion(max_tokens=1)).encode()
        longer = post(body).replace(f"Content-Length: {len(body)}".encode(), b"Content-Length: 5000")
        assert running.raw(longer) == b""  # it waits for the rest, and is dropped
        shorter = post(body).replace(f"Content-Length: {len(body)}".encode(), b"Content-Length: 5")
        assert status_of(running.raw(shorter)) == 400
        assert status_of(running.raw(post(b"{}").replace(b"Content-Length: 2", b"Content-Length: -2"))) == 400
        both = post(b"{}").replace(b"Content-Length: 2", b"Content-Length: 2\r\nTransfer-Encoding: chunked")
        assert status_of(running.raw(both)) in (0, 400)
        assert status_of(running.raw(post(body))) == 200


@pytest.mark.parametrize(
    "headers",
    [
        "X-Long: " + "a" * 20_000 + "\r\n",
        "".join(f"X-{number}: a\r\n" for number in range(150)),
        "X-Endless: " + "a" * 400_000,
    ],
    ids=["long", "many", "endless"],
)
def test_headers_are_bounded(plain: Running, headers: str) -> None:
    answer = plain.raw(f"GET /health HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
    assert status_of(answer) in (400, 431)
    assert b'"error"' in answer


def test_a_long_path_is_a_long_header(plain: Running) -> None:
    answer = plain.raw(f"GET /{'a' * 17_000} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert status_of(answer) in (400, 431)


@pytest.mark.parametrize(
    "sent", [b"", b"GET /health HTT", post(completion("x" * 100))[:-60]], ids=["nothing", "head", "body"]
)
def test_who_sends_slowly_is_dropped(sent: bytes) -> None:
    with serving(receive_seconds=0.6) as running, running.connect() as connection:
        connection.sendall(sent)
        with running.client() as other, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(50 if sent else 0):  # a byte now and then does not help
                connection.sendall(b"a")
                assert other.get("/health").status_code == 200
                time.sleep(0.1)
        assert read_all(connection) == b""
        assert running.service.metrics.dropped.labels("slow to send")._value.get() == 1


def test_the_second_request_of_a_connection_has_a_deadline_too() -> None:
    with serving(receive_seconds=0.6) as running, running.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while b'"ok"' not in answer:
            part = connection.recv(65536)
            assert part, answer
            answer += part
        connection.sendall(b"GET /he")
        assert read_all(connection) == b""


@pytest.mark.parametrize("rest", [post(completion())[:-30], post(completion())[:40]], ids=["body", "head"])
def test_a_request_that_came_with_the_one_before_has_a_deadline_too(rest: bytes) -> None:
    with serving(receive_seconds=0.6) as running, running.connect() as connection:
        began = time.monotonic()
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + rest)
        assert status_of(read_all(connection)) == 200
        assert time.monotonic() - began > 0.5
        assert running.service.metrics.dropped.labels("slow to send")._value.get() == 1


def test_requests_that_come_together_are_all_answered() -> None:
    with serving(FakeEngine(seconds=0.02), receive_seconds=0.6) as running:
        asked = post(completion(max_tokens=40)).replace(b"Connection: close\r\n", b"")  # longer than 0.6 s each
        answer = running.raw(asked * 2 + post(completion(max_tokens=1)))
        assert answer.count(b"HTTP/1.1 200") == 3


def test_a_connection_whose_body_came_after_the_answer_goes_on_and_is_closed_when_idle() -> None:
    content = json.dumps(completion()).encode()
    head = post(content).replace(b"Connection: close\r\n", b"").removesuffix(content)
    with serving(key=KEY, receive_seconds=1, idle_seconds=4) as running, running.connect() as connection:

        def ask(request: bytes, word: bytes) -> None:
            connection.sendall(request)
            answer = b""
            while word not in answer:
                part = connection.recv(65536)
                assert part, answer
                answer += part

        ask(head, b"invalid_key")
        connection.sendall(content)
        time.sleep(1.7)
        ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b'"ok"')
        ask(head, b"invalid_key")
        connection.sendall(content)
        assert connection.recv(65536) == b"", "closed, not reset"
        assert running.service.metrics.dropped.labels("slow to send")._value.get() == 0


def test_who_does_not_read_is_dropped_and_frees_the_slot() -> None:
    engine = FakeEngine(slots=1, says=lambda request: b"x" * 10**6)
    with serving(engine, write_seconds=0.5, context_length=10**6) as running:
        with running.connect(receive_buffer=4096) as connection:
            connection.sendall(post(completion(max_tokens=900_000, stream=True)))
            until(lambda: running.service.metrics.dropped.labels("slow to read")._value.get() == 1)
            until(lambda: engine.active == 0)
            if sys.platform == "linux":  # aborted, so that the system keeps nothing for it either: TCP_CLOSE is 7
                until(lambda: connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x07")
        assert len(engine.cancelled) == 1
        with running.client() as client:
            assert client.post("/v1/completions", json=completion(max_tokens=1)).status_code == 200


def test_who_takes_a_large_answer_steadily_gets_all_of_it() -> None:
    engine = FakeEngine(slots=4, says=lambda request: b"x" * 10**6)
    bounds = {"write_seconds": 3.0, "context_length": 10**6}
    with serving(engine, **bounds) as running, running.connect(receive_buffer=4096) as connection:
        connection.sendall(post(completion(max_tokens=10_000, logprobs=3)))
        answer = b""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < 5:  # a hundred kilobytes a second of nearly a megabyte
            while len(answer) < 100_000 * passed:
                answer += connection.recv(2048)
            time.sleep(0.02)
        head, _, body = (answer + read_all(connection)).partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head.lower()
        assert json.loads(body)["usage"]["completion_tokens"] == 10_000


def test_who_reads_a_little_now_and_then_is_dropped_in_the_end() -> None:
    engine = FakeEngine(slots=4, says=lambda request: b"x" * 10**6)
    bounds = {"answer_seconds": 3.0, "write_seconds": 60.0, "context_length": 10**6}
    with serving(engine, **bounds) as running, running.connect(receive_buffer=4096) as connection:
        connection.sendall(post(completion(max_tokens=900_000, stream=True, n=4, logprobs=1)))
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(4096):  # fast enough not to be "slow to read"
                answer += part
                time.sleep(0.1)
        assert b"data: " in answer and b"[DONE]" not in answer
        assert running.service.metrics.dropped.labels("slow to read")._value.get() == 0
        until(lambda: b'route="/v1/completions",status="499"} 1.0' in running.service.metrics.text())
        until(lambda: engine.active == 0)


def test_more_connections_than_allowed_are_closed_at_once() -> None:
    with serving(connections=5, trusted_proxies=("127.0.0.1",)) as running:  # a proxy may hold all of them
        held = [running.connect() for _ in range(5)]
        until(lambda: len(running.server.server_state.connections) == 5)
        assert running.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        for connection in held:
            connection.close()
        until(lambda: not running.server.server_state.connections)
        with running.client() as client:
            assert client.get("/health").status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="has one loopback address")
def test_one_address_does_not_hold_all_connections() -> None:
    with serving(connections=8) as running:
        held = [running.connect() for _ in range(4)]
        until(lambda: len(running.server.server_state.connections) == 4)
        ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert running.raw(ask) == b""
        with socket.create_connection(("127.0.0.1", running.port), 10, ("127.0.0.2", 0)) as other:
            other.sendall(ask)
            assert status_of(read_all(other)) == 200
        held.pop().close()
        until(lambda: len(running.server.server_state.connections) == 3)
        assert status_of(running.raw(ask)) == 200
        for connection in held:
            connection.close()


# ---- clients that go, and clients that come in numbers ------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_who_goes_frees_the_slot_within_one_token(stream: bool, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(slots=2, seconds=0.05)
    with serving(engine) as running:
        worker, told = running.service.worker, []
        cancel = worker.cancel
        monkeypatch.setattr(worker, "cancel", lambda answer: (cancel(answer), told.append(engine.steps)))
        connection = running.connect()
        connection.sendall(post(completion(max_tokens=400, stream=stream, n=2)))
        until(lambda: engine.active == 2)
        if stream:
            answer = b""
            while b"data: " not in answer:
                answer += connection.recv(65536)
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.close()
        until(lambda: engine.active == 0)
        assert engine.steps - told[0] <= 1  # one may have begun before the news was read
        assert len(engine.cancelled) == 2
        until(lambda: worker.outstanding == 0)


def test_who_goes_while_waiting_leaves_the_queue() -> None:
    engine = FakeEngine(slots=1, seconds=0.05)
    with serving(engine) as running, running.connect() as first:
        first.sendall(post(completion(max_tokens=400, stream=True)))
        until(lambda: engine.active == 1)
        second = running.connect()
        second.sendall(post(completion(max_tokens=400)))
        until(lambda: running.service.worker.outstanding == 2)
        second.close()
        until(lambda: running.service.worker.outstanding == 1)
        assert len(engine.seen) == 1


def test_a_flood_is_told_to_come_again_later() -> None:
    engine = FakeEngine(slots=2, seconds=0.5)
    with serving(engine, queue=8) as running, ThreadPoolExecutor(20) as pool, running.client() as client:

        def ask(number: int) -> Any:
            return client.post("/v1/completions", json=completion(max_tokens=20, seed=number))

        asked = [pool.submit(ask, number) for number in range(20)]
        until(lambda: sum(task.done() for task in asked) == 14)  # all but one client's share: slots, half of the queue
        engine.seconds = 0
        responses = [task.result() for task in asked]
        refused = [response for response in responses if response.status_code == 429]
        assert sorted(response.status_code for response in responses) == [200] * 6 + [429] * 14
        for response in refused:
            assert 1 <= int(response.headers["Retry-After"]) <= 60
            assert error_of(response)["code"] == "queue_full"
        until(lambda: running.service.worker.outstanding == 0)
        assert ask(1).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_flood_is_refused_before_its_bodies_are_read(path: str) -> None:
    engine = FakeEngine(slots=1, seconds=0.02)
    with serving(engine, queue=1) as running, running.connect() as first, running.connect() as second:
        for connection in (first, second):
            connection.sendall(post(completion(max_tokens=400)))
        until(lambda: running.service.worker.outstanding == 2)
        head = post(b"", path=path).replace(b"Content-Length: 0", b"Content-Length: 1000")
        assert status_of(running.raw(head)) == 429


def test_one_client_does_not_take_all_places() -> None:
    engine = FakeEngine(slots=2, seconds=0.5)
    with serving(engine, queue=20, trusted_proxies=("127.0.0.1",)) as running, ThreadPoolExecutor(30) as pool:

        def ask(name: str) -> int:
            with running.client(headers={"X-Forwarded-For": name}) as client:
                return client.post("/v1/completions", json=completion(name, max_tokens=60)).status_code

        greedy = [pool.submit(ask, "10.0.0.1") for _ in range(25)]
        until(lambda: sum(task.done() for task in greedy) == 13)
        newcomer = pool.submit(ask, "10.0.0.2")
        until(lambda: running.service.worker.outstanding == 13)
        engine.seconds = 0
        assert newcomer.result() == 200
        place = [request.prompt_ids for request in engine.seen].index(tuple(b"10.0.0.2"))
        assert place <= 3, "a newcomer is next when a place gets free: of two at once, the second"
        assert sorted(task.result() for task in greedy) == [200] * 12 + [429] * 13


def test_without_a_trusted_proxy_nobody_can_pretend_to_be_another() -> None:
    engine = FakeEngine(slots=1, seconds=0.5)
    with serving(engine, queue=2) as running, ThreadPoolExecutor(10) as pool:

        def ask(number: int) -> int:
            with running.client(headers={"X-Forwarded-For": f"10.0.0.{number}"}) as client:
                return client.post("/v1/completions", json=completion(max_tokens=50)).status_code

        asked = [pool.submit(ask, number) for number in range(6)]
        until(lambda: sum(task.done() for task in asked) == 4)
        engine.seconds = 0
        assert sorted(task.result() for task in asked) == [200] * 2 + [429] * 4


# ---- what may be asked for ------------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "hi"}]
BAD_FIELDS: list[tuple[str, Any]] = [
    ("n", 0), ("n", 5), ("n", 10**9), ("n", True), ("n", "1"), ("n", 1.5),
    ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", CONTEXT + 1), ("max_tokens", 10**30), ("max_tokens", "5"),
    ("stop", ["a"] * 5), ("stop", "x" * 65), ("stop", ""), ("stop", [""]), ("stop", 1), ("stop", [None]),
    ("seed", 2**70), ("seed", 2**63), ("seed", -(2**63) - 1), ("seed", 1.5), ("seed", "1"), ("seed", True),
    ("temperature", -0.1), ("temperature", 5.1), ("temperature", "1.5"), ("temperature", True), ("temperature", 1e400),
    ("top_p", 0), ("top_p", 1.1), ("top_p", "1"), ("top_k", -1), ("min_p", 2), ("repetition_penalty", 0),
    ("frequency_penalty", -2.1), ("presence_penalty", 2.1), ("presence_penalty", [1]),
    ("logit_bias", {str(number): 1 for number in range(301)}), ("logit_bias", {"257": 1}), ("logit_bias", {"-1": 1}),
    ("logit_bias", {"1": 101}), ("logit_bias", {"1": "1"}), ("logit_bias", {"a": 1}), ("logit_bias", {"9" * 5000: 1}),
    ("stream", "yes"), ("stream", 1), ("stream_options", {"include_usage": 1}), ("stream_options", []),
    ("user", 1), ("user", "x" * 513), ("metadata", {"a": 1}), ("model", 1), ("model", ""), ("model", None),
]  # fmt: skip
BAD_COMPLETIONS = [
    ("logprobs", -1), ("logprobs", 21), ("logprobs", True), ("prompt", None), ("prompt", 1), ("prompt", []),
    ("prompt", [[]]), ("prompt", ["a"] * 17), ("prompt", [257]), ("prompt", [-1]), ("prompt", [True]),
    ("prompt", [1.5]), ("prompt", ["a", 1]), ("prompt", {"a": 1}), ("prompt", "x" * 600), ("suffix", "x"),
    ("echo", "yes"), ("best_of", 9),
]  # fmt: skip
BAD_CHATS = [
    ("messages", []), ("messages", None), ("messages", "hi"), ("messages", [{}]), ("messages", [{"role": "user"}]),
    ("messages", [{"role": "tool", "content": "x"}]), ("messages", [{"role": "assistant", "content": "x"}]),
    ("messages", [{"role": "system", "content": "x"}]), ("messages", [{"role": "user", "content": 1}]),
    ("messages", [{"role": "user", "content": None}]), ("messages", [{"role": "user", "content": []}]),
    ("messages", [{"role": "user", "content": "x", "more": 1}]), ("messages", CHAT * 1001),
    ("messages", [{"role": "user", "content": "x" * 600}]), ("top_logprobs", 21), ("logprobs", 1),
    ("tools", [{"type": "function"}]), ("response_format", {"type": "json_object"}), ("modalities", ["audio"]),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS + BAD_COMPLETIONS, ids=str)
def test_a_completion_out_of_bounds_is_refused_by_name(plain: Running, field: str, value: Any) -> None:
    body = json.dumps(
        {**completion("hi", max_tokens=1), **({"stream": True} if field == "stream_options" else {}), field: value}
    )
    _refused(plain, "/v1/completions", field, body)


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS + BAD_CHATS, ids=str)
def test_a_chat_out_of_bounds_is_refused_by_name(plain: Running, field: str, value: Any) -> None:
    body = {"model": MODEL, "messages": CHAT, "max_tokens": 1, "logprobs": True}
    body |= {"stream": True} if field == "stream_options" else {}
    _refused(plain, "/v1/chat/completions", field, json.dumps({**body, field: value}))


def _refused(running: Running, path: str, field: str, body: str) -> None:
    with running.client() as client:
        response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert field in error["message"] or field == error["param"], error
    assert len(error["message"]) < 300
    assert not re.search(r"Input|valid|String|Dictionary|discriminator|is wrong", error["message"]), error


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": 5.1}, "temperature must be at most 5, not 5.1."),
        ({"n": "1"}, 'n must be a whole number, not "1".'),
        ({"prompt": [1.5]}, "prompt.0 must be a text or a whole number or a list, not 1.5."),
        ({"stop": ["a"] * 5}, "stop must have at most 4 entries, not 5."),
        ({"stop": "a" * 65}, "stop must have at most 64 characters, not 65."),
        ({"echo": "é" * 99}, f'echo must be true or false, not "{"é" * 40}" ….'),
        ({"model": ""}, "model is empty."),
        ({"best_of": 2}, "best_of can only be equal to n."),
    ],
)
def test_a_mistake_is_told_in_plain_words(plain: Running, fields: dict[str, Any], said: str) -> None:
    with plain.client() as client:
        response = client.post("/v1/completions", json={**completion(), **fields})
    assert error_of(response)["message"] == said


def test_what_no_model_here_can_do_is_refused_in_plain_words(plain: Running) -> None:
    body = {"model": MODEL, "messages": CHAT, "tools": [{"type": "function"}]}
    with plain.client() as client:
        response = client.post("/v1/chat/completions", json=body)
    assert error_of(response)["message"] == "tools must be empty, or left out: there is nothing of the kind here."


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"stream_options": {}}, "stream_options"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"best_of": 2, "n": 1}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"max_tokens": CONTEXT - 1}, "max_tokens"),
        ({"prompt": ["a"] * 16, "n": 2}, "n"),
    ],
)
def test_fields_that_contradict_are_refused_by_name(plain: Running, body: dict[str, Any], named: str) -> None:
    with plain.client() as client:
        response = client.post("/v1/completions", json={**completion("hi"), **body})
    assert response.status_code == 400
    assert named in error_of(response)["message"]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(("number", "text"), [(CONTEXT + 1, "hi"), (CONTEXT - 1, "hi"), (1, "x" * CONTEXT)])
def test_what_does_not_fit_is_blamed_on_what_is_too_large(plain: Running, field: str, number: int, text: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], field: number}
    with plain.client() as client:
        response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == ("messages" if number == 1 else field)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e-45}, {"temperature": 0}, {"temperature": 5}, {"seed": -1}, {"seed": 2**63 - 1, "n": 4},
        {"seed": -(2**63)}, {"top_p": 1e-300}, {"min_p": 1}, {"logit_bias": {"256": -100}}, {"logit_bias": {}},
        {"stop": []}, {"stop": None}, {"n": None, "user": "me", "store": False, "metadata": {"a": "b"}},
        {"prompt": ""}, {"prompt": [256]}, {"prompt": ["a", "b"], "n": 2}, {"prompt": [[1], [2, 3]]}, {"prompt": "\0"},
    ],
    ids=str,
)  # fmt: skip
def test_what_lies_on_the_bound_is_answered(plain: Running, fields: dict[str, Any]) -> None:
    with plain.client() as client:
        response = client.post("/v1/completions", json={**completion(max_tokens=2), **fields})
    assert response.status_code == 200, response.text
    sampling = plain.engine.seen[-1].sampling
    assert sampling.greedy == (0 <= fields.get("temperature", 1) < 1e-3)
    assert sampling.seed is None or 0 <= sampling.seed < 2**63


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{", b"\xff\xfe", b'"x"', b"NaN", b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": "\xed\xa0\x80"}', b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "x", "temperature": Infinity}', b'{"model": "tiny", "prompt": "x",}',
        b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "prompt": "x", "temperature": ' + b"9" * 5000 + b"}",
        b"[" * 100_000, b'{"a":' * 100_000, b'{"model": "tiny", "prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"model": "tiny", "prompt": "x", "metadata": ' + b'{"a":' * 9000 + b"1" + b"}" * 9000 + b"}",
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)  # fmt: skip
def test_what_is_no_json_for_us_is_refused(plain: Running, body: bytes) -> None:
    answer = plain.raw(post(body))
    assert status_of(answer) == 400, answer
    assert b'"error"' in answer


def test_a_megabyte_of_one_letter_costs_nothing(plain: Running) -> None:
    with plain.client() as client:
        for text in ("a" * 10**6, " " * 10**6, "\u0000" * 300_000, "☃" * 300_000):
            response = client.post("/v1/completions", json=completion(text))
            assert response.status_code == 400
            assert error_of(response)["code"] == "context_length_exceeded"
            chat = {
                "model": MODEL,
                "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}, *CHAT],
            }
            assert client.post("/v1/chat/completions", json=chat).status_code == 200  # too old to be remembered


@pytest.mark.parametrize("text", ["a", " ", "=", "\u0000", "☃"])
def test_one_letter_over_and_over_does_not_keep_gpt2s_tokenizer(text: str) -> None:
    """The longest text that is encoded at all for a context of 1,024."""
    longest = text * (1024 * LONGEST // len(text.encode()))
    with serving(tokenizer=gpt2_tokenizer(), context_length=1024) as running, running.client() as client:
        for path, body in (
            ("/v1/completions", completion(longest)),
            ("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": longest}]}),
        ):
            began = time.process_time()  # of this process, the server included, however busy the machine is
            # A message of nothing but white space is an empty one.
            assert client.post(path, json=body).status_code == (200 if text == " " and "chat" in path else 400)
            assert time.process_time() - began < 20


def test_forty_thousand_mistakes_are_told_in_a_sentence(plain: Running) -> None:
    """Lists fail at their first mistake: to note a million took ten seconds, in which nobody was served."""
    chat = {"model": MODEL, "messages": CHAT}
    unknown = {f"k{number}": 1 for number in range(5_000)}
    bodies: list[tuple[str, Any]] = [
        *(("/v1/completions", completion([value] * 40_000)) for value in (1, -1, "a", [], [-1], None)),
        ("/v1/completions", completion([[-1] * 5_000] * 16)),
        ("/v1/completions", completion("a", stop=[1] * 40_000)),
        ("/v1/completions", completion("a", logit_bias={str(number): "a" for number in range(5_000)})),
        ("/v1/completions", completion("a", metadata={str(number): 1 for number in range(5_000)})),
        ("/v1/completions", {**completion("a"), **unknown}),
        ("/v1/chat/completions", {**chat, "messages": [1] * 40_000}),
        ("/v1/chat/completions", {**chat, "messages": [{}] * 40_000}),
        ("/v1/chat/completions", {**chat, "messages": [{"role": "user", "content": [1] * 40_000}]}),
        ("/v1/chat/completions", {**chat, "messages": [{**CHAT[0], **unknown}]}),
        ("/v1/chat/completions", {**chat, "messages": [{"role": "u" * 10**5, "content": "x"}]}),
    ]
    for path, body in bodies:
        content = json.dumps(body, separators=(",", ":")).encode()
        answer = plain.raw(post(content, path=path))
        assert status_of(answer) == 400, answer
        assert len(answer) < 2000
        schema = ChatRequest if "chat" in path else CompletionRequest
        with pytest.raises(ValidationError) as caught:
            schema.model_validate_json(content)
        in_an_object = b"k1" in content or b'"2":' in content
        assert (b"more than 100 mistakes" in answer) == in_an_object
        assert in_an_object or caught.value.error_count() <= 4


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_long_text_is_encoded_beside_the_others(path: str) -> None:
    class Watched:
        """A tokenizer that notes who uses it."""

        def __init__(self) -> None:
            self.threads: list[str] = []

        def __getattr__(self, name: str) -> Any:
            return getattr(BYTES, name)

        def encode(self, text: str) -> Any:
            self.threads.append(threading.current_thread().name)
            return BYTES.encode(text)

    watched = Watched()
    text = "long " * 2000
    body = (
        completion(text) if path == "/v1/completions" else {"model": MODEL, "messages": [{**CHAT[0], "content": text}]}
    )
    with serving(tokenizer=watched, context_length=20_000) as running, running.client() as client:
        assert client.post(path, json={**body, "max_tokens": 1}).status_code == 200
    assert watched.threads and all(name.startswith("asyncio") for name in watched.threads), watched.threads


# ---- text is text ----------------------------------------------------------------------------------------------------


def test_a_special_token_that_is_typed_is_plain_text(plain: Running) -> None:
    spelled = "<|endoftext|>"
    with plain.client() as client:
        client.post("/v1/completions", json=completion(spelled, max_tokens=1)).raise_for_status()
        assert plain.engine.seen[-1].prompt_ids == tuple(spelled.encode())
        said = [{"role": "user", "content": spelled}, {"role": "assistant", "content": spelled}, *CHAT]
        body = {"model": MODEL, "messages": said, "max_tokens": 1}
        client.post("/v1/chat/completions", json=body).raise_for_status()
    ids = plain.engine.seen[-1].prompt_ids
    assert ids.count(BYTES.end_of_text) == 2  # one before each turn, set by us
    assert BYTES.decode(ids) == f"Q: {spelled}\nA: {spelled}Q: hi\nA:"


def test_special_ids_are_not_shown(plain: Running) -> None:
    with plain.client() as client:
        body = completion(max_tokens=3, logprobs=3)
        choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert "endoftext" not in json.dumps(choice)
    assert choice["logprobs"]["top_logprobs"][0] == {"t": -0.5, "": -1.5, "bytes:\\xc3": -9999.0}


def test_nothing_is_fetched_from_anywhere(plain: Running) -> None:
    reached: list[Any] = []
    here = threading.get_ident()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto") and threading.get_ident() != here:
            reached.append((event, arguments))

    sys.addaudithook(hook)  # it cannot be taken away; after this test it notes into the void
    url = "http://127.0.0.1:1/x.png"
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file": {"file_id": url}},
    ]
    with plain.client() as client:
        for part in parts:
            body = {"model": MODEL, "messages": [{"role": "user", "content": [part]}]}
            response = client.post("/v1/chat/completions", json=body)
            assert response.status_code == 400
            assert "messages" in error_of(response)["param"]
        body = {"model": MODEL, "messages": [{"role": "user", "content": url}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert reached == []


def test_the_page_runs_no_code_but_its_own(plain: Running) -> None:
    with plain.client() as client:
        responses = {path: client.get(path) for path in PAGE}
        policy = responses["/"].headers["content-security-policy"]
        for response in [*responses.values(), client.get("/health"), client.get("/nowhere")]:
            assert response.headers["content-security-policy"] == policy
            assert response.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    texts = {path: response.text for path, response in responses.items()}
    for path in (path for path in texts if path.endswith(".js")):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", texts[path]), path
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", texts["/"])
    for text in texts.values():
        assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_a_name_may_have_a_slash_and_a_watcher_need_not_read() -> None:
    with serving(name="my/model") as running, running.client() as client:
        for path in ("my/model", "my%2Fmodel"):
            assert client.get(f"/v1/models/{path}").json()["id"] == "my/model"
        assert client.get("/v1/models/my/other").status_code == 404
        assert (client.head("/health").status_code, client.head("/health").content) == (200, b"")


def test_no_text_can_break_the_frame_of_a_stream() -> None:
    text = "a\n\ndata: [DONE]\n\r\nevent: x\r\rid: 1\n\u2028\u2029\0é☃ end"
    with serving(FakeEngine(says=lambda request: text.encode())) as running, running.client() as client:
        response = client.post("/v1/completions", json=completion(max_tokens=200, stream=True))
        events = [line for line in response.text.split("\n\n") if line]
        assert all(event.startswith("data: ") and "\n" not in event and "\r" not in event for event in events)
        assert events[-1] == "data: [DONE]"
        pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == text
        assert client.post("/v1/completions", json=completion(max_tokens=200)).json()["choices"][0]["text"] == text


# ---- mistakes of ours ------------------------------------------------------------------------------------------------


def test_errors_tell_nothing_about_the_server(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(fail=RuntimeError("secret prompt in /home/me/model at 0x7fff12345678"))
    with serving(engine) as running, running.client() as client, caplog.at_level(logging.DEBUG):
        response = client.post("/v1/completions", json=completion())
        assert response.status_code == 500
        assert error_of(response)["type"] == "server_error"
        for word in ("secret", "/home", "0x7f", "Traceback", "RuntimeError", ".py"):
            assert word not in response.text
        assert response.headers["x-request-id"]
    assert "RuntimeError in" in caplog.text and "secret" not in caplog.text


def test_a_handler_that_fails_tells_nothing_either(plain: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(ChatFormat, "prompt", broken)
    with plain.client() as client:
        response = client.post("/v1/chat/completions", json={"model": MODEL, "messages": CHAT})
    assert response.status_code == 500
    assert error_of(response)["message"] == "The server failed."
    assert "content-security-policy" in response.headers


def test_what_users_write_is_not_logged(plain: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), plain.client() as client:
        client.post("/v1/completions", json=completion("my secret", user="alice", max_tokens=20))
        client.post("/v1/completions", json=completion("my secret", temperature="my secret"))
        client.post("/v1/completions", content=b'{"my secret', headers={"Content-Type": "application/json"})
        plain.raw(b"GET /%0d%0aFAKE%1b/x?my=secret HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        until(lambda: "FAKE" in caplog.text)
    ours = [record for record in caplog.records if record.name.startswith(("gpt2", "uvicorn"))]
    text = "\n".join(record.getMessage() for record in ours)
    assert "POST /v1/completions 200" in text and "POST /v1/completions 400" in text
    assert "secret" not in text and "alice" not in text
    assert "\r" not in text and "\x1b" not in text
    assert "/%0D%0AFAKE%1B" in text


def test_an_answer_that_is_cut_off_by_a_second_ctrl_c_is_no_failure(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", False)
    with serving(FakeEngine(seconds=0.01)) as running, running.connect() as connection:
        connection.sendall(post(completion(max_tokens=400, stream=True)))
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        for _ in range(2):
            running.server.handle_exit(signal.SIGTERM, None)
        assert b"[DONE]" not in read_all(connection)
        until(lambda: not running.server.server_state.tasks)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_an_answer_that_has_not_begun_is_cut_off_by_a_second_ctrl_c_too() -> None:
    """And is no 500, which a client would take for a fault of the server."""
    engine = FakeEngine(seconds=0.01)
    with serving(engine) as running, running.connect() as connection:
        connection.sendall(post(completion(max_tokens=400)))
        until(lambda: running.service.worker.outstanding == 1)
        for _ in range(2):
            running.server.handle_exit(signal.SIGTERM, None)
        with contextlib.suppress(ConnectionError):
            assert read_all(connection) == b""
        until(lambda: not running.server.server_state.tasks)


@pytest.mark.parametrize("stream", [True, False])
def test_what_fails_is_not_counted_as_given_up(stream: bool) -> None:
    engine = FakeEngine(slots=2, seconds=0.01)
    with serving(engine) as running, running.client() as client, ThreadPoolExecutor(1) as pool:
        task = pool.submit(client.post, "/v1/completions", json=completion(max_tokens=400, n=4, stream=stream))
        until(lambda: engine.steps > 3)  # two are being written, two wait
        engine.fail = RuntimeError("x")
        assert "could not write any further" in task.result().text
        until(lambda: not running.service.worker.outstanding)
        assert b"gpt2_cancelled_total 0.0" in running.service.metrics.text()


def test_memory_that_ends_fails_the_request_and_not_the_server() -> None:
    engine = FakeEngine(slots=2, room=50, seconds=0.05)
    with serving(engine) as running, running.client() as client:
        response = client.post("/v1/completions", json=completion("x" * 100))
        assert response.status_code == 503
        assert error_of(response)["code"] == "no_memory"
        with ThreadPoolExecutor(2) as pool:
            tasks = [pool.submit(client.post, "/v1/completions", json=completion(max_tokens=300)) for _ in range(2)]
            until(lambda: engine.active == 2)
            engine.fail = MemoryError()
            assert [task.result().status_code for task in tasks] == [500, 500]
        assert engine.active == 0
        assert client.post("/v1/completions", json=completion()).status_code == 200
        assert client.get("/health").json() == {"status": "ok"}


def test_an_answer_that_ends_in_an_error_leaves_the_others_alone() -> None:
    class Unreadable(FakeEngine):
        def step(self) -> list[tuple[int, Delta | UserError]]:  # type: ignore[override]
            spoilt = {ticket for ticket, one in self.running.items() if one.request.prompt_ids[0] == ord("x")}
            for ticket in spoilt:
                del self.running[ticket]
            return [*super().step(), *((ticket, CheckpointError("no number", "")) for ticket in spoilt)]

        def cancel(self, ticket: int) -> None:
            if ticket in self.running:
                super().cancel(ticket)

    engine = Unreadable(slots=2, seconds=0.05)
    with serving(engine) as running, running.client() as client, ThreadPoolExecutor(1) as pool:
        other = pool.submit(client.post, "/v1/completions", json=completion("a", max_tokens=400))
        until(lambda: engine.active == 1)
        for _ in range(2 * HOPELESS):
            response = client.post("/v1/completions", json=completion("x"))
            assert (response.status_code, error_of(response)["code"]) == (500, "engine_failed")
        assert not other.done()
        engine.seconds = 0
        assert other.result().status_code == 200
        assert running.service.worker.outstanding == 0


def test_a_stream_that_fails_ends_with_an_error_and_without_done() -> None:
    engine = FakeEngine(seconds=0.01)
    with serving(engine) as running, running.client() as client:
        with client.stream("POST", "/v1/completions", json=completion(max_tokens=400, stream=True)) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            engine.fail = RuntimeError("x")
            rest = [line for line in lines if line]
        assert "error" in json.loads(rest[-1].removeprefix("data: "))
        assert client.get("/health").status_code == 200


def test_an_answer_that_takes_too_long_is_ended() -> None:
    engine = FakeEngine(seconds=0.05)
    with serving(engine, answer_seconds=0.2) as running, running.client() as client:
        response = client.post("/v1/completions", json=completion(max_tokens=400))
        assert response.status_code == 503
        assert error_of(response)["code"] == "timeout"
        assert engine.active == 0


def test_what_takes_too_long_before_the_engine_is_told_in_the_usual_shape() -> None:
    class Slow:
        """A tokenizer that does not come to an end."""

        def __getattr__(self, name: str) -> Any:
            return getattr(BYTES, name)

        def encode(self, text: str) -> Any:
            time.sleep(1)
            return BYTES.encode(text)

    bounds = {"answer_seconds": 0.2, "write_seconds": 0.2, "context_length": 20_000}
    with serving(tokenizer=Slow(), **bounds) as running, running.client() as client:
        response = client.post("/v1/completions", json=completion("long " * 2000))
        assert response.status_code == 503
        assert error_of(response)["code"] == "timeout"
        until(lambda: b'status="503"} 1.0' in running.service.metrics.text())


def test_what_the_engine_refuses_is_the_clients_mistake(plain: Running) -> None:
    with plain.client() as client:
        response = client.post("/v1/completions", json=completion("\0refuse"))
    assert response.status_code == 400
    assert "refused" in error_of(response)["message"]


def test_an_engine_that_always_fails_ends_the_server() -> None:
    class Broken(FakeEngine):
        def step(self) -> list[tuple[int, Delta]]:
            raise RuntimeError("device-side assert")

    with serving(Broken(slots=1)) as running, running.client() as client:
        for _ in range(HOPELESS):
            assert not running.server.should_exit
            assert client.post("/v1/completions", json=completion()).status_code == 500
        until(lambda: running.server.should_exit)
        assert running.service.status.status == "draining"


def test_who_asks_while_the_engine_ends_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as running, ThreadPoolExecutor(2) as pool, running.client() as client:
        worker, arrived = running.service.worker, threading.Event()

        def break_down() -> None:
            """As a mistake of ours would, when another request has just come in."""
            if not worker._waiting:
                return
            arrived.set()
            until(lambda: worker.outstanding == 2)
            raise RuntimeError("x")

        monkeypatch.setattr(worker, "_give_up_late", break_down)
        first = pool.submit(client.post, "/v1/completions", json=completion())
        assert arrived.wait(SECONDS)
        second = pool.submit(client.post, "/v1/completions", json=completion())
        for task in (first, second):
            assert (task.result().status_code, error_of(task.result())["code"]) == (500, "failed")
        assert worker.failed


# ---- the end, and what is kept apart ---------------------------------------------------------------------------------


def test_at_the_end_running_answers_are_finished_and_new_requests_refused() -> None:
    engine = FakeEngine(slots=2, seconds=0.5)
    with serving(engine) as running, running.client() as client, ThreadPoolExecutor(2) as pool:
        task = pool.submit(client.post, "/v1/completions", json=completion(max_tokens=40))
        until(lambda: engine.active == 1)
        running.server.drain()
        response = client.post("/v1/completions", json=completion())
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
        health = client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        engine.seconds = 0
        assert task.result().json()["usage"]["completion_tokens"] == 40
        until(lambda: not running.server.server_state.connections)


@pytest.mark.parametrize("stream", [True, False])
def test_at_the_end_who_reads_slowly_gets_the_rest(stream: bool) -> None:
    engine = FakeEngine(slots=1, says=lambda request: b"x" * 10**6)
    with serving(engine, context_length=10**6) as running, running.connect(receive_buffer=4096) as connection:
        connection.sendall(post(completion(max_tokens=10_000, stream=stream, logprobs=3)))
        until(lambda: bool(engine.seen) and not running.service.worker.outstanding)
        running.server.drain()
        answer = b""
        began = time.monotonic()
        while time.monotonic() < began + 4.5:  # longer than the server waits for the last bytes
            answer += connection.recv(512)
            time.sleep(0.02)
        answer += read_all(connection)
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n" if stream else b"}")
        until(lambda: running.server.should_exit)


def test_at_the_end_a_body_that_is_coming_is_answered() -> None:
    with serving() as running, running.connect() as connection:
        content = post(completion(max_tokens=5))
        connection.sendall(content[:-20])
        until(lambda: any(one.busy for one in running.server._connections))
        running.server.drain()
        time.sleep(0.5)
        assert not running.server.should_exit
        connection.sendall(content[-20:])
        assert status_of(read_all(connection)) == 200
        until(lambda: running.server.should_exit)


def test_what_does_not_end_in_time_is_ended() -> None:
    engine = FakeEngine(slots=2, seconds=0.02)
    with serving(engine, drain_seconds=0.3) as running, running.client() as client, ThreadPoolExecutor(2) as pool:
        task = pool.submit(client.post, "/v1/completions", json=completion(max_tokens=400))
        until(lambda: engine.active == 1)
        running.server.drain()
        assert task.result().status_code == 503
        until(lambda: engine.active == 0)


def test_answers_side_by_side_are_those_of_requests_alone() -> None:
    with serving(FakeEngine(slots=8)) as running, ThreadPoolExecutor(50) as pool, running.client() as client:

        def ask(number: int) -> str:
            body = completion(f"prompt {number}", seed=number, max_tokens=50, stop=["zzz", str(number)])
            return client.post("/v1/completions", json=body).json()["choices"][0]["text"]

        alone = [ask(number) for number in range(40)]
        assert list(pool.map(ask, range(40))) == alone
        assert len(set(alone)) == 40


def test_texts_of_a_model_side_by_side_are_those_of_requests_alone() -> None:
    with (
        serving(Engine(tiny.tiny_model(), BYTES, slots=8), context_length=tiny.CONTEXT) as running,
        ThreadPoolExecutor(16) as pool,
        running.client() as client,
    ):

        def ask(number: int) -> str:
            how = {"temperature": 0} if number % 2 else {"seed": number, "temperature": 1.2}
            prompt = "the same beginning " * (number % 3) + f"prompt {number}"
            body = completion(prompt, max_tokens=8 + number % 16, **how)
            return client.post("/v1/completions", json=body).json()["choices"][0]["text"]

        alone = [ask(number) for number in range(30)]
        assert list(pool.map(ask, range(30))) == alone
        assert len(set(alone)) > 24


def test_no_piece_waits_for_the_acknowledgement_of_the_one_before(plain: Running) -> None:
    with plain.connect() as connection:
        until(lambda: connection.getsockname() in {one.client for one in plain.server._connections})
        (ours,) = (one for one in plain.server._connections if one.client == connection.getsockname())
        assert ours.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
