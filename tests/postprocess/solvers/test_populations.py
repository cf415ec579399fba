"""Charges, moments and the density matrix from sparse solvers: those that DFT wrote for the same Hamiltonian."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from hamnet.eigen import eigenvalues
from hamnet.errors import ConfigError, SolverError
from hamnet.sample import mulliken
from hamnet.verify import computed_moments
from postprocess.dos import density_of_states
from postprocess.grouping import group_orbitals
from postprocess.kmesh import k_mesh
from postprocess.solvers.levels import joined
from postprocess.solvers.pencil import SparsePencil
from postprocess.solvers.populations import (
    contour_populations,
    density_matrix,
    local_states,
    occupied_density,
    population_labels,
    window_populations,
)
from postprocess.solvers.states import Keep
from postprocess.solvers.tasks import Runner, WindowTask
from preprocessing.readers import read_run
from preprocessing.readers.protocol import ReadOptions, Run

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "nibr2"
TEMPERATURE_K = 300.0


def _mesh(run: Run):
    settings = run.sample.provenance["settings"]
    return k_mesh(settings["k_grid"])


def _windows(run: Run, low_ev: float, high_ev: float):
    """The pencil of the stored Hamiltonian and its states, with vectors, on the mesh of the run."""
    pencil = SparsePencil(run.stored_hamiltonian, run.sample.operator("overlap"))
    tasks = [
        WindowTask((a, b, c), channel, low_ev, high_ev)
        for a, b, c in _mesh(run).k_frac.tolist()
        for channel in range(pencil.n_channels)
    ]
    return pencil, Runner(pencil, keep=Keep(vectors=True)).run(tasks)


@pytest.fixture(scope="module", params=["nibr2_1x1_nc", "nibr2_v40_collinear"])
def run(request, tracked) -> Run:
    runs = sorted(path.parent for path in tracked(f"openmx/{request.param}").rglob("*.scfout*"))
    return read_run(runs[0], ReadOptions(operators=frozenset({"density"})))


def test_density_matrix_of_occupied_windows_is_the_one_of_the_run(run: Run):
    sample, h = run.sample, run.stored_hamiltonian
    fermi = sample.fermi_energy_ev
    pencil, states = _windows(run, -100.0, fermi + 0.6)
    density = occupied_density(states, pencil, h, fermi, temperature_k=TEMPERATURE_K)
    assert density.max_abs_difference(sample.operator("density").with_pairs(h.pairs)) < 1e-8
    charges, moments = mulliken(density, sample.operator("overlap"))
    assert np.abs(charges - sample.charges).max() < 1e-8
    assert np.abs(moments - sample.computed_moments).max() < 1e-8


def test_constrained_cell_of_two_moments_has_its_charges_and_moments(tmp_path):
    with tarfile.open(EXAMPLE / "nibr2_2x1.tar.xz") as tar:
        members = [m for m in tar if m.name.startswith("nibr2_2x1/r00")]
        tar.extractall(tmp_path, members, filter="data")
    run = read_run(tmp_path / "nibr2_2x1" / "r00")
    sample, fermi = run.sample, run.sample.fermi_energy_ev
    pencil, states = _windows(run, -100.0, fermi + 0.6)
    density = occupied_density(states, pencil, run.stored_hamiltonian, fermi, temperature_k=TEMPERATURE_K)
    charges, moments = mulliken(density, sample.operator("overlap"))
    assert np.abs(charges - sample.charges).max() < 1e-8
    assert np.abs(moments - sample.computed_moments).max() < 1e-8
    assert np.linalg.norm(moments, axis=1).max() > 1


def _atoms(run: Run) -> Runner:
    h = run.stored_hamiltonian
    grouping = group_orbitals(h.basis, h.pairs.species, "atom")
    return Runner(SparsePencil(h, run.sample.operator("overlap")), keep=Keep(membership=grouping.membership))


@pytest.mark.parametrize("run", ["nibr2_1x1_nc"], indirect=True)
def test_contour_gives_charges_and_moments_of_the_run_without_any_state(run: Run):
    """At zero temperature, in a gap of 1 eV: those of the run at 300 K are the same to 1e-6."""
    sample, said = run.sample, []
    k_frac = _mesh(run).k_frac
    found = contour_populations(
        _atoms(run), k_frac, sample.fermi_energy_ev, half_gap_ev=0.3, n_points=16, say=said.append
    )
    assert np.abs(found.electrons - sample.charges).max() < 5e-6
    assert np.abs(found.spin - sample.computed_moments).max() < 5e-6
    assert len(said) == 1
    assert said[0].startswith("49 factorisations and 784 complex ones at 49 k: about ")


def test_contour_gives_the_populations_of_the_levels_at_single_k_and_says_where_it_cannot(run: Run):
    runner, h, s = _atoms(run), run.stored_hamiltonian, run.sample.operator("overlap")
    k_frac, fermi = _mesh(run).k_frac[3:5], run.sample.fermi_energy_ev
    found = contour_populations(runner, k_frac, fermi, half_gap_ev=0.3)
    levels = computed_moments(h, s, k_frac, run.sample.n_electrons, temperature_k=0)
    assert np.abs(found.electrons - levels.charges).max() < 1e-6
    assert np.abs(found.spin - levels.moments_mub).max() < 1e-6
    with pytest.raises(SolverError, match="electrons by the contour"):
        contour_populations(runner, k_frac, fermi, half_gap_ev=0.3, n_points=4)
    level = float(eigenvalues(h, s, k_frac[:1])[0, 0, 12])
    with pytest.raises(SolverError, match="electrons by the contour"):
        contour_populations(runner, k_frac[:1], level + 1e-3)
    with pytest.raises(SolverError, match="below all states"):
        contour_populations(runner, k_frac[:1], -500.0)
    with pytest.raises(ConfigError, match="half a gap of 0"):
        contour_populations(runner, k_frac, fermi, half_gap_ev=0)


@pytest.fixture(scope="module")
def window(run: Run):
    """States of the upper valence bands, and the groups of atoms."""
    h = run.stored_hamiltonian
    pencil, states = _windows(run, run.sample.fermi_energy_ev - 2.0, run.sample.fermi_energy_ev)
    return pencil, states, group_orbitals(h.basis, h.pairs.species, "atom")


def test_window_has_the_populations_of_its_density_matrix(run: Run, window):
    pencil, states, grouping = window
    found = window_populations(states, pencil, grouping)
    whole = density_matrix(states, pencil, run.stored_hamiltonian, [np.ones(len(state)) for state in states])
    charges, moments = mulliken(whole, run.sample.operator("overlap"))
    assert np.allclose(found.electrons, charges, rtol=0, atol=1e-10)
    assert np.allclose(found.spin, moments, rtol=0, atol=1e-10)
    assert found.electrons.sum() == pytest.approx(sum(map(len, states)) * pencil.n_channels / len(states))


def test_local_density_of_states_integrates_to_the_populations_of_the_window(run: Run, window):
    pencil, states, grouping = window
    labels = population_labels(grouping)
    bands = joined(local_states(states, pencil, grouping), pencil.n_channels, pencil.n_spin, groups=labels)
    energies = np.concatenate([state.energies_ev for state in states])
    dos = density_of_states(
        bands, _mesh(run), run.sample.structure.cell, method="gaussian", width_ev=0.05,
        window_ev=(energies.min() - 1, energies.max() + 1),
    )  # fmt: skip
    found = window_populations(states, pencil, grouping)
    sums = dos.projected.sum(axis=(1, 2)).reshape(-1, 4) * dos.step_ev
    assert np.allclose(sums[:, 0], found.electrons, rtol=0, atol=1e-6)
    assert np.allclose(sums[:, 1:], found.spin, rtol=0, atol=1e-6)
    assert np.allclose(dos.projected[0::4].sum(axis=0), dos.total, rtol=0, atol=1e-6)
    assert labels[:5] == (f"{grouping.labels[0]}", f"{grouping.labels[0]} x", f"{grouping.labels[0]} y",
                          f"{grouping.labels[0]} z", f"{grouping.labels[1]}")  # fmt: skip


def test_windows_that_miss_occupied_states_make_no_density_matrix(run: Run, window):
    pencil, states, _ = window
    with pytest.raises(SolverError, match=r"states below the window.*Begin at -7"):
        occupied_density(states, pencil, run.stored_hamiltonian, run.sample.fermi_energy_ev)
    pencil, states = _windows(run, -100.0, -40.0)
    with pytest.raises(SolverError, match="a window up to -40"):
        occupied_density(states, pencil, run.stored_hamiltonian, run.sample.fermi_energy_ev)
