"""The page in a real browser: what it does, that it shows text as text, and that it can be used by all."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gpt2.generation.engine import Engine
from gpt2.generation.request import Request
from gpt2.inspection.document import html
from gpt2.inspection.view import look
from gpt2.recipes.inspector import EngineInspector
from tests.serve import tiny
from tests.serve.fake import BYTES, FakeEngine
from tests.serve.harness import SECONDS, TEMPLATE, Running, serving

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
expect = sync_api.expect
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
KEY = "a key that is long enough"
expect.set_options(timeout=SECONDS * 1000)
Page = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Page]]:
    """Opens a page of a server. At the end: it has complained of nothing, and asked nobody else."""
    complaints: list[str] = []
    hosts: set[str] = set()
    expected: list[str] = []
    contexts: list[Any] = []

    def open_page(running: Running | None, failures: str = "", address: str = "", **options: Any) -> Page:
        context = browser.new_context(viewport={"width": 1100, "height": 800}, reduced_motion="reduce", **options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        expected.append(failures)
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.goto(running.url if running else address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in complaints if not any(words and words in text for words in expected)] == []
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+|", host) for host in hosts), hosts  # a file has none


def asked(request: Request) -> str:
    """The text of a request."""
    return bytes(token for token in request.prompt_ids if token < 256).decode()


def echo(request: Request) -> bytes:
    """Answers with how many questions there were, and the last."""
    question = asked(request).rpartition("Q: ")[2].removesuffix("\nA:")
    return f"{asked(request).count('Q:')}. You said {question}".encode()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def messages(page: Page) -> Any:
    return page.locator("#messages .text")


# ---- chat ------------------------------------------------------------------------------------------------------------


def test_a_conversation_is_asked_edited_retried_copied_and_kept(opened: Callable[..., Page]) -> None:
    engine = FakeEngine(says=echo)
    with serving(engine) as running:
        page = opened(running)
        ask(page, "one")
        expect(messages(page)).to_have_text(["one", "1. You said one"])
        expect(page.locator("#status")).to_contain_text("tokens in")
        ask(page, "two\nlines")
        expect(messages(page)).to_have_text(["one", "1. You said one", "two\nlines", "2. You said two\nlines"])
        expect(page.locator("#heard")).to_have_text("2. You said two\nlines")
        page.reload()
        expect(messages(page)).to_have_count(4)

        page.get_by_label("Edit message 1").click()
        page.keyboard.press("Escape")
        expect(messages(page)).to_have_count(4)
        page.get_by_label("Edit message 1").click()
        expect(page.get_by_text("What was said after it is dropped.")).to_be_visible()
        page.locator("#messages textarea").fill("three")
        page.keyboard.press("Enter")
        expect(messages(page)).to_have_text(["three", "1. You said three"])
        engine.says = lambda request: b"anew"
        page.get_by_label("Write answer 1 anew").click()
        expect(messages(page)).to_have_text(["three", "anew"])
        page.get_by_label("Copy answer 1").click()
        expect(page.locator("#status")).to_have_text("Copied.")
        assert page.evaluate("navigator.clipboard.readText()") == "anew"


@pytest.mark.parametrize(
    ("template", "turns", "hint"),
    [(None, None, "continues what you write"), (TEMPLATE, None, "trained to answer"), (TEMPLATE, 1, "each on its own")],
)
def test_it_says_what_the_model_does_with_a_message(
    opened: Callable[..., Page], template: str | None, turns: int | None, hint: str
) -> None:
    with serving(FakeEngine(), template=template, turns=turns) as running:
        expect(opened(running).locator("#chat-hint")).to_contain_text(hint)


def test_an_answer_streams_and_stops(opened: Callable[..., Page]) -> None:
    engine = FakeEngine(seconds=0.05)
    with serving(engine) as running:
        page = opened(running)
        ask(page, "one")
        expect(messages(page).nth(1)).to_contain_text(re.compile(".{10}"))  # while it goes on
        assert engine.active == 1
        page.keyboard.press("Escape")
        expect(page.locator("#status")).to_have_text("Stopped.")
        assert 10 <= len(messages(page).nth(1).inner_text()) < 200
        page.get_by_label("Write answer 1 anew").click()
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#status")).to_have_text("Stopped.")
        page.reload()
        expect(messages(page)).to_have_count(2)
        ask(page, "cut off by a reload")
        expect(messages(page).nth(3)).to_contain_text(re.compile(".{10}"))
        page.reload()
        expect(messages(page)).to_have_count(4)
        expect(messages(page).nth(3)).to_contain_text(re.compile(".{10}"))
    assert len(engine.cancelled) == 3


def test_what_fails_leaves_the_conversation_as_it_was(opened: Callable[..., Page]) -> None:
    engine = FakeEngine(says=echo)
    with serving(engine) as running:
        page = opened(running, failures="500 (Internal Server Error)")
        ask(page, "one")
        expect(messages(page)).to_have_text(["one", "1. You said one"])
        engine.fail = RuntimeError()
        ask(page, "two")
        expect(page.locator("#status")).to_have_text("The model could not write any further.")
        expect(messages(page)).to_have_text(["one", "1. You said one"])
        expect(page.get_by_label("Your message")).to_have_value("two")
        engine.fail = RuntimeError()
        page.get_by_label("Write answer 1 anew").click()
        expect(page.locator("#status")).to_have_class("wrong")
        expect(messages(page)).to_have_text(["one", "1. You said one"])


def test_several_conversations(opened: Callable[..., Page]) -> None:
    with serving(FakeEngine(says=echo)) as running:
        page = opened(running)
        titles = page.locator("#conversations .title")
        ask(page, "one")
        expect(titles).to_have_text(["one"])
        expect(messages(page)).to_have_text(["one", "1. You said one"])  # whole: who leaves sooner stops it
        page.get_by_role("button", name="New conversation").first.click()
        expect(messages(page)).to_have_count(0)
        ask(page, "two")
        expect(titles).to_have_text(["two", "one"])
        expect(messages(page)).to_have_text(["two", "1. You said two"])
        titles.nth(1).click()
        expect(messages(page)).to_have_text(["one", "1. You said one"])
        page.get_by_label("Rename one").click()
        page.keyboard.type("<b>first</b>")
        page.keyboard.press("Enter")
        expect(titles).to_have_text(["two", "<b>first</b>"])
        page.reload()
        expect(titles).to_have_text(["two", "<b>first</b>"])
        expect(messages(page).first).to_have_text("one")
        page.get_by_label("Delete <b>first</b>").click()
        expect(titles).to_have_text(["two"])
        expect(messages(page).first).to_have_text("two")
        page.get_by_role("button", name="Bring back").click()
        expect(titles).to_have_text(["two", "<b>first</b>"])
        page.get_by_label("Delete <b>first</b>").click()
        page.get_by_label("Delete two").click()
        expect(messages(page)).to_have_count(0)
        page.reload()
        expect(titles).to_have_text(["New conversation"])


def test_who_leaves_a_conversation_stops_its_answer(opened: Callable[..., Page]) -> None:
    engine = FakeEngine(seconds=0.05)
    with serving(engine) as running:
        page = opened(running)
        titles = page.locator("#conversations .title")
        ask(page, "one")
        expect(messages(page).nth(1)).to_contain_text(re.compile(".{10}"))
        page.get_by_role("button", name="New conversation").first.click()
        expect(messages(page)).to_have_count(0)
        expect(page.locator("#status")).to_have_text("Stopped.")
        ask(page, "two")
        expect(messages(page).nth(1)).to_contain_text(re.compile(".{10}"))
        titles.nth(1).click()
        expect(messages(page).first).to_have_text("one")
        expect(messages(page).nth(1)).to_contain_text(re.compile(".{10}"))  # what had come of it
        page.get_by_label("Delete two").click()
        page.get_by_label("Write answer 1 anew").click()
        page.get_by_role("button", name="Bring back").click()
        expect(messages(page).first).to_have_text("two")
        expect(messages(page).nth(1)).to_contain_text(re.compile(".{10}"))
        page.get_by_label("Write answer 1 anew").click()
        page.get_by_label("Delete two").click()
        expect(titles).to_have_text(["one"])
        page.reload()
        expect(titles).to_have_text(["one"])  # not kept by what was still being written
    assert len(engine.cancelled) == 4


def test_a_question_that_was_left_before_its_answer_began_stays(opened: Callable[..., Page]) -> None:
    engine = FakeEngine(slots=0)
    with serving(engine) as running:
        page = opened(running)
        ask(page, "one")
        expect(page.locator("#status")).to_have_text("Writing …")
        page.get_by_role("button", name="New conversation").first.click()
        expect(page.locator("#status")).to_have_text("Stopped.")
        expect(page.get_by_label("Your message")).to_have_value("")
        page.locator("#conversations .title", has_text="one").click()
        expect(messages(page)).to_have_text(["one"])


def test_settings_are_sent_and_kept(opened: Callable[..., Page]) -> None:
    engine = FakeEngine(says=echo)
    with serving(engine) as running:
        page = opened(running)
        page.get_by_label("Temperature").fill("0.5")
        page.get_by_label("Top k").fill("7")
        page.get_by_label("Seed").fill("3")
        page.get_by_label("Tokens at most").fill("4")
        page.reload()
        ask(page, "one")
        expect(messages(page)).to_have_text(["one", "1. Y"])
        expect(page.locator("#status")).to_contain_text("cut at the limit")
        sampling = engine.seen[0].sampling
        assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.top_p) == (0.5, 7, 3, 0.95)
        page.get_by_role("button", name="As at first").click()
        page.get_by_label("Write answer 1 anew").click()
        expect(messages(page)).to_have_text(["one", "1. You said one"])
        assert engine.seen[1].sampling.temperature == 0.8


def test_a_server_with_a_key_asks_for_it(opened: Callable[..., Page]) -> None:
    with serving(FakeEngine(says=echo), key=KEY) as running:
        page = opened(running, failures="401 (Unauthorized)")
        expect(page.locator("#status")).to_contain_text("A valid key is needed")
        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text("tiny")
        ask(page, "one")
        expect(messages(page)).to_have_count(2)
        assert KEY not in page.evaluate("JSON.stringify(localStorage) + JSON.stringify(sessionStorage)")


EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)> \u202e👩‍👩‍👧‍👦 🇨🇭 é\u0301 </textarea> &lt;\n\n\tend"


def test_whatever_comes_is_text(opened: Callable[..., Page]) -> None:
    with serving(FakeEngine(says=lambda request: EVIL.encode())) as running:
        page = opened(running)
        ask(page, EVIL)
        expect(page.locator("#status")).to_contain_text("tokens in")
        assert messages(page).all_text_contents() == [EVIL, EVIL]
        assert page.locator("#messages :is(script, img)").count() == 0
        page.get_by_role("tab", name="Complete").click()
        page.get_by_label("Text", exact=True).fill("a")
        page.keyboard.press("Control+Enter")
        expect(page.get_by_label("Text", exact=True)).to_have_value("a" + EVIL)
        assert page.locator("#complete-colours").text_content() == f"a{EVIL}\u200b"
        assert page.locator("#complete-colours :is(script, img)").count() == 0


@pytest.mark.slow
def test_ten_thousand_tokens(opened: Callable[..., Page]) -> None:
    text = ("snow ☃ " * 1111 + "!").encode()  # a token is a byte here
    with serving(FakeEngine(says=lambda request: text), context_length=30_000) as running:
        page = opened(running)
        page.get_by_label("Tokens at most").fill("10000")
        ask(page, "much")
        expect(page.locator("#status")).to_contain_text("10000 tokens in", timeout=60_000)
        assert messages(page).nth(1).text_content() == text.decode()
        assert page.evaluate("innerHeight + scrollY >= document.documentElement.scrollHeight - 2")  # it followed


# ---- complete --------------------------------------------------------------------------------------------------------


def complete(page: Page, text: str = "") -> Any:
    """Opens Complete with a text; its field."""
    page.get_by_role("tab", name="Complete").click()
    field = page.get_by_label("Text", exact=True)
    field.fill(text)
    return field


def click_token(page: Page, number: int) -> None:
    """A click on a token as a mouse does it, whatever lies above."""
    box = page.locator("#complete-colours .token").nth(number).bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.4, box["y"] + box["height"] / 2)


def test_it_goes_on_from_the_cursor_and_takes_alternatives(opened: Callable[..., Page]) -> None:
    engine = FakeEngine(alternatives=((ord("X"), -1.5), (256, -2.0), (195, -9.0)))
    engine.says = lambda request: b"abcdef" if asked(request) == "one " else b"<" + asked(request)[-2:].encode() + b">"
    with serving(engine) as running:
        page = opened(running)
        field = complete(page, "one two")
        field.evaluate("field => field.setSelectionRange(4, 4)")
        page.keyboard.press("Control+Enter")
        expect(field).to_have_value("one abcdeftwo")
        assert page.locator("#complete-colours .token").all_text_contents() == list("abcdef")
        assert engine.seen[0].prompt_ids == tuple(b"one ")
        colour = page.locator("#complete-colours .token").first.evaluate("span => span.style.backgroundColor")
        assert re.fullmatch(r"rgba\(.*, 0\.08\d\)", colour)

        click_token(page, 2)
        others = page.locator("#alternatives button")
        expect(page.locator("#alternatives-about")).to_contain_text("“c” had a probability of 61 %")
        expect(others).to_have_text([re.compile("c.*61 %"), re.compile("X.*22 %"), re.compile("end of the text.*14 %"),
                                     re.compile("bytes.*0.01")])  # fmt: skip
        expect(others.nth(3)).to_be_disabled()  # half a character
        others.nth(1).click()
        expect(field).to_have_value("one abX<bX>two")
        expect(field).to_be_focused()
        assert engine.seen[1].prompt_ids == tuple(b"one abX")
        page.keyboard.press("Control+z")
        expect(field).to_have_value("one abcdeftwo")
        page.keyboard.press("Control+z")
        expect(field).to_have_value("one two")
        page.get_by_role("button", name="Redo").click()
        expect(field).to_have_value("one abcdeftwo")
        page.reload()
        expect(field).to_have_value("one abcdeftwo")
        assert page.locator("#complete-colours .token").all_text_contents() == list("abcdef")
        click_token(page, 0)
        page.get_by_role("button", name="the end of the text").click()
        expect(field).to_have_value("one two")
        assert len(engine.seen) == 2  # nothing was written


def test_alternatives_are_seen_wherever_the_token_stands(opened: Callable[..., Page]) -> None:
    engine = FakeEngine(alternatives=((ord("X"), -1.5),), says=lambda request: b"a line\n" * 40)
    with serving(engine, context_length=1000) as running:
        page = opened(running)
        page.set_viewport_size({"width": 390, "height": 700})
        page.get_by_text("Settings", exact=True).click()
        page.get_by_label("Tokens at most").fill("400")
        field = complete(page, "one ")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#status")).to_contain_text("tokens in")
        page.get_by_text("Settings", exact=True).click()
        field.focus()
        field.evaluate("field => field.setSelectionRange(5, 5)")
        token, panel = (
            f"document.querySelector('{name}').getBoundingClientRect()" for name in (".chosen", "#alternatives")
        )
        for _ in range(25):
            before = page.evaluate(f"{token}.top + scrollY")
            page.keyboard.press("ArrowDown")
            page.wait_for_function(f"before => {token}.top + scrollY > before", arg=before)
            page.wait_for_function(f"() => 0 <= {token}.top && {token}.bottom <= {panel}.top")
            expect(page.locator("#alternatives")).to_be_in_viewport(ratio=1)


def test_what_is_typed_over_is_no_longer_the_models(opened: Callable[..., Page]) -> None:
    with serving(FakeEngine(says=lambda request: b"abcdef")) as running:
        page = opened(running)
        field = complete(page, "")
        page.keyboard.press("Control+Enter")
        expect(field).to_have_value("abcdef")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Backspace")
        page.keyboard.type("xy")
        expect(field).to_have_value("abcdxyf")
        assert page.locator("#complete-colours .token").all_text_contents() == list("abcdf")
        page.keyboard.press("Control+z")
        expect(field).to_have_value("abcdef")
        page.keyboard.press("Home")
        expect(page.locator("#alternatives-about")).to_contain_text("“a”")
        page.keyboard.press("Tab")  # the alternatives are reached without a mouse
        while page.evaluate("document.activeElement.closest('#alternatives') === null"):
            page.keyboard.press("Tab")
        expect(page.locator("#alternatives button").first).to_be_focused()


@pytest.mark.slow
def test_of_a_long_text_the_end_is_read(opened: Callable[..., Page]) -> None:
    engine = FakeEngine(says=lambda request: b"!")
    with serving(engine) as running:
        page = opened(running, failures="400 (Bad Request)")
        field = complete(page, "0123456789" * 100)
        page.keyboard.press("Control+Enter")
        expect(field).to_have_value("0123456789" * 100 + "!")
        expect(page.locator("#status")).to_contain_text("the model saw the end")
        assert asked(engine.seen[0])[-20:] == "0123456789" * 2


@pytest.mark.slow
def test_half_characters_are_joined(opened: Callable[..., Page]) -> None:
    with serving(FakeEngine(says=lambda request: "a☃\r\n👍b".encode())) as running:
        page = opened(running)
        field = complete(page, "")
        page.keyboard.press("Control+Enter")
        expect(field).to_have_value("a☃\n\n👍b")
        assert page.locator("#complete-colours .token").all_text_contents() == ["a", "☃", "\n", "\n", "👍", "b"]
        click_token(page, 1)
        expect(page.locator("#alternatives-about")).to_contain_text("“☃” had a probability of 22 %")  # e^-1.5


@pytest.mark.slow
def test_the_colours_lie_behind_their_letters(opened: Callable[..., Page]) -> None:
    """The field and what lies behind it break lines alike: a click anywhere on a token finds that token."""
    words = ("Now and then, naïve   rivers\nfreeze; " + "x" * 90 + " AVAToWa fi ffl \t end. ") * 3
    with serving(FakeEngine(says=lambda request: words.encode())) as running:
        page = opened(running)
        complete(page, "Once: ")
        page.get_by_label("Tokens at most").fill("500")
        page.get_by_label("Text", exact=True).focus()
        page.keyboard.press("Control+Enter")
        expect(page.locator("#status")).to_contain_text("tokens in")
        tokens = page.locator("#complete-colours .token")
        for number in (3, 30, 70, 115, 140, 200, 300, 380):
            if not tokens.nth(number).text_content().strip():
                number += 1
            tokens.nth(number).evaluate("token => token.scrollIntoView()")  # from behind the alternatives
            click_token(page, number)
            expect(tokens.nth(number)).to_have_class("token chosen")


# ---- look inside -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Iterator[Running]:
    """A server of a real, if tiny, model."""
    engine = Engine(tiny.tiny_model(), BYTES, slots=2)
    with serving(engine, context_length=tiny.CONTEXT, inspector=EngineInspector(engine, None)) as running:
        yield running


def test_a_look_inside_is_drawn(real: Running, opened: Callable[..., Page]) -> None:
    page = opened(real)
    page.get_by_role("tab", name="Look inside").click()
    expect(page.locator("#inside-view")).to_contain_text("Nothing was said in Chat yet.")
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Tokens at most").fill("9")
    ask(page, "Why?")
    expect(page.locator("#status")).to_contain_text("tokens in")
    complete(page, "Once upon")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("tokens in")
    page.get_by_role("tab", name="Look inside").click()
    tokens = page.locator("#inside-view .token")
    text = page.get_by_label("Text", exact=True).input_value()
    expect(tokens).to_have_count(len(text.encode()))
    expect(page.locator("#inside-view .token.written")).to_have_count(len(text.encode()) - len("Once upon"))
    expect(page.locator("#inside-view .head")).to_have_count(4)
    expect(page.locator("#inside-view progress").first).to_be_visible()
    assert page.locator("#inside-view .big").evaluate(
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    )
    looked = page.locator("#inside-view")
    numbers = looked.locator(".bars span:not(.word)")
    moved = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }"
    looked.get_by_role("slider", name="Top p").evaluate(moved, 1)
    whole = [float(text) for text in numbers.all_text_contents()]
    looked.get_by_role("slider", name="Top k").evaluate(moved, 2)
    kept = [float(text) for text in numbers.all_text_contents()]
    expect(looked.locator(".bars span.out:not(.word)")).to_have_count(18)
    assert kept[2:] == whole[2:]  # struck out, with what they would have had
    assert kept[:2] == pytest.approx([share / sum(whole[:2]) for share in whole[:2]], abs=0.01)
    page.get_by_role("tab", name="Chat").click()
    ask(page, "Why?")
    page.get_by_role("tab", name="Look inside").click()  # while it is written: looks when that has ended
    expect(tokens.first).to_have_text("<|endoftext|>")
    assert "".join(tokens.all_text_contents()[:11]) == "<|endoftext|>Q:␣Why?⏎A:"
    tokens.nth(1).click()
    expect(page.locator("#inside-view .about")).to_contain_text("id 81")


def test_pages_that_stand_alone(opened: Callable[..., Page], tmp_path: Path) -> None:
    model, ids = tiny.tiny_model(), list(b"<script>alert(1)</script> and why")
    view = look(model, BYTES, ids, written=4) | {"origins": None, "name": "</title>one"}
    grown = [{"step": n, "loss": 3.0 - n, "text": f"<b>{n}</b>", "guesses": [("a", 0.25 * n)]} for n in (1, 2)]
    growth = {"name": "two", "prompt": "Why?", "asked": True, "checkpoints": grown}
    for name, drawn in (("look", view), ("growth", growth)):
        (tmp_path / f"{name}.html").write_text(html(drawn), encoding="utf-8")
    page = opened(None, address=(tmp_path / "look.html").as_uri())
    expect(page.get_by_role("heading", level=1)).to_have_text("</title>one: a look inside")
    tokens = page.locator(".token")
    assert "".join(tokens.all_text_contents()).replace("␣", " ") == bytes(ids).decode()
    tokens.nth(3).click()
    expect(page.locator(".about")).to_contain_text("Token 4 of 33: “r”, id 114; probability")
    page.get_by_label("Layer 1, head 2").click()
    expect(page.get_by_role("img")).to_have_attribute("aria-label", "Attention of layer 1, head 2")
    assert serious(page) == []

    page.goto((tmp_path / "growth.html").as_uri())
    expect(page.locator("output")).to_have_text("step 2, validation loss 1.0000")
    expect(page.locator("blockquote")).to_have_text("Why?\n<b>2</b>")
    page.get_by_label("Checkpoint").press("ArrowLeft")
    expect(page.locator("output")).to_have_text("step 1, validation loss 2.0000")
    expect(page.locator("blockquote")).to_have_text("Why?\n<b>1</b>")
    expect(page.locator("progress")).to_have_attribute("value", "0.25")
    assert serious(page) == []


# ---- for all ---------------------------------------------------------------------------------------------------------


def serious(page: Page) -> list[str]:
    """What axe-core finds that keeps somebody from using the page."""
    source = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source + "; undefined")
    found = page.evaluate("axe.run()")
    return [
        f"{one['id']}: {json.dumps([node['html'][:150] for node in one['nodes']][:3])}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 360)])
def test_axe_finds_no_serious_fault(real: Running, opened: Callable[..., Page], scheme: str, width: int) -> None:
    pytest.importorskip("axe_playwright_python", reason="axe-core is not installed")
    page = opened(real, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 740})
    for box in page.locator("aside details").all():
        if box.get_attribute("open") is None:
            box.locator("summary").click()
    page.get_by_label("Tokens at most").fill("9")
    ask(page, "Why " + "x" * 100 + "?")
    expect(page.locator("#status")).to_contain_text("tokens in")
    found = {"chat": serious(page)}
    page.get_by_label("Edit message 1").click()
    found["edit"] = serious(page)
    complete(page, "Once upon")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#alternatives")).to_be_visible()
    found["complete"] = serious(page)
    page.get_by_role("tab", name="Look inside").click()
    expect(page.locator("#status")).to_contain_text("Looked")
    found["inside"] = serious(page)
    assert found == {"chat": [], "edit": [], "complete": [], "inside": []}


def test_nothing_is_wider_than_a_phone(real: Running, opened: Callable[..., Page]) -> None:
    page = opened(real)
    page.set_viewport_size({"width": 360, "height": 640})
    page.get_by_text("Conversations", exact=True).click()
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Tokens at most").fill("9")
    ask(page, "W" * 80)
    expect(page.locator("#status")).to_contain_text("tokens in")
    complete(page, "W" * 100)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("tokens in")
    page.get_by_role("tab", name="Look inside").click()
    expect(page.locator("#status")).to_contain_text("Looked")
    for tab in ("Chat", "Complete", "Look inside"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") == 360, tab


def test_what_is_said_in_several_lines_hides_no_button(real: Running, opened: Callable[..., Page]) -> None:
    page = opened(real, "400 (Bad Request)")
    page.set_viewport_size({"width": 360, "height": 640})
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Tokens at most").fill("9")
    page.get_by_text("Settings", exact=True).click()
    for number in range(1, 5):
        ask(page, "Why?")
        expect(messages(page)).to_have_count(2 * number)
        expect(page.locator("#status")).to_contain_text("tokens in")
    ask(page, "much " * 500)
    expect(page.locator("#status")).to_contain_text("does not fit")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_function("""() => document.getElementById("chat-keys").getBoundingClientRect().bottom
        <= document.getElementById("status").getBoundingClientRect().top""")


def test_tabs_by_arrows(real: Running, opened: Callable[..., Page]) -> None:
    page = opened(real)
    page.get_by_role("tab", name="Chat").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tabpanel", name="Complete")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tabpanel", name="Look inside")).to_be_visible()
    expect(page.get_by_role("tab", name="Look inside")).to_be_focused()
