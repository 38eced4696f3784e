"""Files become conversations; what is no conversation is named."""

import json
from pathlib import Path

import pytest

from gpt2.config.schema import DataSettings
from gpt2.corpus.conversations import Conversations, open_conversations
from gpt2.corpus.fields import Conversation, Fields, Message
from gpt2.errors import UserError


def opened(path: Path, fields: Fields = Fields(), **settings: object) -> Conversations:  # noqa: B008 (it is frozen)
    return open_conversations([str(path)], fields, DataSettings.model_validate(settings))


def read(path: Path, fields: Fields = Fields()) -> list[Conversation]:  # noqa: B008
    """The conversations of a file that has one in each record."""
    return [conversation for _, sample in opened(path, fields).read() if sample for (conversation,) in [sample]]


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


QA = (Message("user", "Is it late?"), Message("assistant", "Yes."))


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("question,answer", "Is it late?,Yes.", QA),
        ("id,Prompt,Completion", "7,Is it late?,Yes.", QA),
        ("answer,question", "Yes.,Is it late?", QA),
        ("instruction,input,output", "Translate.,noir,black", ("Translate.\n\nnoir", "black")),
        ("instruction,input,output", "Is it late?,,Yes.", QA),
        ("system,question,answer", "Be brief.,Is it late?,Yes.", (Message("system", "Be brief."), *QA)),
        ("input,output", "Is it late?,Yes.", QA),
    ],
)
def test_columns_are_guessed_by_their_names(
    tmp_path: Path, header: str, row: str, expected: tuple[object, ...]
) -> None:
    (found,) = read(written(tmp_path, "t.csv", f"{header}\n{row}\n"))
    assert found == expected or tuple(message.content for message in found) == expected


def test_columns_without_known_names_are_the_first_two_of_text(tmp_path: Path) -> None:
    rows = "".join(f"{n},Where is the station number {n}?,Straight on and then left {n} times.\n" for n in range(30))
    path = written(tmp_path, "t.csv", "nr,asked,said\n" + rows)
    assert "prompt = asked, response = said (a guess" in opened(path).notes[0]
    assert read(path)[3] == (
        Message("user", "Where is the station number 3?"),
        Message("assistant", "Straight on and then left 3 times."),
    )


def test_named_columns_are_taken_and_a_wrong_name_is_answered(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "a,b,c\nx,y,z\nu,v,w\n")
    assert read(path, Fields("c", "a")) == [
        (Message("user", "z"), Message("assistant", "x")),
        (Message("user", "w"), Message("assistant", "u")),
    ]
    assert "guess" not in opened(path, Fields("c", "a")).notes[0]
    with pytest.raises(UserError, match="'d'"):
        read(path, Fields("c", "d"))


