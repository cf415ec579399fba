"""A random model in a file, and a crystal of a thousand atoms that no two atoms share their surroundings in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hamnet.models.hamiltonian import ModelConfig
from hamnet.models.io import LoadedModel, TrainedOn, build_model, load_model, save_model
from hamnet.structure import Structure
from hamnet.supercell import tile_structure
from large_crystals import scattered
from small_models import BASIS, crystal

CONFIG = {
    "cutoff_ang": 3.2,
    "n_layers": 2,
    "l_max": 2,
    "channels": 2,
    "hidden": 2,
    "pair_channels": 3,
    "product_channels": 2,
    "n_radial": 4,
    "n_two_centre": 2,
    # Twice what the crystal has: with random weights H is then of the size of eV, which tolerances are meant for.
    "mean_neighbours": 24.0,
}
KNOWN = TrainedOn("vector", True, "openmx", None, {f"{a}-{b}": (0.5, 9.0) for a in ("Ni", "Br") for b in ("Ni", "Br")})


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``model_file("soc", n_layers=1)`` is a file with random weights in float64; Ni is magnetic, Br is not."""
    folder = tmp_path_factory.mktemp("models")

    def make(mode: str = "soc", *, name: str = "edge-frame", basis=BASIS, **changes) -> Path:
        # Bases of the tests differ in their largest orbital counts.
        path = folder / f"{name}_{mode}_{basis.n_orbitals.max()}_{'_'.join(map(str, changes.values()))}.safetensors"
        if not path.exists():
            scale = tuple(1.2 if label == "Ni" else 0.0 for label in basis.labels)
            model = build_model(name, ModelConfig(mode=mode, **{**CONFIG, **changes}), basis, scale, seed=3)
            save_model(path, model, name=name, trained_on=KNOWN, provenance={})
        return path

    return make


@pytest.fixture(scope="session")
def loaded(model_file) -> LoadedModel:
    return load_model(model_file())


@pytest.fixture(scope="session")
def large() -> Structure:
    """1029 atoms: a skewed cell repeated 7 × 7 × 7, every atom moved, every moment its own."""
    return scattered(tile_structure(crystal(), np.diag([7, 7, 7])))


@pytest.fixture(scope="session")
def small() -> Structure:
    """36 atoms, made in the same way."""
    return scattered(tile_structure(crystal(), np.diag([2, 3, 2])))
