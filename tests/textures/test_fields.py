"""Spirals, domain walls and random directions against their closed forms."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from hamnet.errors import HamnetError, StructureError
from hamnet.structure import Structure
from hamnet.supercell import tile_structure
from hamnet.textures.commensurate import (
    check_commensurate,
    nearest_commensurate,
    primitive_cells,
    smallest_supercell,
)
from hamnet.textures.fields import (
    domain_walls,
    ferromagnet,
    perpendicular_frame,
    random_cone,
    random_directions,
    spiral,
)
from hamnet.textures.solitons import vortex
from textured_layers import HEXAGONAL, crystal_of, rotation

# Spirals


@pytest.mark.parametrize("axis", [(0, 0, 1), (1, 2, -1), (1, 0, 0)])
def test_spiral_turns_by_2_pi_q_R_about_its_axis_from_cell_to_cell(axis):
    crystal, q = crystal_of("honeycomb"), np.array([0.21, -0.4, 0.1])
    shift = np.array([2, -1, 3])
    home = spiral(crystal.fractional_positions, q, axis, phase_rad=0.3, cone_rad=1.1)
    away = spiral(crystal.fractional_positions + shift, q, axis, phase_rad=0.3, cone_rad=1.1)
    np.testing.assert_allclose(away, home @ rotation(axis, 2 * np.pi * q @ shift).T, atol=1e-12)


def test_conical_spiral_keeps_its_angle_to_the_axis_and_a_flat_one_lies_across():
    fractions = np.random.default_rng(0).random((50, 3))
    axis = np.array([1, 1, 2]) / np.sqrt(6)
    for cone in (0.0, 0.4, np.pi / 2, 2.5):
        directions = spiral(fractions, [0.1, 0.2, 0.3], axis, cone_rad=cone)
        np.testing.assert_allclose(directions @ axis, np.cos(cone), atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-12)


def test_spiral_of_q_000_with_phase_0_is_the_ferromagnet_along_e1():
    e1 = perpendicular_frame((0, 0, 1))[0]
    np.testing.assert_allclose(spiral(np.ones((4, 3)), [0, 0, 0], (0, 0, 1)), ferromagnet(4, e1), atol=1e-15)
    np.testing.assert_allclose(e1, [1, 0, 0])


Q = [
    ("1/8", "0", "0"),
    ("1/3", "1/3", "0"),
    ("-1/3", "2/3", "1/2"),
    ("13/100", "0", "0"),
    ("0.237", "0.1", "0"),
    ("1/7", "2/7", "3/7"),
    ("0", "0", "1/5"),
]


@pytest.mark.parametrize("words", Q, ids=" ".join)
@pytest.mark.parametrize(
    "matrix", [np.diag([8, 1, 1]), np.diag([3, 5, 1]), np.array([[2, 1, 0], [-1, 3, 0], [0, 1, 2]])]
)
def test_every_cell_that_an_incommensurate_spiral_is_referred_to_holds_it(words, matrix):
    q, crystal = [Fraction(word) for word in words], crystal_of()
    fits = nearest_commensurate(q, matrix, crystal.cell)
    assert fits
    for fit in fits:
        check_commensurate(fit.q_frac, fit.matrix, crystal)
        assert np.linalg.det(np.array(fit.matrix)) > 0
        off = np.array([float(a - b) for a, b in zip(fit.q_frac, q, strict=True)]) @ crystal.reciprocal_cell
        assert fit.distance_per_ang == pytest.approx(np.linalg.norm(off), abs=1e-12)
    for exact in (fit for fit in fits if fit.distance_per_ang == 0):
        vectors = np.array(exact.matrix) @ crystal.cell
        moments = spiral(crystal.fractional_positions, [float(f) for f in q], (0, 0, 1))
        for vector in vectors:
            moved = (crystal.positions + vector) @ np.linalg.inv(crystal.cell)
            np.testing.assert_allclose(spiral(moved, [float(f) for f in q], (0, 0, 1)), moments, atol=1e-9)


@pytest.mark.parametrize("words", Q, ids=" ".join)
def test_smallest_supercell_of_a_spiral_has_as_many_cells_as_the_common_denominator(words):
    q = [Fraction(word) for word in words]
    matrix = smallest_supercell(q, HEXAGONAL)
    assert round(np.linalg.det(matrix)) == np.lcm.reduce([f.denominator for f in q])
    check_commensurate(q, matrix, crystal_of())


def test_smallest_supercell_of_the_120_degree_state_is_root_3_by_root_3():
    matrix = smallest_supercell([Fraction(1, 3), Fraction(1, 3), Fraction(0)], HEXAGONAL)
    lengths = np.linalg.norm(matrix @ HEXAGONAL, axis=1)
    np.testing.assert_allclose(sorted(lengths), [3.7 * np.sqrt(3), 3.7 * np.sqrt(3), 12.0])


def test_incommensurate_spiral_is_refused_with_the_nearest_wave_vector_and_cell():
    with pytest.raises(StructureError) as error:
        check_commensurate([Fraction("0.13"), Fraction(0), Fraction(0)], np.diag([8, 1, 1]), crystal_of())
    assert "makes 1.04, 0, 0 turns along the vectors of the supercell 8 1 1" in str(error.value)
    assert "q = 1/8 0 0 in the supercell 8 1 1" in str(error.value)
    assert "q = 13/100 0 0 in the supercell 100 1 1" in str(error.value)


def test_spiral_need_not_fit_along_a_direction_that_is_not_periodic():
    crystal = crystal_of()
    slab = Structure(crystal.cell, crystal.positions, crystal.numbers, crystal.labels, pbc=(True, True, False))  # type: ignore[arg-type]
    q = [Fraction(1, 2), Fraction(0), Fraction(1, 3)]
    check_commensurate(q, np.diag([2, 1, 1]), slab)
    with pytest.raises(StructureError):
        check_commensurate(q, np.diag([2, 1, 1]), crystal)


def test_cubic_cell_of_a_bcc_crystal_holds_two_primitive_cells():
    cell = 2.87 * np.eye(3)
    two = Structure(cell, np.array([[0, 0, 0], [0.5, 0.5, 0.5]]) @ cell, [26, 26], ("Fe", "Fe"))  # type: ignore[arg-type]
    alloy = Structure(cell, two.positions, [26, 27], ("Fe", "Co"))  # type: ignore[arg-type]
    assert (primitive_cells(two), primitive_cells(alloy)) == (2, 1)
    assert primitive_cells(tile_structure(alloy, np.diag([2, 1, 3]))) == 6


# Domain walls


@pytest.mark.parametrize(("kind", "across"), [("neel", [1, 0, 0]), ("bloch", [0, 1, 0])])
@pytest.mark.parametrize("chirality", [1, -1])
def test_domain_wall_is_a_tanh_along_its_axis_and_a_sech_across(kind, across, chirality):
    period, width = 400.0, 4.0
    s = np.linspace(0, period / 2, 1001)
    m = domain_walls(
        s, period, count=2, width_ang=width, normal=(1, 0, 0), axis=(0, 0, 1), kind=kind, chirality=chirality
    )
    x = (s - period / 4) / width
    np.testing.assert_allclose(m[:, 2], -np.tanh(x), atol=1e-9)
    np.testing.assert_allclose(m @ across, chirality / np.cosh(x), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(m, axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("wound", [True, False])
def test_walls_repeat_with_the_cell_and_only_wound_ones_turn_through_360_degrees(wound):
    s = np.linspace(0, 60, 601)
    options = {"count": 4, "width_ang": 1.5, "normal": (1, 0, 0), "axis": (0, 0, 1), "wound": wound}
    m = domain_walls(s, 60, **options)
    np.testing.assert_allclose(domain_walls(s - 180, 60, **options), m, atol=1e-9)
    angle = np.unwrap(np.arctan2(m[:, 1], m[:, 2]))
    assert (angle[-1] - angle[0]) / (2 * np.pi) == pytest.approx(2 if wound else 0, abs=1e-9)
    # Domains stand in the middle between walls.
    np.testing.assert_allclose(m[[0, 150, 300, 450], 2], [1, -1, 1, -1], atol=1e-3)


def test_walls_that_do_not_fit_are_refused_with_what_would():
    options = {"normal": (1, 0, 0), "axis": (0, 0, 1)}
    with pytest.raises(StructureError, match="even number, such as 2 or 4"):
        domain_walls(np.zeros(1), 100, count=3, width_ang=2, **options)
    with pytest.raises(StructureError, match=r"at most 15\.92 Å, or a period of at least 125\.7 Å"):
        domain_walls(np.zeros(1), 100, count=2, width_ang=20, **options)
    with pytest.raises(StructureError, match="head-to-head"):
        domain_walls(np.zeros(1), 100, count=2, width_ang=2, normal=(0, 0, 1), axis=(0, 0, -1))


# Random directions


def test_random_cone_fills_its_cap_uniformly_and_a_seed_fixes_it():
    axis, angle, n = np.array([1, -2, 2]) / 3, 0.6, 20000
    m = random_cone(n, axis, angle, np.random.default_rng(3))
    along = m @ axis
    assert along.min() >= np.cos(angle) - 1e-12
    # Uniform on a cap: m·axis is uniform between cos α and 1.
    assert along.mean() == pytest.approx((1 + np.cos(angle)) / 2, abs=4 * (1 - np.cos(angle)) / np.sqrt(12 * n))
    np.testing.assert_array_equal(m, random_cone(n, axis, angle, np.random.default_rng(3)))
    sphere = random_directions(n, np.random.default_rng(4))
    assert np.abs(sphere.mean(axis=0)).max() < 4 / np.sqrt(3 * n)
    np.testing.assert_allclose((sphere.T @ sphere) / n, np.eye(3) / 3, atol=0.02)


def test_errors_of_textures_are_those_of_a_user():
    assert issubclass(StructureError, HamnetError)
    for call in (
        lambda: ferromagnet(3, (0, 0, 0)),
        lambda: random_cone(3, (0, 0, 1), 4.0, np.random.default_rng(0)),
        lambda: vortex(np.zeros((1, 2)), [0, 0], core_ang=-1),
    ):
        with pytest.raises(StructureError):
            call()
