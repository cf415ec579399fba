"""Topological charges: triangles, layers, and what has none."""

from __future__ import annotations

import numpy as np
import pytest

from hamnet.errors import StructureError
from hamnet.supercell import tile_structure
from hamnet.textures.charge import layer_charges, periodic_triangles, solid_angles
from hamnet.textures.fields import (
    ferromagnet,
    random_directions,
    spiral,
)
from hamnet.textures.plane import layers_of, plane_of, shortest_image
from textured_layers import SITES, crystal_of, rotation, skyrmions


def test_solid_angle_of_an_octant_is_half_pi_and_changes_sign_with_its_orientation():
    x, y, z = np.eye(3)[:, None]
    angles, defined = solid_angles(x, y, z)
    np.testing.assert_allclose(angles, np.pi / 2)
    np.testing.assert_allclose(solid_angles(y, x, z)[0], -np.pi / 2)
    assert defined.all()
    # Three moments on a great circle, not on one half of it: either side could be the inner one.
    assert not solid_angles(x, -0.5 * x + np.sqrt(0.75) * y, -0.5 * x - np.sqrt(0.75) * y)[1].any()
    assert not solid_angles(x, -x, y)[1].any()


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize(
    "matrix", [np.eye(3), np.diag([2, 1, 1]), [[7, 0, 0], [3, 6, 0], [0, 0, 1]], np.diag([40, 1, 1])]
)
def test_periodic_triangles_tile_the_torus(sites, matrix):
    crystal = tile_structure(crystal_of(sites), matrix)
    plane = plane_of(crystal.cell)
    points = plane.points(crystal.positions)
    triangles = periodic_triangles(points, plane.vectors)
    n = len(points)
    assert triangles.shape == (2 * n, 3)
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    # Each edge belongs to two triangles, which pass it in opposite directions: a closed, oriented surface.
    there, counts = np.unique(edges, axis=0, return_counts=True)
    back, counts_back = np.unique(edges[:, ::-1], axis=0, return_counts=True)
    np.testing.assert_array_equal(there, back)
    np.testing.assert_array_equal(counts, counts_back)
    heights = abs(np.linalg.det(plane.vectors)) / np.linalg.norm(plane.vectors, axis=1)
    if heights.min() > 10:  # else the nearest image is not always the corner
        first = shortest_image(points[triangles[:, 1]] - points[triangles[:, 0]], plane.vectors)
        second = shortest_image(points[triangles[:, 2]] - points[triangles[:, 0]], plane.vectors)
        areas = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2
        assert areas.min() > 0
        assert areas.sum() == pytest.approx(abs(np.linalg.det(plane.vectors)))


def test_charge_does_not_change_when_spins_turn_or_atoms_are_listed_otherwise_and_flips_with_them():
    crystal = tile_structure(crystal_of("honeycomb"), np.diag([14, 14, 1]))
    plane = plane_of(crystal.cell)
    m = skyrmions(crystal, radius_ang=14, width_ang=5)

    def charge(positions, moments):
        (layer,) = layer_charges(positions, moments, plane)
        return layer.charge

    assert charge(crystal.positions, m) == -1
    assert charge(crystal.positions, 2.7 * m @ rotation(np.array([1, 2, 3]), 1.3).T) == -1
    assert charge(crystal.positions, -m) == 1
    order = np.random.default_rng(5).permutation(len(crystal))
    shifts = np.random.default_rng(6).integers(-2, 3, (len(crystal), 3))
    assert charge(crystal.positions[order] + shifts @ crystal.cell, m[order]) == -1


def test_charge_of_noise_is_a_whole_number_too():
    crystal = tile_structure(crystal_of("kagome, buckled"), np.diag([9, 7, 1]))
    for seed in range(5):
        m = random_directions(len(crystal), np.random.default_rng(seed))
        (layer,) = layer_charges(crystal.positions, m, plane_of(crystal.cell))
        assert layer.charge == round(layer.charge or 0.0)


def test_each_layer_has_its_own_charge():
    cell = np.array([[3.0, 0, 0], [0, 3.0, 0], [1.5, 1.5, 4.0]])
    crystal = tile_structure(crystal_of(cell=cell), np.diag([20, 20, 3]))
    plane = plane_of(crystal.cell)
    up, down = (skyrmions(crystal, radius_ang=12, width_ang=5, polarity=p) for p in (1, -1))
    layers = layers_of(plane.heights(crystal.positions), plane.period_ang)
    assert [len(layer) for layer in layers] == [400, 400, 400]
    m = up.copy()
    m[layers[1]] = down[layers[1]]
    m[layers[2]] = [0, 0, 1]
    found = layer_charges(crystal.positions, m, plane)
    assert [layer.charge for layer in found] == [1, -1, 0]
    np.testing.assert_allclose(np.diff([layer.height_ang for layer in found]), 4.0)


def test_layer_at_the_boundary_of_the_cell_is_one_layer():
    heights = np.array([0.0, 9.999999, 5.0, 0.2, 5.1, 9.8])
    assert [sorted(layer.tolist()) for layer in layers_of(heights, 10.0)] == [[2, 4], [0, 1, 3, 5]]
    assert [sorted(layer.tolist()) for layer in layers_of([0.0, 5.0, 9.0], 10.0)] == [[0], [1], [2]]
    assert [len(layer) for layer in layers_of(np.arange(0, 10, 0.4), 10.0)] == [25]


def test_charge_of_opposite_or_vanishing_neighbours_is_not_defined():
    crystal = tile_structure(crystal_of(), np.diag([4, 4, 1]))
    plane = plane_of(crystal.cell)
    stripes = spiral(crystal.fractional_positions * [4, 4, 1], [0.5, 0, 0], (0, 0, 1))
    assert layer_charges(crystal.positions, stripes, plane)[0].charge is None
    hole = ferromagnet(16, (0, 0, 1))
    hole[3] = 0
    assert layer_charges(crystal.positions, hole, plane)[0].charge is None
    assert layer_charges(crystal.positions, ferromagnet(16, (0, 0, 1)), plane)[0].charge == 0


def test_plane_is_right_handed_and_its_normal_that_of_its_vectors():
    cell = np.array([[4.0, 0.3, 0.1], [1.0, 5, -0.4], [0.2, 1.0, 6]])
    for name, (a, b) in {"ab": (0, 1), "bc": (1, 2), "ca": (2, 0)}.items():
        plane = plane_of(cell, name)
        np.testing.assert_allclose(plane.frame @ plane.frame.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(plane.frame) == pytest.approx(1)
        np.testing.assert_allclose(cell[[a, b]] @ plane.frame[2], 0, atol=1e-12)
        assert np.linalg.det(plane.vectors) > 0
        np.testing.assert_allclose(plane.texture_points(cell), np.array([plane.vectors[0], plane.vectors[1], [0, 0]])[
            np.argsort([a, b, 3 - a - b])
        ], atol=1e-12)  # fmt: skip
    with pytest.raises(StructureError, match="plane 'ac'; expected one of ab, bc, ca"):
        plane_of(cell, "ac")
