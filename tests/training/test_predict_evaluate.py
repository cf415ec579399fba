"""Predictions and their errors: the same from every road, and refused where the model was not trained for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hamnet.basis import Basis
from hamnet.bloch import bloch_dense
from hamnet.eigen import eigenvalues
from hamnet.errors import BasisError, ModelError, StructureError
from hamnet.models.io import LoadedModel, load_model
from hamnet.neighbours import basis_pairs
from hamnet.predict import count_electrons, predict, prediction_pairs
from hamnet.sample import Sample
from hamnet.store import SampleSet, write_samples
from hamnet.supercell import tile_operator, tile_structure
from hamnet.training.evaluate import compare, evaluate, evaluation_mesh, zero_magnetism


@pytest.fixture(scope="module")
def loaded(fept_model) -> LoadedModel:
    return load_model(fept_model)


@pytest.fixture(scope="module")
def samples(fept_set) -> list[Sample]:
    with SampleSet(fept_set) as stored:
        return list(stored)


@pytest.fixture(scope="module")
def mixed(mixed_set) -> dict[str, Sample]:
    with SampleSet(mixed_set) as stored:
        return {s.name: s for s in stored}


# -- prediction --------------------------------------------------------------------------------------------------------


def test_a_new_structure_gets_the_pair_list_of_the_dft_code(loaded, samples):
    for sample in samples:
        alone = prediction_pairs(loaded, sample.structure, None)
        assert alone.equals(prediction_pairs(loaded, sample.structure, sample))


def test_prediction_is_the_same_with_and_without_an_overlap(loaded, samples):
    source = samples[2]
    with_overlap = predict(loaded, source.structure, source=source).sample
    without = predict(loaded, source.structure).sample
    assert without.overlap is None
    assert with_overlap.overlap is not None
    assert with_overlap.overlap.max_abs_difference(source.overlap) == 0
    assert with_overlap.hamiltonian.max_abs_difference(without.hamiltonian) == 0
    assert with_overlap.n_electrons == without.n_electrons == source.n_electrons == 36


def test_a_stored_prediction_says_that_it_is_one(loaded, samples, tmp_path):
    sample = predict(loaded, samples[0].structure, source=samples[0], name="fept").sample
    write_samples(tmp_path / "fept.h5", [sample])
    with SampleSet(tmp_path / "fept.h5") as stored:
        back = stored["fept"]
    assert back.hamiltonian.max_abs_difference(sample.hamiltonian) == 0
    assert back.provenance["predicted"] is True
    assert back.provenance["model"]["sha256"] == loaded.checksum
    assert back.provenance["overlap"]["checksum"] == samples[0].provenance["checksum"]
    assert back.fermi_energy_ev is None
    assert back.hamiltonian.dtype == torch.complex128


def test_other_moments_on_the_same_overlap_give_another_hamiltonian(loaded, samples):
    structure = samples[0].structure
    turned = structure.with_moments(structure.moments[:, [1, 2, 0]])
    a, b = (predict(loaded, s, source=samples[0]).sample.hamiltonian for s in (structure, turned))
    assert a.max_abs_difference(b) > 1e-3


def test_a_structure_with_chemical_symbols_meets_the_species_of_the_model(loaded, samples):
    structure = replace(samples[0].structure, labels=("Fe", "Pt"))
    sample = predict(loaded, structure).sample
    assert sample.structure.labels == ("Fe_fept_SOC", "Pt_fept_SOC")
    assert count_electrons(loaded, structure) == 18


# -- what a model refuses ----------------------------------------------------------------------------------------------


def test_moments_are_asked_for_where_the_model_takes_them(loaded, samples):
    with pytest.raises(ModelError, match=r"without moments; expected moments of Fe_fept_SOC, Pt_fept_SOC.*--moments"):
        predict(loaded, samples[0].structure.with_moments(None))


def test_moments_are_refused_by_a_model_without_spin(loaded, samples):
    model = load_model(loaded.path).model
    object.__setattr__(model.config, "mode", "none")
    spinless = replace(loaded, model=model)
    with pytest.raises(ModelError, match=r"moments up to .* μ_B; expected no moments"):
        predict(spinless, samples[0].structure)


def test_a_collinear_model_refuses_moments_off_its_axis(loaded, samples):
    model = load_model(loaded.path).model
    object.__setattr__(model.config, "mode", "collinear")
    with pytest.raises(ModelError, match=r"x and y components up to .*; expected moments along z"):
        predict(replace(loaded, model=model), samples[0].structure)


def test_moments_far_from_those_trained_on_are_warned_of(loaded, samples):
    structure = samples[0].structure
    assert predict(loaded, structure).warnings == ()
    large = predict(loaded, structure.with_moments(2 * structure.moments))
    assert any("moments of Fe_fept_SOC" in text and "trained on" in text for text in large.warnings)
    assert large.sample.provenance["warnings"] == list(large.warnings)


def test_unknown_species_are_refused(loaded, samples):
    structure = replace(samples[0].structure, numbers=np.array([25, 78]), labels=("Mn", "Pt"))
    with pytest.raises(BasisError, match=r"species 'Mn' .*is unknown; expected one of Fe_fept_SOC"):
        predict(loaded, structure)


def test_overlapping_atoms_are_refused(loaded, samples):
    structure = samples[0].structure
    positions = structure.positions.copy()
    positions[1] = positions[0] + [0.1, 0, 0]
    with pytest.raises(StructureError, match=r"atoms 0 .* and 1 .* 0\.100 Å apart"):
        predict(loaded, replace(structure, positions=positions))


def test_species_pairs_that_were_never_neighbours_are_refused(loaded, samples):
    limits = replace(loaded.trained_on, species_pairs={"Fe_fept_SOC-Fe_fept_SOC": (2.0, 5.0)})
    with pytest.raises(ModelError, match=r"pairs Fe_fept_SOC-Pt_fept_SOC; expected pairs that the training set has"):
        predict(replace(loaded, trained_on=limits), samples[0].structure)


def test_an_overlap_of_another_structure_is_refused(loaded, samples):
    structure = samples[0].structure
    moved = structure.positions.copy()
    moved[1] += [0.0, 0.01, 0.0]
    with pytest.raises(ModelError, match=r"another crystal: atom 1 \(Pt\w*\) has no counterpart: .* at 0\.01 Å"):
        predict(loaded, replace(structure, positions=moved), source=samples[0])
    with pytest.raises(ModelError, match=r"another crystal: a cell whose lattice vectors miss"):
        predict(loaded, replace(structure, cell=1.01 * structure.cell), source=samples[0])
    with pytest.raises(ModelError, match=r"another crystal"):
        predict(loaded, structure, source=samples[2])


def test_the_overlap_of_a_small_cell_serves_its_supercells_with_atoms_in_any_order(loaded, samples):
    small = samples[0]
    matrix = [[1, 1, 0], [-1, 1, 0], [0, 0, 1]]
    order, shifts = [2, 0, 3, 1], [[0, 0, 0], [1, -1, 0], [0, 0, 2], [0, 0, 0]]
    tiled = tile_structure(small.structure, matrix).permuted(order, shifts)
    texture = tiled.with_moments(tiled.moments * [[1], [-1], [0.9], [1.1]])
    predicted = predict(loaded, texture, source=small).sample
    assert predicted.n_electrons == 2 * small.n_electrons
    expected = tile_operator(small.overlap, matrix).permuted(order, shifts)
    assert predicted.overlap.max_abs_difference(expected.with_basis(predicted.basis)) == 0
    alone = predict(loaded, texture).sample
    assert predicted.hamiltonian.max_abs_difference(alone.hamiltonian) == 0, "the same pairs as from the basis"


def test_an_overlap_in_another_basis_is_refused(loaded, samples):
    source = samples[0]
    fe, pt = source.basis.species
    for other, message in ((replace(fe, source="other"), "two bases"), (replace(fe, label="Fe1"), "species 'Fe1'")):
        basis = Basis((other, pt))
        changed = replace(
            source,
            basis=basis,
            structure=replace(source.structure, labels=(other.label, pt.label)),
            overlap=replace(source.overlap, basis=basis),
            hamiltonian=replace(source.hamiltonian, basis=basis),
        )
        with pytest.raises((ModelError, BasisError), match=message):
            predict(loaded, source.structure, source=changed)
        with pytest.raises((ModelError, BasisError), match=message):
            evaluate(loaded, [(changed, None)], bands=False)


def test_samples_of_another_kind_are_not_evaluated(loaded, samples, mixed):
    sample = samples[0]
    changes = [
        ({"hamiltonian": sample.hamiltonian.map(lambda b: b[:, [0, 3]])}, "spin kind collinear; expected vector"),
        ({"spin_orbit": False}, "spin–orbit coupling off; expected on"),
        ({"provenance": {"code": "openmx"}}, "code openmx; expected siesta"),
        ({"provenance": {"choices": {"constraint": "keep"}}}, "constraint penalty keep; expected none"),
    ]
    for change, message in changes:
        with pytest.raises(ModelError, match=message):
            evaluate(loaded, [(replace(sample, **change), None)], bands=False)
    with pytest.raises(ModelError, match=r"species 'Si\.pbe'; expected one of Fe_fept_SOC, Pt_fept_SOC"):
        evaluate(loaded, [(mixed["si_none_c00"], None)], bands=False)


def test_pairs_beyond_the_reach_of_the_basis_are_refused(loaded, samples):
    wide = Basis(
        tuple(
            replace(s, shells=tuple(replace(shell, cutoff_ang=1.5 * shell.cutoff_ang) for shell in s.shells))
            for s in loaded.model.basis.species
        )
    )
    sample = samples[0]
    pairs = basis_pairs(sample.structure, wide)
    far = replace(sample, overlap=sample.overlap.with_pairs(pairs), hamiltonian=sample.hamiltonian.with_pairs(pairs))
    with pytest.raises(ModelError, match=r"of length .* Å; expected at most .* Å, the reach of the basis"):
        evaluate(loaded, [(far, None)], bands=False)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_perfect_prediction_has_no_error(samples):
    for key, value in compare(samples[0].hamiltonian, samples[0]).to_dict().items():
        if key.startswith(("mae", "bands_m")) and isinstance(value, float):
            assert value == 0, key


def test_errors_of_matrix_elements_are_those_of_the_dense_difference(loaded, samples):
    sample = samples[2]
    predicted = predict(loaded, sample.structure, source=sample).sample.hamiltonian
    found = evaluate(loaded, [(sample, None)], bands=False).to_dict()
    d = np.concatenate([
        (p - t).numpy().transpose(1, 0, 2, 3).reshape(4, -1)
        for p, t in zip(predicted.blocks, sample.hamiltonian.blocks, strict=True)
    ], axis=1)  # fmt: skip
    assert found["mae_meV"] == pytest.approx(1e3 * np.abs(d).mean())
    assert found["mae_spin_free_meV"] == pytest.approx(1e3 * np.abs(d[0]).mean())
    assert found["mae_exchange_meV"] == pytest.approx(1e3 * np.abs(d[1:].real).mean())
    assert found["mae_soc_meV"] == pytest.approx(1e3 * np.abs(d[1:].imag).mean())
    assert found["mae_meV"] == pytest.approx(1e3 * predicted.mean_abs_difference(sample.hamiltonian))
    n = [entry["n_pairs"] for entry in found["mae_by_distance"]]
    assert sum(n) == len(sample.pairs)
    assert found["mae_by_distance"][0]["to_ang"] == 0
    assert n[0] == len(sample.structure)
    assert set(found["mae_by_species_pair"]) == {
        "Fe_fept_SOC-Fe_fept_SOC", "Fe_fept_SOC-Pt_fept_SOC", "Pt_fept_SOC-Pt_fept_SOC"
    }  # fmt: skip
    assert found["samples"][0]["mae_meV"] == found["mae_meV"]
    assert (found["bands_mean_meV"], found["bands_missing_because"]) == (None, "not asked for")


def test_a_shift_by_mu_s_is_an_error_of_matrix_elements_and_none_when_aligned(samples):
    sample, mu = samples[0], 0.05
    shift = sample.overlap.with_spin(4).map(lambda block: (mu * block).to(torch.complex128))
    found = compare(sample.hamiltonian + shift, sample).to_dict()
    s = torch.cat([block.flatten() for block in sample.overlap.blocks])
    assert found["mae_spin_free_meV"] == pytest.approx(1e3 * mu * float(s.abs().mean()))
    assert found["mu_shift_meV"] == pytest.approx(-1e3 * mu)
    assert found["mae_meV_mu_aligned"] < 1e-9
    assert found["bands_mean_meV"] == pytest.approx(1e3 * mu)
    assert found["bands_max_meV"] == pytest.approx(1e3 * mu)
    assert found["bands_mean_meV_aligned"] < 1e-6
    assert found["bands_max_meV_aligned"] < 1e-6


def test_band_errors_compare_states_by_index_in_the_window_of_the_dft_energies(samples):
    sample = samples[0]
    changed = sample.hamiltonian.map(lambda block: block * 1.01)
    k_frac = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.25], [0.1, 0.2, 0.3]])
    found = compare(changed, sample, k_frac=k_frac).to_dict()
    energies = eigenvalues(sample.hamiltonian, sample.overlap, k_frac)
    inside = np.abs(energies - sample.fermi_energy_ev) <= 2.0
    difference = 0.01 * np.abs(energies[inside])
    assert found["bands_n_states"] == inside.sum() > 10
    assert found["bands_mean_meV"] == pytest.approx(1e3 * difference.mean())
    assert found["bands_max_meV"] == pytest.approx(1e3 * difference.max())
    signed = 0.01 * energies[inside]
    aligned = np.abs(signed - signed.mean())
    assert found["bands_mean_meV_aligned"] == pytest.approx(1e3 * aligned.mean())
    assert found["bands_max_meV_aligned"] == pytest.approx(1e3 * aligned.max())


def test_the_smallest_eigenvalue_of_the_overlap_is_that_at_the_k_of_the_bands(samples):
    sample, k_frac = samples[0], np.array([[0.0, 0.0, 0.0], [0.1, 0.2, 0.3]])
    found = compare(sample.hamiltonian, sample, k_frac=k_frac).to_dict()["overlap_min_eigenvalue"]
    smallest = np.linalg.eigvalsh(bloch_dense(sample.overlap, k_frac).numpy()).min()
    assert found == pytest.approx(float(smallest), rel=1e-6)
    assert compare(sample.hamiltonian, sample, bands=False).to_dict()["overlap_min_eigenvalue"] is None


def test_on_site_errors_are_those_of_the_self_pairs(samples):
    sample = samples[2]
    is_self = sample.pairs.is_self
    changed = sample.hamiltonian.map(torch.clone)
    for group, block in zip(changed.pairs.groups, changed.blocks, strict=True):
        block[torch.as_tensor(is_self[group.pairs])] += 0.003  # to σ_0 and to Re of σ_xyz
    found = compare(changed, sample, bands=False).to_dict()
    for kind in ("mae", "rmse"):
        values = [found["onsite"][f"{kind}{part}_meV"] for part in ("", "_spin_free", "_exchange", "_soc")]
        assert values == pytest.approx([3.0, 3.0, 3.0, 0.0])
    assert {e["to_ang"] for e in found["mae_by_distance"] if e["mae_meV"] > 0} == {0}


def test_baselines_are_the_sizes_of_what_they_leave_out(samples):
    sample = samples[0]
    found = compare(sample.hamiltonian, sample, bands=False).to_dict()["baselines"]
    blocks = sample.hamiltonian.blocks
    n = sum(block.numel() for block in blocks)
    magnetic = sum(float(block[:, 1:].abs().sum()) for block in blocks)
    assert found["zero_magnetism"]["mae_meV"] == pytest.approx(1e3 * magnetic / n)
    assert found["zero_magnetism"]["mae_spin_free_meV"] == 0
    assert found["zero"]["mae_meV"] == pytest.approx(1e3 * sum(float(b.abs().sum()) for b in blocks) / n)
    assert zero_magnetism(sample.hamiltonian).n_spin == 4


def test_errors_of_several_samples_are_those_of_all_their_elements(loaded, samples):
    each = [evaluate(loaded, [(sample, None)], bands=False).to_dict() for sample in samples]
    together = evaluate(loaded, [(sample, None) for sample in samples], bands=False).to_dict()
    sizes = [sum(block.numel() for block in sample.hamiltonian.blocks) for sample in samples]
    expected = np.average([e["mae_meV"] for e in each], weights=sizes)
    assert together["mae_meV"] == pytest.approx(expected)
    assert [s["name"] for s in together["samples"]] == [s.name for s in samples]


def test_training_and_evaluation_report_the_same_errors(loaded, samples):
    # The network's own half of the pairs, with weights, against all stored pairs.
    validation = evaluate(loaded, [(samples[2], None)], bands=False).to_dict()
    reported = loaded.provenance["errors"]["validation"]
    for key, value in reported.items():
        assert validation[key] == pytest.approx(value, rel=1e-4)


def test_samples_without_a_fermi_energy_or_an_overlap_tell_why_there_are_no_bands(loaded, samples):
    for change, reason in (({"fermi_energy_ev": None}, "no Fermi energy"), ({"overlap": None}, "no overlap")):
        found = evaluate(loaded, [(replace(samples[0], **change), None)]).to_dict()
        assert found["bands_mean_meV"] is None
        assert reason in found["bands_missing_because"]
        assert found["mae_meV"] > 0


def test_a_slab_has_one_k_point_across_and_the_mesh_is_gamma_centred(samples):
    mesh = evaluation_mesh(replace(samples[0].structure, cell=np.diag([3.0, 6.0, 30.0])))
    counts = [len(np.unique(mesh[:, axis])) for axis in range(3)]
    assert counts == [5, 3, 1]
    assert (mesh[0] == 0).all()


def test_a_structure_without_a_grid_takes_that_of_its_overlap(loaded, samples):
    steps = np.diag([0.12, 0.13, 0.14])
    source = replace(samples[0], structure=replace(samples[0].structure, grid_axes=steps))
    predicted = predict(loaded, samples[0].structure, source=source).sample
    np.testing.assert_array_equal(predicted.structure.grid_axes, steps)


def test_a_model_trained_without_a_grid_does_not_react_to_one(loaded, samples):
    structure = samples[0].structure
    with_grid = replace(structure, grid_axes=np.diag([0.12, 0.13, 0.14]))
    plain, other = (predict(loaded, s).sample.hamiltonian for s in (structure, with_grid))
    assert plain.max_abs_difference(other) == 0
