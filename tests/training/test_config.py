"""Configurations: what is wrong is named with file, section and key; what is right arrives unchanged."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from hamnet.errors import ConfigError
from hamnet.models.hamiltonian import ModelConfig
from hamnet.training.config import (
    DataConfig,
    OptimiserConfig,
    OutputConfig,
    TrainConfig,
    TrainingConfig,
    load_config,
    parse_config,
)
from hamnet.training.losses import LOSSES

MINIMAL = """
[data]
train = "set.h5"
validation = "other.h5"
[training]
epochs = 1
"""


@pytest.fixture
def load(tmp_path: Path):
    def read(text: str, *overrides: str, **keywords) -> TrainConfig:
        (tmp_path / "train.toml").write_text(text, encoding="utf-8")
        return load_config(tmp_path / "train.toml", overrides, **keywords)

    return read


def test_a_minimal_configuration_takes_every_default(load, tmp_path):
    config = load(MINIMAL)
    assert config.data.train[0].path == str(tmp_path / "set.h5")
    assert config.output.dir == str(tmp_path / "run")
    assert config.model.mode == "auto"
    assert config.model.magnetic is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data]\ntrain = 'a'\nvalidation = 'b'\n[trainnig]\n", r"unknown section 'trainnig'.*Did you mean 'training'"),
        (MINIMAL + "batchsize = 3", r"\[training\]: unknown key 'batchsize'.*Did you mean 'batch_size'"),
        (MINIMAL + "[model]\nchanels = 3", r"\[model\]: unknown key 'chanels'.*Did you mean 'channels'"),
        (MINIMAL + "[model]\nname = 'edge-fram'", r"\[model\]: name = 'edge-fram'.*Did you mean 'edge-frame'"),
        (MINIMAL + "[model]\nn_layers = 0", r"\[model\]: n_layers = 0; expected at least 1"),
        (MINIMAL + "[model]\nl_max = 2.5", r"\[model\] l_max: 2.5; expected a whole number"),
        (MINIMAL + "[model]\nmode = 'so'", r"\[model\] mode: 'so'; expected one of auto, none.*Did you mean"),
        (MINIMAL + "[optimiser]\nlr = '0.1'", r"\[optimiser\] lr: '0.1'; expected a number"),
        (MINIMAL + "[optimiser]\nlr = true", r"\[optimiser\] lr: True; expected a number"),
        (MINIMAL + "[optimiser]\nlr = nan", r"\[optimiser\] lr: nan; expected a number"),
        (MINIMAL + "[optimiser]\nlr = -1", r"\[optimiser\]: lr = -1.0; expected a positive rate"),
        (MINIMAL + "[optimiser]\nbetas = [0.9]", r"\[optimiser\] betas: \[0.9\]; expected a list of 2"),
        (MINIMAL + "[optimiser]\nschedule = 'cosin'", r"schedule: 'cosin'.*Did you mean 'cosine'"),
        (MINIMAL + "loss = 'maee'", r"\[training\]: loss = 'maee'.*Did you mean 'mae'"),
        (MINIMAL + "batch_size = 0", r"\[training\]: batch_size = 0; expected at least 1"),
        (MINIMAL + "dtype = 'float16'", r"\[training\] dtype: 'float16'; expected one of float32, float64"),
        ("[data]\ntrain = 'a'\nvalidation = 'b'\n", r"no \[training\]"),
        ("[data]\ntrain = 'a'\nvalidation = 'b'\n[training]\n", r"neither epochs nor max_minutes"),
        (
            "[data]\ntrain = 'a'\n[training]\nepochs = 1",
            r"neither a set nor validation_fraction.*validation_fraction = 0.1",
        ),
        ("[data]\nvalidation = 'a'\n[training]\nepochs = 1", r"\[data\]: no key 'train'"),
        ("[data]\ntrain = []\nvalidation = 'a'\n[training]\nepochs = 1", r"\[data\]: train = \[\]"),
        ("[data]\ntrain = 3\nvalidation = 'a'\n[training]\nepochs = 1", r"\[data\] train: 3; expected a table"),
        (
            "[data]\ntrain = {path = 'a', fraction = 1.5}\nvalidation = 'a'\n[training]\nepochs = 1",
            r"\[data\] train: fraction = 1.5; expected above 0",
        ),
        ("data = 3", r"\[data\]: 3; expected a table"),
        ("[data", r"no valid TOML"),
    ],
)
def test_a_wrong_configuration_is_refused_with_file_and_key(load, text, message):
    with pytest.raises(ConfigError, match=r"train\.toml.*" + message):
        load(text)


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        load_config(tmp_path / "nowhere.toml")


def test_keys_can_be_set_from_the_command_line(load, tmp_path):
    config = load(
        MINIMAL, "training.epochs=7", "model.magnetic=['Ni']", "optimiser.schedule=constant", "data.cache=none", seed=5
    )
    assert (config.training.epochs, config.training.seed) == (7, 5)
    assert config.model.magnetic == ("Ni",)
    assert (config.optimiser.schedule, config.data.cache) == ("constant", "none")


@pytest.mark.parametrize("override", ["epochs=3", "training.epochs", "training=3"])
def test_a_malformed_override_is_refused(load, override):
    with pytest.raises(ConfigError, match=r"--set .*section\.key=value"):
        load(MINIMAL, override)


def test_paths_of_overrides_are_relative_to_the_working_directory(load, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load(MINIMAL, "output.dir=here", "data.test=more.h5")
    assert config.output.dir == str(elsewhere / "here")
    assert config.data.test[0].path == str(elsewhere / "more.h5")
    assert config.data.train[0].path == str(tmp_path / "set.h5")


def test_a_saved_configuration_reads_back_as_the_same(load):
    config = load(MINIMAL + "[model]\nchannels = 8\nmagnetic = ['Ni']")
    assert parse_config(config.to_dict()) == config


EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_lists_every_key_with_its_default():
    text = (EXAMPLES / "training.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    config = load_config(EXAMPLES / "training.toml")
    for section in ("data", "model", "optimiser", "training", "output"):
        value = getattr(config, section)
        required = {"train", "validation"} if section == "data" else {"epochs"} if section == "training" else set()
        listed = {f.name for f in fields(value)} - {"settings", "magnetic", "start", "validation_fraction"}
        assert set(table[section]) == listed, section
        defaults = type(value)(**{name: getattr(value, name) for name in required})
        for name in listed - required - {"dir"}:
            assert getattr(value, name) == getattr(defaults, name), name
    assert all(f.name in text for f in fields(ModelConfig) if f.name != "mean_neighbours")


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_a_valid_configuration(path):
    assert load_config(path).training.epochs or load_config(path).training.max_minutes


def test_the_page_on_training_names_every_key_and_default():
    page = (EXAMPLES.parent / "docs" / "training.md").read_text(encoding="utf-8")
    for section in (DataConfig, OptimiserConfig, TrainingConfig, OutputConfig):
        for f in fields(section):
            assert f"`{f.name}`" in page, f.name
    assert all(loss in page for loss in LOSSES)
