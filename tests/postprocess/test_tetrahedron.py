"""Linear tetrahedra: weights, and lattices whose number of states is known."""

import numpy as np
import pytest
from ase.dft.dos import lti_dos
from ase.parallel import world
from scipy.integrate import quad
from scipy.special import ellipk

from postprocess.bands import Bands, solve_bands
from postprocess.dos import number_of_states, tetrahedron_density
from postprocess.kmesh import k_mesh
from postprocess.tetrahedron import density_weights, occupied_weights, tetrahedra
from tight_binding import HEXAGONAL, chain, honeycomb, square

CUBIC = 2 * np.pi * np.eye(3)


def _random_corners(n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.normal(size=(n, 4)), axis=1)
    return rng.uniform(corners[:, 0] - 0.1, corners[:, 3] + 0.1), corners


def test_density_weights_are_the_derivative_of_the_occupied_weights():
    energy, corners = _random_corners()
    step = 1e-6
    slope = (occupied_weights(energy + step, corners) - occupied_weights(energy - step, corners)) / (2 * step)
    assert np.abs(slope - density_weights(energy, corners)).max() < 1e-4


def test_energy_averaged_over_the_surface_of_constant_energy_is_that_energy():
    energy, corners = _random_corners()
    weights = density_weights(energy, corners)
    assert np.allclose((weights * corners).sum(axis=1), energy * weights.sum(axis=1), atol=1e-12)


def test_occupied_weights_agree_with_sampling_the_tetrahedron():
    energy, corners = _random_corners(20)
    inside = np.random.default_rng(1).dirichlet(np.ones(4), size=200_000)
    below = inside @ corners.T < energy
    sampled = np.einsum("si,st->ti", inside, below) / len(inside)
    assert np.allclose(occupied_weights(energy, corners), sampled, atol=2e-3)


@pytest.mark.parametrize(
    "corners", [(1, 1, 2, 3), (1, 2, 2, 3), (1, 2, 3, 3), (1, 1, 2, 2), (1, 1, 1, 2), (1, 2, 2, 2), (1, 1, 1, 1)]
)
def test_equal_corners_are_the_limit_of_nearly_equal_ones(corners):
    corners = np.array(corners, dtype=float)
    energies = np.linspace(0.5, 3.5, 61) + 1e-3
    exact = np.broadcast_to(corners, (61, 4))
    split = exact + 1e-9 * np.arange(4)
    for weights in (occupied_weights, density_weights):
        values = weights(energies, exact)
        assert np.isfinite(values).all()
        assert np.allclose(values, weights(energies, split), atol=1e-6)
    # Corners of one energy have the same weight.
    values = occupied_weights(energies, exact)
    for a, b in zip(*np.nonzero(corners[:, None] == corners), strict=True):
        assert np.allclose(values[:, a], values[:, b], atol=1e-12)


def test_tetrahedra_fill_the_zone_once():
    for size, cell in (((4, 3, 5), CUBIC), ((3, 4, 2), np.array([[1, 0, 0], [0.6, 1, 0], [-0.5, 0.3, 1]]))):
        corners = tetrahedra(size, cell)
        assert corners.shape == (6 * np.prod(size), 4)
        assert (np.bincount(corners.ravel()) == 24).all()  # every point in 24 tetrahedra
        k = k_mesh(size).k_frac * size
        edges = k[corners[:, 1:]] - k[corners[:, :1]]
        edges -= np.rint(edges / size) * size  # steps across the zone boundary
        if min(size) > 2:
            assert np.allclose(np.abs(np.linalg.det(edges)), 1)


def _random_bands(size, n: int = 3) -> Bands:
    mesh = k_mesh(size)
    energies = np.sort(np.random.default_rng(4).normal(size=(len(mesh), 1, n)), axis=2)
    return Bands(mesh.k_frac, energies, 4)


SKEWED = 2 * np.pi * np.linalg.inv([[1, 0, 0], [-0.4, 1.1, 0], [-0.3, -0.2, 0.9]]).T


def test_densities_agree_with_ase_on_the_same_tetrahedra():
    size = (5, 4, 3)
    bands, mesh = _random_bands(size), k_mesh(size)
    shares = np.random.default_rng(5).normal(size=(len(mesh), 1, 3, 2))
    edges = np.linspace(-3, 3, 601)
    around_origin = np.stack(np.unravel_index(tetrahedra(size, SKEWED)[:6], size), axis=-1)
    theirs = np.empty((3, len(edges)))
    values = np.concatenate([np.ones((*size, 3, 1)), shares[:, 0].reshape(*size, 3, 2)], axis=-1)
    lti_dos(around_origin, bands.energies_ev.reshape(*size, 3), values, edges, theirs, world)
    theirs /= np.prod(size)
    ours = [tetrahedron_density(bands, mesh, SKEWED, energy) for energy in edges]
    assert np.allclose(ours, theirs[0], atol=1e-10)
    # Projected: our number of states against the integral of their density.
    states = number_of_states(bands, mesh, SKEWED, edges, weights=shares)[:, 0]
    integral = np.cumsum((theirs[:, 1:] + theirs[:, :-1]) / 2, axis=1) * (edges[1] - edges[0])
    assert np.allclose(states[:, 1:] - states[:, :1], integral, atol=1e-3)


