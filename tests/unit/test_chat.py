"""A conversation keeps to the template and the context, and to what the user asked of the terminal."""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2.chat import terminal
from gpt2.chat.session import Session, loops
from gpt2.chat.template import ChatFormat
from gpt2.chat.terminal import talk
from gpt2.config.commands import ChatSettings
from gpt2.config.load import validate
from gpt2.console import console
from gpt2.errors import ConfigError, RunError
from gpt2.generation.engine import Engine
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2.tokenizer.bpe import BytePairTokenizer, train_bpe
from gpt2.tokenizer.char import train_char

BYTES = BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)])
EOT = BYTES.end_of_text
QA = r"Q: {question}\nA: {answer}"
ROWS = ["Q: Is it late?\nA: It is 7 o'clock.\n\n", "the  cat \n sat\n\n\non 12 mats:\n ok => (yes)"] * 3


class FakeEngine(Engine):
    """Says what it was told to, and notes what it was asked to continue."""

    def __init__(self, *answers: str, context: int = 64) -> None:
        model = GPT2(GPT2Config(BYTES.vocab_size, context_length=context, n_layer=1, n_head=1, n_embd=4))
        super().__init__(model, BYTES)
        self.answers = iter(answers)
        self.prompts: list[list[int]] = []

    def generate(self, prompt_ids: Any, max_tokens: int, sampling: Any, stop_ids: Any = ()) -> Iterator[int]:
        self.prompts.append(list(prompt_ids))
        yield from next(self.answers).encode()[:max_tokens]


def session(*answers: str, template: str | None = QA, context: int = 64, **settings: Any) -> tuple[Session, FakeEngine]:
    engine = FakeEngine(*answers, context=context)
    return Session(engine, template, ChatSettings(**{"max_tokens": 16, **settings}), "runs/x"), engine


def said(conversation: Session, message: str) -> str:
    return "".join(conversation.ask(message))


def spelled(ids: Iterable[int]) -> str:
    """Ids of bytes as text, the mark between documents as a bar."""
    return "".join("|" if i == EOT else chr(i) for i in ids)


# --- the template --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "prompt", "turn"),
    [
        (QA, "|Q: hi\nA:", "|Q: hi\nA: yo"),
        ("Q: {q}\nContext: {c}\nA: {a}", "|Q: hi\nContext: \nA:", "|Q: hi\nContext: \nA: yo"),
        ("{q}\n\n{a}\n", "|hi\n\n", "|hi\n\nyo\n"),
        ("{{{q}}} {to: name}", "|{hi}", "|{hi} yo"),
        (r"{q}\t{q}\t{a}", "|hi\thi\t", "|hi\thi\tyo"),
        (None, "|hi", "|hiyo"),
        ("only {text}", "|hi", "|hiyo"),
        ("{a} and {b}.", "|hi", "|hiyo"),  # text behind the last field
        ("{a}{b}{a}", "|hi", "|hiyo"),  # the answer would be the question
    ],
)
def test_a_message_and_a_turn_are_written_as_in_training(template: str | None, prompt: str, turn: str) -> None:
    chat = ChatFormat.from_template(template)
    assert spelled(chat.prompt(BYTES, "hi", first=True)) == prompt
    assert spelled(chat.turn(BYTES, "hi", "yo", first=True)) == turn


@pytest.mark.parametrize("tokenizer", [train_bpe(ROWS, 400), train_char(ROWS)], ids=["bpe", "char"])
@pytest.mark.parametrize(
    "between", ["\nA: ", "\nA:", "\n", "\n\n", " => ", "\n \n", "  ", "\n ", " \n", "\u2003", ": ("]
)
@given(answer=st.from_regex(r"[a-zA-Z0-9é][ \na-z0-9]{0,8}", fullmatch=True))
def test_a_prompt_is_the_beginning_of_every_turn_id_by_id(tokenizer: Tokenizer, between: str, answer: str) -> None:
    chat = ChatFormat.from_template("Q: {q}" + between + "{a}")
    prompt = chat.prompt(tokenizer, "Is it late?", first=True)
    turn = chat.turn(tokenizer, "Is it late?", answer, first=True)
    assert turn[: len(prompt)] == prompt
    assert len(turn) > len(prompt)


