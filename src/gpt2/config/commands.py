"""The settings of each command, beyond those of a run.

`run` and `prompt` are positional on the command line.
"""

from typing import Annotated

from pydantic import Field

from gpt2.config.schema import Count, Section, Settings

LARGEST_TEMPERATURE = 5.0
"""Above it every vocabulary is close to noise."""
LARGEST_SEED = 2**63 - 1


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
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = Field(
        default=None, description="the same seed gives the same text again; else a new one each time"
    )
    checkpoint: str = Field(
        default="best", description="which of the run's checkpoints: best, last, or a folder such as step-00000500"
    )
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, mps, or auto: the fastest there is")


class GenerateSettings(SamplingSettings):
    """Continue a text with a trained model."""

    run: str = Field(description="name of a run, or a folder: of a run, a checkpoint, any GPT-2 model")
    prompt: str = Field(default="", description="text to continue; without it, a new document")


class ChatSettings(SamplingSettings):
    """Talk to a trained model."""

    run: str | None = Field(
        default=None,
        description="name of a run, or a folder: of a run, a checkpoint, any GPT-2 model; else the newest run",
    )
    max_tokens: Count = Field(default=200, description="tokens of an answer at most")


class TrainSettings(Settings):
    """Train a GPT-2 on text and tables: prepare, check, learn, validate, plot, save."""

    config: str | None = Field(default=None, description="TOML file of these settings; the command line overrides it")
    resume: str | None = Field(default=None, description="run to go on with, where it stopped; takes no other setting")
    finish: str | None = Field(
        default=None,
        description="run whose rate to bring down to its end, in --train.minutes or --train.steps from here",
    )
    fork: str | None = Field(
        default=None, description="run, or one of its checkpoints, to start a new run from; --train.steps more steps"
    )
    auto_resume: bool = Field(
        default=False,
        description="go on with this run where it was interrupted, or begin it; safe to repeat until it is complete",
    )


class PlotSettings(Section):
    """Draw the curves of one run, or of several in one picture."""

    runs: tuple[str, ...] = Field(default=(), description="names or folders of runs; without any, the newest")
    out: str | None = Field(
        default=None, description="path of the picture without suffix; else runs/NAME/loss, or runs/compare"
    )


class CorpusSettings(Section):
    """Write the manuals inside this Python as files: python-docs.txt, and python-qa.csv with questions and answers."""

    folder: str = Field(default="data", description="folder to write to")
