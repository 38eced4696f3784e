"""A conversation with a tuned model, and what the terminal offers: undo, retry, system messages, several lines."""

import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2.chat import terminal
from gpt2.chat.markdown import MarkdownStream, complete, unechoed
from gpt2.chat.session import Session, Turn
from gpt2.chat.terminal import talk
from gpt2.config.commands import ChatSettings
from gpt2.errors import CheckpointError, ConfigError, RunError
from gpt2.generation.engine import Engine
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.bpe import BytePairTokenizer
from gpt2.tokenizer.roles import RoleTokenizer

BYTES = RoleTokenizer(BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)]))
SYSTEM, USER, ASSISTANT, END = BYTES.roles.all


class FakeEngine(Engine):
    """Says what it was told to, and notes what it was asked to continue."""

    def __init__(self, *answers: str, context: int = 64) -> None:
        model = GPT2(GPT2Config(BYTES.vocab_size, context_length=context, n_layer=1, n_head=1, n_embd=4))
        super().__init__(model, BYTES)
        self.answers = itertools.cycle(answers)
        self.asked: list[tuple[str, Any, Any]] = []

    def generate(self, prompt_ids: Any, max_tokens: int, sampler: Any, stop_ids: Any = ()) -> Iterator[int]:
        self.asked.append((spelled(prompt_ids), sampler, stop_ids))
        yield from next(self.answers).encode()[:max_tokens]


def spelled(ids: Any) -> str:
    marks = {SYSTEM: "<S>", USER: "<U>", ASSISTANT: "<A>", END: "<E>"}
    return "".join(marks.get(i) or BYTES.decode([i]) for i in ids)


def session(*answers: str, context: int = 64, **settings: Any) -> tuple[Session, FakeEngine]:
    engine = FakeEngine(*answers, context=context)
    return Session(engine, None, ChatSettings(**{"max_tokens": 16, **settings}), "runs/x"), engine


def said(conversation: Session, message: str) -> str:
    return "".join(conversation.ask(message))


# --- the session ---------------------------------------------------------------------------------------------------


def test_turns_stand_between_marks_and_any_mark_ends_an_answer() -> None:
    conversation, engine = session("one", "two")
    said(conversation, "a <|end|>")
    said(conversation, "b")
    assert engine.asked[0][0] == "<U>a <|end|><E><A>"
    assert engine.asked[1][0] == "<U>a <|end|><E><A>one<E><U>b<E><A>"
    assert set(engine.asked[0][2]) == set(BYTES.roles.all)


def test_an_answer_ends_where_the_model_sets_a_mark() -> None:
    model = GPT2(GPT2Config(BYTES.vocab_size, context_length=64, n_layer=1, n_head=1, n_embd=8))
    model.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.wte.weight.zero_()
        model.wte.weight[END] = 1.0
        model.ln_f.bias.fill_(1.0)
    conversation = Session(Engine(model, BYTES), None, ChatSettings(temperature=0.0))
    assert said(conversation, "hello") == ""


def test_a_system_message_stays_in_front_when_turns_are_forgotten() -> None:
    conversation, engine = session("12345678", context=64)
    conversation.set_system("Be brief")
    for number in range(6):
        said(conversation, f"message {number}")
        assert engine.asked[-1][0].startswith("<S>Be brief<E><U>message")
        assert len(re.sub("<[SUAE]>", "|", engine.asked[-1][0])) <= 48
    assert "message 4" in engine.asked[-1][0]
    assert "message 0" not in engine.asked[-1][0]
    conversation.set_system("")
    said(conversation, "x")
    assert "<S>" not in engine.asked[-1][0]
    with pytest.raises(ConfigError, match="context 64"):
        conversation.set_system("x" * 20)


def test_a_model_that_knows_single_questions_is_shown_single_questions() -> None:
    conversation, engine = session("one", "two", context=256)
    conversation.longest = 1
    said(conversation, "a")
    assert conversation.notices == []
    said(conversation, "b")
    assert engine.asked[1][0] == "<U>b<E><A>"
    assert conversation.notices == []  # it is said at the beginning
    assert conversation.context == (len("btwo") + 4, 1)
    conversation.longest = 3
    for message in "cde":
        said(conversation, message)
    assert engine.asked[-1][0] == "<U>c<E><A>one<E><U>d<E><A>two<E><U>e<E><A>"
    assert conversation.context == (len("cone") + len("dtwo") + len("eone") + 3 * 4, 3)
    assert len(conversation.turns) == 5  # for /save


def test_the_context_never_holds_more_than_it_can() -> None:
    conversation, _ = session("12345678", context=64)
    conversation.set_system("Be brief")
    for number in range(9):
        said(conversation, f"message {number}")
    assert conversation.context == (2 + len("Be brief") + 2 * (4 + len("message 0") + len("12345678")), 2)
    conversation.turns.append(Turn("go on", "y" * 59, list(range(65))))  # with the mark of its end, one too many
    assert conversation.context == (64, 1)


