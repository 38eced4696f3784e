"""From files to a conversation, through the command line."""

import io
import itertools
import json
import math
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.conftest import SMALL, Answer, make_text

from gpt2.corpus import python_docs
from gpt2.files import read_json
from gpt2.tokenizer.store import load_tokenizer
from gpt2.weights.huggingface import load_model

Cli = Callable[..., Answer]
QUICK = (*SMALL, "--train.steps", "6", "--train.eval-every", "3")


def test_a_mixed_folder_of_text_and_tables(cli: Cli, workplace: Path) -> None:
    """A folder with subfolders, two encodings, three kinds of files, and one that is skipped."""
    folder = workplace / "mixed"
    (folder / "deeper").mkdir(parents=True)
    (folder / "one.txt").write_text(make_text(300, 1))
    (folder / "deeper" / "two.md").write_bytes(make_text(300, 2).replace("cat", "Käfer").encode("cp1252"))
    (folder / "deeper" / "photo.png").write_bytes(b"\x89PNG")
    rows = "\n".join(f'{n};"{make_text(12, n).strip()}"' for n in range(40))
    (folder / "table.csv").write_text("\ufeffid;review\n" + rows, encoding="utf-8")
    answer = cli("train", "mixed", *QUICK)
    assert answer.code == 0, answer.err
    for said in ("cp125", "1 .png", "review", "id", "runs/mixed/loss.png", "gpt2 chat runs/mixed"):
        assert said in answer.err
    report = read_json(workplace / "runs/mixed/report.json")
    assert report["stats"]["documents"] == 42
    assert "Käfer" in "".join(read_json(workplace / "runs/mixed/best/tokenizer.json")["model"]["vocab"]) or all(
        letter in read_json(workplace / "runs/mixed/best/tokenizer.json")["model"]["vocab"] for letter in "Kä"
    )


def test_what_follows_the_text_is_said_and_kept(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(200))
    small = ("--model.preset", "gpt2-nano", "--model.context-length", "16", "--tokenizer", "char")
    few = ("--train.batch-size", "64", "--train.sample-tokens", "0")  # so no validation at the end of each pass
    for epochs, dropout, decay in (("1", 0.0, 0.1), ("17", 0.1, 0.5)):
        answer = cli("train", "notes.txt", "--run", f"read-{epochs}", *small, *few, "--train.epochs", epochs)
        assert answer.code == 0, answer.err
        assert f"dropout {dropout:g}, weight decay {decay:g}," in answer.err
        settings = read_json(workplace / "runs" / f"read-{epochs}" / "run.json")["settings"]
        assert (settings["model"]["dropout"], settings["optim"]["weight_decay"]) == (dropout, decay)
        assert read_json(workplace / "runs" / f"read-{epochs}" / "last" / "config.json")["resid_pdrop"] == dropout


def test_what_a_run_leaves_behind(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(900))
    assert cli("train", "notes.txt", "--run", "kept", *QUICK).code == 0
    run = workplace / "runs" / "kept"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    keys = {"step", "epoch", "tokens", "seconds", "train_loss", "lr", "grad_norm", "tokens_per_second"}
    assert all(keys <= set(line) for line in lines)
    assert ["val_loss" in line for line in lines] == [False, False, True, False, False, True]
    assert [line["tokens"] for line in lines] == [64 * step for step in range(1, 7)]
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(lines))
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "validation" in (run / "loss.svg").read_text()
    assert [json.loads(line)["step"] for line in (run / "samples.jsonl").read_text().splitlines()] == [3, 6]
    assert read_json(run / "run_state.json") == {"status": "completed", "step": 6}
    record = read_json(run / "run.json")
    assert record["settings"]["train"]["steps"] == 6
    assert record["settings"]["optim"]["lr"] > 0
    report = read_json(run / "report.json")
    assert {"stats", "parameters", "train_windows", "validation_windows", "epochs", "tokens_per_parameter"} <= set(
        report
    )


def test_the_first_loss_is_that_of_guessing(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(900))
    cli("train", "notes.txt", "--run", "first", *QUICK)
    first = json.loads((workplace / "runs/first/metrics.jsonl").read_text().splitlines()[0])
    vocab_size = read_json(workplace / "runs/first/best/config.json")["vocab_size"]
    assert first["train_loss"] == pytest.approx(math.log(vocab_size), abs=0.1)


