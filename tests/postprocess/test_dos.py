"""Density of states on a grid: counts, projections, spin."""

import numpy as np
import pytest

from hamnet.errors import ConfigError
from postprocess.bands import Bands, solve_bands
from postprocess.dos import density_of_states, number_of_states, spin_weights
from postprocess.fermi import fermi_level
from postprocess.grouping import group_orbitals
from postprocess.kmesh import k_mesh
from tight_binding import chain, honeycomb, operator, square, structure_of

CUBIC = 2 * np.pi * np.eye(3)
METHODS = ["gaussian", "tetrahedron"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_points", [7, 2000])
def test_density_integrates_to_the_number_of_states_on_every_grid(method, n_points):
    structure, h, s = honeycomb(-1.0, 0.2)
    mesh = k_mesh((9, 9, 1))
    bands = solve_bands(h, s, mesh.k_frac)
    dos = density_of_states(bands, mesh, structure.reciprocal_cell, method=method, n_points=n_points)
    assert dos.integral == pytest.approx(bands.n_states, abs=1e-10)
    assert dos.integrated[0, -1] <= 4 + 1e-12
    assert (np.diff(dos.integrated[0]) >= -1e-12).all()


@pytest.mark.parametrize("method", METHODS)
def test_states_below_the_fermi_level_of_an_insulator_are_its_electrons(method):
    structure, h, s = honeycomb(-1.0, 0.4)
    mesh = k_mesh((12, 12, 1))
    bands = solve_bands(h, s, mesh.k_frac)
    level = fermi_level(bands, 2.0)
    below = number_of_states(bands, mesh, structure.reciprocal_cell, [level.energy_ev], method=method, width_ev=0.02)
    assert below[0, 0, 0] == pytest.approx(2, abs=1e-12)


def test_integrated_density_counts_from_the_lowest_state_and_not_from_the_window():
    _, h, s = square()
    mesh = k_mesh((20, 20, 1))
    bands = solve_bands(h, s, mesh.k_frac)
    for method in METHODS:
        whole = density_of_states(bands, mesh, CUBIC, window_ev=(-5, 5), n_points=1000, method=method)
        part = density_of_states(bands, mesh, CUBIC, window_ev=(-1, 1), n_points=200, method=method)
        assert np.allclose(part.energies_ev, whole.energies_ev[400:600])
        assert np.allclose(part.total, whole.total[:, 400:600], atol=1e-9)
        assert np.allclose(part.integrated, whole.integrated[:, 400:600], atol=1e-12)


def test_gaussian_density_is_the_sum_of_gaussians():
    _, h, s = chain(-1.0, 0.2)
    mesh = k_mesh((11, 1, 1))
    bands = solve_bands(h, s, mesh.k_frac)
    dos = density_of_states(bands, mesh, CUBIC, method="gaussian", width_ev=0.1, n_points=4000)
    offset = (dos.energies_ev[:, None] - bands.energies_ev.ravel()) / 0.1
    wanted = 2 * np.exp(-(offset**2) / 2).sum(axis=1) / (0.1 * np.sqrt(2 * np.pi)) / 11
    assert np.allclose(dos.total[0], wanted, atol=1e-3 * wanted.max())


def test_narrow_band_between_two_grid_points_is_not_lost():
    mesh = k_mesh((5, 5, 1))
    energies = 0.123 + 1e-5 * np.cos(2 * np.pi * mesh.k_frac).sum(axis=1)
    bands = Bands(mesh.k_frac, energies[:, None, None], 4)
    for method in METHODS:
        dos = density_of_states(bands, mesh, CUBIC, window_ev=(-1, 1), n_points=20, method=method, width_ev=1e-6)
        assert dos.integral == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_projections_sum_to_the_total(method):
    structure, h, s = honeycomb(-1.0, 0.4)
    mesh = k_mesh((9, 9, 1))  # holds K
    bands = solve_bands(h, s, mesh.k_frac, grouping=group_orbitals(h.basis, h.pairs.species, "species"))
    dos = density_of_states(bands, mesh, structure.reciprocal_cell, method=method, n_points=300)
    assert dos.labels == ("A", "B")
    assert np.allclose(dos.projected.sum(axis=0), dos.total, atol=1e-9)
    # The site with the higher energy holds the upper band's edge alone: at K the bands are sites.
    at_edge = np.argmin(np.abs(dos.energies_ev - 0.41))
    assert dos.projected[0, 0, at_edge] > 5 * abs(dos.projected[1, 0, at_edge])
    assert np.allclose(dos.projected.sum(axis=2) * dos.step_ev, 2, atol=1e-9)


def test_spin_projection_of_a_spinor_is_that_of_the_collinear_channels():
    structure = structure_of(np.diag([1.0, 1.0, 8.0]))
    collinear = operator(
        structure,
        {
            (0, 0, (0, 0, 0)): np.array([0.1, -0.7]).reshape(2, 1, 1),
            (0, 0, (1, 0, 0)): np.array([-0.5, 0.1]).reshape(2, 1, 1),
        },
    )
    identity = operator(structure, {(0, 0, (0, 0, 0)): 1.0})
    mesh = k_mesh((30, 1, 1))
    two = solve_bands(collinear, identity, mesh.k_frac)
    one = solve_bands(collinear.with_spin(4), identity, mesh.k_frac, spin=True)
    window = (-3.0, 3.0)
    channels = density_of_states(two, mesh, CUBIC, window_ev=window, n_points=100, method="gaussian")
    shares, labels = spin_weights(one, (0, 0, 2))
    spinor = density_of_states(
        one, mesh, CUBIC, window_ev=window, n_points=100, method="gaussian", weights=shares, labels=labels
    )
    assert labels == ("↑", "↓")
    assert np.allclose(spinor.projected[:, 0], channels.total, atol=1e-9)
    across, _ = spin_weights(one, (1, 0, 0))
    assert np.allclose(across, 0.5)


def test_settings_that_make_no_sense_are_refused():
    _, h, s = chain()
    mesh = k_mesh((4, 1, 1))
    bands = solve_bands(h, s, mesh.k_frac)
    with pytest.raises(ConfigError, match="positive width"):
        density_of_states(bands, mesh, CUBIC, method="gaussian", width_ev=0)
    with pytest.raises(ConfigError, match="lower end first"):
        density_of_states(bands, mesh, CUBIC, window_ev=(1, -1))
    with pytest.raises(ConfigError, match="2 or more"):
        density_of_states(bands, mesh, CUBIC, n_points=1)
    with pytest.raises(ConfigError, match="the 5 k of the mesh"):
        number_of_states(bands, k_mesh((5, 1, 1)), CUBIC, [0.0])
    with pytest.raises(ConfigError, match="spin=True"):
        spin_weights(bands, (0, 0, 1))
