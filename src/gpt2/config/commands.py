"""The settings of each command, beyond those of a run.

`run` and `prompt` are positional on the command line.
"""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from gpt2.config.gpus import parse_gpus
from gpt2.config.schema import Count, Positive, PresetName, Section, Settings

LARGEST_TEMPERATURE = 5.0
"""Above it every vocabulary is close to noise."""
LARGEST_SEED = 2**63 - 1
LARGEST_PENALTY = 100.0
"""Of frequency, presence, repetition and bias: beyond it a token is certain or impossible anyhow."""
Penalty = Annotated[float, Field(ge=-LARGEST_PENALTY, le=LARGEST_PENALTY)]


class SamplingSettings(Section):
    """How tokens are chosen, from which weights, on which device."""

    max_tokens: Count = Field(default=100, description="tokens to write at most")
    temperature: Annotated[float, Field(ge=0.0, le=LARGEST_TEMPERATURE, allow_inf_nan=False)] = Field(
        default=0.8,
        description="0: always the likeliest token; 1: as the model estimates; up to 5: ever more surprising",
    )
    top_k: Annotated[int, Field(ge=0)] = Field(
        default=50, description="choose among this many likeliest tokens; 0: all"
    )
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="choose among the likeliest tokens that share this probability, above 0 to 1; 1: all"
    )
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0,
        description="choose among tokens at least this many times as likely as the likeliest, 0 to 1; 0: all",
    )
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = Field(
        default=None, description="the same seed gives the same text again; else a new one each time"
    )
    checkpoint: str = Field(
        default="best", description="which of the run's checkpoints: best, last, or a folder such as step-00000500"
    )
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, mps, or auto: the fastest there is")
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = Field(
        default="auto",
        description="of the weights; auto: fp16 or bf16, whichever is fastest, or fp32 where neither is faster; int8: "
        "smallest, less exact, on a CPU also fastest, on a GPU not",
    )


class GenerateSettings(SamplingSettings):
    """Continue a text with a trained model."""

    run: str = Field(description="name of a run, or a folder: of a run, a checkpoint, any GPT-2 model")
    prompt: str = Field(
        default="",
        description="text to continue; without it, a new document; of one that the context cannot hold, the newest "
        "three quarters of a context are read",
    )
    n: Annotated[int, Field(ge=1, le=10_000)] = Field(default=1, description="answers to each prompt")
    stop: tuple[str, ...] = Field(default=(), description="texts that end an answer, and are not part of it")
    repetition_penalty: Annotated[float, Field(gt=0.0, le=LARGEST_PENALTY)] = Field(
        default=1.0, description="above 1: tokens of prompt and answer become unlikelier; 1: off"
    )
    frequency_penalty: Penalty = Field(
        default=0.0, description="taken off a logit for each time the answer has a token"
    )
    presence_penalty: Penalty = Field(default=0.0, description="taken off a logit if the answer has a token at all")
    prompts_file: str | None = Field(
        default=None,
        description="file of prompts, one a line, or, if named .jsonl, JSON lines with `prompt`; takes --out",
    )
    out: str | None = Field(
        default=None,
        description="file for the answers, JSON lines, in the order in which they are ready; what it has already is "
        "not made again, with the same options",
    )
    at_once: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=16, description="answers written side by side at most"
    )


class ExplainSettings(SamplingSettings):
    """Look inside a model: next-token chances, guesses of each layer, attention, surprise, and where it read that."""

    run: str = Field(description="name of a run, or a folder: of a run, a checkpoint, any GPT-2 model")
    prompt: str = Field(
        default="", description="text to look at; of a tuned model, what it is asked; without it, a new document"
    )
    plain: bool = Field(default=False, description="the prompt is running text, also for a tuned model")
    max_tokens: Annotated[int, Field(ge=0)] = Field(
        default=24, description="tokens that the model writes on before it is looked at; 0: none"
    )
    out: str | None = Field(default=None, description="HTML file to write, complete in itself")
    over_time: bool = Field(default=False, description="the same prompt answered by every checkpoint that was kept")
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = Field(
        default="fp32", description="of the weights; fp32: what the model was trained to say, to the last digit"
    )


class ChatSettings(SamplingSettings):
    """Talk to a trained model."""

    run: str | None = Field(
        default=None,
        description="name of a run, or a folder: of a run, a checkpoint, any GPT-2 model; else the newest run",
    )
    max_tokens: Count = Field(default=200, description="tokens of an answer at most")
    system: str = Field(default="", description="what a tuned model is told before the conversation")
    markdown: bool = Field(default=True, description="draw a tuned model's Markdown where the output is a terminal")


class ExportSettings(Section):
    """Write a trained model as one GGUF file, for llama.cpp and what is built on it."""

    run: str = Field(description="name of a run, or a folder: of a run, a checkpoint, any GPT-2 model")
    out: str | None = Field(default=None, description="path of the file; else NAME.gguf")
    checkpoint: str = Field(
        default="best", description="which of the run's checkpoints: best, last, or a folder such as step-00000500"
    )


