"""What is read from real OpenMX runs is what the code computed and printed."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hamnet.blocks import BlockOperator
from hamnet.eigen import eigenvalues, overlap_min_eigenvalue
from hamnet.errors import ReaderError
from hamnet.neighbours import basis_pairs
from hamnet.sample import Sample, mulliken
from hamnet.symmetry import match_atoms, rotate, rotate_spin, time_reverse
from preprocessing.readers.compressed import read_buffer
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.openmx_momentum import overlap_decay_score
from preprocessing.readers.openmx_output import read_out
from preprocessing.readers.openmx_scfout import parse_scfout
from preprocessing.readers.openmx_units import BOHR_ANG, HARTREE_EV
from preprocessing.readers.protocol import ReadOptions, Run

TRACKED = json.loads((Path(__file__).parents[1] / "data" / "openmx" / "manifest.json").read_text())
SETS = {
    "nibr2_sym": 6,
    "nibr2_kinds": 4,
    "nibr2_v38": 5,
    "nibr2_v40": 2,
    "nibr2_1x1": 10,
    "nibr2_2x1": 24,
    "nibr2_2x2": 4,
    "nibr2_r3": 3,
    "nibr2_2x1_shaken": 8,
    "mnbr2_1x1": 4,
    "cri3": 6,
}
"""Sets of HAMNET_DATA and their number of runs."""
DATA = Path(os.environ.get("HAMNET_DATA", Path(__file__).parents[3] / "shared" / "data"))
READER = OpenMXReader()
SPIN = {"none": "none", "collinear": "collinear", "non-collinear": "vector"}


@pytest.fixture(scope="module", params=sorted(TRACKED))
def tracked_run(request, tracked) -> tuple[Run, dict]:
    return READER.read(tracked(f"openmx/{request.param}"), ReadOptions()), TRACKED[request.param]


@pytest.fixture(scope="module")
def symmetric(unpacked) -> dict[str, Run]:
    folder = unpacked("openmx/nibr2_sym")
    return {run.name: READER.read(run, ReadOptions()) for run in sorted(folder.iterdir())}


def assert_as_listed(run: Run, listed: dict, every_band: int) -> None:
    """All numbers of an independent reader, and the printed bands (every n-th k-point)."""
    sample = run.sample
    assert sample.provenance["version"] == listed["code_version"]
    assert sample.provenance["file_version"] == listed["scfout_version"]
    assert sample.provenance["spin"] == SPIN[listed["spin"]] == sample.spin
    assert sample.spin_orbit is listed["spin_orbit"]
    assert len(sample.structure) == listed["atoms"]
    assert sample.overlap.n_orbitals == listed["orbitals"]
    assert len(sample.overlap.pairs) == listed["pairs"]
    assert run.converged
    assert f"{listed['scf_steps']} of" in run.convergence
    assert f"NormRD {listed['last_NormRD']:.3g}" in run.convergence
    assert sample.total_energy_ev == pytest.approx(listed["energy_Ha"] * HARTREE_EV, abs=1e-9)
    assert sample.fermi_energy_ev == pytest.approx(listed["fermi_eV"], abs=1e-9)
    assert sample.charges is not None
    assert sample.charges.sum() == pytest.approx(listed["electrons"], abs=1e-9)
    assert sample.n_electrons == pytest.approx(listed["electrons"], abs=1e-9)
    assert_moments_as_listed(run, listed)
    if listed["constraint"]:
        assert sample.constraint_field_ev is not None
        size_mev = 1e3 * np.linalg.norm(sample.constraint_field_ev, axis=1)
        np.testing.assert_allclose(size_mev, listed["constraint_field_meV"], atol=6e-5)
    else:
        assert sample.constraint_field_ev is None
    smallest = overlap_min_eigenvalue(sample.overlap, [0, 0, 0])
    assert smallest == pytest.approx(listed["overlap_min_eigenvalue_at_gamma"], abs=1e-9)
    for bands in run.references:
        ours = eigenvalues(run.stored_hamiltonian, sample.overlap, bands.k_frac[::every_band])
        worst_ev = np.abs(ours - bands.energies_ev[::every_band]).max()
        assert worst_ev < 1e-5
        assert worst_ev < bands.precision_ev


def assert_moments_as_listed(run: Run, listed: dict) -> None:
    sample = run.sample
    if listed["spin"] == "none":
        assert sample.structure.moments is None
        assert run.printed_moments is None
        assert run.code_moments is None
        return
    moments = np.array(listed["moments_muB"])
    if listed["spin"] == "collinear":
        moments = np.outer(moments, [0, 0, 1])
    assert sample.structure.moments is not None
    assert run.code_moments is not None
    assert run.printed_moments is not None
    np.testing.assert_allclose(sample.structure.moments, moments, atol=1e-6)
    np.testing.assert_allclose(run.code_moments, run.printed_moments, atol=run.moment_precision_mub)


def band_energy_ha(run: Run) -> float:
    """Tr ρH of the stored H."""
    density, h = run.sample.density, run.stored_hamiltonian
    assert density is not None
    pairs = zip(density.blocks, h.blocks, strict=True)
    return 2 * sum(float((rho * block.conj()).real.sum()) for rho, block in pairs) / HARTREE_EV


def printed(folder: Path, run: Run):
    spin_switch = {"none": 0, "collinear": 1, "vector": 3}[run.sample.provenance["spin"]]
    (path,) = folder.glob("*.out")
    return read_out(path, len(run.sample.structure), spin_switch)


# -- numbers of all runs ---------------------------------------------------------------------------------------------


def test_tracked_runs_have_the_listed_energies_moments_fields_and_bands(tracked_run):
    assert_as_listed(*tracked_run, every_band=1)


def test_tracked_runs_are_the_ones_of_their_source_byte_by_byte(tracked_run):
    run, listed = tracked_run
    assert run.sample.provenance["checksum"]["sha256"] == listed["sha256"]


@pytest.mark.parametrize("name", sorted(SETS))
def test_runs_of_a_set_have_the_listed_energies_moments_fields_and_bands(name, unpacked):
    folders = sorted(unpacked(f"openmx/{name}").iterdir())
    listed = json.loads((DATA / "openmx" / "manifest.json").read_text())
    assert len(folders) == SETS[name]
    for folder in folders:
        run = READER.read(folder, ReadOptions(operators=frozenset()))
        assert run.sample.name == f"{name}/{folder.name}"
        assert_as_listed(run, listed[run.sample.name], every_band=9)


def test_band_energy_from_density_and_hamiltonian_is_the_printed_one(tracked, symmetric, unpacked):
    # The only cheap test that sees a wrong sign of any imaginary part of ρ or H.
    runs = {tracked(f"openmx/{name}"): None for name in TRACKED if "v38_nc" not in name}
    runs |= {unpacked("openmx/nibr2_sym") / name: run for name, run in symmetric.items()}
    for folder, run in runs.items():
        run = run or READER.read(folder, ReadOptions())
        uele = printed(folder, run).band_energy_ha
        assert uele is not None
        assert band_energy_ha(run) == pytest.approx(uele, abs=3e-11)


def test_conjugate_density_would_miss_the_band_energy(tracked):
    folder = tracked("openmx/nibr2_1x1_nc")
    run = READER.read(folder, ReadOptions())
    assert run.sample.density is not None
    wrong = replace(run, sample=replace(run.sample, density=run.sample.density.map(torch.conj)))
    uele = printed(folder, run).band_energy_ha
    assert uele is not None
    assert abs(band_energy_ha(wrong) - uele) > 1e-3


def test_charges_are_the_printed_ones(tracked):
    for name, listed in TRACKED.items():
        folder = tracked(f"openmx/{name}")
        run = READER.read(folder, ReadOptions())
        out = printed(folder, run)
        # Charges by half of each bond and by rows are the same, because Re ρ_0 and S are symmetric.
        digits = 6e-6 if listed["spin"] == "non-collinear" else 6e-10
        assert run.sample.charges is not None
        np.testing.assert_allclose(run.sample.charges, out.charges, atol=digits)


def test_forces_are_the_printed_ones_in_ev_per_angstrom(tracked):
    for name in TRACKED:
        folder = tracked(f"openmx/{name}")
        text = next(folder.glob("*.out")).read_text()
        rows = text.split("<coordinates.forces")[1].split("coordinates.forces>")[0].split("\n")[2:-1]
        forces = np.array([row.split()[5:] for row in rows], dtype=float)
        sample = READER.read(folder, ReadOptions()).sample
        assert np.abs(forces).max() > 1e-3
        np.testing.assert_allclose(sample.forces_ev_per_ang, forces * 27.2113845 / 0.529177249, rtol=1e-12)


# -- operators -------------------------------------------------------------------------------------------------------


def test_label_is_exactly_hermitian_and_stored_h_nearly(tracked_run):
    run, _ = tracked_run
    assert run.sample.hamiltonian is not None
    assert run.sample.hamiltonian.hermiticity_violation() == 0
    assert run.sample.overlap.hermiticity_violation() == 0
    assert 0 < run.stored_hamiltonian.hermiticity_violation() < 1e-7


def test_pairs_are_those_of_touching_orbitals(tracked_run):
    sample = tracked_run[0].sample
    assert basis_pairs(sample.structure, sample.basis).equals(sample.overlap.pairs)


@pytest.mark.parametrize("name", sorted(TRACKED))
def test_grid_steps_are_the_printed_ones(name, tracked):
    folder = tracked(f"openmx/{name}")
    text = (folder / "openmx.std").read_text(encoding="utf-8")
    printed = [re.findall(rf"gtv_{axis} = *(\S+), *(\S+), *(\S+)", text)[-1] for axis in "abc"]
    steps_ang = np.array(printed, dtype=float) * BOHR_ANG
    np.testing.assert_allclose(
        READER.read(folder, ReadOptions(operators=frozenset())).sample.structure.grid_axes, steps_ang, atol=1e-10
    )


def test_overlap_of_an_orbital_with_itself_is_one(tracked_run):
    overlap = tracked_run[0].sample.overlap
    for atom in range(overlap.pairs.n_atoms):
        diagonal = torch.diagonal(overlap.block(atom, atom, (0, 0, 0))[0])
        np.testing.assert_allclose(diagonal, 1, atol=2e-3)


def test_position_of_row_and_column_origin_differ_by_bond_times_overlap(tracked_run):
    sample = tracked_run[0].sample
    assert sample.position is not None
    bonds = sample.overlap.pairs.vectors(sample.structure.cell, sample.structure.positions)
    for axis, position in enumerate(sample.position):
        back = position.adjoint()
        for group, here, there, s in zip(
            position.pairs.groups, position.blocks, back.blocks, sample.overlap.blocks, strict=True
        ):
            shift = torch.from_numpy(bonds[group.pairs, axis])[:, None, None, None] * s
            # Integrals on a grid: the format's own accuracy.
            assert float((here - there - shift).abs().max()) < 2e-4


def test_position_on_an_atom_joins_s_only_with_the_p_orbital_along_the_axis(tracked_run):
    sample = tracked_run[0].sample
    assert sample.position is not None
    # House order (y, z, x): x joins s with place 2, y with 0, z with 1. First s and first p shell of Ni.
    ni = list(sample.structure.labels).index("Ni")
    species = sample.basis.species[sample.basis.labels.index("Ni")]
    p = species.shell_slices()[list(species.degrees).index(1)]
    for axis, place in enumerate((2, 0, 1)):
        row = sample.position[axis].block(ni, ni, (0, 0, 0))[0][0, p].abs()
        assert float(row[place]) > 0.05
        assert float(row.sum() - row[place]) < 1e-3


def test_derivative_is_antisymmetric_and_lowers_the_overlap_along_a_bond(tracked_run):
    run, listed = tracked_run
    if listed["scfout_version"] == 0:
        assert run.sample.momentum is None
        return
    assert run.sample.momentum is not None
    score = 0.0
    bonds = run.sample.overlap.pairs.vectors(run.sample.structure.cell, run.sample.structure.positions)
    for axis, momentum in enumerate(run.sample.momentum):
        back = momentum.adjoint()
        worst = max(float((a + b).abs().max()) for a, b in zip(momentum.blocks, back.blocks, strict=True))
        assert worst < 2e-3
        for group, m, s in zip(momentum.pairs.groups, momentum.blocks, run.sample.overlap.blocks, strict=True):
            along = torch.from_numpy(bonds[group.pairs, axis])
            score += float((along * (m * s).sum(dim=(1, 2, 3))).sum())
    # ∂S_ij/∂r_j = −⟨i|∂/∂r|j⟩, and Σ S² falls with the distance.
    assert score > 1


def test_derivative_is_the_commutator_of_position_and_h_on_the_metal_atom(tracked_run):
    run, _ = tracked_run
    sample = run.sample
    if sample.momentum is None:
        return
    assert sample.position is not None
    ni = list(sample.structure.labels).index("Ni")
    block = (ni, ni, (0, 0, 0))
    h = run.stored_hamiltonian.block(*block)[0].real.numpy()
    s = sample.overlap.block(*block)[0].numpy()
    product = norm = 0.0
    for position, momentum in zip(sample.position, sample.momentum, strict=True):
        x, m = position.block(*block)[0].numpy(), momentum.block(*block)[0].numpy()
        # [H, x] = −(ħ²/m) ∂/∂x up to non-local potentials and the neighbours.
        commutator = -(h @ np.linalg.solve(s, x) - x @ np.linalg.solve(s, h))
        product += float((commutator * m).sum())
        norm += float(np.sqrt((commutator**2).sum() * (m**2).sum())) / 3
    assert product / norm / 3 > 0.5


def test_releases_3_9_and_4_0_store_derivatives_of_opposite_sign(tracked):
    raw = {}
    for name in ("nibr2_1x1_nc", "nibr2_v40_nc"):
        (path,) = tracked(f"openmx/{name}").glob("*.scfout")
        raw[name] = parse_scfout(read_buffer(path), path)
    old, new = raw["nibr2_1x1_nc"], raw["nibr2_v40_nc"]
    assert (old.has_xc_tail, new.has_xc_tail) == (True, False)
    # The same crystal on the same grid.
    np.testing.assert_allclose(old.momentum, -new.momentum, atol=1e-6)
    assert overlap_decay_score(old) < -0.3
    assert overlap_decay_score(new) > 0.3
    runs = [READER.read(tracked(f"openmx/{name}"), ReadOptions()).sample for name in raw]
    for a, b in zip(runs[0].momentum or (), runs[1].momentum or (), strict=True):
        assert a.max_abs_difference(b) < 1e-6


def test_density_gives_charges_and_moments_of_the_sample(tracked_run):
    run, listed = tracked_run
    if listed["scfout_version"] == 0 and listed["spin"] == "non-collinear":
        # Its imaginary diagonal blocks are not in the file: no half of a density matrix is handed out.
        assert run.sample.density is None
        assert any("density" in w for w in run.sample.provenance["warnings"])
        return
    assert run.sample.density is not None
    assert run.sample.density.hermiticity_violation() == 0
    charges, moments = mulliken(run.sample.density, run.sample.overlap)
    np.testing.assert_allclose(charges, run.sample.charges, atol=1e-12)
    np.testing.assert_allclose(moments, run.sample.computed_moments, atol=1e-12)


def test_operators_not_asked_for_are_left_out(tracked):
    folder = tracked("openmx/nibr2_1x1_nc")
    bare = READER.read(folder, ReadOptions(operators=frozenset())).sample
    assert (bare.density, bare.position, bare.momentum) == (None, None, None)
    full = READER.read(folder, ReadOptions()).sample
    assert bare.hamiltonian is not None
    assert full.hamiltonian is not None
    assert bare.hamiltonian.max_abs_difference(full.hamiltonian) == 0
    assert np.array_equal(bare.computed_moments, full.computed_moments)


# -- species and moments ---------------------------------------------------------------------------------------------


def test_species_have_shells_cutoffs_and_valence_of_the_input(tracked):
    basis = READER.read(tracked("openmx/nibr2_1x1_nc"), ReadOptions()).sample.basis
    ni, br = basis.species
    assert (ni.label, ni.number, ni.degrees, ni.valence) == ("Ni", 28, (0, 0, 1, 1, 2), 16)
    assert (br.label, br.number, br.degrees, br.valence) == ("Br", 35, (0, 0, 1, 1), 7)
    assert ni.source == "Ni6.0S-s2p2d1 Ni_PBE19S"
    assert ni.cutoff_ang == pytest.approx(6.0 * 0.529177249)
    assert [shell.zeta for shell in ni.shells] == [0, 1, 0, 1, 0]


def test_initial_moments_are_those_of_the_input(tracked):
    folder = tracked("openmx/nibr2_1x1_nc")
    run = READER.read(folder, ReadOptions(moments="initial"))
    rows = (folder / "openmx.dat").read_text().splitlines()
    theta, phi = (float(word) for word in next(r for r in rows if r.startswith(" 1 Ni")).split()[7:9])
    theta, phi = np.deg2rad([theta, phi])
    expected = 2.0 * np.array([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])
    assert run.sample.structure.moments is not None
    np.testing.assert_allclose(run.sample.structure.moments, [expected, [0, 0, 0], [0, 0, 0]], atol=1e-12)
    assert run.sample.provenance["choices"]["moments"] == "initial"
    # What came out of the run is kept beside it.
    assert np.linalg.norm(run.sample.computed_moments[0]) == pytest.approx(1.3, abs=0.1)


# -- constraint ------------------------------------------------------------------------------------------------------


def test_subtracted_penalty_is_the_field_times_overlap(symmetric):
    run = symmetric["base"]
    field, s = run.sample.constraint_field_ev, run.sample.overlap
    assert field is not None
    assert 0.02 < np.linalg.norm(field[0]) < 0.03
    assert not field[[1, 2, 4, 5]].any()
    assert run.sample.hamiltonian is not None
    penalty = run.stored_hamiltonian.symmetrised() - run.sample.hamiltonian
    for group, p, block in zip(s.pairs.groups, penalty.blocks, s.blocks, strict=True):
        mean = (field[s.pairs.row[group.pairs]] + field[s.pairs.col[group.pairs]]) / 2
        expected = torch.from_numpy(mean)[:, :, None, None] * block
        torch.testing.assert_close(p[:, 1:].real, expected, atol=1e-12, rtol=0)
        assert float(p[:, 0].abs().max()) < 1e-12
        assert float(p.imag.abs().max()) < 1e-12


def test_kept_penalty_leaves_h_as_stored(tracked):
    run = READER.read(tracked("openmx/nibr2_1x1_nc"), ReadOptions(constraint="keep"))
    assert run.sample.hamiltonian is not None
    assert run.sample.hamiltonian.max_abs_difference(run.stored_hamiltonian.symmetrised()) == 0
    assert run.sample.constraint_field_ev is not None
    assert run.sample.provenance["included_terms"] == ["direction_constraint"]
    assert run.sample.provenance["choices"]["constraint"] == "keep"


def test_subtraction_makes_turned_moments_without_spin_orbit_more_alike(symmetric):
    # The penalty depends on the direction through the code's b_y; Kohn–Sham H without spin–orbit does not.
    turned = {}
    for name in ("nosoc_base", "nosoc_spinrot"):
        run = symmetric[name]
        turned[name] = (run.sample.hamiltonian, run.stored_hamiltonian)
    q = rotation((1, 2, 3), 1.1)
    clean, stored = (rotate_spin(a, q).mean_abs_difference(b) for a, b in zip(*turned.values(), strict=True))
    assert clean < stored
    assert 1e3 * clean < 0.003


# -- symmetry of the states ------------------------------------------------------------------------------------------


def rotation(axis, angle: float) -> np.ndarray:
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def differences_mev(a: BlockOperator | None, b: BlockOperator | None) -> tuple[float, float]:
    assert a is not None
    assert b is not None
    return 1e3 * a.mean_abs_difference(b), 1e3 * a.max_abs_difference(b)


def turned_by(sample: Sample, target: Sample, q: np.ndarray, shift_ang) -> tuple[Sample, np.ndarray, np.ndarray]:
    structure = sample.structure.rotated(q).translated(shift_ang)
    order, shifts = match_atoms(structure, target.structure)
    return replace(sample, structure=structure.permuted(order, shifts)), order, shifts


def test_time_reversal_maps_h_of_m_to_conj_h_of_minus_m(symmetric):
    base, reversed_state = symmetric["base"].sample, symmetric["time"].sample
    np.testing.assert_allclose(base.structure.moments, -reversed_state.structure.moments, atol=1e-6)
    mean, worst = differences_mev(time_reverse(base.hamiltonian), reversed_state.hamiltonian)
    assert mean < 2e-6
    assert worst < 4e-4
    assert differences_mev(base.hamiltonian, reversed_state.hamiltonian)[1] > 100
    mean, worst = differences_mev(time_reverse(base.density), reversed_state.density)
    assert worst < 4e-4


def test_inversion_through_the_metal_plane_maps_h_and_leaves_moments(symmetric):
    base, inverted = symmetric["base"].sample, symmetric["inversion"].sample
    image, order, shifts = turned_by(base, inverted, -np.eye(3), [0, 0, 12.0])
    np.testing.assert_allclose(image.structure.moments, inverted.structure.moments, atol=1e-6)
    mean, worst = differences_mev(rotate(base.hamiltonian, -np.eye(3)).permuted(order, shifts), inverted.hamiltonian)
    assert mean < 1e-6
    assert worst < 4e-4
    mean, worst = differences_mev(rotate(base.density, -np.eye(3)).permuted(order, shifts), inverted.density)
    assert worst < 4e-4


def test_quarter_turn_of_crystal_and_moments_turns_h_within_the_grid_error(symmetric):
    base, turned = symmetric["base"].sample, symmetric["rot90z"].sample
    q = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    image, order, shifts = turned_by(base, turned, q, [0, 0, 0])
    # The state itself differs a little: other real-space grid, and the code's b_y is not that of a vector.
    np.testing.assert_allclose(image.structure.moments, turned.structure.moments, atol=2e-3)
    mean, worst = differences_mev(rotate(base.hamiltonian, q).permuted(order, shifts), turned.hamiltonian)
    assert mean < 3e-3
    assert worst < 1.5
    mean, _ = differences_mev(rotate(base.hamiltonian, q, spin=False).permuted(order, shifts), turned.hamiltonian)
    assert mean > 1


def test_spin_rotation_without_spin_orbit_turns_the_spin_of_h_alone(symmetric):
    base, turned = symmetric["nosoc_base"].sample, symmetric["nosoc_spinrot"].sample
    q = rotation((1, 2, 3), 1.1)
    np.testing.assert_allclose(base.structure.moments @ q.T, turned.structure.moments, atol=2e-3)
    mean, worst = differences_mev(rotate_spin(base.hamiltonian, q), turned.hamiltonian)
    assert mean < 3e-3
    assert worst < 1.5
    assert differences_mev(rotate_spin(base.hamiltonian, q.T), turned.hamiltonian)[0] > 1


def test_reader_recognises_folders_and_files_of_openmx_only(tracked, tmp_path):
    folder = tracked("openmx/nibr2_unpolarised")
    assert READER.recognises(folder)
    assert READER.recognises(folder / "nibr2.scfout")
    assert not READER.recognises(folder / "nibr2.out")
    assert not READER.recognises(tmp_path)
    assert not READER.recognises(tmp_path / "missing")


def test_a_folder_without_scfout_names_the_input_switch(tmp_path):
    with pytest.raises(ReaderError, match=r"HS\.fileout on"):
        READER.read(tmp_path, ReadOptions())
    with pytest.raises(ReaderError, match="no such file"):
        READER.read(tmp_path / "missing", ReadOptions())