def test_flat_mesh_is_the_method_of_triangles():
    bands, mesh = _random_bands((6, 6, 1)), k_mesh((6, 6, 1))
    energies = np.linspace(-3, 3, 41)
    integrated = number_of_states(bands, mesh, SKEWED, energies)[0, 0]
    assert np.allclose(integrated, _triangles(bands.energies_ev.reshape(6, 6, -1), energies, SKEWED), atol=1e-12)


def _triangles(energies: np.ndarray, at: np.ndarray, reciprocal: np.ndarray) -> np.ndarray:
    """Number of states by linear triangles cut along the shorter diagonal, one by one."""
    n1, n2, n = energies.shape
    b1, b2 = reciprocal[0] / n1, reciprocal[1] / n2
    along = np.linalg.norm(b1 + b2) <= np.linalg.norm(b1 - b2)
    halves = (
        [((0, 0), (1, 0), (1, 1)), ((0, 0), (0, 1), (1, 1))]
        if along
        else [((1, 0), (0, 0), (0, 1)), ((1, 0), (1, 1), (0, 1))]
    )
    total = np.zeros(len(at))
    for i in range(n1):
        for j in range(n2):
            for half in halves:
                for band in range(n):
                    a, b, c = sorted(energies[(i + p) % n1, (j + q) % n2, band] for p, q in half)
                    low = (at - a) ** 2 / ((b - a) * (c - a))
                    high = 1 - (c - at) ** 2 / ((c - b) * (c - a))
                    total += np.select([at <= a, at <= b, at < c], [0, low, high], 1)
    return total / (2 * n1 * n2)


def test_chain_has_its_closed_form_number_of_states():
    _, h, s = chain()
    mesh = k_mesh((400, 1, 1))
    energies = np.linspace(-1.99, 1.99, 57)
    states = number_of_states(solve_bands(h, s, mesh.k_frac), mesh, CUBIC, energies)
    assert np.allclose(states[0, 0], 2 * (1 - np.arccos(energies / 2) / np.pi), atol=2e-4)


def test_square_lattice_has_its_logarithmic_van_hove_singularity():
    def density(energy: float) -> float:  # per spin, t = 1
        return float(ellipk(1 - (energy / 4) ** 2)) / (2 * np.pi**2)

    _, h, s = square()
    mesh = k_mesh((96, 96, 1))
    bands = solve_bands(h, s, mesh.k_frac)
    for energy in (-3.2, -1.7, -0.6, 0.45, 2.5):
        below = quad(density, -4, energy, points=[0.0] if energy > 0 else None)[0]
        found = number_of_states(bands, mesh, CUBIC, [energy])[0, 0, 0]
        assert found / 2 == pytest.approx(below, abs=3e-4)
        assert tetrahedron_density(bands, mesh, CUBIC, energy) / 2 == pytest.approx(density(energy), rel=5e-3)
    assert number_of_states(bands, mesh, CUBIC, [0.0])[0, 0, 0] == pytest.approx(1, abs=1e-12)
    # At the singularity the density grows with the logarithm of the mesh.
    coarse = k_mesh((24, 24, 1))
    fine = tetrahedron_density(bands, mesh, CUBIC, 1e-6)
    assert fine > tetrahedron_density(solve_bands(h, s, coarse.k_frac), coarse, CUBIC, 1e-6) + 0.2 / np.pi**2


def test_error_of_the_number_of_states_falls_with_the_square_of_the_mesh():
    errors = []
    for n in (24, 48):
        _, h, s = square()
        mesh = k_mesh((n, n, 1))
        exact = quad(lambda e: float(ellipk(1 - (e / 4) ** 2)) / (2 * np.pi**2), -4, -1.3)[0]
        found = number_of_states(solve_bands(h, s, mesh.k_frac), mesh, CUBIC, [-1.3])[0, 0, 0] / 2
        errors.append(abs(found - exact))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)


def test_density_of_graphene_vanishes_linearly_at_the_dirac_point():
    structure, h, s = honeycomb()
    mesh = k_mesh((90, 90, 1))
    bands = solve_bands(h, s, mesh.k_frac)
    for energy in (0.1, 0.2):
        # Two cones, two spins, v = √3/2: D = 2·2·A_cell |E| / (2π v²).
        wanted = 4 * np.sqrt(3) / 2 * energy / (2 * np.pi * 0.75)
        found = tetrahedron_density(bands, mesh, structure.reciprocal_cell, energy)
        assert found == pytest.approx(wanted, rel=0.03)
    assert HEXAGONAL[0, 0] == 1


def test_flat_band_is_a_step_at_its_energy():
    mesh = k_mesh((4, 4, 4))
    bands = Bands(mesh.k_frac, np.full((64, 1, 2), 0.7), 4)
    states = number_of_states(bands, mesh, CUBIC, [0.7 - 1e-9, 0.7, 0.7 + 1e-9])[0, 0]
    assert states.tolist() == [0, 2, 2]