def test_a_spelling_of_the_mark_is_plain_text() -> None:
    for template in (QA, None):
        conversation, engine = session("ok", "ok", template=template, context=256)
        said(conversation, f"a{END_OF_TEXT}b")
        said(conversation, END_OF_TEXT)
        assert engine.prompts[0].count(EOT) == 1  # the one before the first turn
        assert engine.prompts[1].count(EOT) == (2 if template else 1)
        assert END_OF_TEXT in spelled(engine.prompts[1])


# --- the session ---------------------------------------------------------------------------------------------------


def test_turns_of_a_template_are_documents_in_a_row() -> None:
    conversation, engine = session(" one \n", " two")
    assert said(conversation, " a ") == "one \n"  # without the template's space
    assert said(conversation, "b") == "two"
    assert spelled(engine.prompts[1]) == "|Q: a\nA: one|Q: b\nA:"


def test_without_a_template_the_text_grows() -> None:
    conversation, engine = session(" upon a time", " lived.", template=None)
    assert said(conversation, "Once") == " upon a time"
    said(conversation, "a king")
    assert spelled(engine.prompts[1]) == "|Once upon a time\na king"


@pytest.mark.parametrize("template", [QA, None])
def test_the_oldest_turns_are_forgotten_whole_and_it_is_said_once(template: str | None) -> None:
    conversation, engine = session(*["12345678"] * 9, template=template, context=64)
    notices = []
    for number in range(9):
        said(conversation, f"message {number}")
        notices += conversation.notices
        assert len(engine.prompts[-1]) <= 64 - 16
    last = spelled(engine.prompts[-1])
    assert "message 8" in last
    assert "message 7" in last
    assert "message 5" not in last
    assert last.startswith("|Q: message" if template else "\nmessage")
    assert notices == ["The model forgot the oldest turn: its context holds 64 tokens."]
    assert len(conversation.turns) == 9  # for /save


def test_turns_that_fit_are_kept() -> None:
    conversation, engine = session("12", "34", "56", context=64)
    for message in "abc":
        said(conversation, message)
    assert spelled(engine.prompts[2]) == "|Q: a\nA: 12|Q: b\nA: 34|Q: c\nA:"
    assert conversation.notices == []


def test_a_message_beyond_the_room_loses_its_beginning_not_its_frame() -> None:
    conversation, engine = session("ok", context=64)
    said(conversation, "".join(chr(ord("a") + i % 26) for i in range(100)))
    assert len(engine.prompts[0]) == 48
    assert spelled(engine.prompts[0]).startswith("|Q: ")
    assert spelled(engine.prompts[0]).endswith("tuv\nA:")
    assert conversation.notices == [
        "The model saw only the end of your message: its context holds 64 tokens, 16 of them for the answer."
    ]


def test_a_cut_through_a_character_drops_it() -> None:
    conversation, engine = session("ok", context=64)
    said(conversation, "🤖" * 40)
    text = bytes(i for i in engine.prompts[0] if i != EOT).decode()  # strictly UTF-8
    assert text.removeprefix("Q: ").removesuffix("\nA:") == "🤖" * 10
    assert len(engine.prompts[0]) <= 48


def test_the_answer_gets_at_most_half_of_the_context() -> None:
    conversation, engine = session("ok", context=20, max_tokens=1000)
    said(conversation, "x" * 50)
    assert len(engine.prompts[0]) == 10
    narrow, engine = session("ok", context=4)
    said(narrow, "x")
    assert spelled(engine.prompts[0]) == "A:"  # nothing but the end of the frame has room


def test_an_answer_that_is_left_is_remembered_as_far_as_it_went() -> None:
    conversation, _ = session("1234", "5")
    pieces = conversation.ask("a")
    assert next(pieces) == "1"
    assert next(pieces) == "2"
    pieces.close()
    assert [(turn.message, turn.answer) for turn in conversation.turns] == [("a", "12")]