def test_messages_of_several_turns(tmp_path: Path) -> None:
    said = [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    line = json.dumps({"messages": [{"role": role, "content": content} for role, content in said], "id": 3})
    path = written(tmp_path, "t.jsonl", line + "\n\n" + line)
    assert read(path)[1] == tuple(Message(role, content) for role, content in said[:-1])  # type: ignore[arg-type]


def test_fields_of_json_lines(tmp_path: Path) -> None:
    lines = [{"instruction": "Say hi.", "input": None, "output": "hi"}, {"instruction": "é", "output": "ß", "x": 1}]
    path = written(tmp_path, "t.jsonl", "\n".join(map(json.dumps, lines)))
    assert [tuple(m.content for m in c) for c in read(path)] == [("Say hi.", "hi"), ("é", "ß")]


def test_what_has_no_question_or_no_answer_is_counted_and_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "question,answer\na,b\n,b\na,\n,\n")
    conversations = opened(path)
    assert len(list(conversations.read())) == 1
    assert conversations.counts == {"answers without a question": 1, "conversations without an answer": 2}


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("t.jsonl", '{"messages": []}\n{"messages": [\n', "line 2: no JSON"),
        ("t.jsonl", '["a"]', "line 1: a JSON object is needed"),
        ("t.jsonl", '{"messages": "hi"}', "no list"),
        ("t.jsonl", '{"messages": [{"role": "tool", "content": "x"}]}', "is no message"),
        ("t.jsonl", '{"messages": [{"role": "user", "content": 7}]}', "is no message"),
        (
            "t.jsonl",
            '{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}',
            "behind others",
        ),
        ("t.jsonl", '{"prompt": {"a": 1}, "response": "x"}', "no text"),
        ("t.jsonl", '{"x": 1}', "which of x is the question"),
        ("t.jsonl", "", "is empty"),
        ("t.csv", "question,answer\n,\n", "no conversation"),
        ("t.csv", "id,nr\n1,2\n3,4\n", "which of id, nr is the question"),
        ("t.txt", "hello", "holds no conversations that can be read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, part: str) -> None:
    with pytest.raises(UserError, match=part) as caught:
        read(written(tmp_path, name, text))
    assert caught.value.fix


def test_a_missing_file_gets_its_neighbour(tmp_path: Path) -> None:
    written(tmp_path, "faq.csv", "question,answer\na,b\n")
    with pytest.raises(UserError, match="There is no") as caught:
        read(tmp_path / "fag.csv")
    assert "faq.csv" in caught.value.fix


def test_rows_are_split_by_the_text_that_the_base_made_of_them(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "question,answer\na,b\n")
    (document, _) = next(open_conversations([str(path)], Fields(), DataSettings(), "Q: {question}\nA: {answer}").read())
    assert document.text == "Q: a\nA: b"
    (document, _) = next(open_conversations([str(path)], Fields(), DataSettings(), "{title}").read())
    assert document.text == "a\nb"


@pytest.mark.slow
def test_the_embedded_rows_come_with_the_texts_that_they_were_split_among() -> None:
    pairs = list(open_conversations(["python-docs"], Fields(), DataSettings()).read())
    rows = [(document, sample[0]) for document, sample in pairs if sample is not None]
    assert len(rows) > 3000
    assert len(pairs) > len(rows)
    document, conversation = rows[0]
    assert document.text == f"Q: {conversation[0].content}\nA: {conversation[1].content}"


PAIRS = [
    {"prompt": "a", "output": "x", "chosen": "good", "rejected": "bad"},
    {"prompt": "b", "output": "y", "chosen": "same", "rejected": "same"},
    {"prompt": "c", "output": "z", "chosen": "good", "rejected": ""},
]


def test_two_answers_are_found_and_the_better_one_comes_first(tmp_path: Path) -> None:
    path = written(tmp_path, "t.jsonl", "\n".join(map(json.dumps, PAIRS)))
    found = opened(path)
    assert found.preferences
    assert "response = chosen, rejected = rejected" in found.notes[0] and "preferred" in found.notes[0]
    asked = Message("user", "a")
    assert [sample for _, sample in found.read()] == [
        ((asked, Message("assistant", "good")), (asked, Message("assistant", "bad")))
    ]
    assert found.counts == {"pairs of equal answers": 1, "conversations without an answer": 1}
    assert not opened(path, Fields(response="output")).preferences
    assert opened(path, Fields(response="output", rejected="rejected")).preferences


def test_answers_and_preferences_are_not_learned_together(tmp_path: Path) -> None:
    pairs = written(tmp_path, "pairs.jsonl", json.dumps(PAIRS[0]))
    plain = written(tmp_path, "plain.csv", "question,answer\na,b\n")
    with pytest.raises(UserError, match=r"pairs\.jsonl") as caught:
        open_conversations([str(pairs), str(plain)], Fields(), DataSettings())
    assert "two runs" in caught.value.fix


def test_a_fingerprint_changes_with_the_fields(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "a,b\nx,y\nu,v\n")
    prints = {opened(path, fields).fingerprint() for fields in (Fields("a", "b"), Fields("b", "a"))}
    assert len(prints) == 2
    assert opened(path, Fields("a", "b")).fingerprint() in prints
