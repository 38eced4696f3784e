"""A file of prompts is answered once, whatever interrupts it, and nothing that stands in the output is lost."""

import json
from pathlib import Path

import pytest
import torch

from gpt2.errors import DataError, RunError
from gpt2.files import only_writer
from gpt2.generation.engine import Engine
from gpt2.generation.request import Request, Sampling
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.recipes.prompts import answer_file, finished, read_prompts, settings_of
from gpt2.signals import Signalled
from gpt2.tokenizer.bpe import BytePairTokenizer
from gpt2.tokenizer.char import train_char

BYTES = BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)])
OPTIONS = {"max_tokens": 4, "seed": None, "stop": ["a", "b"]}
MODEL = {"folder": "runs/one/checkpoints/step-00000010", "sha256": "abc"}
PROMPTS = ["one", "two", "", "drei 🤖", "two"]


@pytest.fixture
def engine() -> Engine:
    model = GPT2(GPT2Config(257, context_length=16, n_layer=1, n_head=2, n_embd=16))
    model.init_weights(torch.Generator().manual_seed(5))
    return Engine(model, BYTES, 3)


def asked(prompt: str) -> list[Request]:
    """Two answers to each prompt."""
    ids = tuple(BYTES.encode(prompt).tolist())
    return [Request(ids, 4, Sampling(top_k=9, seed=seed)) for seed in (1, 2)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, object]]:
    return sorted((json.loads(line) for line in path.read_text("utf-8").splitlines()), key=lambda entry: entry["index"])