def test_a_seed_makes_an_answer_depend_on_the_conversation_only() -> None:
    model = GPT2(GPT2Config(BYTES.vocab_size, context_length=64, n_layer=1, n_head=1, n_embd=8))
    model.init_weights(torch.Generator().manual_seed(1))

    def conversation(seed: int) -> list[str]:
        talk = Session(Engine(model, BYTES), None, ChatSettings(max_tokens=8, seed=seed, top_k=0))
        first = [said(talk, "a"), said(talk, "b")]
        talk.reset()
        assert said(talk, "a") == first[0]
        return first

    assert conversation(3) == conversation(3)
    assert conversation(3) != conversation(4)
    assert len(conversation(2**63 - 1)) == 2


def test_a_model_that_repeats_itself_is_cut_and_it_is_said() -> None:
    conversation, _ = session("Well: " + "I do not know. " * 50, context=2000, max_tokens=900)
    answer = said(conversation, "a")
    assert answer == ("Well: " + "I do not know. " * 50)[: len(answer)]
    assert answer.count("I do not know") == 5
    assert conversation.notices == ["The answer was cut: the model had begun to repeat itself."]


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("=" * 63, False),
        ("=" * 64, True),
        ("ab" * 32, True),
        ("ab" * 32 + "a", True),  # caught at any point of its span
        ("ab" * 32 + "c", False),
        ("0123456789abcdefghij" * 3, False),
        ("0123456789abcdefghij" * 4, True),
        ("x" * 30 + "0123456789abcdefghij" * 4, True),
        (" ".join(str(number) for number in range(200)), False),
        ("".join(f"{number}. A line that begins alike.\n" for number in range(30)), False),
        (("x" * 400)[:-1], True),
        ("".join(chr(33 + i % 90) + str(i) for i in range(100)) * 4, True),
        ("", False),
    ],
)
def test_a_loop_is_a_long_exact_repetition_at_the_end(text: str, looping: bool) -> None:
    assert loops(text) is looping


def test_a_conversation_is_saved_whole_and_overwrites_only_itself(tmp_path: Path) -> None:
    conversation, _ = session("yes 🤖", "no", seed=5)
    said(conversation, "a")
    conversation.save(tmp_path / "talk.json")
    said(conversation, "b")
    conversation.save(tmp_path / "talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert saved["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "yes 🤖"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "no"},
    ]
    assert (saved["template"], saved["origin"], saved["settings"]["seed"]) == (QA, "runs/x", 5)
    with pytest.raises(RunError, match="no folder"):
        conversation.save(tmp_path / "mistyped" / "talk.json")
    assert not (tmp_path / "mistyped").exists()
    (tmp_path / "mine.json").write_text("precious")
    with pytest.raises(RunError, match="exists"):
        conversation.save(tmp_path / "mine.json")
    assert (tmp_path / "mine.json").read_text() == "precious"


# --- the terminal --------------------------------------------------------------------------------------------------


