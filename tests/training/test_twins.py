"""Samples of one input are found in every guise, and those with different Hamiltonians are refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hamnet.errors import ConfigError
from hamnet.sample import Sample
from hamnet.store import SampleSet, write_samples
from hamnet.symmetry import time_reverse
from hamnet.training.config import Selection
from hamnet.training.run import train
from hamnet.training.samples import SampleList, select
from hamnet.training.survey import survey
from hamnet.training.twins import disagreement, find_twins
from preprocessing.readers import read_run

MAGNETIC = ("Fe_fept_SOC", "Pt_fept_SOC")


@pytest.fixture(scope="module")
def supercell(fept_set) -> Sample:
    """2×1×1 FePt: four atoms with moments of four directions."""
    with SampleSet(fept_set) as samples:
        return samples["fept_soc_2x1x1_c01"]


def listed(tmp_path, *samples: Sample) -> SampleList:
    path = tmp_path / f"twins{len(list(tmp_path.iterdir()))}.h5"
    write_samples(path, (replace(sample, name=f"s{n}") for n, sample in enumerate(samples)))
    return select([Selection(str(path))], seed=0, key="train")


def permuted(sample: Sample, order, shifts) -> Sample:
    """The same crystal with its atoms in another order and in other cells."""
    operators = {name: sample.operator(name).permuted(order, shifts) for name in ("hamiltonian", "overlap")}
    structure = sample.structure.permuted(order, shifts)
    return Sample(sample.name, structure, sample.basis, spin_orbit=True, provenance=sample.provenance, **operators)


def moved(sample: Sample, *, by_ang=(0, 0, 0), moments=None) -> Sample:
    structure = sample.structure.translated(by_ang)
    return replace(sample, structure=structure if moments is None else structure.with_moments(moments))


def test_a_crystal_is_found_again_after_translation_and_renumbering(tmp_path, supercell):
    order = [2, 3, 0, 1]  # keeps the species where they are
    other = moved(permuted(supercell, order, [[0, 0, 0], [1, 0, -2], [0, 3, 0], [-1, 0, 0]]), by_ang=(0.7, -5.1, 2.3))
    samples = listed(tmp_path, supercell, other)
    (twins,) = find_twins(samples, survey(samples).basis, MAGNETIC)
    assert (twins.first, twins.second) == (0, 1)
    size = disagreement(samples, samples, survey(samples).basis, twins)
    assert size.largest_mev < 1e-9
    # Blocks in the order of the file alone are those of other pairs.
    wrong = replace(twins, order=np.arange(4), shifts=np.zeros((4, 3), int))
    assert disagreement(samples, samples, survey(samples).basis, wrong).largest_mev > 1


@pytest.mark.parametrize("name", ["swap", "wrap"])
def test_real_runs_with_atoms_renumbered_or_in_other_cells_agree(unpacked, tmp_path, name):
    runs = unpacked("siesta/fept_soc_sym")
    samples = listed(tmp_path, *(read_run(runs / n).sample for n in ("base", name)))
    (twins,) = find_twins(samples, survey(samples).basis, MAGNETIC)
    assert disagreement(samples, samples, survey(samples).basis, twins).largest_mev < 1e-3


def test_other_moments_or_positions_are_another_input(tmp_path, supercell):
    turned = np.array(supercell.structure.moments)
    turned[0] = turned[0][::-1]
    closer = np.array(supercell.structure.moments)
    closer[1] += 5e-4
    pushed = np.array(supercell.structure.positions)
    pushed[2, 0] += 0.02
    shaken = replace(supercell, structure=replace(supercell.structure, positions=pushed))
    samples = listed(tmp_path, supercell, moved(supercell, moments=turned), moved(supercell, moments=closer), shaken)
    assert [(t.first, t.second) for t in find_twins(samples, survey(samples).basis, MAGNETIC)] == [(0, 2)]
    # Moments of another size are the same input where directions alone are one.
    longer = listed(tmp_path, supercell, moved(supercell, moments=1.1 * np.array(supercell.structure.moments)))
    assert list(find_twins(longer, survey(longer).basis, MAGNETIC)) == []
    assert len(list(find_twins(longer, survey(longer).basis, MAGNETIC, sizes=False))) == 1
    # Moments of a species that is not magnetic are no input: the first atom is Fe.
    twins = [(t.first, t.second) for t in find_twins(samples, survey(samples).basis, MAGNETIC[1:])]
    assert twins == [(0, 1), (0, 2)]


def test_the_order_of_moments_counts(tmp_path, supercell):
    """Two antiferromagnetic orders with equal sets of moments are different inputs."""
    up, down = np.array([0.0, 0.0, 2.5]), np.array([0.0, 0.0, -2.5])
    iron = supercell.structure.numbers == 26
    first, second = (np.zeros((4, 3)) for _ in range(2))
    first[iron], second[iron] = [up, up], [up, down]
    samples = listed(tmp_path, moved(supercell, moments=first), moved(supercell, moments=second))
    assert list(find_twins(samples, survey(samples).basis, MAGNETIC)) == []


@pytest.fixture
def contradictory(tmp_path, fept_set):
    """``contradictory.h5``: the last sample has structure and moments of the first, but H of another state."""
    with SampleSet(fept_set) as samples:
        base, other = samples["fept_soc_sym_base"], samples["fept_soc_2x1x1_c01"]
    wrong = replace(base, name="branch", hamiltonian=time_reverse(base.hamiltonian), total_energy_ev=-1.0)
    write_samples(tmp_path / "contradictory.h5", [base, other, wrong])
    return tmp_path / "contradictory.h5"


def test_samples_that_contradict_each_other_are_refused_by_name(tiny, contradictory):
    message = (
        r"'fept_soc_sym_base'.* and 'branch' \(E = -1\.0000 eV\) are the same input, but their Hamiltonians differ by "
        r"up to 2\d\d\d\.\d meV \(mean .* meV; after the best shift μS up to .*contradictions = 'allow'"
    )
    with pytest.raises(ConfigError, match=message):
        train(tiny(f"data.train={{path='{contradictory}'}}"))


def test_contradictions_can_be_allowed(tiny, contradictory):
    said = []
    options = (f"data.train={{path='{contradictory}'}}", "data.contradictions=allow", "training.epochs=1")
    train(tiny(*options), say=said.append)
    assert any("warning: 'fept_soc_sym_base'" in line and "are the same input" in line for line in said)


def test_repeated_samples_are_told(tiny, tmp_path, fept_set):
    with SampleSet(fept_set) as samples:
        base = samples["fept_soc_sym_base"]
    write_samples(tmp_path / "same.h5", [base, replace(base, name="again")])
    said = []
    options = [f"data.{key}={{path='{tmp_path}/{key}.h5'}}" for key in ("train", "validation")]
    (tmp_path / "train.h5").symlink_to(tmp_path / "same.h5")
    write_samples(tmp_path / "validation.h5", [replace(base, name="held")])
    train(tiny(*options, "training.epochs=1"), say=said.append)
    text = "\n".join(said)
    assert "1 training samples repeat the input of another one, as again that of fept_soc_sym_base" in text
    assert "all training samples are alike" in text
    assert "1 validation samples have the input of a training sample, as held that of fept_soc_sym_base" in text
