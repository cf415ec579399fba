"""Fine-tuning: a trained model learns further from a few other samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hamnet.errors import BasisError, ConfigError, ModelError
from hamnet.models.io import load_model
from hamnet.store import SampleSet, write_samples
from hamnet.training.evaluate import evaluate
from hamnet.training.run import train


@pytest.fixture
def further(tiny, fept_model: Path, tmp_path: Path):
    """Go on from a model of the small FePt cell with one sample of the 2×1 cell, judged by the small cell."""
    small, large = ("names='*sym_base'", "names='*2x1x1*'")
    options = [f"data.train={{path='{tmp_path}/fept.h5', {large}}}"]
    options += [f"data.validation={{path='{tmp_path}/fept.h5', {small}}}"]
    text = (tmp_path / "train.toml").read_text()
    network = text[text.index("[model]") : text.index("[optimiser]")]
    (tmp_path / "train.toml").write_text(text.replace(network, f"[model]\nstart = '{fept_model}'\n\n"))

    def config(*more: str):
        return tiny(*options, "training.batch_size=1", *more)

    return config


def error(path: str | Path, samples: Path, name: str) -> float:
    with SampleSet(samples) as source:
        found = evaluate(load_model(path), [(source[name], None)], bands=False).to_dict()
    return found["mae_meV"]


def test_the_first_step_begins_with_what_the_start_predicts(further, fept_model, fept_set):
    result = train(further("training.epochs=1", "optimiser.lr=1e-12")).to_dict()
    for key, name in (("train", "fept_soc_2x1x1_c01"), ("validation", "fept_soc_sym_base")):
        assert result["errors"][key]["mae_meV"] == pytest.approx(error(fept_model, fept_set, name), rel=1e-4)
    old, new = (load_model(path).model.state_dict() for path in (fept_model, result["model"]))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old if key.endswith((".scale", ".shift")))


def test_a_few_samples_of_another_cell_are_learned_faster_from_a_start(further, tiny, tmp_path, fept_model, fept_set):
    name = "fept_soc_2x1x1_c01"
    before = error(fept_model, fept_set, name)
    options = ("training.epochs=15", "output.export=last")
    result = train(further(*options)).to_dict()
    assert result["errors"]["train"]["mae_meV"] < 0.7 * before
    entry = load_model(result["model"])
    assert entry.provenance["start_sha256"] == load_model(fept_model).checksum
    assert entry.provenance["config"]["model"]["start"] == "model.safetensors"
    # Limits of use are those of both trainings.
    old, new = load_model(fept_model).trained_on, entry.trained_on
    for key, (low, high) in old.species_pairs.items():
        assert new.species_pairs[key][0] <= low
        assert new.species_pairs[key][1] >= high


def test_a_fine_tuning_is_resumed_with_its_start_alone(further, tmp_path):
    train(further("training.epochs=4", f"output.dir={tmp_path / 'whole'}"))
    train(further("training.epochs=2"))
    # The schedule falls to the end of the run: what was resumed had another one at first, so only the weights' kind and
    # the count of steps can be compared.
    result = train(further("training.epochs=4"), resume=True).to_dict()
    assert result["steps"] == 4
    path = json.loads((tmp_path / "run" / "config.json").read_text())["model"]["start"]
    other = tmp_path / "other.safetensors"
    other.write_bytes(Path(path).read_bytes())
    train(further("training.epochs=5", f"model.start={other}"), resume=True)  # the same file elsewhere
    whole = tmp_path / "whole" / "model.safetensors"
    with pytest.raises(ConfigError, match="start is not that of the run to be resumed"):
        train(further("training.epochs=6", f"model.start={whole}"), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.channels=8", r"\[model\]: channels = 8 for a start with channels = 4.*Leave channels out"),
        ("model.mode=spin-group", r"mode = 'spin-group' for data with spin kind vector"),
        ("model.magnetic=['Fe']", r"magnetic = \['Fe'\]; expected \['Fe_fept_SOC', 'Pt_fept_SOC'\], as in the start"),
    ],
)
def test_another_network_than_that_of_the_start_is_refused(further, change, message):
    with pytest.raises(ConfigError, match=message):
        train(further(change))


def test_a_start_that_is_not_there_is_named(further, tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.safetensors: no such file"):
        train(further(f"model.start={tmp_path}/nowhere.safetensors"))


def changed(tmp_path: Path, fept_set: Path, **changes) -> list[str]:
    """Options for a training and a validation sample with other fields."""
    with SampleSet(fept_set) as samples:
        write_samples(tmp_path / "changed.h5", [replace(s, **changes) for s in (samples[0], samples[1])])
    names = {"train": "base", "validation": "rot"}
    return [f"data.{key}={{path='{tmp_path}/changed.h5', names='*{name}'}}" for key, name in names.items()]


def test_another_basis_under_the_same_label_is_refused(further, tmp_path, fept_set):
    with SampleSet(fept_set) as samples:
        basis = samples[0].basis
    species = tuple(replace(s, source="another pseudopotential") for s in basis.species)
    with pytest.raises(BasisError, match=r"species Fe_fept_SOC with two bases: .*another pseudopotential"):
        train(further(*changed(tmp_path, fept_set, basis=replace(basis, species=species))))


def test_samples_of_another_kind_than_the_start_are_refused(further, tmp_path, fept_set):
    with pytest.raises(ConfigError, match="code = openmx; expected siesta, as in the start"):
        train(further(*changed(tmp_path, fept_set, provenance={"code": "openmx"})))


def test_samples_without_the_moments_that_the_start_takes_are_refused(further, tmp_path, fept_set):
    with SampleSet(fept_set) as samples:
        bare = samples[0].structure.with_moments(None)
    with pytest.raises(ConfigError, match="without moments of Fe_fept_SOC, Pt_fept_SOC"):
        train(further(*changed(tmp_path, fept_set, structure=bare)))
