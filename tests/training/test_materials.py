"""One model of several materials: species of different bases, crystals of different sizes, in one run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hamnet.errors import ConfigError
from hamnet.models.graph import Graph
from hamnet.models.io import load_model
from hamnet.predict import predict
from hamnet.store import SampleSet, write_samples
from hamnet.training.batches import join_batches, map_tensors, prepare
from hamnet.training.config import Selection
from hamnet.training.evaluate import evaluate
from hamnet.training.run import train
from hamnet.training.samples import SampleList, select
from hamnet.training.survey import survey
from preprocessing.readers import read_run


def selected(*selections: Selection) -> SampleList:
    return select(selections, seed=0, key="train")


def test_a_model_of_two_materials_serves_both(tiny, materials_set, tmp_path):
    (tmp_path / "copy.h5").symlink_to(materials_set)
    options = (f"data.train='{materials_set}'", f"data.validation='{tmp_path}/copy.h5'", "model.magnetic=['Fe', 'Ni']")
    first = train(tiny(*options, "training.epochs=1", f"output.dir={tmp_path / 'first'}"))
    last = train(tiny(*options, "training.epochs=20", "training.batch_size=1", "training.batch_pairs=400"))
    one, two = (load_model(result.model_path) for result in (first, last))
    assert two.model.basis.labels == ("Fe_fept_SOC", "Ni", "Br", "Pt_fept_SOC")
    with SampleSet(materials_set) as samples:
        for sample in samples:
            before, after = (evaluate(model, [(sample, None)], bands=False).to_dict() for model in (one, two))
            assert after["mae_meV"] < 0.9 * before["mae_meV"], sample.name
            predicted = predict(two, sample.structure, source=sample).sample
            assert predicted.hamiltonian.hermiticity_violation() < 1e-5


def test_every_readout_of_every_material_is_fitted_before_the_first_step(tiny, materials_set, tmp_path):
    (tmp_path / "copy.h5").symlink_to(materials_set)
    options = (f"data.train='{materials_set}'", f"data.validation='{tmp_path}/copy.h5'", "model.magnetic=['Fe', 'Ni']")
    path = train(tiny(*options, "training.epochs=1", "optimiser.lr=1e-12")).model_path
    model = load_model(path).model
    labels = model.basis.labels
    together = {"Ni-Br", "Ni-Ni", "Br-Br", "Fe_fept_SOC-Fe_fept_SOC", "Fe_fept_SOC-Pt_fept_SOC"}
    together |= {"Pt_fept_SOC-Pt_fept_SOC", "Br-Ni"}
    for key, readout in model.pair_readout.items():
        a, b = (labels[int(number)] for number in key.split("_"))
        fitted = not torch.equal(readout.scale, torch.ones_like(readout.scale))
        assert fitted == (f"{a}-{b}" in together), (a, b)


def test_joined_crystals_of_different_species_are_the_graph_of_all_of_them(materials_set):
    samples = selected(Selection(str(materials_set)))
    basis = survey(samples).basis
    structures = list(samples.structures())
    operators = [samples.operator(index, "hamiltonian", basis) for index in range(len(samples))]
    single = [
        prepare(Graph.build([s], [h.pairs], basis, 4.0, dtype=torch.float64), h, "soc")
        for s, h in zip(structures, operators, strict=True)
    ]
    joined = join_batches(single).graph
    whole = Graph.build(structures, [h.pairs for h in operators], basis, 4.0, dtype=torch.float64)
    found, expected = [], []
    map_tensors(joined, lambda t: (found.append(t), t)[1])
    map_tensors(whole, lambda t: (expected.append(t), t)[1])
    assert len(found) == len(expected) > 40
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# -- one label, two bases ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_bases(tracked, tmp_path_factory):
    """NiBr2 by two versions of OpenMX, whose basis sets differ: ``new.h5`` and ``old.h5``."""
    folder = tmp_path_factory.mktemp("bases")
    for name, run in (("new", "nibr2_1x1_nc"), ("old", "nibr2_v38_nc")):
        sample = read_run(tracked(f"openmx/{run}")).sample
        write_samples(folder / f"{name}.h5", [replace(sample, name=name, spin_orbit=True)])
    return folder


def test_a_label_with_two_bases_is_refused_with_both_samples_and_what_helps(two_bases):
    sets = [Selection(str(two_bases / f"{name}.h5")) for name in ("new", "old")]
    message = r"species (Ni|Br) with two bases: .*PBE19.*PBE13.*in samples 'new' and 'old'.*labels = \{ (Ni|Br) = "
    with pytest.raises(ConfigError, match=message):
        survey(selected(*sets))


def test_a_species_can_be_called_otherwise(two_bases):
    renamed = Selection(str(two_bases / "old.h5"), labels={"Ni": "Ni_13", "Br": "Br_13"})
    samples = selected(Selection(str(two_bases / "new.h5")), renamed)
    found = survey(samples)
    assert set(found.basis.labels) == {"Ni", "Br", "Ni_13", "Br_13"}
    assert set(found.trained_on.species_pairs) >= {"Ni-Br", "Ni_13-Br_13"}
    assert samples.structure(1).labels == ("Ni_13", "Br_13", "Br_13")
    # Its Hamiltonian is that of the set, block by block.
    with SampleSet(two_bases / "old.h5") as source:
        theirs = source[0].hamiltonian
    ours = samples.operator(1, "hamiltonian", found.basis)
    assert all(torch.equal(a, b) for a, b in zip(ours.blocks, theirs.blocks, strict=True))
    assert np.array_equal(ours.pairs.shift, theirs.pairs.shift)
    assert samples.checksum() != selected(*[Selection(str(two_bases / f"{n}.h5")) for n in ("new", "old")]).checksum()


def test_new_names_of_species_that_a_set_does_not_have_are_refused(two_bases):
    with pytest.raises(ConfigError, match=r"labels = \{'Mn': 'x'\} of \[data\] train; expected .* Ni, Br"):
        selected(Selection(str(two_bases / "new.h5"), labels={"Mn": "x"}))
