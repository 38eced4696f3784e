import math
from pathlib import Path

import pytest

from gpt2.config.command_line import command_line
from gpt2.config.load import overlay, read_toml, validate
from gpt2.config.presets import PRESETS
from gpt2.config.resolve import (
    resolve_micro_batch,
    resolve_model,
    resolve_optim,
    resolve_tokenizer,
    resolve_training,
)
from gpt2.config.schema import ModelSettings, OptimSettings, Settings, TrainSettings
from gpt2.config.tuning import TuneSettings, as_run
from gpt2.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_only_what_was_typed_overrides_the_file() -> None:
    typed = command_line(
        Settings, ["a.txt", "b.csv", "--model.n-layer", "3", "--data.columns", "x", "y"], "gpt2", ["sources"]
    )
    assert typed == {"sources": ("a.txt", "b.csv"), "model": {"n_layer": "3"}, "data": {"columns": ("x", "y")}}
    merged = validate(Settings, overlay({"model": {"n_layer": 9, "n_head": 2}, "train": {"seed": 5}}, typed))
    assert (merged.model.n_layer, merged.model.n_head, merged.train.seed) == (3, 2, 5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train": {"step": 3}}, "There is no setting train.step.\nDid you mean train.steps?"),
        ({"train": {"steps": True}}, "train.steps: a number or text is needed, not true."),
        ({"train": 3}, ": a table of settings is needed, [train], not 3."),
        ({"trian": {}}, "There is no setting trian.\nDid you mean train?"),
        ({"train": {"steps": "x"}}, "train.steps: a whole number is needed, not 'x'."),
        ({"train": {"steps": 0}}, "train.steps: must be greater than or equal to 1, not 0."),
        ({"model": {"preset": "gpt-2"}}, "Did you mean gpt2?"),
        ({"tokenizer": "bpe"}, "choose auto, gpt2, char or bpe:N"),
        ({"tokenizer": "bpe:10"}, "257 to 200000"),
        ({"train": {"steps": 5, "epochs": 2}}, "give --train.steps or --train.epochs, not both"),
        ({"optim": {"lr": math.inf}}, "optim.lr: a finite number is needed"),
        ({"run": "../elsewhere"}, "is no run name"),
        ({"data": {"validation": 1}}, "data.validation: must be less than 1"),
    ],
)
def test_a_wrong_setting_is_named_with_the_nearest_right_one(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(Settings, values)
    assert said in str(error.value)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        validate(Settings, {"train": {"steps": 0, "seed": "x"}, "optim": {"lr": -1}})
    assert all(name in error.value.what for name in ("train.steps", "train.seed", "optim.lr"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_configuration_in_the_repository_is_valid_and_holds_only_differences(path: Path) -> None:
    values = read_toml(path)
    if path.stem.endswith("-tune"):
        defaults: Settings | TuneSettings = validate(TuneSettings, {"base": "run"})
        validate(TuneSettings, {"base": "run", **values})
    else:
        defaults = Settings()
        resolve_model(validate(Settings, values).model)
    assert len(path.read_text().splitlines()) <= 32

    def differing(given: dict[str, object], defaults: object) -> None:
        for name, value in given.items():
            default = getattr(defaults, name)
            if isinstance(value, dict):
                differing(value, default)
            else:
                assert value != default, f"{name} = {value!r} is the default"

    differing(values, defaults)


def test_a_missing_configuration_names_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "there.toml").write_text("")
    with pytest.raises(ConfigError, match=r"there\.toml"):
        read_toml(tmp_path / "absent.toml")


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError) as error:
        resolve_model(ModelSettings(n_embd=100, n_head=3))
    assert "nearest to yours: 1, 2, 4, 5, 10." in error.value.fix


def test_sizes_come_from_the_preset_unless_given() -> None:
    model = resolve_model(ModelSettings(preset="gpt2-xl", n_layer=2))
    assert (model.n_layer, model.n_head, model.n_embd) == (2, PRESETS["gpt2-xl"].n_head, 1600)


def test_the_vocabulary_grows_with_the_text() -> None:
    assert [resolve_tokenizer("auto", size) for size in (0, 20_000, 10**6, 10**7, 10**8)] == [
        "bpe:512",
        "bpe:512",
        "bpe:4096",
        "bpe:8192",
        "gpt2",
    ]
    assert resolve_tokenizer("char", 10**8) == "char"


@pytest.mark.parametrize(
    ("train", "windows", "steps"),
    [
        (TrainSettings(steps=7), 1000, 7),
        (TrainSettings(epochs=2.5, batch_size=10), 1000, 250),
        (TrainSettings(epochs=0.001, batch_size=10), 10, 1),
        (TrainSettings(batch_size=10), 10, 1000),  # ten epochs would be ten steps
        (TrainSettings(batch_size=10), 3000, 3000),
        (TrainSettings(batch_size=10), 10**6, 10_000),
    ],
)
def test_the_length_of_a_run(train: TrainSettings, windows: int, steps: int) -> None:
    settings = Settings(train=train, model=resolve_model(ModelSettings()))
    resolved = resolve_training(settings, windows, 1000, 2**30)
    assert resolved.train.steps == steps
    assert resolved.optim.lr is not None


SMALL = ModelSettings(n_layer=2, n_head=2, n_embd=64, context_length=128)


@pytest.mark.parametrize(
    ("model", "vocab_size", "windows", "passes", "dropout", "weight_decay"),
    [
        (SMALL, 2048, 177, 8, 0.0, 0.1),
        (SMALL, 2048, 177, 16, 0.0, 0.5),
        (SMALL, 2048, 177, 32, 0.1, 0.5),
        (SMALL, 2048, 1298, 16, 0.0, 0.1),  # more text
        (ModelSettings(n_layer=3, n_head=4, n_embd=128, context_length=128), 2048, 177, 8, 0.1, 0.5),  # a larger model
        (SMALL, 65, 7843, 100, 0.0, 0.1),  # Shakespeare's characters
        (ModelSettings(preset="gpt2"), 50257, 250, 4, 0.1, 0.5),
    ],
)
def test_what_keeps_a_text_from_being_learned_by_heart_follows_what_is_asked_of_it(
    model: ModelSettings, vocab_size: int, windows: int, passes: int, dropout: float, weight_decay: float
) -> None:
    """The best of what was tried (docs/experiments.md). What was given stays, a zero too."""
    train = TrainSettings(steps=passes, batch_size=windows)
    settings = Settings(train=train, model=resolve_model(model))
    resolved = resolve_training(settings, windows, vocab_size, 2**30)
    assert (resolved.model.dropout, resolved.optim.weight_decay) == (dropout, weight_decay)
    zero = settings.model.model_copy(update={"dropout": 0.0})
    given = settings.model_copy(update={"model": zero, "optim": OptimSettings(weight_decay=0.0)})
    kept = resolve_training(given, windows, vocab_size, 2**30)
    assert (kept.model.dropout, kept.optim.weight_decay) == (0.0, 0.0)
    assert resolve_training(resolved, 7, vocab_size, 2**30) == resolved  # as run.json repeats it


def test_the_rate_of_muon_follows_the_length_of_the_run() -> None:
    rates = [resolve_optim(OptimSettings(), 64, 4096, steps, strain=1).matrix_lr for steps in (1, 300, 301, 10_000)]
    assert rates == [0.05, 0.05, 0.03, 0.03]
    assert resolve_optim(OptimSettings(matrix_lr=0.01), 64, 4096, 10_000, strain=1).matrix_lr == 0.01


def test_tuning_has_rates_and_decay_of_its_own() -> None:
    """What a new run chooses from its data was measured there, not here."""
    run = as_run(validate(TuneSettings, {"base": "run"}))
    assert (run.optim.weight_decay, run.schedule.name) == (0.1, "cosine")


def test_the_micro_batch_fits_the_memory() -> None:
    model = resolve_model(ModelSettings(preset="gpt2"))
    sizes = [resolve_micro_batch(model, 50257, 64, memory) for memory in (0, 2**32, 2**33, 2**50)]
    assert sizes[0] == 1
    assert sizes[-1] == 64
    assert sizes == sorted(sizes)
    assert sizes[1] < sizes[2] < 64
