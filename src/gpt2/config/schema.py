"""Every setting of a run: typed, bounded, described, its unit named. A value of None is chosen from the data."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

PresetName = Literal[
    "gpt2-nano", "gpt2-micro", "gpt2-mini", "gpt2-midi", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"
]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=1e9)]
Rate = Annotated[float, Field(gt=0.0, le=10.0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Source = Annotated[str, Field(min_length=1)]
NOT_TYPED: dict[str, Any] = {"typed": False}
"""Marks what the program writes into run.json, and nobody types."""


class Section(BaseModel):
    """A group of settings; unknown names are errors and values do not change once read."""

    # Validators are compiled at the first value, not at import: help needs none, and they take a tenth of a second.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, about: ValidationInfo) -> Any:
        """Python and pydantic take it for 1."""
        if isinstance(value, bool) and bool not in (
            kind := cls.model_fields[about.field_name or ""].annotation,
            *get_args(kind),
        ):
            raise ValueError(f"a number or text is needed, not {str(value).lower()}")
        return value


class ModelSettings(Section):
    """The shape of the network. What is not given here is the preset's."""

    preset: PresetName = Field(
        default="gpt2-mini",
        description="named size, which the settings below override in part: layers × width and parameters, without the "
        "vocabulary's, nano 3 × 48, 0.1M; micro 4 × 128, 0.8M; mini 6 × 192, 2.7M; midi 8 × 512, 25M; gpt2 12 × 768, "
        "86M; medium 24 × 1024, 303M; large 36 × 1280, 709M; xl 48 × 1600, 1,477M",
    )
    n_layer: Annotated[int, Field(ge=1, le=1000)] | None = Field(default=None, description="transformer blocks")
    n_head: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="attention heads of a block; must divide n-embd"
    )
    n_embd: Annotated[int, Field(ge=1, le=2**16)] | None = Field(
        default=None, description="width: numbers in the vector of one token"
    )
    context_length: Annotated[int, Field(ge=2, le=2**20)] | None = Field(
        default=None, description="tokens the model sees at once; else the preset's, or less for a short text"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        default=None,
        description="share of activations dropped in training, 0 to below 1; else 0, and 0.1 where passes times "
        "weights for each token of the text are above 240",
    )


class DataSettings(Section):
    """How files become documents, and documents the training and validation parts."""

    columns: tuple[str, ...] = Field(
        default=(), description="table columns to read; without any, the text columns are found"
    )
    template: str | None = Field(
        default=None, description=r"text of a table row, such as 'Q: {question}\nA: {answer}'; fields are column names"
    )
    header: Literal["auto", "yes", "no"] = Field(
        default="auto", description="whether a table's first row names its columns"
    )
    encoding: str | None = Field(
        default=None, description="character encoding of the files, such as cp1252; else detected"
    )
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.1, description="share of the data kept for validation, above 0 and below 1"
    )
    validation_source: tuple[Source, ...] = Field(default=(), description="files to validate on, in place of a share")
    split: Literal["auto", "documents", "position"] = Field(
        default="auto",
        description="validate on whole documents, or on the last part of each; auto: documents where many",
    )
    stride: Count | None = Field(
        default=None, description="tokens from one training window to the next; else context-length (no overlap)"
    )