def test_a_model_of_single_questions_says_so_once(told: list[str]) -> None:
    conversation, _ = session("one", "two", context=256)
    conversation.longest = 1
    assert piped(conversation, "a\nb\n/tokens\n") == "one\ntwo\n"
    assert told == [
        "Each question is answered on its own: this model was tuned on single questions.",
        "8 of 256 tokens, in 1 turn; 16 are kept for the answer. Each question is answered on its own.",
    ]


def test_a_long_message_keeps_its_marks() -> None:
    conversation, engine = session("ok", context=64)
    said(conversation, "x" * 100)
    assert engine.asked[0][0] == f"<U>{'x' * 45}<E><A>"
    assert "16 of them for the answer" in conversation.notices[0]


def test_undo_and_retry() -> None:
    conversation, engine = session("one", "two", "three", context=256)
    with pytest.raises(RunError, match="Nothing was said"):
        conversation.undo()
    said(conversation, "a")
    said(conversation, "b")
    assert "".join(conversation.retry()) == "three"
    assert engine.asked[-1][0] == engine.asked[-2][0]
    assert [turn.answer for turn in conversation.turns] == ["one", "three"]
    assert conversation.undo().message == "b"
    assert [turn.answer for turn in conversation.turns] == ["one"]


def test_a_retry_that_fails_leaves_the_conversation_as_it_was() -> None:
    conversation, engine = session("one", context=256)
    said(conversation, "a")

    def broken(*_: Any) -> Iterator[int]:
        raise CheckpointError("no number")
        yield

    engine.generate = broken  # type: ignore[method-assign]
    with pytest.raises(CheckpointError):
        list(conversation.retry())
    assert [(turn.message, turn.answer) for turn in conversation.turns] == [("a", "one")]


def test_a_retry_with_a_seed_is_another_answer_and_each_is_the_same_again() -> None:
    model = GPT2(GPT2Config(BYTES.vocab_size, context_length=64, n_layer=1, n_head=1, n_embd=8))
    model.init_weights(torch.Generator().manual_seed(1))

    def answers() -> list[str]:
        conversation = Session(Engine(model, BYTES), None, ChatSettings(max_tokens=8, seed=3, top_k=0))
        return [said(conversation, "a"), *("".join(conversation.retry()) for _ in range(3)), said(conversation, "b")]

    first = answers()
    assert first == answers()
    assert len(set(first[:4])) == 4


def test_saved_and_loaded_it_goes_on(tmp_path: Path) -> None:
    conversation, _ = session("one", "two", context=256)
    conversation.set_system("Be brief.")
    said(conversation, "a")
    conversation.save(tmp_path / "talk.json")
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][0] == {"role": "system", "content": "Be brief."}
    other, engine = session("three", context=256)
    said(other, "forgotten")
    other.load(tmp_path / "talk.json")
    said(other, "b")
    assert engine.asked[-1][0] == "<S>Be brief.<E><U>a<E><A>one<E><U>b<E><A>"


def test_half_a_character_in_a_conversation_is_a_mark_and_can_be_saved_again(tmp_path: Path) -> None:
    conversation, _ = session("one", context=256)
    talk = [{"role": "user", "content": "a\ud800b"}, {"role": "assistant", "content": "x"}]
    (tmp_path / "talk.json").write_text(json.dumps({"messages": talk}))
    conversation.load(tmp_path / "talk.json")
    conversation.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["messages"][0]["content"] == "a\ufffdb"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "assistant", "content": "x"}]}',
        '{"messages": 7}',
    ],
)
def test_what_is_no_conversation_is_not_loaded(tmp_path: Path, text: str) -> None:
    conversation, _ = session("one")
    said(conversation, "a")
    (tmp_path / "talk.json").write_text(text)
    with pytest.raises(RunError) as caught:
        conversation.load(tmp_path / "talk.json")
    assert "indices" not in caught.value.what, "Python's own words"
    with pytest.raises(RunError, match="cannot be read"):
        conversation.load(tmp_path / "absent.json")
    assert len(conversation.turns) == 1


# --- the terminal --------------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What goes to stderr, line by line."""
    lines: list[str] = []
    monkeypatch.setattr(terminal, "say", lambda message, style="": lines.append(message))
    monkeypatch.setattr(terminal, "fail", lambda message, fix="": lines.append(f"{message} {fix}"))
    return lines


def piped(conversation: Session, text: str) -> str:
    out = io.StringIO()
    talk(conversation, io.StringIO(text), out)
    return out.getvalue()