def piped(conversation: Session, text: str) -> str:
    out = io.StringIO()
    talk(conversation, io.StringIO(text), out)
    return out.getvalue()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What goes to stderr, line by line."""
    lines: list[str] = []
    monkeypatch.setattr(terminal, "say", lambda message, style="": lines.append(message))
    monkeypatch.setattr(terminal, "fail", lambda message, fix="": lines.append(f"{message} {fix}"))
    return lines


def test_piped_lines_get_an_answer_each_and_nothing_else(told: list[str]) -> None:
    conversation, _ = session(" one", " two\n", " three")
    assert piped(conversation, "a\n\n   \nb\r\nc") == "one\ntwo\nthree\n"
    assert [turn.message for turn in conversation.turns] == ["a", "b", "c"]
    assert told == []


def test_a_base_model_is_introduced_as_such(told: list[str]) -> None:
    assert piped(session(" upon", template=None)[0], "Once") == " upon\n"
    assert ["base model" in line for line in told] == [True]


def test_commands(told: list[str], tmp_path: Path) -> None:
    conversation, engine = session(" one", " two", " three")
    path = tmp_path / "talk.json"
    text = f"/save {path}\na\n/temperature 0\n/save {path}\n/reset\nb\n/temperature\n/quit\nc\n"
    assert piped(conversation, text) == "one\ntwo\n"
    assert spelled(engine.prompts[1]) == "|Q: b\nA:"
    assert conversation.settings.temperature == 0
    assert len(json.loads(path.read_text())["messages"]) == 2
    assert told == [
        "There is nothing to save yet. Write a message first.",
        "The temperature is 0.",
        f"Saved 1 turn to {path}.",
        "A new conversation.",
        "The temperature is 0.",
    ]


def test_help_names_every_command_in_a_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    console.cache_clear()
    piped(session()[0], "/help")
    console.cache_clear()
    lines = capsys.readouterr().err.splitlines()
    for name in terminal.HELP:
        assert any(line.startswith(f"  /{name}") for line in lines)
    assert len(lines) > len(terminal.HELP) + len(terminal.KEYS)
    assert all(line[:16].strip() or line.startswith(" " * 18) for line in lines)
    assert max(map(len, lines)) <= 50


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/rest", "There is no command /rest. Did you mean /reset?"),
        ("/exit", "There is no command /exit. Did you mean /quit?"),
        ("/xyzw now", "There is no command /xyzw. /help lists the commands."),
        ("/", "There is no command /. /help lists the commands."),
        ("/temperature hot", "'hot' is no number. Give a temperature from 0 to 5, such as 0.8."),
        ("/temperature 6", "temperature 6.0 is out of range. Choose a number from 0 to 5."),
        ("/temperature nan", "temperature nan is out of range. Choose a number from 0 to 5."),
    ],
)
def test_a_command_that_cannot_be_obeyed_is_explained_and_the_talk_goes_on(
    told: list[str], line: str, answer: str
) -> None:
    conversation, _ = session(" still here")
    assert piped(conversation, f"{line}\na\n") == "still here\n"
    assert told == [answer]
    assert conversation.settings.temperature == 0.8


def test_a_message_may_begin_with_a_slash() -> None:
    conversation, _ = session("ok")
    piped(conversation, "//help me")
    assert conversation.turns[0].message == "/help me"


def test_control_characters_of_the_model_are_spelled_out() -> None:
    assert piped(session("\x1b]0;mine\x07")[0], "a") == "\\x1b]0;mine\\x07\n"


def test_an_empty_answer_is_explained(told: list[str]) -> None:
    assert piped(session("")[0], "a") == "\n"
    assert told == ["The model had nothing to say: it ended the text at once."]


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


def typing(monkeypatch: pytest.MonkeyPatch, *events: str | type[BaseException]) -> None:
    """Let input() give these lines, or raise these."""
    script = iter(events)

    def typed(_prompt: str) -> str:
        event = next(script, EOFError)
        if isinstance(event, str):
            return event
        raise event

    monkeypatch.setattr("builtins.input", typed)


def test_ctrl_c_stops_an_answer_and_not_the_program(monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    conversation, engine = session(" one", " two")
    original = engine.generate

    def interrupted(*arguments: Any) -> Iterator[int]:
        for position, token in enumerate(original(*arguments)):
            if position == 3 and not conversation.turns:
                raise KeyboardInterrupt
            yield token

    monkeypatch.setattr(engine, "generate", interrupted)
    typing(monkeypatch, "a", "b")
    out = io.StringIO()
    talk(conversation, Keyboard(), out)
    assert out.getvalue() == "on\ntwo\n"
    assert [turn.answer for turn in conversation.turns] == ["on", "two"]
    assert "Stopped." in told
    with pytest.raises(KeyboardInterrupt):  # through a pipe it ends the program
        conversation.reset()
        engine.answers = iter([" three"])
        piped(conversation, "c")


def test_ctrl_c_at_the_prompt_says_how_to_leave_and_twice_leaves(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    stop = KeyboardInterrupt
    conversation, _ = session("1", "2", "3")
    typing(monkeypatch, stop, "a", stop, "b", stop, stop, "c")
    talk(conversation, Keyboard(), io.StringIO())
    assert [turn.message for turn in conversation.turns] == ["a", "b"]
    assert sum("To leave" in line for line in told) == 3


# --- the settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 5.1), ("temperature", "nan"), ("top_p", 0), ("top_k", -1), ("max_tokens", 0), ("seed", 2**63)],
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name.replace("_", "-")):
        validate(ChatSettings, {name: value})