class ServeSettings(Section):
    """Serve a trained model to many at once: OpenAI's API, and a page for the browser."""

    run: str | None = Field(
        default=None,
        description="name of a run, or a folder: of a run, a checkpoint, any GPT-2 model; else the newest run",
    )
    host: str = Field(
        default="127.0.0.1", min_length=1, description="address to listen on; any but this machine's own needs a key"
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8000, description="port to listen on; 0: a free one")
    slots: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=8, description="answers written at once; each holds memory for a whole context"
    )
    queue: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=64, description="answers that may wait for a slot; more are told to come again later"
    )
    name: str | None = Field(
        default=None, min_length=1, max_length=256, description="the model's name for clients; else the run's"
    )
    api_key_file: str | None = Field(
        default=None, description="file whose first line is the key that clients must send; or set GPT2_API_KEY"
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="names that clients call this machine by, besides localhost and IP addresses"
    )
    trusted_proxies: tuple[str, ...] = Field(
        default=(), description="addresses of proxies whose X-Forwarded-For is believed"
    )
    drain_seconds: Annotated[float, Field(ge=0.0, le=86_400.0)] = Field(
        default=30.0, description="seconds that running answers get when the server is stopped"
    )
    passages: bool = Field(
        default=True, description="let Look inside show passages of the training text, to whoever has the key"
    )
    checkpoint: str = Field(
        default="best", description="which of the run's checkpoints: best, last, or a folder such as step-00000500"
    )
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, mps, or auto: the fastest there is")
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = Field(
        default="auto",
        description="of the weights; auto: fp16 or bf16, whichever is fastest, or fp32 where neither is faster; int8: "
        "smallest, less exact, on a CPU also fastest, on a GPU not",
    )


class TrainSettings(Settings):
    """Train a GPT-2 on text and tables: prepare, check, learn, validate, plot, save."""

    config: str | None = Field(
        default=None,
        description="TOML file of these settings, or run.json of a run to repeat; the command line overrides it",
    )
    resume: str | None = Field(
        default=None,
        description="run to go on with, where it stopped; of other settings only --train.device and --distributed",
    )
    finish: str | None = Field(
        default=None,
        description="run whose rate to bring down to its end, in --train.minutes or --train.steps from here",
    )
    fork: str | None = Field(
        default=None,
        description="run, or one of its checkpoints, to start a new run from, on the same text, for --train.steps more",
    )
    auto_resume: bool = Field(
        default=False,
        description="go on with this run where it was interrupted, or begin it; safe to repeat until it is complete",
    )


class PlotSettings(Section):
    """Draw the curves of one run, or of several in one picture."""

    runs: tuple[str, ...] = Field(default=(), description="names or folders of runs; without any, the newest")
    out: str | None = Field(
        default=None, description="path of the pictures, .png and .svg; else runs/NAME/loss, or runs/compare"
    )


class CorpusSettings(Section):
    """Write the manuals inside this Python as files: python-docs.txt, and python-qa.csv with questions and answers."""

    folder: str = Field(default="data", description="folder to write to")


def parse_count(value: object) -> object:
    """Text such as 30B, 1.5T, 300M, 30e9 or a plain number → a whole number; anything but text is left as it is.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?(?:[eE]\d{1,2})?)([kKmMbBtT]?)", value.strip())
    if match is None:
        raise ValueError(f"{value!r} is no number such as 30B, 1.5T, 300M, 30e9 or 524288")
    return round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[match[2].lower()])


Tokens = Annotated[int, BeforeValidator(parse_count), Field(ge=1, le=10**18)]


class PlanSettings(Section):
    """Reckon what a training run takes: memory, days, dollars, checkpoints. Nothing is trained."""

    model: PresetName = Field(description="named size")
    tokens: Tokens = Field(description="tokens to train on in all, such as 30B, 300M or 1.5T")
    gpus: str = Field(description="number and name of the GPUs, such as 8xH100")
    context_length: Annotated[int, Field(ge=2, le=2**20)] | None = Field(
        default=None, description="tokens the model sees at once; else the preset's"
    )
    batch_tokens: Tokens = Field(default=524_288, description="tokens of an optimizer step, all GPUs together")
    micro_batch_size: Annotated[int, Field(ge=1, le=2**20)] | None = Field(
        default=None, description="sequences on a GPU at once, gradients accumulated; else the most that fit"
    )
    mfu: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        default=None, description="share of the GPUs' peak that the model gets, above 0 to 1; else by GPU, size, number"
    )
    dollars_per_gpu_hour: Annotated[float, Field(ge=0.0, le=10_000.0)] | None = Field(
        default=None, description="price of one GPU for an hour, US dollars; else a typical one"
    )
    gpu_memory_gb: Annotated[float, Field(gt=0.0, le=10_000.0)] | None = Field(
        default=None, description="memory of one GPU in GiB, as PyTorch reports it; else that of its model"
    )
    save_seconds: Positive | None = Field(
        default=None, description="seconds that training waits for a checkpoint; else by its size, at 1 GB/s"
    )
    as_json: bool = Field(
        default=False,
        alias="json",
        description="print the plan to stdout as JSON, without tables; its `fits` says whether it does, and the exit "
        "code is 0 either way",
    )

    @field_validator("gpus")
    @classmethod
    def _known_gpus(cls, value: str) -> str:
        count, name = parse_gpus(value)
        return f"{count}x{name}"