def test_commands_of_a_tuned_model(told: list[str], tmp_path: Path) -> None:
    conversation, _ = session("one", "two", "three", context=256)
    path = tmp_path / "t.json"
    script = f"a\n/retry\n/tokens\n/save {path}\n/undo\n/undo\n/load {path}\n/system Be kind.\n/system\n/system -\n"
    assert piped(conversation, script) == "one\ntwo\n"
    assert told == [
        "8 of 256 tokens, in 1 turn; 16 are kept for the answer. The oldest turns are forgotten first.",
        f"Saved 1 turn to {path}.",
        "Taken back: a",
        "Nothing was said yet. Write a message first.",
        f"1 turn of {path}.",
        "The system message: Be kind.",
        "The system message: Be kind.",
        "No system message.",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def typing(monkeypatch: pytest.MonkeyPatch, *lines: str) -> list[str]:
    """Let input() give these lines; the prompts that it showed."""
    script, prompts = iter(lines), []

    def typed(prompt: str) -> str:
        prompts.append(prompt)
        line = next(script, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", typed)
    return prompts


def test_a_message_of_several_lines_and_the_budget_in_the_prompt(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation, engine = session("ok", context=1024)
    prompts = typing(monkeypatch, "one\\", "two", '"""def f():', "  pass", '"""', "three")
    talk(conversation, Terminal(), io.StringIO())
    assert [turn.message for turn in conversation.turns] == ["one\ntwo", "def f():\n  pass", "three"]
    used = [0, 0, 13, 13, 13, 34, 45]
    shown = [f"{n}/1,024 > " for n in used]
    assert prompts == [text if i in (0, 2, 5, 6) else "… ".rjust(len(text)) for i, text in enumerate(shown)]
    assert engine.asked[-1][0].endswith("<U>three<E><A>")


def test_keys_are_not_shown_while_an_answer_is_drawn() -> None:
    """The ^C of who stops an answer would move the cursor, and a line of it would stand there twice."""
    termios, pty = pytest.importorskip("termios"), pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0), open(theirs, "w") as end:

        def echoes() -> bool:
            return bool(termios.tcgetattr(end)[3] & termios.ECHO)

        assert echoes()
        with pytest.raises(KeyboardInterrupt), unechoed(end):
            assert not echoes()
            assert termios.tcgetattr(end)[3] & termios.ISIG  # Ctrl-C still is one
            raise KeyboardInterrupt
        assert echoes()
    with unechoed(io.StringIO()):
        pass


def test_markdown_is_drawn_on_a_terminal_only(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    answer = "A **bold** word.\n\n- one\n- two <b>\n\n```\ncode\n```\n"
    for out, markdown in ((Terminal(), True), (Terminal(), False), (io.StringIO(), True)):
        conversation, _ = session(answer, context=1024, max_tokens=200, markdown=markdown)
        typing(monkeypatch, "a")
        talk(conversation, Terminal(), out)
        drawn = "**bold**" not in out.getvalue()
        assert drawn is (markdown and out.isatty())
        assert "two <b>" in out.getvalue()
        assert conversation.turns[0].answer == answer.rstrip()


# --- Markdown ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("one\n", None),
        ("one\n\n", "one\n\n"),
        ("one\n\ntwo", "one\n\n"),
        ("```\na\n\nb\n", None),
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```\n\n"),
        ("\n\n", None),
        ("\n\na\n\nb", "\n\na\n\n"),
    ],
)
def test_a_block_is_complete_at_an_empty_line_outside_of_code(text: str, block: str | None) -> None:
    end = complete(text)
    assert (None if end is None else text[:end]) == block


def test_all_that_was_fed_stands_there_in_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    with MarkdownStream(out) as stream:
        for piece in ("first\nsecond <i>", " [a](http://b)\n", "\n# Head", "ing\n\nlast"):
            stream.feed(piece)
    lines = [line.strip() for line in out.getvalue().splitlines()]
    for expected in ("first", "second <i> a (http://b)", "last"):
        assert expected in lines
    assert any("Heading" in line for line in lines)
    assert "\x1b]8" not in out.getvalue()  # no live links


def screen(written: str, height: int) -> list[str]:
    """What stands on a terminal, with all that has left it at the top: only what is on it can be written over."""
    lines, row, column = [""], 0, 0
    for text, code in re.findall(r"([^\x1b]*)(\x1b\[[?\d;]*[a-zA-Z])?", written):
        for letter in text:
            if letter == "\n":
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            elif letter == "\r":
                column = 0
            else:
                lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
                column += 1
        if code.endswith("A"):
            row = max(row - int(code[2:-1] or 1), len(lines) - height, 0)
        elif code == "\x1b[2K":
            lines[row] = ""
    return lines


def test_a_block_longer_than_the_terminal_is_followed_and_stands_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "40"), ("LINES", "10")):
        monkeypatch.setenv(name, value)
    out = Terminal()
    with MarkdownStream(out) as stream:
        stream.feed("Code:\n\n```\n")
        for number in range(30):
            stream.feed(f"line {number}\n")
            assert f"line {number}" in [line.strip() for line in screen(out.getvalue(), 10)[-10:]]
        stream.feed("```\n")
    stands = [line.strip() for line in screen(out.getvalue(), 10)]
    assert [line for line in stands if line] == ["Code:", *(f"line {number}" for number in range(30))]
