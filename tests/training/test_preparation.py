"""Networks that begin from a trained one: what they keep, and what they learn anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hamnet.basis import Basis
from hamnet.models.io import load_model
from hamnet.predict import predict_operator
from hamnet.sample import Sample
from hamnet.store import SampleSet, write_samples
from hamnet.training.config import TrainConfig
from hamnet.training.preparation import prepare_model
from hamnet.training.run import train
from hamnet.training.selection import TrainingData


def renamed(sample: Sample, old: str, new: str) -> Sample:
    """The same crystal with another name for one of its species: to a model, a species that it does not know."""
    basis = Basis(tuple(replace(s, label=new) if s.label == old else s for s in sample.basis.species))
    assert [s.number for s in basis.species] == [s.number for s in sample.basis.species]
    labels = tuple(new if label == old else label for label in sample.structure.labels)
    return Sample(
        sample.name,
        replace(sample.structure, labels=labels),
        basis,
        overlap=replace(sample.operator("overlap"), basis=basis),
        hamiltonian=replace(sample.operator("hamiltonian"), basis=basis),
        spin_orbit=sample.spin_orbit,
        provenance=sample.provenance,
    )


@pytest.fixture
def with_new_species(
    fept_set: Path, fept_model: Path, tiny: Callable[..., TrainConfig], tmp_path: Path
) -> Callable[..., TrainConfig]:
    """Configuration of a model that begins from that of FePt, on the same crystals with platinum by another name."""
    with SampleSet(fept_set) as samples:
        write_samples(tmp_path / "other.h5", [renamed(s, "Pt_fept_SOC", "Pt_other") for s in samples])

    def config(*overrides: str) -> TrainConfig:
        sets = [f"data.{key}={{ path = '{tmp_path / 'other.h5'}' }}" for key in ("train", "validation")]
        names = [s.replace(" }", f", names = '{n}' }}") for s, n in zip(sets, ("*base", "*rot"), strict=True)]
        base = tiny(*names, "training.batch_size=1", *overrides)
        return replace(base, model=replace(base.model, start=str(fept_model), settings={}))

    return config


def test_a_new_species_leaves_predictions_for_the_old_ones_as_they_were(with_new_species, fept_model, fept_set):
    start = load_model(fept_model, dtype=torch.float64)
    config = with_new_species()
    model, limits, _ = prepare_model(config, TrainingData.select(config), say=lambda text: None)
    assert model.basis.labels == ("Fe_fept_SOC", "Pt_fept_SOC", "Pt_other")
    assert {"Fe_fept_SOC-Pt_fept_SOC", "Fe_fept_SOC-Pt_other"} <= set(limits.species_pairs)
    with SampleSet(fept_set) as samples:
        sample = samples[0]
    pairs = sample.operator("hamiltonian").pairs
    before = predict_operator(start, sample.structure, pairs)
    after = predict_operator(replace(start, model=model.eval()), sample.structure, pairs)
    assert max(float((a - b).abs().max()) for a, b in zip(after.blocks, before.blocks, strict=True)) < 1e-10


def test_a_known_species_by_another_name_acts_on_its_neighbours_as_it_did(with_new_species, fept_model, fept_set):
    """It begins as the species that is most like it: blocks of iron alone are those of the start, to the digit."""
    start, said = load_model(fept_model, dtype=torch.float64), []
    config = with_new_species()
    model, _, _ = prepare_model(config, TrainingData.select(config), say=said.append)
    assert "Pt_other begins as Pt_fept_SOC, the species of the start that is most like it" in said
    with SampleSet(fept_set) as samples:
        sample = samples[0]
    before = predict_operator(start, sample.structure, sample.operator("hamiltonian").pairs)
    other = renamed(sample, "Pt_fept_SOC", "Pt_other").with_basis(model.basis)
    after = predict_operator(replace(start, model=model.eval()), other.structure, other.operator("hamiltonian").pairs)
    iron = [label.startswith("Fe") for label in sample.structure.labels].index(True)
    shifts = before.pairs.shift[(before.pairs.row == iron) & (before.pairs.col == iron)].tolist()
    assert len(shifts) > 1
    for shift in shifts:
        blocks = [operator.block(iron, iron, tuple(shift)) for operator in (after, before)]
        assert float((blocks[0] - blocks[1]).abs().max()) < 1e-10


def test_a_model_learns_a_new_species(with_new_species, tmp_path):
    def error(epochs: int) -> float:
        config = with_new_species(f"training.epochs={epochs}", f"output.dir='{tmp_path / f'run{epochs}'}'")
        return train(config).to_dict()["errors"]["validation"]["mae_meV"]

    assert error(40) < 0.7 * error(1)