class TrainSettings(Section):
    """How long, in which portions, how often to look, and on what."""

    steps: Count | None = Field(
        default=None,
        description="optimizer steps; without steps, epochs or minutes ten passes over the training part, but 1,000 to "
        "10,000 steps",
    )
    epochs: Positive | None = Field(
        default=None, description="passes over the training part; give this or steps, or neither"
    )
    minutes: Annotated[float, Field(ge=0.01, le=1e7)] | None = Field(
        default=None,
        description="time for the whole command, set-up included: steps, and model and batch if not given, are chosen "
        "for the lowest loss, by the measured pace, and the rate comes down by then",
    )
    batch_size: Annotated[int, Field(ge=1, le=10**7)] = Field(default=32, description="sequences in an optimizer step")
    micro_batch_size: Count | None = Field(
        default=None, description="sequences in memory at once, gradients accumulated; else as many as fit the estimate"
    )
    shrunk: tuple[tuple[int, int], ...] = Field(
        default=(),
        description="(step, sequences in memory at once from there on): where memory ended",
        json_schema_extra=NOT_TYPED,
    )
    eval_every: Count | None = Field(
        default=None,
        description="steps between validations, besides the end of each epoch of 5 steps and more; else a twentieth of "
        "the run, and at least 10",
    )
    eval_tokens: Count = Field(
        default=2_000_000,
        description="validation tokens to use at most; a larger part is sampled evenly, and it is said",
    )
    save_every: Count | None = Field(
        default=None,
        description="steps between checkpoints, besides validations; else none, and with minutes about 15 s",
    )
    keep: Count = Field(default=2, description="checkpoints to keep, besides the best one")
    patience: Count | None = Field(
        default=None, description="stop after this many validations without a new best; else never early"
    )
    grad_clip: Annotated[float, Field(ge=0.0)] = Field(
        default=1.0, description="largest norm of the gradient; 0: no limit"
    )
    spike_sigma: Annotated[float, Field(ge=0.0)] = Field(
        default=6.0,
        description="a batch whose loss or gradient lies so many deviations above the last 128 steps' is passed over; "
        "0: only what is no number",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="number format of matrix products; auto: bf16, on a CPU also fp16, where the device gains by it",
    )
    compile: bool | None = Field(
        default=None,
        description="compile the model with torch.compile, about a minute before the first step; else on GPUs only, "
        "where training takes ten minutes and more; on CPUs nothing is gained",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1 or mps")
    sample_tokens: Annotated[int, Field(ge=0)] = Field(
        default=64, description="tokens of sample text written at each validation; 0: none"
    )
    sample_prompt: str = Field(default="", description="text that each sample continues; else a new document")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=1337, description="number that fixes initial weights, data order and dropout"
    )

    @model_validator(mode="after")
    def _one_length(self) -> "TrainSettings":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give --train.steps or --train.epochs, not both")
        return self


class OptimSettings(Section):
    """The optimizer: Muon (Jordan et al. 2024) with AdamW (Loshchilov & Hutter 2019), or AdamW alone."""

    name: Literal["auto", "muon", "adamw"] = Field(
        default="auto",
        description="muon: the blocks' matrices by Muon, the rest by AdamW; adamw: all by AdamW; auto: muon where a "
        "step has enough tokens to pay for it",
    )
    lr: Rate | None = Field(default=None, description="peak learning rate of AdamW; else by the model's width")
    matrix_lr: Rate | None = Field(
        default=None, description="peak learning rate of Muon; else 0.05 up to 300 steps, 0.03 above"
    )
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(default=0.95, description="Muon's running mean")
    matrix_precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="number format of Muon's products; auto: bf16 where the device has it, and fp32 with "
        "--train.precision fp32",
    )
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] | None = Field(
        default=None,
        description="decoupled weight decay of matrices, none on biases, norms and positions; else 0.1, and 0.5 where "
        "passes times weights for each token of the text are above 120",
    )
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.9, description="decay of the gradient's running mean"
    )
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        default=None, description="decay of its running square; else 0.95 beside Muon and 0.99 alone"
    )
    eps: Positive = Field(default=1e-8, description="added to the root of the running square")


