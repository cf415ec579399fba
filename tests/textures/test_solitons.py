"""Skyrmions and vortices: profiles, windings and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from hamnet.errors import StructureError
from hamnet.supercell import tile_structure
from hamnet.textures.charge import layer_charges
from hamnet.textures.plane import plane_of, reduced_vectors
from hamnet.textures.solitons import skyrmion_lattice, vortex, vortex_lattice
from textured_layers import SITES, crystal_of, skyrmions

# Skyrmions


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("polarity", [-1, 1])
@pytest.mark.parametrize("vorticity", [1, -1, 2])
@pytest.mark.parametrize("helicity", [0.0, 0.7])
def test_charge_of_a_skyrmion_is_vorticity_times_polarity(sites, polarity, vorticity, helicity):
    crystal = tile_structure(crystal_of(sites), np.diag([18, 18, 1]))
    m = skyrmions(crystal, radius_ang=16, width_ang=6, vorticity=vorticity, polarity=polarity, helicity_rad=helicity)
    (layer,) = layer_charges(crystal.positions, m, plane_of(crystal.cell))
    assert layer.charge == vorticity * polarity
    assert len(layer.atoms) == len(crystal)


def test_skyrmion_has_the_profile_of_a_360_degree_wall_and_the_helicity_asked_for():
    radius, width = 20.0, 5.0
    r = np.linspace(0.01, 60, 500)
    for azimuth in (0.3, 2.0):
        points = np.stack([r * np.cos(azimuth), r * np.sin(azimuth)], axis=1)
        for helicity in (0.0, np.pi / 2):
            m = skyrmion_lattice(
                points, 1000 * np.eye(2), [0, 0], radius_ang=radius, width_ang=width, helicity_rad=helicity
            )
            theta = 2 * np.arctan(np.sinh(radius / width) / np.sinh(r / width))
            expected = np.array([np.cos(azimuth + helicity), np.sin(azimuth + helicity)])
            np.testing.assert_allclose(m[:, 2], np.cos(theta), atol=1e-9)
            np.testing.assert_allclose(m[:, :2], np.sin(theta)[:, None] * expected, atol=1e-9)
    at_radius = skyrmion_lattice([[radius, 0]], 1000 * np.eye(2), [0, 0], radius_ang=radius, width_ang=width)
    np.testing.assert_allclose(at_radius, [[1, 0, 0]], atol=1e-9)
    at_centre = skyrmion_lattice([[0, 0]], 1000 * np.eye(2), [0, 0], radius_ang=radius, width_ang=0.01)
    np.testing.assert_allclose(at_centre, [[0, 0, -1]], atol=1e-9)


def test_lattice_of_skyrmions_is_periodic_smooth_and_has_the_charge_of_all_of_them():
    crystal = tile_structure(crystal_of("honeycomb"), np.array([[28, 0, 0], [-14, 28, 0], [0, 0, 1]]))
    plane = plane_of(crystal.cell)
    centres = np.array([[0.25, 0.25], [0.75, 0.75], [0.1, 0.7]]) @ plane.vectors
    options = {"radius_ang": 14.0, "width_ang": 5.0}
    points = plane.texture_points(crystal.positions)
    m = skyrmion_lattice(points, plane.vectors, centres, **options)
    moved = skyrmion_lattice(points + [3, -2] @ plane.vectors, plane.vectors, centres, **options)
    np.testing.assert_allclose(moved, m, atol=1e-7)
    (layer,) = layer_charges(crystal.positions, m @ plane.frame, plane)
    assert layer.charge == -3
    assert layer.largest_angle_deg is not None
    assert layer.largest_angle_deg < 75


def test_skyrmions_larger_than_the_cell_are_refused_with_the_largest_that_fits():
    crystal = tile_structure(crystal_of(), np.diag([10, 10, 1]))
    with pytest.raises(StructureError, match=r"below 18\.5 Å, or a distance above 40 Å"):
        skyrmions(crystal, radius_ang=20, width_ang=5)
    with pytest.raises(StructureError, match="a vorticity other than 0"):
        skyrmions(crystal, radius_ang=5, width_ang=5, vorticity=0)


# Vortices


CELLS = {
    "square": np.array([[100.0, 0], [0, 100]]),
    "hexagonal": np.array([[100.0, 0], [-50, 50 * np.sqrt(3)]]),
    "oblong": np.array([[4000.0, 0], [0, 60]]),
    "skewed": np.array([[80.0, 10], [70, 90]]),
}


def _winding(directions: np.ndarray) -> float:
    angle = np.unwrap(np.arctan2(directions[:, 1], directions[:, 0]))
    return float(angle[-1] - angle[0]) / (2 * np.pi)


@pytest.mark.parametrize("name", CELLS)
def test_vortices_and_antivortices_alternate_and_repeat_with_the_cell(name):
    vectors = CELLS[name]
    cell = reduced_vectors(vectors)
    circle = np.linspace(0, 2 * np.pi, 200)
    ring = 3.0 * np.stack([np.cos(circle), np.sin(circle)], axis=1)
    for place, winding, helicity in (
        ((0.25, 0.25), 1, np.pi / 2), ((0.75, 0.75), 1, -np.pi / 2), ((0.75, 0.25), -1, None), ((0.25, 0.75), -1, None)
    ):  # fmt: skip
        m = vortex_lattice(place @ cell + ring, vectors, core_ang=4)
        assert _winding(m) == pytest.approx(winding, abs=1e-9)
        if helicity is not None:
            turned = np.arctan2(m[:, 1], m[:, 0]) - circle - helicity
            assert abs(np.angle(np.exp(1j * turned[:-1]).mean())) < 1e-4
        np.testing.assert_allclose(vortex_lattice([place @ cell], vectors, core_ang=4), [[0, 0, 1]], atol=1e-9)
    points = np.random.default_rng(1).random((300, 2)) @ vectors
    m = vortex_lattice(points, vectors, core_ang=4)
    for shift in ([1, 0], [0, 1], [-2, 3]):
        np.testing.assert_allclose(vortex_lattice(points + shift @ vectors, vectors, core_ang=4), m, atol=1e-6)


def test_angle_between_vortices_is_harmonic():
    """Far from the cores ∇²Φ = 0: exchange alone puts no torque on the moments."""
    vectors, step = CELLS["hexagonal"], 0.05
    points = np.random.default_rng(2).random((200, 2)) @ vectors
    star = step * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    m = vortex_lattice((points[:, None] + star).reshape(-1, 2), vectors, core_ang=0.5)
    angle = np.arctan2(m[:, 1], m[:, 0]).reshape(-1, 5)
    bends = np.angle(np.exp(1j * (angle[:, 1:] - angle[:, :1]))).sum(axis=1) / step**2
    slope = np.abs(np.angle(np.exp(1j * (angle[:, 1] - angle[:, 2])))) / (2 * step)
    assert np.abs(bends).max() < 1e-3
    assert slope.max() > 0.05


@pytest.mark.parametrize(("polarity", "anti"), [(1, 1), (1, -1), (-1, 1)])
def test_charge_of_vortices_is_half_of_winding_times_polarity_each(polarity, anti):
    crystal = tile_structure(crystal_of(), np.diag([30, 30, 1]))
    plane = plane_of(crystal.cell)
    m = vortex_lattice(
        plane.texture_points(crystal.positions), plane.vectors, core_ang=8, polarity=polarity, anti_polarity=anti
    )
    (layer,) = layer_charges(crystal.positions, m @ plane.frame, plane)
    assert layer.charge == polarity - anti


def test_single_vortex_has_closed_flux_and_its_core_as_polarity_says():
    m = vortex([[3, 4], [0, 0], [1e3, 0]], [0, 0], core_ang=5, polarity=-1)
    np.testing.assert_allclose(m[0], [-0.8 * np.tanh(1), 0.6 * np.tanh(1), -1 / np.cosh(1)], atol=1e-12)
    np.testing.assert_allclose(m[1:], [[0, 0, -1], [0, 1, 0]], atol=1e-12)


def test_vortex_cores_that_do_not_fit_are_refused():
    with pytest.raises(StructureError, match=r"at most a quarter of it, 12\.5 Å"):
        vortex_lattice(np.zeros((1, 2)), CELLS["square"], core_ang=20)
