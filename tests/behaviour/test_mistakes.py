"""What wrong input gets, through the command line: exit code 2, one message, no traceback, nothing lost."""

import io
import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.conftest import SMALL, Answer, make_text
from torch import Tensor

from gpt2.errors import CheckpointError
from gpt2.files import read_json
from gpt2.generation.engine import Engine
from gpt2.generation.request import Delta, Request
from gpt2.signals import SIGNALS
from gpt2.training.guard import Guard
from gpt2.training.loss import NextTokenLoss
from gpt2.training.metrics import read_metrics

Cli = Callable[..., Answer]
QUICK = (*SMALL, "--train.steps", "4", "--train.eval-every", "2")


def wrong(answer: Answer, *said: str) -> None:
    """The answer is one clear message that says these words."""
    assert answer.code == 2, answer
    assert "Error:" in answer.err
    assert answer.err.count("Error:") == 1
    assert "Traceback" not in answer.err
    assert answer.out == ""
    for words in said:
        assert words in answer.err, answer.err


def is_untouched(folder: Path) -> None:
    """A mistake leaves no half-made run behind."""
    assert not [path for path in folder.glob("runs/*") if not path.name.startswith(".")]


@pytest.fixture
def run(cli: Cli, workplace: Path) -> Path:
    """A finished small run with several checkpoints."""
    (workplace / "notes.txt").write_text(make_text(600))
    answer = cli("train", "notes.txt", "--run", "small", *QUICK, "--train.keep", "9")
    assert answer.code == 0, answer.err
    return workplace / "runs" / "small"


