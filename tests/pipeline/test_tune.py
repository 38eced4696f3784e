"""From a run and a table to a chatbot, through the command line."""

import io
import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import SMALL, Answer, make_text

from gpt2.cli import main
from gpt2.files import read_json
from gpt2.inspection.view import look, spell
from gpt2.tokenizer.roles import RoleTokenizer
from gpt2.tokenizer.store import load_tokenizer
from gpt2.training.checkpoint import pointed
from gpt2.weights.huggingface import load_model

Cli = Callable[..., Answer]
BASE = (*SMALL, "--model.context-length", "64", "--tokenizer", "bpe:300")
FEW = ("--train.steps", "6", "--train.eval-every", "3", "--train.batch-size", "4", "--train.sample-tokens", "8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a run on text, and faq.csv beside it; made once."""
    place = tmp_path_factory.mktemp("trained")
    (place / "notes.txt").write_text(make_text(900))
    write_faq(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main(["train", "notes.txt", "--run", "base", *BASE, "--train.steps", "2", "--train.eval-every", "2"])
    return place


@pytest.fixture
def base(trained: Path, workplace: Path) -> Path:
    """That place, to change."""
    shutil.copytree(trained, workplace, symlinks=True, dirs_exist_ok=True)
    return workplace / "runs" / "base"


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves are not drawn, which takes most of the time of runs this short."""
    monkeypatch.setattr("gpt2.recipes.showing.Curves.draw", lambda *_: None)


def write_faq(folder: Path, rows: int = 60) -> None:
    lines = [f'"Where is the {make_text(1, n).strip()[:-1]} {n}?","Over there, {n} steps."' for n in range(rows)]
    (folder / "faq.csv").write_text("question,answer\n" + "\n".join(lines) + "\n")


def test_a_table_becomes_a_chatbot(
    cli: Cli, workplace: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = cli("tune", "base", "faq.csv", "--prompt", "question", "--response", "answer", "--run", "support", *FEW)
    assert answer.code == 0, answer.err
    for said in ("prompt = question, response = answer", "of them answers", "12.5% of the rows", "before tuning"):
        assert said in answer.err
    assert "loss on the base's text, before and after" in answer.err
    run = workplace / "runs" / "support"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert ["val_loss" in line for line in lines] == [False, False, True, False, False, True]
    assert lines[-1]["val_loss"] < read_json(run / "before.json")["before tuning"]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "before tuning" in (run / "loss.svg").read_text()
    assert [json.loads(line)["prompt"][:12] for line in (run / "samples.jsonl").read_text().splitlines()] == [
        "Where is the"
    ] * 2

    tokenizer = load_tokenizer(run / "best")
    assert isinstance(tokenizer, RoleTokenizer)
    assert load_model(run / "best").config.vocab_size == tokenizer.vocab_size
    assert read_json(run / "best" / "config.json")["eos_token_id"] == tokenizer.roles.end
    assert "add_generation_prompt" in read_json(run / "best" / "tokenizer_config.json")["chat_template"]
    assert cli("plot", "support").code == 0
    exported = cli("export", "support")
    assert (exported.code, "--jinja -m support.gguf" in exported.err) == (0, True), exported.err
    assert (workplace / "support.gguf").read_bytes()[:4] == b"GGUF"

    monkeypatch.setattr(sys, "stdin", io.StringIO("Where is the cat?\n/system Be brief.\nAnd the dog?\n"))
    answer = cli("chat", "support", "--seed", "1", "--max-tokens", "4")
    assert answer.code == 0
    assert "base model" not in answer.err
    assert "The system message: Be brief." in answer.err
    assert len(answer.out.splitlines()) >= 2
    assert "Each question is answered on its own" in answer.err

    refused = cli("train", "--config", "runs/support/run.json")
    assert refused.code == 2 and "gpt2 tune" in refused.err
    again = cli("tune", "support", "faq.csv", "--run", "further", *FEW)  # its marks are there already
    assert again.code == 0, again.err
    assert load_model(workplace / "runs/further/best").config.vocab_size == tokenizer.vocab_size


@pytest.mark.usefixtures("no_pictures")
def test_talks_of_several_turns_begun_by_a_system_message(
    cli: Cli, workplace: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = (
        ("system", "Be brief."),
        ("user", "Where is {}?"),
        ("assistant", "Here."),
        ("user", "Now?"),
        ("assistant", "No."),
    )
    talks = [[{"role": role, "content": text.format(n)} for role, text in said] for n in range(30)]
    (workplace / "talks.jsonl").write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
    answer = cli("tune", "base", "talks.jsonl", "--run", "talks", *FEW)
    assert answer.code == 0, answer.err
    sample = json.loads((workplace / "runs/talks/samples.jsonl").read_text().splitlines()[0])
    assert re.fullmatch(r"Be brief\.\nWhere is \d+\?", sample["prompt"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where is 5?\nNow?\nAnd now?\n"))
    answer = cli("chat", "talks", "--system", "Be brief.", "--max-tokens", "4")
    assert "The model forgot the oldest turn: it was tuned on conversations of 2 turns at most." in answer.err


@pytest.mark.usefixtures("no_pictures")
def test_a_look_inside_a_chatbot_is_at_a_message_and_at_a_text_if_wished(
    cli: Cli, workplace: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("tune", "base", "faq.csv", "--run", "support", *FEW).code == 0
    tokenizer = load_tokenizer(workplace / "runs/support/best")
    question = "Where is the cat?"
    seen: list[tuple[str, int]] = []

    def looked(_: object, __: object, ids: list[int], written: int) -> dict[str, Any]:
        seen.append(("".join(spell(tokenizer, token) for token in ids[: len(ids) - written]), written))
        return look(load_model(workplace / "runs/support/best"), tokenizer, ids, written)

    monkeypatch.setattr("gpt2.recipes.explain.look", looked)
    asked = cli("explain", "support", question, "--max-tokens", "3")
    assert asked.code == 0 and "--plain" in asked.err, asked.err
    read = cli("explain", "support", question, "--max-tokens", "3", "--plain")
    assert read.code == 0 and "--plain" not in read.err, read.err
    assert cli("explain", "base", question, "--max-tokens", "3").code == 0
    grown = cli("explain", "support", question, "--max-tokens", "3", "--over-time")
    assert f"To '{question}'" in grown.out
    long = cli("explain", "support", "cat " * 90, "--max-tokens", "3")
    assert "sees only the end of this message" in long.err
    assert "sees only" not in asked.err
    assert long.code == 0, long.err
    assert [text for text, _ in seen[:3]] == [f"<|user|>{question}<|end|><|assistant|>", question, question]
    assert seen[0][1] <= 3
    assert seen[-1][0].startswith("<|user|>") and seen[-1][0].endswith(" cat<|end|><|assistant|>")


@pytest.mark.usefixtures("no_pictures")
def test_stopped_and_resumed_it_ends_as_if_it_had_not(cli: Cli, workplace: Path, base: Path) -> None:
    assert cli("tune", "base", "faq.csv", "--run", "whole", *FEW, "--train.save-every", "1").code == 0
    shutil.copytree(workplace / "runs/whole", workplace / "runs/cut", symlinks=True)
    run, whole = workplace / "runs" / "cut", workplace / "runs" / "whole"
    for folder in (run / "checkpoints").iterdir():
        shutil.rmtree(folder)
    record = read_json(run / "run.json")
    record["settings"]["run"] = "cut"
    (run / "run.json").write_text(json.dumps(record))
    (run / "run_state.json").unlink()
    for name in ("best", "last"):
        (run / name).unlink()
    assert cli("train", "--resume", "cut").code == 0  # from its beginning: the base's weights
    ends = [pointed(folder, "last") for folder in (run, whole)]
    assert all(ends)
    weights = [load_model(end).state_dict() for end in ends if end]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    newest, before = sorted((run / "checkpoints").iterdir(), reverse=True)[:2]
    shutil.rmtree(newest)
    assert before.name == "step-00000005"
    assert cli("train", "--resume", "cut").code == 0  # from a step before its end
    again = load_model(newest).state_dict()
    assert all(torch.equal(again[name], weights[1][name]) for name in again)
    forked = cli("train", "--fork", "cut", "--train.steps", "2", "--run", "forked")
    assert forked.code == 0, forked.err


@pytest.mark.usefixtures("no_pictures")
def test_lora_learns_little_and_resumes_to_the_bit(cli: Cli, workplace: Path, base: Path) -> None:
    answer = cli("tune", "base", "faq.csv", "--run", "thin", "--lora.rank", "4", *FEW, "--train.save-every", "1")
    assert answer.code == 0, answer.err
    assert "learned (LoRA of rank 4)" in answer.err
    run = workplace / "runs" / "thin"
    last = pointed(run, "last")
    assert last is not None
    weights, before = load_model(last).state_dict(), load_model(base / "best").state_dict()
    assert weights.keys() == before.keys()  # merged
    vocabulary = len(before["wte.weight"])
    assert torch.equal(weights["wte.weight"][:vocabulary], before["wte.weight"])
    assert torch.equal(weights["wpe.weight"], before["wpe.weight"])
    assert torch.linalg.matrix_rank(weights["h.0.mlp.c_fc.weight"] - before["h.0.mlp.c_fc.weight"], rtol=1e-4) == 4
    state = load_file(last / "training_state.safetensors")
    assert {name.split("/")[0].rpartition(".")[2] for name in state} == {"down", "up", "rows"}

    shutil.rmtree(last)
    assert cli("train", "--resume", "thin").code == 0
    again = load_model(last).state_dict()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    further = cli("tune", "thin", "faq.csv", "--run", "further", *FEW)  # what is merged is a base like another
    assert further.code == 0, further.err


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("thin", [(), ("--lora.rank", "4")])
def test_preferences_are_learned_and_resumed_to_the_bit(
    cli: Cli, workplace: Path, base: Path, thin: tuple[str, ...]
) -> None:
    lines = [{"prompt": f"Number {n}?", "chosen": f"It is {n}.", "rejected": f"The dog {n}."} for n in range(60)]
    (workplace / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    typed = ("--run", "kind", *FEW, "--train.save-every", "1", "--optim.lr", "0.002", "--dropout", "0.1")
    assert "No text can be replayed" in cli("tune", "base", "pairs.jsonl", "--replay", "0.2").err
    answer = cli("tune", "base", "pairs.jsonl", *typed, *thin)
    assert answer.code == 0, answer.err
    for said in ("Pairs of answers", "DPO, beta 0.1", "has not learned to answer yet", "pairs in the right order"):
        assert said in answer.err
    run = workplace / "runs" / "kind"
    assert read_json(run / "before.json")["before tuning"] == pytest.approx(math.log(2), abs=1e-4)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["val_loss"] < math.log(2)
    last = pointed(run, "last")
    assert last is not None
    weights = load_model(last).state_dict()
    shutil.rmtree(last)
    shutil.rmtree(base)  # a tuned run keeps what it needs of its base
    assert cli("train", "--resume", "kind").code == 0
    again = load_model(last).state_dict()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.usefixtures("no_pictures")
def test_it_stops_when_validation_gets_worse(cli: Cli, workplace: Path, base: Path) -> None:
    answer = cli(
        *("tune", "base", "faq.csv", "--run", "early", "--train.batch-size", "4", "--train.steps", "60"),
        *("--train.eval-every", "1", "--optim.lr", "1", "--train.patience", "2", "--train.sample-tokens", "0"),
        *("--schedule.warmup", "0", "--train.spike-sigma", "0"),
    )
    assert answer.code == 0, answer.err
    assert read_json(workplace / "runs/early/run_state.json")["status"] == "stopped early"


@pytest.mark.usefixtures("no_pictures")
def test_a_folder_of_transformers_is_a_base(cli: Cli, workplace: Path, base: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made = base / "best"
    torch.manual_seed(0)
    vocabulary = load_tokenizer(made).vocab_size
    config = transformers.GPT2Config(vocab_size=vocabulary + 7, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(workplace / "theirs")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(made / name, workplace / "theirs" / name)
    answer = cli("tune", "theirs", "faq.csv", "--run", "tuned", *FEW)
    assert answer.code == 0, answer.err
    assert "Nothing of the base's own text is replayed" in answer.err
    model = transformers.AutoModelForCausalLM.from_pretrained(workplace / "runs/tuned/best")
    assert model.config.vocab_size == vocabulary + 7  # rows for alignment have become marks
    refused = cli("tune", "theirs", "faq.csv", "--replay", "0.2")
    assert refused.code == 2
    assert "cannot be replayed" in refused.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("tune", "base"), "no conversations were named"),
        (("tune", "base", "fag.csv"), "faq.csv"),
        (("tune", "base", "faq.csv", "--prompt", "questoin"), "'questoin' for --prompt"),
        (("tune", "base", "faq.csv", "--prompt", "a", "--response", "a"), "--prompt and --response are both 'a'"),
        (("tune", "base", "faq.csv", "--model.n-layer", "3"), "The model's shape is that of the base."),
        (("tune", "base", "faq.csv", "--resume", "x"), "gpt2 train --resume RUN"),
        (("tune", "base", "faq.csv", "--run", "base"), "runs/base already: completed. Give the new one another name"),
        (("tune", "base", "notes.txt"), "holds no conversations"),
        (("tune", "bose", "faq.csv"), "There is no run 'bose'"),
        (("tune", "no/such", "faq.csv"), "cannot be reached"),
        (("tune", "runs/bose", "faq.csv"), "There is no run 'runs/bose'"),
        (("tune", "base", "faq.csv", "--replay", "2"), "replay"),
        (("tune", "base", "faq.csv", "--lora.rank", "4", "--optim.name", "muon"), "Muon"),
        (("tune", "base", "faq.csv", "--lora.rank", "4", "--distributed.strategy", "fsdp"), "ddp"),
        (("tune", "base", "faq.csv", "--lora.rank", "4096"), "more than base's width of"),
        (("tune", "base", "faq.csv", "--lora.alpha", "8"), "Set --lora.rank, such as 8, or leave --lora.alpha out."),
        (("tune", "base", "faq.csv", "--beta", "0.2"), "--beta is of preferences"),
        (("tune", "base", "faq.csv", "--data.validatoin", "0.2"), "validat"),
    ],
)
def test_mistakes_are_answered(
    cli: Cli, workplace: Path, base: Path, argv: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    answer = cli(*argv)
    assert answer.code == 2
    assert said in answer.err
