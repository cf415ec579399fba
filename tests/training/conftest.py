"""Sample sets made from the tracked DFT runs, and a configuration of a model that trains in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hamnet.store import SampleSet, write_samples
from hamnet.training.config import TrainConfig, load_config
from hamnet.training.run import train
from preprocessing.readers import read_run

FEPT = ("fept_soc_sym_base", "fept_soc_sym_rot", "fept_soc_2x1x1_c01")
OTHERS = ("fe_bcc_nc_a060", "fe_collinear_c00", "si_none_c00")

TINY = """
[data]
train = { path = "fept.h5", names = "fept_soc_*", exclude = "*2x1x1*" }
validation = { path = "fept.h5", names = "*2x1x1*" }

[model]
cutoff_ang = 4.0
n_layers = 1
l_max = 2
channels = 4
hidden = 4
pair_channels = 4
product_channels = 2
n_radial = 4
n_two_centre = 2

[optimiser]
warmup_steps = 2

[training]
epochs = 3
batch_size = 2
threads = 1

[output]
dir = "run"
"""


@pytest.fixture(scope="session")
def fept_set(tracked: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``fept.h5``: three SIESTA runs of FePt with spin–orbit coupling and prescribed moments."""
    small = tracked("siesta/small")
    path = tmp_path_factory.mktemp("sets") / "fept.h5"
    write_samples(path, (replace(read_run(small / name).sample, name=name) for name in FEPT))
    return path


@pytest.fixture(scope="session")
def mixed_set(tracked: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``mixed.h5``: runs of every spin kind, which no one model can learn."""
    small = tracked("siesta/small")
    path = tmp_path_factory.mktemp("sets") / "mixed.h5"
    write_samples(path, (replace(read_run(small / name).sample, name=name) for name in (*FEPT[:1], *OTHERS[1:])))
    return path


@pytest.fixture(scope="session")
def materials_set(fept_set: Path, tracked: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``materials.h5``: FePt in two cells by SIESTA and NiBr2 by OpenMX, all with spin–orbit coupling.

    Where they come from is taken away: two codes would not be trained on together.
    """
    path = tmp_path_factory.mktemp("sets") / "materials.h5"
    with SampleSet(fept_set) as samples:
        fept = [samples["fept_soc_sym_base"], samples["fept_soc_2x1x1_c01"]]
    nibr2 = replace(read_run(tracked("openmx/nibr2_1x1_nc")).sample, name="nibr2")
    write_samples(path, (replace(sample, provenance={}) for sample in (*fept, nibr2)))
    return path


@pytest.fixture
def tiny(fept_set: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """``tiny("training.epochs=5", …)`` is a configuration of a tiny model on ``fept.h5``."""
    (tmp_path / "fept.h5").symlink_to(fept_set)
    (tmp_path / "train.toml").write_text(TINY, encoding="utf-8")

    def config(*overrides: str, **keywords) -> TrainConfig:
        return load_config(tmp_path / "train.toml", overrides, **keywords)

    return config


@pytest.fixture(scope="session")
def fept_model(fept_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model file of a short run on ``fept.h5``: it is not good, but it is a model."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "fept.h5").symlink_to(fept_set)
    (folder / "train.toml").write_text(TINY, encoding="utf-8")
    return Path(train(load_config(folder / "train.toml", ["training.epochs=10"])).model_path)