def test_a_missing_path(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text("x")
    wrong(cli("train", "note.txt"), "note.txt", "notes.txt")
    is_untouched(workplace)


def test_a_path_with_no_likeness_but_its_ending_is_not_proposed(cli: Cli, workplace: Path) -> None:
    (workplace / "bin.txt").write_text("x")
    answer = cli("train", "nope.txt")
    wrong(answer, "There is no nope.txt")
    assert "Did you mean" not in answer.err


def test_a_file_that_looks_like_an_option(cli: Cli, workplace: Path) -> None:
    for name in ("-notes.txt", "--notes.txt"):
        (workplace / name).write_text(make_text(600))
        wrong(cli("train", name), f"If you mean the file: ./{name}")
        assert cli("train", f"./{name}", "--run", "dashed", *QUICK).code == 0
        shutil.rmtree("runs/dashed")


def test_an_empty_file(cli: Cli, workplace: Path) -> None:
    (workplace / "empty.txt").touch()
    wrong(cli("train", "empty.txt"), "empty.txt is empty")


def test_an_empty_folder(cli: Cli, workplace: Path) -> None:
    (workplace / "texts").mkdir()
    wrong(cli("train", "texts"), "texts is empty")


def test_only_white_space(cli: Cli, workplace: Path) -> None:
    (workplace / "blank.txt").write_text(" \n\t\n" * 100)
    wrong(cli("train", "blank.txt"), "blank.txt", "white space")


def test_a_folder_without_a_supported_file_names_what_was_found(cli: Cli, workplace: Path) -> None:
    (workplace / "photos").mkdir()
    for name in ("a.png", "b.png", "c.pdf"):
        (workplace / "photos" / name).write_bytes(b"\x89PNG")
    wrong(cli("train", "photos"), "2 .png", "1 .pdf", ".csv")


def test_a_binary_file_posing_as_text(cli: Cli, workplace: Path) -> None:
    (workplace / "photo.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 40)
    wrong(cli("train", "photo.txt"), "photo.txt")


def test_nul_bytes_in_text_and_table(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_bytes(make_text(500).encode() + b"\0 and on")
    wrong(cli("train", "notes.txt"), "notes.txt", "line 65")
    (workplace / "table.csv").write_bytes(b"id,text\n1,some words\n2,more\0words\n")
    wrong(cli("train", "table.csv"), "table.csv", "line 3")


TABLE = "title,body\n" + "\n".join(f"Title {n},{make_text(30, n)[:-1].replace(chr(10), ' ')}" for n in range(60)) + "\n"


def test_a_column_that_is_not_there_names_those_that_are(cli: Cli, workplace: Path) -> None:
    (workplace / "table.csv").write_text(TABLE)
    wrong(cli("train", "table.csv", "--data.columns", "titel"), "titel", "title", "body")


def test_a_template_with_an_unknown_field(cli: Cli, workplace: Path) -> None:
    (workplace / "table.csv").write_text(TABLE)
    wrong(cli("train", "table.csv", "--data.template", "{title}: {text}"), "text", "title", "body")


@pytest.mark.parametrize("template", ["no field", "{title", "{title.upper}", "{}"])
def test_a_template_that_is_none(cli: Cli, workplace: Path, template: str) -> None:
    (workplace / "table.csv").write_text(TABLE)
    wrong(cli("train", "table.csv", "--data.template", template), "template")


def test_an_unclosed_quote_names_file_and_line(cli: Cli, workplace: Path) -> None:
    (workplace / "table.csv").write_text(TABLE + 'Bad,"this quote is never closed\n' + TABLE.partition("\n")[2])
    wrong(cli("train", "table.csv"), "table.csv", "line 62", "quote")


def test_a_row_with_too_many_fields(cli: Cli, workplace: Path) -> None:
    (workplace / "table.csv").write_text(TABLE + "One,two,three\n")
    wrong(cli("train", "table.csv"), "table.csv", "line 62", "3")


def test_a_field_of_over_a_million_characters(cli: Cli, workplace: Path) -> None:
    (workplace / "table.csv").write_text(TABLE + f"Long,{'word ' * 200_001}\n")
    wrong(cli("train", "table.csv"), "table.csv", "line 62", "1,000,000")


def test_text_shorter_than_one_window(cli: Cli, workplace: Path) -> None:
    (workplace / "short.txt").write_text("only a few words here\n")
    wrong(cli("train", "short.txt", *QUICK, "--model.context-length", "64"), "context-length", "65")
    is_untouched(workplace)


def test_an_empty_validation_part(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(100))
    wrong(cli("train", "notes.txt", *QUICK, "--data.validation", "0.0001"), "validation part", "--model.context-length")


def test_heads_that_do_not_divide_the_width(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(100))
    answer = cli("train", "notes.txt", "--model.n-embd", "10000", "--model.n-head", "30")
    wrong(answer, "10000", "20, 25, 40")
    assert "1, 2, 4" not in answer.err, "the nearest are enough"


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize("length", ["steps", "epochs"])
def test_the_length_of_a_run_is_given_once(cli: Cli, workplace: Path, command: str, length: str) -> None:
    (workplace / "notes.toml").write_text(f"[train]\nminutes = 5\n{length} = 5\n")
    for options in ((f"--train.{length}", "5", "--train.minutes", "5"), ("--config", "notes.toml")):
        wrong(cli(command, "notes.txt", "notes.txt", *options), "once", "--train.minutes")


@pytest.mark.parametrize(
    "options",
    [
        ("--train.steps", "0"),
        ("--train.steps", "some"),
        ("--train.steps", "9" * 23),
        ("--train.epochs", "1e99"),
        ("--train.minutes", "1e-9"),
        ("--train.compile", "maybe"),
        ("--auto-resume", "maybe"),
        ("--model.n-embd", "9" * 23),
        ("--model.n-layer", "100000"),
        ("--optim.name", "adam"),
        ("--optim.lr", "1e30"),
        ("--optim.weight-decay", "1e99"),
    ],
)
def test_a_wrong_value(cli: Cli, workplace: Path, options: tuple[str, ...]) -> None:
    wrong(cli("train", *options), options[0].removeprefix("--"), options[1])


@pytest.mark.parametrize(
    ("options", "smaller"),
    [
        (("--model.n-embd", "65536", "--model.n-head", "1"), "--model.n-embd"),
        (("--train.batch-size", "10000000", "--model.context-length", "4096"), "--train.batch-size"),
        (("--model.context-length", "4096", "--train.micro-batch-size", "10000000"), "--train.micro-batch-size"),
    ],
)
def test_what_no_memory_holds(cli: Cli, workplace: Path, options: tuple[str, ...], smaller: str) -> None:
    (workplace / "notes.txt").write_text(make_text(60_000))
    few = ("--train.batch-size", "100000") if "micro" in smaller else ()
    wrong(cli("train", "notes.txt", "--tokenizer", "bpe:300", *options, *few), "GiB", smaller)
    is_untouched(workplace)


def test_far_too_many_processes(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(100))
    wrong(cli("train", "notes.txt", "--distributed.processes", "100000"), "100,000", "cores")


def test_an_empty_source_is_not_this_folder(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    wrong(cli("train", "", *QUICK), "sources", "something is needed")
    is_untouched(workplace)


def test_a_link_that_leads_nowhere(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").symlink_to("nowhere.txt")
    wrong(cli("train", "notes.txt"), "link to nowhere.txt")


def test_a_short_text_gets_a_short_context(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    answer = cli("train", "notes.txt", "--model.preset", "gpt2-nano", "--train.steps", "2", "--train.batch-size", "2")
    assert answer.code == 0, answer.err
    assert "The text is short: windows of" in answer.err


def test_what_is_no_number_is_never_the_best(cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    monkeypatch.setattr("gpt2.recipes.run.mean_loss", lambda *arguments: math.nan)
    wrong(cli("train", "notes.txt", "--run", "bad", *QUICK), "validation loss is nan", "--optim.lr")
    assert not list((workplace / "runs/bad/checkpoints").glob("step-*"))


def test_a_spoiled_run_goes_back_to_its_checkpoint(cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    judge, judged = Guard.objection, itertools.count()

    def spoiled(self: Guard, loss: float, norm: float, counted: float) -> str | None:
        return "the loss is nan" if 3 <= next(judged) < 3 + 11 else judge(self, loss, norm, counted)

    monkeypatch.setattr(Guard, "objection", spoiled)
    answer = cli("train", "notes.txt", "--run", "healed", *QUICK)
    assert answer.code == 0, answer.err
    assert "Going back to the checkpoint of step 2" in answer.err
    records = read_metrics(workplace / "runs/healed/metrics.jsonl")
    assert [record.step for record in records] == [1, 2, 3, 4]
    state = read_json(workplace / "runs/healed/last/training_state.json")
    assert state["progress"]["rollbacks"] == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("train", "--train.step", "3"), "Did you mean --train.steps?"),
        (("train", "--train.lr=3"), "Did you mean --optim.lr?"),
        (("train", "--batch_size", "3"), "Did you mean --train.batch-size?"),
        (("train", "--train.steps"), "--train.steps needs a value: optimizer steps"),
        (("train", "--resume"), "Write it behind: gpt2 train --resume …"),
        (("train", "--train.steps", "x"), "--train.steps: a whole number is needed, not 'x'."),
        (("train", "--train.steps", "3", "--train.epochs", "1"), "give --train.steps or --train.epochs, not both."),
        (("plan", "--gpus", "8xH100", "--model", "gpt2-xl", "--tokens", "30"), "Did you mean --tokens 30B?"),
        (("train", "--zzz"), "gpt2 train --help"),
        (("generate", "small", "The", "best", "thing"), "stands in quotes"),
        (("generate",), "gpt2 generate needs: RUN name of a run"),
        (("plan", "--gpus", "8xH100"), "gpt2 plan needs: --model named size: gpt2-nano, "),
        (("plan", "--gpus", "8xFoo", "--model", "gpt2", "--tokens", "1B"), "'Foo' is no GPU that is known here. Known"),
        (("plan", "--gpus", "8xH10", "--model", "gpt2", "--tokens", "1B"), "the nearest is H100. Known are"),
        (("plan", "--schedule.begins", "3"), "no option --schedule.begins"),
        (("train", "--schedule.cooldown", "0.2"), "Leave it out, or choose --schedule.name wsd."),
        (
            ("train", "--optim.matrix-lr", "0.1", "--optim.name", "adamw"),
            "--optim.matrix-lr does nothing with",
        ),
        (("tune", "--optim.momentum", "0.1", "--optim.name", "adamw", "run"), "or choose --optim.name muon."),
    ],
)
def test_an_unknown_option_names_the_nearest(cli: Cli, argv: tuple[str, ...], said: str) -> None:
    wrong(cli(*argv), said)


def test_what_does_nothing_in_a_file(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    (workplace / "plain.toml").write_text("[schedule]\ncooldown = 0.2\n")
    command = ("train", "notes.txt", "--config", "plain.toml")
    wrong(cli(*command), "plain.toml: schedule.cooldown does nothing with schedule.name linear.")
    assert cli(*command, *QUICK, "--schedule.name", "wsd").code == 0
    (workplace / "wsd.toml").write_text('[schedule]\nname = "wsd"\ncooldown = 0.2\n')
    assert cli("train", "notes.txt", "--config", "wsd.toml", *QUICK, "--schedule.name", "linear").code == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'run = "\xc4"', "Save it as UTF-8."), (b"[train", "Mend that line."), (None, "Give the path of a TOML file.")],
)
def test_a_configuration_that_cannot_be_read(cli: Cli, workplace: Path, content: bytes | None, said: str) -> None:
    path = workplace / "it.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    wrong(cli("train", "--config", "it.toml"), said)


def test_characters_that_cannot_be_spelled_are_named(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = cli("generate", "small", "The Ωmega§", "--max-tokens", "3")
    assert answer.code == 0
    assert "'Ω', '§'" in answer.err
    assert "cannot spell" not in cli("generate", "small", "The cat", "--max-tokens", "3").err
    monkeypatch.setattr(sys, "stdin", io.StringIO("the Ω\nthe cat\n"))
    answer = cli("chat", "small", "--max-tokens", "3")
    assert answer.code == 0
    assert answer.err.count("cannot spell 'Ω'") == 1


def test_a_script_hears_of_a_line_that_was_refused_and_all_others_are_answered(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n/save nowhere/x.json\nthe dog\n"))
    answer = cli("chat", "small", "--max-tokens", "3")
    assert answer.code == 2
    assert "There is no folder" in answer.err
    assert len(answer.out.splitlines()) >= 2
    assert not (workplace / "nowhere").exists()


def test_an_error_in_the_middle_of_a_text_has_a_line_of_its_own(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Engine.run

    def failing(self: Engine, requests: Sequence[Request]) -> Iterator[tuple[int, Delta]]:
        yield next(iter(whole(self, requests)))
        raise CheckpointError("The answer is no number.", "Train anew.")

    monkeypatch.setattr(Engine, "run", failing)
    answer = cli("generate", "small", "the cat", "--max-tokens", "3")
    assert answer.code == 2
    assert answer.out.endswith("\n")


def test_what_is_written_where_the_user_says_makes_no_folders(cli: Cli, run: Path, workplace: Path) -> None:
    wrong(cli("plot", "small", "--out", "no/where"), "no folder")
    wrong(cli("corpus", "no/where"), "no folder")
    assert not (workplace / "no").exists()


def test_a_run_whose_record_is_damaged_says_how_to_mend_it(cli: Cli, run: Path) -> None:
    (run / "run.json").write_text("{")
    for command in (("plot", "small"), ("train", "--resume", "small")):
        wrong(cli(*command), "run.json is not valid JSON", f"cp {Path('runs/small')}/last/run.json")


def test_a_plot_is_silent_where_home_cannot_be_written(run: Path) -> None:
    program = "import sys; from gpt2.cli import main; main(['plot', 'small'])"
    cut = ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR")
    environment = {name: value for name, value in os.environ.items() if name not in cut} | {"HOME": "/dev/null/x"}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert ended.stderr.startswith("Drawn:"), ended.stderr


def test_a_plot_goes_where_it_is_wished_and_over_no_foreign_picture(cli: Cli, run: Path, workplace: Path) -> None:
    for out in ("pic", "pic.png", "pic.SVG"):
        answer = cli("plot", "small", "--out", out)
        assert answer.code == 0, "its own pictures are drawn again"
        assert "pic.png, pic.svg" in answer.err
    assert sorted(path.name for path in workplace.glob("pic*")) == ["pic.png", "pic.svg"]
    for name in ("pic.png", "pic.svg"):
        before = (workplace / name).read_bytes()
        (workplace / name).write_bytes(before.replace(b"gpt2-from-scratch", b"somebody"))
        mine = (workplace / name).read_bytes()
        wrong(cli("plot", "small", "--out", "pic"), f"{name} exists already", "another --out")
        assert (workplace / name).read_bytes() == mine
        (workplace / name).write_bytes(before)
    wrong(cli("plot", "small", "--out", "pic.jpg"), "no .jpg", "--out pic")
    wrong(cli("plot", "small", "--out", "sub/pic.pdf"), "no .pdf", "Write --out sub/pic")


def test_a_run_that_lost_a_part_is_not_called_a_beginner(cli: Cli, run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([lines[0], "{" + lines[1], *lines[2:]]))
    assert cli("plot", "small").err.count("is damaged") == 1
    (run / "metrics.jsonl").unlink()
    wrong(cli("plot", "small"), "metrics.jsonl is missing")


def test_a_file_of_the_users_is_not_taken_for_the_corpus(cli: Cli, workplace: Path) -> None:
    (workplace / "data").mkdir()
    (workplace / "data/python-qa.csv").write_text("mine")
    wrong(cli("corpus"), "data/python-qa.csv exists already", "another folder")
    assert [path.name for path in (workplace / "data").iterdir()] == ["python-qa.csv"]
    assert (workplace / "data/python-qa.csv").read_text() == "mine"
    wrong(cli("corpus", "data/python-qa.csv"), "is a file")
    (workplace / "data/python-qa.csv").unlink()
    assert cli("corpus").code == 0
    assert cli("corpus").code == 0, "its own files are written again"


def test_an_unknown_command_names_the_nearest(cli: Cli) -> None:
    wrong(cli("trian"), "trian", "gpt2 train")


def test_a_run_name_that_exists_offers_what_helps(cli: Cli, run: Path) -> None:
    before = sorted(run.rglob("*"))
    wrong(cli("train", "notes.txt", "--run", "small", *QUICK), "runs/small already", "--fork runs/small")
    assert sorted(run.rglob("*")) == before


HOLDER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from gpt2.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_in_one_run_folder(cli: Cli, run: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLDER,
            str(run),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        answer = cli("train", "--resume", "runs/small")
        wrong(answer, "in use by process", str(holder.pid))
        assert "--run" not in answer.err
    finally:
        holder.kill()
        holder.wait()


def flip_a_bit(path: Path, at: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_byte_names_the_file_and_falls_back(cli: Cli, run: Path) -> None:
    flip_a_bit(run / "checkpoints" / "step-00000004" / "model.safetensors")
    answer = cli("generate", "runs/small", "The", "--checkpoint", "last", "--max-tokens", "3")
    assert answer.code == 0
    assert "step-00000004/model.safetensors is damaged" in answer.err
    flip_a_bit(run / "checkpoints" / "step-00000002" / "model.safetensors")
    wrong(cli("generate", "runs/small", "The"), "No checkpoint")


def test_a_missing_file_of_a_checkpoint(cli: Cli, run: Path) -> None:
    (run / "checkpoints" / "step-00000004" / "tokenizer.json").unlink()
    answer = cli("generate", "runs/small", "The", "--checkpoint", "last", "--max-tokens", "3")
    assert answer.code == 0
    assert "step-00000004/tokenizer.json is missing" in answer.err


def test_resume_on_changed_data(cli: Cli, run: Path, workplace: Path) -> None:
    (run / "checkpoints" / "step-00000004" / "MANIFEST.json").unlink()  # as if it had stopped before
    (workplace / "notes.txt").write_text(make_text(700))
    wrong(cli("train", "--resume", "runs/small"), "changed", "notes.txt")
    (workplace / "notes.txt").unlink()
    wrong(cli("train", "--resume", "runs/small"), "notes.txt")


def test_prepared_tokens_that_rot_are_named(cli: Cli, run: Path, workplace: Path) -> None:
    (run / "checkpoints" / "step-00000004" / "MANIFEST.json").unlink()
    (shard,) = workplace.glob("runs/.prepared/*/train-00000.bin")
    flip_a_bit(shard)
    wrong(cli("train", "--resume", "runs/small"), "train-00000.bin")


def test_resume_without_its_source_says_which_run_needs_it(cli: Cli, run: Path, workplace: Path) -> None:
    (run / "checkpoints" / "step-00000004" / "MANIFEST.json").unlink()
    (workplace / "notes.txt").rename(workplace / "notes.pdf")
    answer = cli("train", "--resume", "runs/small")
    wrong(answer, f"runs/small is trained on {workplace / 'notes.txt'}, which is not there", "Put back at that path")
    assert ".pdf" not in answer.err
    wrong(cli("train", "notes.txt"), "There is no notes.txt. Check the path.")


def test_resume_where_the_checkpoints_are_gone_begins_nothing(cli: Cli, run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.jsonl").read_bytes()
    wrong(cli("train", "--resume", "runs/small"), "The checkpoints of runs/small are gone")
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_disk_too_small_for_a_checkpoint_is_said_before_the_first_step(
    cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
        answer = cli("train", "notes.txt", "--run", "small", *QUICK)
        wrong(answer, "No space left", "1.0 MB free, 1.3 MB needed", "gpt2 train --resume runs/small")
        assert not read_metrics(workplace / "runs/small/metrics.jsonl")
    assert cli("train", "--resume", "runs/small").code == 0


def test_resume_of_a_complete_run(cli: Cli, run: Path) -> None:
    wrong(cli("train", "--resume", "runs/small"), "is complete")


def test_resume_takes_no_other_setting(cli: Cli, run: Path) -> None:
    wrong(cli("train", "--resume", "runs/small", "--train.steps", "9"), "--resume")


@pytest.mark.parametrize("command", ["chat", "generate", "plot"])
def test_no_such_run(cli: Cli, run: Path, command: str) -> None:
    wrong(cli(command, "runs/smal"), "runs/smal", "runs/small")


def test_chat_before_any_training(cli: Cli, workplace: Path) -> None:
    wrong(cli("chat"), "gpt2 train")


def test_a_context_longer_than_the_models(cli: Cli, run: Path) -> None:
    """The prompt may be longer than the context: what does not fit is left out, and it is said or works."""
    answer = cli("generate", "runs/small", "The cat " * 50, "--max-tokens", "5")
    assert answer.code == 0
    assert answer.out.startswith("The cat ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    workplace.chmod(0o555)
    try:
        wrong(cli("train", "notes.txt", *QUICK), "permission")
    finally:
        workplace.chmod(0o755)


def test_runs_is_a_file(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    (workplace / "runs").write_text("in the way")
    wrong(cli("train", "notes.txt", *QUICK), "runs")
    assert (workplace / "runs").read_text() == "in the way"


LIMITED = """
import resource, signal, sys
from gpt2.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import gpt2.training.checkpoint as checkpoint, gpt2.files as files
save = checkpoint.save
def limited(run, step, *rest, **named):
    if step >= int(sys.argv[1]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        return save(run, step, *rest, **named)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoint.save = limited
main(sys.argv[2:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_while_saving_loses_nothing(workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    argv = [sys.executable, "-c", LIMITED, "4", "train", "notes.txt", "--run", "full", *QUICK]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "No space left" in " ".join(ended.stderr.split())
    assert "gpt2 train --resume runs/full" in " ".join(ended.stderr.split())
    assert [path.name for path in (workplace / "runs/full/checkpoints").iterdir()] == ["step-00000002"]
    again = subprocess.run(
        [sys.executable, "-m", "gpt2", "train", "--resume", "runs/full"], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", SIGNALS)
def test_an_interruption_saves_and_says_how_to_go_on(workplace: Path, number: signal.Signals) -> None:
    (workplace / "notes.txt").write_text(make_text(600))
    argv = [sys.executable, "-m", "gpt2", "train", "notes.txt", "--run", "long", *SMALL, "--train.steps", "100000"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    metrics = workplace / "runs/long/metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 128 + number
    assert "gpt2 train --resume runs/long" in " ".join(said.split())
    state = read_json(workplace / "runs/long/run_state.json")
    assert state["status"] == "preempted"
    assert (workplace / f"runs/long/checkpoints/step-{state['step']:08d}/MANIFEST.json").exists()
    assert len(metrics.read_text().splitlines()) == state["step"]


def test_memory_that_ends_is_said_and_halves_the_micro_batch(
    cli: Callable[..., Answer], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = NextTokenLoss.forward
    room = 2

    def tight(self: NextTokenLoss, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and len(inputs) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, inputs, targets)

    monkeypatch.setattr(NextTokenLoss, "forward", tight)
    (workplace / "a.txt").write_text(make_text(400))
    answer = cli("train", "a.txt", "--run", "small", *SMALL, "--train.steps", "3")
    assert answer.code == 0
    assert "Memory ended" in answer.err
    assert read_json(workplace / "runs/small/run.json")["settings"]["train"]["shrunk"][-1] == [0, 2]
    room = 0
    answer = cli("train", "a.txt", "--run", "none", *SMALL, "--train.steps", "3")
    assert answer.code == 2
    assert "Memory ended at step 1, with 1 × 16 tokens at once" in answer.err
    assert "--model.context-length" in answer.err
