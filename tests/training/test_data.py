"""Which samples are chosen, whether they belong together, and what becomes of them on the way to a training step."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from hamnet.errors import ConfigError, HamnetError, StoreError
from hamnet.models.graph import Graph
from hamnet.models.readout import blocks_from_parts
from hamnet.store import SampleSet, write_samples
from hamnet.training.batches import join_batches, map_tensors, prepare
from hamnet.training.config import Selection
from hamnet.training.run import train
from hamnet.training.samples import SampleList, select, split
from hamnet.training.survey import choose_magnetic, choose_mode, survey


def all_of(path) -> SampleList:
    return select([Selection(str(path))], seed=0, key="train")


# -- selection ---------------------------------------------------------------------------------------------------------


def test_samples_are_selected_by_pattern_and_exclusion(fept_set):
    chosen = select([Selection(str(fept_set), ("fept_soc_*",), ("*rot",))], seed=0, key="train")
    assert [name for _, name in chosen.places] == ["fept_soc_sym_base", "fept_soc_2x1x1_c01"]


def test_a_fraction_is_drawn_with_the_seed(fept_set):
    drawn = {
        seed: tuple(select([Selection(str(fept_set), fraction=0.34)], seed=seed, key="train").places)
        for seed in (*range(12), 0)
    }
    assert all(len(places) == 1 for places in drawn.values())
    assert len(set(drawn.values())) > 1


def test_a_pattern_that_fits_nothing_is_refused_with_names_that_exist(fept_set):
    with pytest.raises(ConfigError, match=r"no sample fits 'nibr2\*'.*fept_soc_sym_base"):
        select([Selection(str(fept_set), ("nibr2*",))], seed=0, key="train")


def test_everything_excluded_is_refused(fept_set):
    with pytest.raises(ConfigError, match="train selects no sample"):
        select([Selection(str(fept_set), ("*",), ("fept*",))], seed=0, key="train")


def test_a_sample_selected_twice_is_refused(fept_set):
    with pytest.raises(ConfigError, match="selected twice"):
        select([Selection(str(fept_set)), Selection(str(fept_set), ("*base",))], seed=0, key="train")


def test_a_missing_set_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere\.h5"):
        select([Selection(str(tmp_path / "nowhere.h5"))], seed=0, key="train")


def test_held_back_samples_are_not_trained_on(fept_set):
    samples = all_of(fept_set)
    rest, held = split(samples, 0.3, seed=1)
    assert sorted(rest.places + held.places) == sorted(samples.places)
    assert len(held) == 1
    with pytest.raises(ConfigError, match="leaves none to learn from"):
        split(SampleList(samples.places[:1]), 0.5, seed=1)


def test_a_sample_in_train_and_validation_is_refused(tiny):
    path = tiny().data.train[0].path
    config = tiny(f"data.validation={{path='{path}', names='*rot'}}")
    with pytest.raises(ConfigError, match=r"'fept_soc_sym_rot' is in train and in validation"):
        train(config)


# -- do they belong together -------------------------------------------------------------------------------------------


def test_survey_finds_species_distances_and_moments(fept_set):
    found = survey(all_of(fept_set))
    assert found.basis.labels == ("Fe_fept_SOC", "Pt_fept_SOC")
    assert found.trained_on.spin == "vector"
    assert found.trained_on.spin_orbit is True
    assert found.prescribed
    low, high = found.trained_on.species_pairs["Fe_fept_SOC-Pt_fept_SOC"]
    assert 2 < low < 3 < high
    assert 2 < found.trained_on.moments_mub["Fe_fept_SOC"][0] < 3.2
    assert found.n_atoms == 8


def test_mixed_spin_kinds_are_refused(mixed_set):
    with pytest.raises(ConfigError, match=r"spin kind vector in sample 'fept.*and collinear in 'fe_coll"):
        survey(all_of(mixed_set))


def changed(tmp_path, source, *changes):
    """A copy of the set in which sample n has the fields of ``changes[n]``."""
    path = tmp_path / "changed.h5"
    with SampleSet(source) as samples:
        write_samples(path, [replace(samples[n], **change) for n, change in enumerate(changes)])
    return path


def test_spin_orbit_on_and_off_are_not_mixed(tmp_path, fept_set):
    path = changed(tmp_path, fept_set, {}, {"spin_orbit": False})
    with pytest.raises(ConfigError, match=r"spin–orbit coupling on in sample 'fept_soc_sym_base' and off in"):
        survey(all_of(path))


def test_constraint_choices_are_not_mixed(tmp_path, fept_set):
    def choice(value):
        return {"provenance": {"code": "openmx", "choices": {"constraint": value}}}

    for other in ("subtract", None):
        path = changed(tmp_path, fept_set, choice("keep"), choice(other))
        with pytest.raises(ConfigError, match=r"constraint penalties kept in H of 'fept_soc_sym_base'.*--constraint"):
            survey(all_of(path))
    # A run without a constraint has nothing to subtract.
    assert (
        survey(all_of(changed(tmp_path, fept_set, choice("subtract"), choice(None)))).trained_on.constraint
        == "subtract"
    )


def test_a_sample_without_a_hamiltonian_is_refused(tmp_path, fept_set):
    path = changed(tmp_path, fept_set, {}, {"hamiltonian": None})
    with pytest.raises(ConfigError, match="'fept_soc_sym_rot' has no Hamiltonian"):
        survey(all_of(path))


def test_species_of_validation_that_training_lacks_are_refused(tiny, mixed_set):
    with pytest.raises(ConfigError, match=r"species Si.* in \[data\] validation"):
        train(tiny(f"data.validation={{path='{mixed_set}', names='si_none*'}}"))


def test_labels_that_are_all_constant_leave_nothing_to_learn(tiny, tmp_path, fept_set):
    with SampleSet(fept_set) as samples:
        zero = [replace(s, hamiltonian=s.hamiltonian * 0.0) for s in (samples[0], samples[1])]
    write_samples(tmp_path / "zero.h5", zero)
    with pytest.raises(ConfigError, match="nothing is left to learn"):
        train(tiny(f"data.train={{path='{tmp_path}/zero.h5'}}"))


# -- what is decided from the data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["auto", "soc"])
def test_the_mode_is_that_of_the_data(fept_set, asked):
    assert choose_mode(asked, survey(all_of(fept_set)).trained_on) == "soc"


@pytest.mark.parametrize("asked", ["none", "collinear", "spin-group"])
def test_a_mode_that_does_not_fit_the_data_is_refused(fept_set, asked):
    with pytest.raises(ConfigError, match=rf"mode = '{asked}' for data with spin kind vector.*mode = 'soc'"):
        choose_mode(asked, survey(all_of(fept_set)).trained_on)


def test_collinear_data_do_not_train_a_vector_mode(mixed_set):
    found = survey(select([Selection(str(mixed_set), ("fe_collinear*",))], seed=0, key="train")).trained_on
    with pytest.raises(ConfigError, match=r"mode = 'soc' for data with spin kind collinear.*mode = 'collinear'"):
        choose_mode("soc", found)


def test_induced_moments_are_no_input_but_prescribed_ones_are(fept_set):
    found = survey(all_of(fept_set))
    assert choose_magnetic(None, "soc", found)[0] == ("Fe_fept_SOC", "Pt_fept_SOC")
    assert choose_magnetic(None, "soc", replace(found, prescribed=False))[0] == ("Fe_fept_SOC",)
    assert choose_magnetic(["Pt"], "soc", found)[0] == ("Pt_fept_SOC",)
    with pytest.raises(ConfigError, match=r"\[model\] magnetic: 'Ni' is no species.*Fe_fept_SOC"):
        choose_magnetic(["Ni"], "soc", found)


# -- batches -----------------------------------------------------------------------------------------------------------


def prepared(fept_set, mode="soc"):
    samples = all_of(fept_set)
    basis = survey(samples).basis
    result = []
    for index in range(len(samples)):
        hamiltonian = samples.operator(index, "hamiltonian", basis)
        structure = samples.structure(index)
        graph = Graph.build([structure], [hamiltonian.pairs], basis, 4.0, dtype=torch.float64)
        result.append((structure, hamiltonian, prepare(graph, hamiltonian, mode)))
    return basis, result


def test_joined_crystals_are_the_graph_of_all_of_them(fept_set):
    basis, parts = prepared(fept_set)
    joined = join_batches([batch for _, _, batch in parts])
    whole = Graph.build([s for s, _, _ in parts], [h.pairs for _, h, _ in parts], basis, 4.0, dtype=torch.float64)
    assert {f.name for f in fields(Graph)} == {f.name for f in fields(whole)}
    found, expected = [], []
    map_tensors(joined.graph, lambda t: (found.append(t), t)[1])
    map_tensors(whole, lambda t: (expected.append(t), t)[1])
    assert len(found) == len(expected) > 15
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_targets_with_their_weights_stand_for_every_stored_pair(fept_set):
    _, parts = prepared(fept_set)
    for _, hamiltonian, batch in parts:
        assert sum(float(w.sum()) for w in batch.weights) == len(hamiltonian.pairs)
        total = sum(
            float((blocks_from_parts(t, "soc").abs() * w[:, None, None, None]).sum())
            for t, w in zip(batch.targets, batch.weights, strict=True)
        )
        # Up to the Hermiticity of the stored H, ~1e-7 eV.
        assert total == pytest.approx(sum(float(b.abs().sum()) for b in hamiltonian.blocks), rel=1e-6)


def test_a_mode_that_would_drop_spin_orbit_coupling_is_refused(fept_set):
    with pytest.raises(ConfigError, match=r"imaginary parts of H up to .* meV.*use mode 'soc'"):
        prepared(fept_set, "spin-group")


def test_a_sample_of_a_larger_set_is_read_on_the_basis_of_the_model(mixed_set):
    samples = select([Selection(str(mixed_set), ("si_none*",))], seed=0, key="train")
    basis = survey(samples).basis
    assert basis.labels == ("Si.pbe",)
    with SampleSet(mixed_set) as source:
        theirs = source["si_none_c00"].hamiltonian
    ours = samples.operator(0, "hamiltonian", basis)
    assert ours.basis == basis
    assert all(torch.equal(a, b) for a, b in zip(ours.blocks, theirs.blocks, strict=True))
    fept = survey(select([Selection(str(mixed_set), ("fept*",))], seed=0, key="train")).basis
    with pytest.raises(HamnetError, match=r"species 'Si.pbe'; expected one of Fe_fept_SOC, Pt_fept_SOC"):
        samples.operator(0, "hamiltonian", fept)


def test_checksums_tell_other_samples_apart(fept_set):
    samples = all_of(fept_set)
    assert samples.checksum() == SampleList(samples.places).checksum()
    assert samples.checksum() != SampleList(samples.places[::-1]).checksum()
    assert np.unique([SampleList([place]).checksum() for place in samples.places]).size == 3