def test_training_learns_the_grammar(cli: Cli, workplace: Path) -> None:
    """A hundred steps end well below the bigram line of this text."""
    (workplace / "notes.txt").write_text(make_text(6000))
    options = ("--model.context-length", "32", "--model.n-embd", "64", "--model.n-layer", "2", "--optim.lr", "1e-2")
    answer = cli(
        "train", "notes.txt", "--run", "learns", *SMALL, *options, "--model.dropout", "0",
        "--train.batch-size", "16", "--train.steps", "150", "--train.eval-every", "150",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    bigram = read_json(next(workplace.glob("runs/.prepared/*/baselines.json")))["bigram"]
    last = json.loads((workplace / "runs/learns/metrics.jsonl").read_text().splitlines()[-1])
    assert last["val_loss"] < 0.75 * bigram


def test_a_table_with_a_template_becomes_a_chat(cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversation is written as the training rows were; what the user types is never a special id."""
    rows = [f'What is {n}?,"{n} is, of course, a number."' for n in range(200)]
    (workplace / "faq.csv").write_text("question,answer\n" + "\n".join(rows) + "\n")
    template = r"Q: {question}\nA: {answer}"
    answer = cli("train", "faq.csv", "--data.template", template, *QUICK, "--model.context-length", "48")
    assert answer.code == 0, answer.err
    assert read_json(workplace / "runs/faq/run.json")["template"] == "Q: {question}\nA: {answer}"
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 7?\n<|endoftext|>\n/save talk.json\n/quit\n"))
    answer = cli("chat", "--max-tokens", "12", "--seed", "1")
    assert answer.code == 0, answer.err
    messages = read_json(workplace / "talk.json")["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert messages[2]["content"] == "<|endoftext|>"


def test_generate_gives_text_on_stdout_and_repeats_with_a_seed(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(900))
    cli("train", "notes.txt", "--run", "one", *QUICK)
    first, again, other = (
        cli("generate", "one", "The cat", "--max-tokens", "40", "--seed", seed) for seed in (1, 1, 2)
    )
    assert first.out.startswith("The cat")
    assert first.out == again.out != other.out
    assert re.search(r"tokens/s", first.err)


def test_explain_in_the_terminal_as_a_page_and_over_time(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(900))
    assert cli("train", "notes.txt", "--run", "one", *QUICK, "--train.keep", "9").code == 0
    told = cli("explain", "one", "The cat sees the dog", "--max-tokens", "5")
    assert told.code == 0, told.err
    places = [
        told.out.index(words)
        for words in ("token by token", "What comes after", "What each layer would say", "word for word", "Nearest")
    ]
    assert places == sorted(places)
    assert re.search(r"^notes\.txt +[\d.]+ ", told.out, re.M)  # where the nearest passage comes from
    assert max(map(len, told.out.splitlines())) <= 200  # COLUMNS
    grown = cli("explain", "one", "The cat", "--max-tokens", "5", "--over-time")
    assert re.findall("^step [36], validation loss", grown.out, re.M) == [
        "step 3, validation loss",
        "step 6, validation loss",
    ]
    assert cli("explain", "one", "The cat sees", "--max-tokens", "5", "--out", "look.html").code == 0
    page = (workplace / "look.html").read_text(encoding="utf-8")
    assert '"attention"' in page
    assert "one: a look inside" not in page  # drawn by the script, from the run's name
    growth = cli("explain", "one", "The cat", "--over-time", "--out", "growth.html")
    assert growth.code == 0, growth.err
    data = re.search(r'id="view">(.*?)</script>', (workplace / "growth.html").read_text("utf-8"), re.S)
    assert data is not None
    assert [at["step"] for at in json.loads(data[1])["checkpoints"]] == [3, 6]
    for command in (("explain", "one", "The", "--out", "absent/look.html"), ("export", "one", "--out", "absent/one")):
        wrong = cli(*command)
        assert (wrong.code, "no folder" in wrong.err) == (2, True)
    spelled = cli("export", "one")
    assert (spelled.code, "no tokenizer such as char" in spelled.err) == (2, True)


def test_several_answers_and_files_of_prompts(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(900))
    assert cli("train", "notes.txt", "--run", "one", *QUICK).code == 0
    several = cli("generate", "one", "The cat", "--n", "3", "--max-tokens", "9", "--seed", "4")
    assert several.code == 0, several.err
    alone = [cli("generate", "one", "The cat", "--max-tokens", "9", "--seed", str(seed)).out for seed in (4, 5, 6)]
    assert several.out == "".join(alone)
    (workplace / "prompts.txt").write_text("The cat\nA dog\n")
    options = ("--prompts-file", "prompts.txt", "--out", "answers.jsonl", "--max-tokens", "9", "--seed", "4")
    assert cli("generate", "one", *options).code == 0
    answers = {entry["prompt"]: entry for entry in map(json.loads, (workplace / "answers.jsonl").open())}
    assert set(answers) == {"The cat", "A dog"}
    assert "The cat" + answers["The cat"]["answers"][0] + "\n" == alone[0]
    again = cli("generate", "one", *options)
    assert "already: 2 of 2 prompts." in again.err
    other = cli("generate", "one", *options, "--temperature", "0.5")
    assert (other.code, "made with --temperature 0.8, not 0.5" in other.err) == (2, True)
    # What auto came to here stands there: elsewhere it is another one.
    made_in = json.loads((workplace / "answers.jsonl.settings.json").read_text())["options"]["precision"]
    assert made_in in ("fp32", "fp16", "bf16")
    other = cli("generate", "one", *options, "--precision", "int8")
    assert (other.code, f"made with --precision {made_in}, not int8" in other.err) == (2, True)
    wrong = cli("generate", "one", "--prompts-file", "prompts.txt")
    assert (wrong.code, "belong together" in wrong.err) == (2, True)


def test_our_checkpoint_is_a_hugging_face_folder(cli: Cli, workplace: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (workplace / "notes.txt").write_text(make_text(900))
    cli("train", "notes.txt", "--run", "hf", *QUICK, "--tokenizer", "bpe:300")
    folder = workplace / "runs/hf/best"
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ours, our_tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    text = "The cat sees\nthe  house. Übung 🙂 <|endof"
    ids = our_tokenizer.encode(text).tolist()
    assert tokenizer(text)["input_ids"] == ids
    tokens = torch.tensor([ids[:16]])
    with torch.no_grad():
        assert torch.allclose(theirs(tokens).logits, ours(tokens), atol=1e-5)
    prompt = torch.tensor([our_tokenizer.encode("The").tolist()])
    generated = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False)
    answer = cli("generate", folder, "The", "--temperature", "0", "--max-tokens", "10", "--precision", "fp32")
    assert answer.out == tokenizer.decode(generated[0], skip_special_tokens=True) + "\n"


def test_plots_of_one_run_and_of_several(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(900))
    for name in ("a", "b"):
        cli("train", "notes.txt", "--run", name, *QUICK)
    assert cli("plot", "runs/a").code == 0
    assert cli("plot", "runs/a", "b", "--out", "both").code == 0
    assert (workplace / "both.png").read_bytes().startswith(b"\x89PNG")
    assert "nats a token" in (workplace / "both.svg").read_text()


def test_runs_of_different_tokens_are_compared_by_the_byte(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(900))
    cli("train", "notes.txt", "--run", "a", *QUICK)
    cli("train", "notes.txt", "--run", "b", *QUICK, "--tokenizer", "bpe:280")
    answer = cli("plot", "a", "b", "--out", "both")
    assert answer.code == 0
    assert "bits a byte" in answer.err
    assert "bits a byte" in (workplace / "both.svg").read_text()


def test_without_a_source_the_files_in_data_and_without_those_the_manuals(
    cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = python_docs.documents
    monkeypatch.setattr(python_docs, "documents", lambda: itertools.islice(documents(), 40))  # of thousands
    quick = (*QUICK, "--train.steps", "1", "--train.sample-tokens", "0")
    (workplace / "data").mkdir()
    (workplace / "data" / "README.md").write_text("how to use this folder")
    answer = cli("train", *quick)
    assert answer.code == 0, answer.err
    assert "manuals inside this Python" in answer.err
    assert (workplace / "runs" / "python-docs").is_dir()
    (workplace / "data" / "mine.txt").write_text(make_text(900))
    answer = cli("train", *quick)
    assert answer.code == 0, answer.err
    assert "the 1 file in data/" in answer.err
    assert (workplace / "runs" / "data").is_dir()


def test_a_second_run_finds_the_prepared_tokens_and_takes_a_free_name(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(900))
    for _ in range(2):
        assert cli("train", "notes.txt", *QUICK).code == 0
    assert (workplace / "runs" / "notes-2").is_dir()
    assert len(list(workplace.glob("runs/.prepared/*/MANIFEST.json"))) == 1


def test_a_file_of_its_own_to_validate_on(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(900))
    (workplace / "held.txt").write_text(make_text(300, 5))
    answer = cli("train", "notes.txt", "--data.validation-source", "held.txt", *QUICK)
    assert answer.code == 0, answer.err
    report = read_json(workplace / "runs/notes/report.json")["stats"]
    assert report["train"]["characters"] == len((workplace / "notes.txt").read_text())
    assert report["validation"]["characters"] == len((workplace / "held.txt").read_text())
    answer = cli("train", "notes.txt", "--data.validation-source", "notes.txt", *QUICK)
    assert "also stand in the training part" in answer.err


def test_a_model_far_too_large_is_warned_of(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(300))
    answer = cli("train", "notes.txt", *QUICK, "--model.n-embd", "64", "--train.steps", "1")
    assert answer.code == 0
    assert "far too large" in answer.err


def test_overfitting_is_said_and_patience_ends_it(cli: Cli, workplace: Path) -> None:
    """Random words: nothing to learn but by heart."""
    (workplace / "notes.txt").write_text(make_text(250, 3))
    answer = cli(
        "train", "notes.txt", *SMALL, "--model.n-embd", "64", "--model.dropout", "0", "--optim.lr", "1e-2",
        "--train.steps", "2000", "--train.eval-every", "10", "--train.patience", "6",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "This looks like overfitting" in answer.err
    assert "stopped early" in answer.err
    steps = len((workplace / "runs/notes/metrics.jsonl").read_text().splitlines())
    assert steps < 2000
    progress = read_json(workplace / "runs/notes/last/training_state.json")["progress"]
    assert progress["since_best"] == 6
    assert (workplace / "runs/notes/best").resolve().name == f"step-{progress['best_step']:08d}"