def test_every_prompt_is_answered_with_its_number(engine: Engine, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "answers.jsonl"
    answer_file(engine, source, out, asked, OPTIONS, MODEL)
    made = lines(out)
    assert [(entry["index"], entry["prompt"]) for entry in made] == list(enumerate(PROMPTS))
    for entry in made:
        expected = [engine.complete(str(entry["prompt"]), 4, Sampling(top_k=9, seed=seed)) for seed in (1, 2)]
        assert entry["answers"] == expected
        assert set(entry["finish"]) <= {"length", "stop"}  # type: ignore[call-overload]


@pytest.mark.parametrize("left", [0, 1, 30, 200, 333])
def test_wherever_it_was_cut_off_it_goes_on_and_ends_alike(
    left: int, engine: Engine, source: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    answer_file(engine, source, whole, asked, OPTIONS, MODEL)
    cut.write_bytes(whole.read_bytes()[:left])
    kept = cut.read_bytes().rpartition(b"\n")[0]
    answer_file(engine, source, cut, asked, OPTIONS, MODEL)
    assert cut.read_bytes().startswith(kept)  # what was whole is not made again
    assert lines(cut) == lines(whole)
    done = cut.read_bytes()
    answer_file(engine, source, cut, asked, OPTIONS, MODEL)
    assert cut.read_bytes() == done


def test_prompts_are_encoded_as_they_are_needed(engine: Engine, tmp_path: Path) -> None:
    source, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    source.write_text("".join(f"prompt {number}\n" for number in range(40)))
    ahead: list[int] = []
    encoded = 0

    def counted(prompt: str) -> list[Request]:
        nonlocal encoded
        encoded += 1
        ahead.append(encoded - (len(out.read_text().splitlines()) if out.exists() else 0))
        return asked(prompt)

    answer_file(engine, source, out, counted, OPTIONS, MODEL)
    assert encoded == 40
    assert max(ahead) <= engine.slots + 1  # one waits for a row


def test_prompts_that_the_model_does_not_see_whole_are_counted(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("short\nlonger than sixteen tokens\nmuch longer than sixteen tokens\n")
    answer_file(engine, source, tmp_path / "answers.jsonl", asked, OPTIONS, MODEL)
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 3 prompts had more tokens than the context of 16: of those the model saw only the last 12." in said
    assert "cannot spell" not in said

    char = train_char(iter(["the letters of short"]))
    engine = Engine(engine.model, char, 3)
    answer_file(
        engine, source, tmp_path / "others.jsonl", lambda prompt: [Request(tuple(char.encode(prompt).tolist()), 4)],
        OPTIONS, MODEL,
    )  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 3 prompts had characters that the tokenizer cannot spell" in said


def test_a_file_of_lines_has_a_prompt_in_each_that_is_not_blank(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\r\n\n  \ntwo\u2028still two\n".encode())
    assert read_prompts(path) == [(1, "one"), (4, "two\u2028still two")]


@pytest.mark.parametrize(
    ("content", "named"),
    [(b'{"prompt": "a"}\n{"text": "b"}\n', "line 2"), (b'{"prompt": 3}\n', "line 1"), (b"[1]\n", "line 1"),
     (b'{"prompt": "a"\n', "line 1"), (b"\xff\xfe\n", "line 1"),
     (b'{"prompt": "a\\ud800b"}\n', "line 1: half of a surrogate"),
     (b'\xef\xbb\xbf{"prompt": "a"}\n\n\x89PNG', r"line 3, is no text in UTF-8: byte 20 of the file is 0x89\.")],
)  # fmt: skip
def test_a_file_without_prompts_is_named_with_its_line(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=named) as refused:
        read_prompts(path)
    assert "codec" not in refused.value.what


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        read_prompts(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"index": true, "prompt": "two"}\n', "answers.jsonl, line 1, is no answer to a prompt."),
        ("precious\n", "answers.jsonl, line 1, is no answer to a prompt."),
        ('{"index": 1, "prompt": "two"}\ntorn', "The last line of "),
        (
            '{"index": 3, "prompt": "four"}\n{"index": 1, "prompt": "other"}\n',
            "prompts.jsonl, line 2: prompt 2 was 'other' when the answers in ",
        ),
        ('{"index": 9, "prompt": "one"}\n{"ind', "prompts.jsonl ends after 5 prompts: prompt 10 was 'one' when "),
    ],
)
def test_what_answers_other_prompts_is_left_alone(content: str, said: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text(content)
    with pytest.raises(RunError) as refused:
        finished(out, source, read_prompts(source))
    assert said in refused.value.what
    assert "another file for --out" in refused.value.fix
    assert out.read_text() == content


def test_one_prompt_is_not_told_as_many(engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("longer than sixteen tokens\n")
    for said in ("1 of 1 prompt had more tokens", "already: 1 of 1 prompt."):
        answer_file(engine, source, tmp_path / "answers.jsonl", asked, OPTIONS, MODEL)
        assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "model", "named"),
    [
        ({"max_tokens": 5}, {}, "--max-tokens 4, not 5"),
        ({"seed": 1}, {}, "--seed none, not 1"),
        ({"stop": []}, {}, "--stop 'a' 'b', not none"),
        ({}, {"folder": "runs/two", "sha256": "d"}, "other weights (runs/one/checkpoints/step-00000010, not runs/two)"),
    ],
)
def test_answers_of_two_kinds_do_not_mix(
    options: dict[str, object], model: dict[str, str], named: str, engine: Engine, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    answer_file(engine, source, out, asked, OPTIONS, MODEL)
    before = out.read_bytes()
    with pytest.raises(RunError) as refused:
        answer_file(engine, source, out, asked, OPTIONS | options, MODEL | model)
    assert named in refused.value.what
    assert out.read_bytes() == before
    answer_file(engine, source, out, asked, OPTIONS, MODEL | {"folder": "moved"})  # the same weights elsewhere


def test_a_file_without_answers_yet_may_be_made_otherwise(engine: Engine, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    answer_file(engine, source, out, asked, OPTIONS, MODEL)
    out.write_text('{"ind')
    answer_file(engine, source, out, asked, OPTIONS | {"max_tokens": 9}, MODEL)
    assert json.loads(settings_of(out).read_text())["options"]["max_tokens"] == 9


def test_no_prompts_are_a_mistake(engine: Engine, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n  \n")
    with pytest.raises(DataError, match="no prompts in"):
        answer_file(engine, empty, tmp_path / "answers.jsonl", asked, OPTIONS, MODEL)
    assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.parametrize("content", ["a note of one line", '{"prompt": "one"}', "[1"])
def test_a_file_that_is_not_ours_is_left_alone_though_its_last_line_has_no_end(
    content: str, engine: Engine, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "note.txt"
    out.write_text(content)
    with pytest.raises(RunError, match="is no answer to a prompt"):
        answer_file(engine, source, out, asked, OPTIONS, MODEL)
    assert out.read_text() == content
    assert not settings_of(out).exists()


def test_prompts_are_not_their_own_answers(engine: Engine, source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(RunError, match="holds the prompts"):
        answer_file(engine, source, source.parent / "." / source.name, asked, OPTIONS, MODEL)
    assert source.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device")
def test_answers_go_into_a_file(engine: Engine, source: Path) -> None:
    with pytest.raises(RunError, match="is no file"):
        answer_file(engine, source, Path("/dev/full"), asked, OPTIONS, MODEL)
    assert not settings_of(Path("/dev/full")).exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Signalled(15)])
def test_who_stops_hears_how_far_it_came(
    engine: Engine, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stop: BaseException
) -> None:
    def asked_until(prompt: str) -> list[Request]:
        nonlocal left
        if not left:
            raise stop
        left -= 1
        return asked(prompt)

    left, out = 4, tmp_path / "answers.jsonl"
    with pytest.raises(type(stop)):
        answer_file(engine, source, out, asked_until, OPTIONS, MODEL)
    answered = len(out.read_text().splitlines())
    assert f"{answered} of {len(read_prompts(source))} prompts are answered." in capsys.readouterr().err
    answer_file(engine, source, out, asked, OPTIONS, MODEL)


def test_two_do_not_write_one_file_of_answers(engine: Engine, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    with only_writer(out), pytest.raises(RunError, match="Another process is writing"):
        answer_file(engine, source, out, asked, OPTIONS, MODEL)
    answer_file(engine, source, out, asked, OPTIONS, MODEL)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "answers.jsonl",
        "answers.jsonl.settings.json",
        source.name,
    ]