class ScheduleSettings(Section):
    """The learning rate over the run, as a multiple of the peak."""

    name: Literal["cosine", "linear", "wsd", "constant"] = Field(
        default="linear", description="shape after warm-up; wsd: constant, then linear decay at the end"
    )
    warmup: Share = Field(default=0.05, description="share of the run with linear warm-up from zero")
    final: Share = Field(default=0.0, description="multiple of the peak at the end")
    begins: Annotated[int, Field(ge=0)] = Field(
        default=0, description="step that counts as the first; set by --fork", json_schema_extra=NOT_TYPED
    )
    replans: tuple[tuple[int, int], ...] = Field(
        default=(),
        description="(step, new last step): where the run was given another end; set by --finish and minutes",
        json_schema_extra=NOT_TYPED,
    )
    cooldown: Share = Field(default=0.4, description="share of the run that decays (wsd only)")
    average: Share = Field(
        default=0.0,
        description="validate, save and use the weights' mean over about this share of the steps so far, such as 0.25, "
        "in place of the last ones; 0: the last ones",
    )


class LoraSettings(Section):
    """Learn thin products beside the weights instead of the weights (Hu et al. 2021); checkpoints have them merged."""

    rank: Annotated[int, Field(ge=0, le=4096)] = Field(
        default=0, description="rank of the products, such as 8; 0: all weights are learned"
    )
    alpha: Positive | None = Field(default=None, description="factor of the products, times the rank; else twice it")


class TuningSettings(Section):
    """What is tuned, and on what in the sources. Set by `gpt2 tune`."""

    origin: str = Field(description="folder of the checkpoint whose weights it began with")
    base: str = Field(description="folder of a run that keeps them")
    tokenizer: str = Field(description="fingerprint of its tokenizer")
    template: str | None = Field(default=None, description="by which the base's text was made of table rows")
    text: str | None = Field(default=None, description="folder of the prepared text that the base was trained on")
    prompt: str | None = None
    response: str | None = None
    context: str | None = None
    system: str | None = None
    rejected: str | None = None
    preferences: bool = Field(default=False, description="whether the sources have two answers to choose from")
    beta: Positive = 0.1
    replay: Share = 0.0
    lora: LoraSettings = Field(default_factory=LoraSettings)


class DistributedSettings(Section):
    """Several processes that train one model together."""

    processes: Count = Field(default=1, description="processes to start on this machine, by torchrun; one a GPU")
    strategy: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="ddp: each process holds the whole model; fsdp: a share of it, for what does not fit"
    )


class Settings(Section):
    """The whole of a run: with the sources' bytes, this fixes every number that it produces."""

    sources: tuple[Source, ...] = Field(
        default=(),
        description="files, folders or glob patterns; without any, data/, and if that is empty Python's own manuals",
    )
    run: str | None = Field(
        default=None,
        description="name of the run: its folder is runs/NAME, that of a fork beside the run it is from; else from the "
        "first source",
    )
    tokenizer: str = Field(
        default="auto",
        description="gpt2, char, bpe:N (trained on the text, N ids), or auto: gpt2 from 20 MB of text on, else bpe",
    )
    model: ModelSettings = Field(default_factory=ModelSettings)
    data: DataSettings = Field(default_factory=DataSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    optim: OptimSettings = Field(default_factory=OptimSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    distributed: DistributedSettings = Field(default_factory=DistributedSettings)
    tuning: TuningSettings | None = Field(
        default=None, description="set by gpt2 tune; None: trained on text", json_schema_extra=NOT_TYPED
    )

    @field_validator("tokenizer")
    @classmethod
    def _known_tokenizer(cls, value: str) -> str:
        if value in ("auto", "gpt2", "char"):
            return value
        match = re.fullmatch(r"bpe:(\d{1,99})", value)
        if match is None:
            raise ValueError(f"{value!r} is no tokenizer: choose auto, gpt2, char or bpe:N, such as bpe:4096")
        if not 257 <= int(match[1]) <= 200_000:
            raise ValueError(f"{value!r}: N counts the 256 bytes and the end-of-text mark, so 257 to 200000")
        return value

    @field_validator("run")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\w[\w.-]{0,99}", value):
            rule = "a letter or digit, then more of them, '.', '-' and '_', 100 at most"
            raise ValueError(f"{value!r} is no run name: {rule}")
        return value
