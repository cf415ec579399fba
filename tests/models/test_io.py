"""Model files: what is written is read, and nothing else is taken for a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hamnet.errors import ModelError
from hamnet.models.hamiltonian import ModelConfig
from hamnet.models.io import FORMAT_VERSION, TrainedOn, build_model, load_model, save_model
from hamnet.neighbours import basis_pairs
from tests.small_models import BASIS, crystal

CONFIG = ModelConfig(l_max=2, channels=4, hidden=4, pair_channels=4, product_channels=2, n_layers=1, n_radial=4)
LIMITS = TrainedOn("vector", True, "openmx", "subtract", {"Ni-Br": (2.1, 4.0)}, {"Ni": (0.5, 1.5)})


def model(dtype: torch.dtype = torch.float64, seed: int = 0):
    return build_model("edge-frame", CONFIG, BASIS, (1.2, 0.0), seed=seed).to(dtype)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tmp_path / "m.safetensors", model(), name="edge-frame", trained_on=LIMITS, provenance={"seed": 3})
    return tmp_path / "m.safetensors"


def rewritten(path: Path, **changes) -> Path:
    """The file with other values in its header."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["hamnet"])
    save_file(load_file(path), path, metadata={"hamnet": json.dumps({**header, **changes})})
    return path


def test_a_loaded_model_predicts_the_same_bits(saved):
    structure = crystal()
    pairs = basis_pairs(structure, BASIS)
    loaded = load_model(saved)
    expected, found = (m.hamiltonian(structure, pairs) for m in (model(), loaded.model))
    assert all(torch.equal(a, b) for a, b in zip(expected.blocks, found.blocks, strict=True))


def test_a_loaded_model_knows_what_it_was_trained_on(saved):
    loaded = load_model(saved)
    assert loaded.trained_on == LIMITS
    assert loaded.provenance == {"seed": 3}
    assert loaded.model.config == CONFIG
    assert loaded.model.basis == BASIS
    assert loaded.model.moment_scale == (1.2, 0.0)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_precision_of_the_file_is_kept_unless_another_is_asked_for(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, model(torch.float32), name="edge-frame", trained_on=LIMITS, provenance={})
    assert next(load_model(path).model.parameters()).dtype == torch.float32
    wide = load_model(path, dtype=torch.float64).model
    assert next(wide.parameters()).dtype == torch.float64
    # Coupling coefficients are computed, not stored: they are exact in either precision.
    reference = dict(model().named_buffers())
    for name, buffer in wide.named_buffers():
        if name not in wide.state_dict() and buffer.is_floating_point():
            assert torch.equal(buffer, reference[name]), name


def test_weights_are_drawn_with_the_seed_and_leave_other_random_numbers_alone():
    state = torch.get_rng_state()
    first, again, other = (list(model(seed=seed).parameters()) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("version", "remedy"), [(FORMAT_VERSION + 1, "newer hamnet"), (FORMAT_VERSION - 1, "Train it anew")]
)
def test_another_format_is_refused_with_both_numbers(saved, version, remedy):
    both = rf"format version {version}; expected format version {FORMAT_VERSION}.*{remedy}"
    with pytest.raises(ModelError, match=both):
        load_model(rewritten(saved, format_version=version))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, r"format 'other'; expected format 'hamnet-model'"),
        ({"model": "edge-lattice"}, r"model 'edge-lattice'; expected one of edge-frame"),
        ({"config": {**CONFIG.to_dict(), "channels": 8}}, r"damaged, or of another code version"),
        ({"config": {"depth": 3}}, r"damaged, or of another code version.*depth"),
        ({"basis": {"species": [{}]}}, r"damaged, or of another code version"),
        ({"moment_scale_mub": [1.0]}, r"damaged, or of another code version: 1 moment scales"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(saved, changes, message):
    with pytest.raises(ModelError, match=r"m\.safetensors: " + message):
        load_model(rewritten(saved, **changes))


def test_other_files_are_not_taken_for_models(tmp_path, saved):
    with pytest.raises(ModelError, match=r"no such file.*hamnet train"):
        load_model(tmp_path / "nowhere.safetensors")
    with pytest.raises(ModelError, match=r"a folder.*m.*hamnet train"):
        load_model(tmp_path)
    text = tmp_path / "text.safetensors"
    text.write_text("no model", encoding="utf-8")
    with pytest.raises(ModelError, match="not a model file, or a damaged one"):
        load_model(text)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a model file, or a damaged one"):
        load_model(cut)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.ones(3)}, foreign)
    with pytest.raises(ModelError, match="a safetensors file of something else"):
        load_model(foreign)


def test_a_failed_write_leaves_the_old_file(tmp_path, saved, monkeypatch):
    before = saved.read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ModelError, match=r"cannot be written.*No space left"):
        save_model(saved, model(seed=1), name="edge-frame", trained_on=LIMITS, provenance={})
    assert saved.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [saved.name]


def test_the_same_model_makes_the_same_file(tmp_path):
    sums = [
        save_model(tmp_path / name, model(), name="edge-frame", trained_on=LIMITS, provenance={"a": 1})
        for name in ("one", "two")
    ]
    assert sums[0] == sums[1] == load_model(tmp_path / "one").checksum
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
