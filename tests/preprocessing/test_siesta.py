"""SIESTA runs of all spin kinds, held against what the program printed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import preprocessing.readers.siesta as siesta
from conftest import DATA
from hamnet.eigen import eigenstates, eigenvalues
from hamnet.neighbours import basis_pairs
from preprocessing.readers.protocol import Run
from preprocessing.readers.siesta_blocks import density_pauli
from preprocessing.readers.siesta_output import read_output
from preprocessing.readers.siesta_tables import read_kpoints
from siesta_runs import SMALL, copied, is_run_netcdf, read

SETS = {
    "fept_soc": 10,
    "fept_soc_sym": 8,
    "fept_soc_scf": 3,
    "fept_soc_onsite": 1,
    "fept_soc_train": 40,
    "fept_soc_2x1x1": 4,
    "fe_bcc_nc": 10,
    "fe_collinear": 1,
    "si_none": 1,
}
TEMPERATURE_EV = 300 / 11604.45


@pytest.fixture(scope="session")
def small(tracked):
    folder = tracked("siesta/small")
    return lambda name: folder / name


def check_bands(run: Run) -> None:
    assert len(run.references) == 2
    for reference in run.references:
        ours = eigenvalues(run.stored_hamiltonian, run.sample.overlap, reference.k_frac)
        compared = reference.energies_ev <= reference.highest_ev
        assert compared.sum() > 0.4 * compared.size
        assert np.abs(ours - reference.energies_ev)[compared].max() <= reference.precision_ev


@pytest.mark.parametrize("name", SMALL)
def test_bands_are_those_that_siesta_printed(small, name):
    check_bands(read(small(name)))


@pytest.mark.parametrize("name", SMALL)
def test_pairs_follow_from_the_ranges_of_orbitals_and_projectors(small, name):
    sample = read(small(name)).sample
    assert basis_pairs(sample.structure, sample.basis).equals(sample.hamiltonian.pairs)


@pytest.mark.parametrize("name", SMALL)
def test_sample_operators_are_exactly_hermitian_and_stored_h_nearly(small, name):
    run = read(small(name))
    assert run.sample.hamiltonian.hermiticity_violation() == 0.0
    assert run.sample.overlap.hermiticity_violation() == 0.0
    assert run.sample.overlap.dtype == torch.float64
    assert run.stored_hamiltonian.hermiticity_violation() < 3e-7
    assert run.stored_hamiltonian.max_abs_difference(run.sample.hamiltonian) < 2e-7


@pytest.mark.parametrize(
    ("name", "charge_precision"),
    [("fe_bcc_nc_a060", 6e-6), ("fe_collinear_c00", 1.1e-3), ("fept_soc_sym_base", 6e-6), ("si_none_c00", 6e-4)],
)
def test_mulliken_populations_are_those_that_siesta_printed(small, name, charge_precision):
    folder, run = small(name), read(small(name))
    n_spin = {"none": 1, "collinear": 2, "vector": 4}[run.sample.spin]
    output = next(p for p in folder.iterdir() if p.suffix == ".out")
    printed = read_output(output, len(run.sample.charges), n_spin=n_spin).populations
    assert np.abs(run.sample.charges - printed.charges).max() <= charge_precision
    if n_spin > 1:
        assert np.abs(run.code_moments - run.printed_moments).max() <= run.moment_precision_mub


@pytest.mark.parametrize("name", ["fe_bcc_nc_a060", "fe_collinear_c00", "fept_soc_sym_base", "si_none_c00"])
def test_density_times_overlap_counts_the_electrons(small, name):
    sample = read(small(name)).sample
    assert sample.charges.sum() == pytest.approx(sample.n_electrons, abs=3e-7)


def trace(density, operator) -> float:
    """Tr ρO of a Hermitian O."""
    terms = zip(density.blocks, operator.with_pairs(density.pairs).blocks, strict=True)
    return sum(2 * float((a.to(torch.complex128) * b.conj()).sum().real) for a, b in terms)


def occupied_energy(run: Run, folder) -> float:
    """Σ f E over .EIG with the weights of .KP."""
    kp = next(folder.glob("*.KP")).read_text().split()
    weights = np.array(kp[1:], dtype=float).reshape(-1, 5)[:, 4]
    levels = run.references[0].energies_ev
    exponent = (levels - run.sample.fermi_energy_ev) / TEMPERATURE_EV
    filling = 1 / (1 + np.exp(np.clip(exponent, -500, 500)))
    spin = 2 if run.sample.spin == "none" else 1
    return spin * float(np.einsum("k,kcn,kcn->", weights / weights.sum(), filling, levels))


@pytest.mark.parametrize("name", ["fe_bcc_nc_a060", "fe_collinear_c00", "fept_soc_sym_base", "si_none_c00"])
def test_density_times_hamiltonian_is_the_band_energy(small, name):
    run = read(small(name))
    assert trace(run.sample.density, run.sample.hamiltonian) == pytest.approx(
        occupied_energy(run, small(name)), abs=2e-6
    )


def test_density_read_like_the_hamiltonian_misses_the_band_energy(small, monkeypatch):
    """The transposed reading keeps charges and moments, but not the energy: the two orientations are different."""
    run = read(small("fept_soc_sym_base"))
    monkeypatch.setattr(siesta, "density_pauli", lambda d: density_pauli(d).conj())
    wrong = read.__wrapped__(small("fept_soc_sym_base"))
    assert np.abs(wrong.sample.charges - run.sample.charges).max() < 1e-6
    right_energy = occupied_energy(run, small("fept_soc_sym_base"))
    assert abs(trace(wrong.sample.density, run.sample.hamiltonian) - right_energy) > 1.0


@pytest.mark.parametrize("name", ["fe_bcc_nc_a060", "fept_soc_sym_base"])
def test_density_matrix_is_rebuilt_from_the_states_of_h(small, name):
    """ρ_ij(R) = 1/N_k Σ f c_i c_j* e^{−ik·R}, element by element."""
    run = read(small(name))
    sample, k = run.sample, run.references[0].k_frac
    rho_k = []
    for states in eigenstates(run.stored_hamiltonian, sample.overlap, k):
        filling = torch.special.expit(-(states.energies - sample.fermi_energy_ev) / TEMPERATURE_EV)
        rho_k.append(
            torch.einsum("kcin,kcn,kcjn->kij", states.vectors, filling.to(torch.complex128), states.vectors.conj())
        )
    rho = torch.cat(rho_k)
    offsets = sample.density.orbital_offsets
    pauli = torch.tensor([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]]).to(rho.dtype)
    worst = 0.0
    for group, block in zip(sample.density.pairs.groups, sample.density.blocks, strict=True):
        for p, stored in zip(range(group.pairs.start, group.pairs.stop), block, strict=True):
            i, j = (int(sample.density.pairs.row[p]), int(sample.density.pairs.col[p]))
            phase = torch.from_numpy(np.exp(-2j * np.pi * k @ sample.density.pairs.shift[p])) / len(k)
            cut = rho[:, 2 * offsets[i] : 2 * offsets[i + 1], 2 * offsets[j] : 2 * offsets[j + 1]]
            spinor = torch.einsum("k,kab->ab", phase, cut).reshape(stored.shape[-2], 2, stored.shape[-1], 2)
            rebuilt = torch.einsum("axby,syx->sab", spinor, pauli) / 2
            in_pattern = stored.abs().sum(0) > 0
            difference = (rebuilt if stored.is_complex() else rebuilt.real) - stored
            worst = max(worst, float((difference * in_pattern).abs().max()))
    assert worst < 1e-7


def test_hamiltonian_read_untransposed_misses_the_bands(small, monkeypatch):
    right = siesta.hamiltonian_pauli
    monkeypatch.setattr(siesta, "hamiltonian_pauli", lambda h: right(h).conj())
    run = read.__wrapped__(small("fept_soc_sym_base"))
    reference = run.references[0]
    ours = eigenvalues(run.stored_hamiltonian, run.sample.overlap, reference.k_frac)
    assert np.abs(ours - reference.energies_ev).max() > 0.1


def test_moments_of_a_single_diagonalisation_are_the_prescribed_ones(small):
    run = read(small("fept_soc_sym_base"))
    block = (small("fept_soc_sym_base") / "fept.fdf").read_text().split("DM.InitSpin")[1].splitlines()
    size, theta, phi = (float(w) for w in block[1].split()[1:])
    theta, phi = math.radians(theta), math.radians(phi)
    expected = size * np.array([math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)])
    assert run.sample.structure.moments[0] == pytest.approx(expected, abs=1e-12)
    assert run.sample.provenance["choices"]["moments"]["value"] == "initial"
    assert run.converged
    assert "one diagonalisation" in run.convergence


def test_moments_of_a_self_consistent_run_are_those_of_its_density(small):
    run = read(small("fe_collinear_c00"))
    assert run.sample.provenance["choices"]["moments"]["value"] == "density"
    assert np.array_equal(run.sample.structure.moments, run.code_moments)
    assert run.converged


def test_asking_for_the_other_moments_is_recorded_with_a_warning(small):
    output = read(small("fept_soc_sym_base"), "density").sample
    assert np.array_equal(output.structure.moments, output.computed_moments)
    assert any("prescribed moments" in warning for warning in output.provenance["warnings"])
    initial = read(small("fe_collinear_c00"), "initial").sample
    assert initial.structure.moments.tolist() == [[0, 0, 2.5], [0, 0, 2.0]]
    assert any("last density" in warning for warning in initial.provenance["warnings"])


def test_run_without_spin_has_no_moments(small):
    run = read(small("si_none_c00"))
    assert run.sample.spin == "none"
    assert run.sample.structure.moments is None
    assert run.printed_moments is None


def test_provenance_is_plain_json_and_names_version_settings_and_checksum(small):
    for name in SMALL:
        provenance = read(small(name)).sample.provenance
        assert json.loads(json.dumps(provenance)) == provenance
        assert provenance["code"] == "siesta"
        assert provenance["version"] == "master-post-4.1-268"
        assert provenance["settings"]["xc"] == "GGA/PBE"
        assert len(provenance["checksum"]["value"]) == 64


def test_supercell_keeps_species_labels_and_atom_order(small):
    sample = read(small("fept_soc_2x1x1_c01")).sample
    assert sample.structure.labels == ("Fe_fept_SOC", "Pt_fept_SOC") * 2
    assert sample.n_electrons == 36
    assert sample.charges is not None
    assert sample.charges[::2].min() > sample.charges[1::2].max()  # printed species by species


def test_double_precision_file_sharpens_the_comparison(small, tmp_path):
    double = read(small("si_none_c00"))
    folder = copied(small("si_none_c00"), tmp_path, without=is_run_netcdf)
    (folder / "si.DM").unlink(missing_ok=True)
    single = read(folder)
    assert double.references[0].precision_ev < 1e-7
    assert single.references[0].precision_ev < 3e-5
    check_bands(single)
    assert double.stored_hamiltonian.max_abs_difference(single.stored_hamiltonian) < 5e-7


@pytest.mark.parametrize("name", SETS)
def test_every_run_of_the_sets_agrees_with_what_siesta_printed(unpacked, name):
    folders = sorted(p for p in unpacked(f"siesta/{name}").iterdir() if p.is_dir())
    assert len(folders) == SETS[name]
    for folder in folders:
        run = read.__wrapped__(folder)
        sample = run.sample
        assert basis_pairs(sample.structure, sample.basis).equals(sample.hamiltonian.pairs), folder.name
        check_bands(run)
        if run.code_moments is not None and run.printed_moments is not None:
            assert np.abs(run.code_moments - run.printed_moments).max() <= run.moment_precision_mub
            assert sample.charges.sum() == pytest.approx(sample.n_electrons, abs=5e-7)
        assert run.converged
        assert sample.provenance["warnings"] == []


def test_prescribed_moments_and_positions_are_those_of_the_list_of_runs(unpacked, tmp_path):
    sets = {name: unpacked(f"siesta/{name}") for name in ("fept_soc", "fept_soc_2x1x1", "fe_bcc_nc")}
    listed = json.loads((DATA / "siesta" / "runs.json").read_text())
    for name, runs in sets.items():
        for folder in sorted(runs.iterdir()):
            sample, entry = read(folder).sample, listed[f"{name}/{folder.name}"]
            assert np.abs(sample.structure.positions - entry["xyz"]).max() < 1e-9
            if not entry["scf"]:
                assert np.abs(sample.structure.moments - entry["moments"]).max() < 1e-9


def test_sisl_has_the_same_bloch_hamiltonian_where_it_reads_right(small):
    """An independent reader: H(k) element by element, orbitals in SIESTA's own order and signs."""
    sisl = pytest.importorskip("sisl")
    from hamnet.bloch import bloch_dense
    from preprocessing.readers.siesta_blocks import house_signs

    for name in ("fept_soc_2x1x1_c01", "fe_bcc_nc_a060"):
        folder = small(name)
        run = read(folder)
        geometry = sisl.get_sile(next(folder.glob("*.fdf"))).read_geometry(output=True)
        with pytest.warns(UserWarning, match="Ef"):
            theirs = sisl.get_sile(next(folder.glob("*.HSX"))).read_hamiltonian(geometry=geometry, dtype=np.float64)
        k = [0.13, -0.21, 0.34]
        matrix = theirs.Hk(k, format="array")
        ours = bloch_dense(run.stored_hamiltonian, k)[0, 0].numpy()
        signs = np.repeat(house_signs(run.sample.basis, run.stored_hamiltonian.pairs.species), 2)
        rydberg = 13.60580 / sisl.unit.siesta.unit_convert("Ry", "eV")
        assert np.abs(signs[:, None] * ours * signs - matrix * rydberg).max() < 1e-5


def test_k_points_of_the_mesh_are_exact_fractions(small):
    run = read(small("fept_soc_sym_base"))
    k = run.references[0].k_frac
    assert np.array_equal(np.unique(np.rint(k * [4, 4, 3]) / [4, 4, 3], axis=0), np.unique(k, axis=0))
    assert len(read_kpoints(small("fept_soc_sym_base") / "fept.KP")) == len(k) == 48
