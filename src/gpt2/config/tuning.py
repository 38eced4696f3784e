"""The settings of `gpt2 tune`: those of a run, with what differs for conversations; what they leave open is chosen."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from gpt2.config.resolve import resolve_learning_rate
from gpt2.config.schema import (
    NOT_TYPED,
    Count,
    DataSettings,
    DistributedSettings,
    LoraSettings,
    OptimSettings,
    Positive,
    Rate,
    ScheduleSettings,
    Section,
    Settings,
    Share,
    Source,
    TrainSettings,
)
from gpt2.errors import ConfigError

RATE_SHARE = 0.3
"""Of the rate that trains from scratch: docs/experiments.md."""
LORA_RATE_SHARE = 1.0
"""The same for LoRA."""
PREFERENCE_RATE_SHARE = 0.1
"""Of these, for preferences."""


class ConversationSettings(Section):
    """How files become conversations, and which of them validate."""

    header: Literal["auto", "yes", "no"] = Field(
        default="auto", description="whether a table's first row names its columns"
    )
    encoding: str | None = Field(
        default=None, description="character encoding of the files, such as cp1252; else detected"
    )
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.1, description="share of the conversations kept for validation, above 0 and below 1"
    )
    validation_source: tuple[Source, ...] = Field(default=(), description="files to validate on, in place of a share")


class TuneTrainSettings(TrainSettings):
    """How long, in which portions, how often to look, and on what."""

    steps: Count | None = Field(default=None, description="optimizer steps at most; without steps or epochs 5 epochs")
    epochs: Positive | None = Field(
        default=None, description="passes over the conversations at most; give this or steps; else 5"
    )
    minutes: Annotated[float, Field(ge=0.01, le=1e7)] | None = Field(
        default=None,
        description="time for the whole command, set-up included: steps follow the measured pace, and the rate comes "
        "down by then",
    )
    eval_tokens: Count = Field(
        default=2_000_000,
        description="not of tuning, which validates on whole conversations",
        json_schema_extra=NOT_TYPED,
    )
    batch_size: Annotated[int, Field(ge=1, le=10**7)] = Field(
        default=16, description="conversations in an optimizer step, the rows of replayed text included"
    )
    patience: Count | None = Field(
        default=4, description="stop after this many validations without a new best; none: never early"
    )
    sample_prompt: str = Field(default="", description="what each sample answers; else a validation question")


class TuneOptimSettings(OptimSettings):
    """The optimizer, and rates for weights that know much already."""

    name: Literal["auto", "muon", "adamw"] = Field(
        default="auto", description="auto: what the base was trained with; adamw for a base from elsewhere"
    )
    lr: Rate | None = Field(
        default=None,
        description="peak learning rate of AdamW; else by the model's width: 0.3 of what trains from scratch, with "
        "LoRA all of it, and for preferences a tenth of these",
    )
    matrix_lr: Rate | None = Field(
        default=None, description="peak learning rate of Muon; else 0.015, for preferences 0.0015; LoRA has none"
    )
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] | None = Field(
        default=0.1, description="decoupled weight decay of matrices; none on biases, norms and positions"
    )


class TuneScheduleSettings(ScheduleSettings):
    """The learning rate over the run, as a multiple of the peak."""

    name: Literal["cosine", "linear", "wsd", "constant"] = Field(
        default="cosine", description="shape after warm-up; wsd: constant, then linear decay at the end"
    )


class TuneSettings(Section):
    """Tune a trained model on conversations, or on questions and answers, so that it answers."""

    ELSEWHERE: ClassVar[dict[str, str]] = {
        "--model.": "The model's shape is that of the base.",
        "--tokenizer": "The tokenizer is that of the base.",
        "--resume": "gpt2 train --resume RUN goes on with any run, tuned ones included.",
        "--finish": "gpt2 train --finish RUN ends any run, tuned ones included.",
        "--fork": "gpt2 train --fork RUN goes on from any run, tuned ones included; or tune the run once more.",
    }
    """Beginnings of options that others have, and what is true here."""

    base: str = Field(
        description="what to begin with: a run, a checkpoint, a GPT-2 folder, or a model's name on the Hugging Face Hub"
    )
    sources: tuple[Source, ...] = Field(
        default=(),
        description="one or more: .csv or .tsv tables, .jsonl files with messages or with fields, or python-docs: "
        "Python's own",
    )
    run: str | None = Field(
        default=None,
        description="name of the run: its folder is runs/NAME; else the base's with -tuned behind it. If it is cut "
        "off, gpt2 train --resume NAME goes on with it",
    )
    config: str | None = Field(default=None, description="TOML file of these settings; the command line overrides it")
    prompt: str | None = Field(default=None, description="column, or key, of the questions; else guessed, and said")
    response: str | None = Field(default=None, description="column of the answers; else guessed, and said")
    context: str | None = Field(default=None, description="column that stands below the question; else guessed")
    system: str | None = Field(default=None, description="column of system messages; else guessed")
    rejected: str | None = Field(
        default=None,
        description="column of worse answers, where the responses are better ones: preferences are learned (DPO); else "
        "guessed from columns named chosen and rejected",
    )
    beta: Positive = Field(
        default=0.1, description="of preferences: how dear it is to leave the base; the smaller, the further it goes"
    )
    replay: Share | None = Field(
        default=None,
        description="share of each step's rows that is text the base was trained on, against forgetting; else 0.125 "
        "where that text is at hand",
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.1, description="share of activations dropped in training, 0 to below 1"
    )
    lora: LoraSettings = Field(default_factory=LoraSettings)
    data: ConversationSettings = Field(default_factory=ConversationSettings)
    train: TuneTrainSettings = Field(default_factory=TuneTrainSettings)
    optim: TuneOptimSettings = Field(default_factory=TuneOptimSettings)
    schedule: TuneScheduleSettings = Field(default_factory=TuneScheduleSettings)
    distributed: DistributedSettings = Field(default_factory=DistributedSettings)

    @model_validator(mode="after")
    def _columns_of_their_own(self) -> "TuneSettings":
        taken: dict[str, str] = {}
        for name in ("prompt", "response", "context", "system", "rejected"):
            column = getattr(self, name)
            if column in taken:
                raise ValueError(f"--{taken[column]} and --{name} are both {column!r}: each needs a column of its own")
            if column is not None:
                taken[column] = name
        return self


def as_run(settings: TuneSettings) -> Settings:
    """The settings of a run with these; what it begins with is filled in by the recipe."""
    train = TrainSettings(**settings.train.model_dump())
    if train.steps is None and train.epochs is None:
        train = train.model_copy(update={"epochs": 5.0})
    return Settings(
        sources=settings.sources,
        run=settings.run,
        data=DataSettings(**settings.data.model_dump()),
        train=train,
        optim=OptimSettings(**settings.optim.model_dump()),
        schedule=ScheduleSettings(**settings.schedule.model_dump()),
        distributed=settings.distributed,
    )


def resolve_rates(
    optim: OptimSettings, n_embd: int, base: str | None, low_rank: bool, preferences: bool
) -> OptimSettings:
    """The optimizer that the base was trained with, at a share of the rates that train from scratch.

    Args:
        optim: as given.
        n_embd: the model's width.
        base: name of the base's optimizer; None: not known, as of a model from elsewhere.
        low_rank: whether LoRA's products are learned. AdamW then moves them, at the whole rate: they begin at nothing.
        preferences: whether preferences are learned: at a fraction of the rate, as answers that are already spoken.

    Raises:
        ConfigError: Muon is to move products of LoRA.
    """
    if low_rank and optim.name == "muon":
        raise ConfigError("Muon makes all directions of a step equal; LoRA has few.", "Leave --optim.name out.")
    name = (base or "adamw") if optim.name == "auto" and not low_rank else optim.name.replace("auto", "adamw")
    share = (LORA_RATE_SHARE if low_rank else RATE_SHARE) * (PREFERENCE_RATE_SHARE if preferences else 1.0)
    return optim.model_copy(
        update={
            "name": name,
            "lr": optim.lr or float(f"{share * resolve_learning_rate(n_embd, beside_muon=False):.2g}"),
            "matrix_lr": optim.matrix_lr or 0.05 * share,
        }
    )
