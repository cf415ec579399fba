"""The crystal: what it accepts, what it refuses, and how it turns."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from hamnet.errors import HamnetError, StructureError
from hamnet.structure import Structure, checked_rotation
from small_models import CELL, ROTATION, crystal


def test_arrays_of_a_structure_are_read_only_copies():
    positions = np.array([[0.0, 0.0, 0.0]])
    structure = Structure(np.eye(3) * 3, positions, np.array([28]), ("Ni",), np.zeros((1, 3)))
    positions[0, 0] = 9
    assert structure.positions[0, 0] == 0
    for name in ("cell", "positions", "numbers", "moments", "pbc"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(structure, name)[...] = 0
    with pytest.raises(FrozenInstanceError):
        structure.cell = np.eye(3)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cell": np.diag([3.0, 3.0, 0.0])}, "singular cell, volume 0"),
        ({"cell": CELL[[1, 0, 2]]}, "left-handed cell"),
        ({"cell": np.eye(2)}, r"cell of shape \(2, 2\)"),
        ({"cell": np.where(np.eye(3) > 0, CELL, np.inf)}, r"cell\[0, 1\] is inf"),
        ({"positions": np.zeros((3, 2))}, r"positions of shape \(3, 2\)"),
        ({"positions": np.array([[0, 0, 0], [1, np.nan, 0], [2, 2, 2]])}, r"positions\[1, 1\] is nan"),
        ({"numbers": np.array([28, 35])}, "2 atomic numbers and 3 labels; expected 3"),
        ({"labels": ("Ni",)}, "3 atomic numbers and 1 labels; expected 3"),
        ({"moments": np.zeros((2, 3))}, r"moments of shape \(2, 3\); expected \(3, 3\)"),
        ({"moments": np.zeros(3)}, r"moments of shape \(3,\)"),
        ({"moments": np.full((3, 3), np.nan)}, r"moments\[0, 0\] is nan"),
        ({"pbc": (True, True)}, r"pbc of shape \(2,\)"),
    ],
)
def test_an_impossible_crystal_is_refused_with_what_was_found(change, words):
    with pytest.raises(StructureError, match=words):
        replace(crystal(), **change)


def test_no_atoms_at_all_are_refused():
    with pytest.raises(StructureError, match="n >= 1"):
        Structure(np.eye(3), np.zeros((0, 3)), np.zeros(0), ())


def test_reciprocal_vectors_are_dual_with_two_pi():
    np.testing.assert_allclose(CELL @ crystal().reciprocal_cell.T, 2 * np.pi * np.eye(3), atol=1e-14)


def test_fractional_positions_times_cell_are_the_positions():
    structure = crystal()
    np.testing.assert_allclose(structure.fractional_positions @ structure.cell, structure.positions, atol=1e-14)


def test_moments_are_axial_they_do_not_change_under_inversion_and_stay_along_the_axis_of_a_mirror():
    structure = crystal()
    inverted = structure.rotated(-np.eye(3))
    np.testing.assert_allclose(inverted.moments, structure.moments)
    np.testing.assert_allclose(inverted.positions, -structure.positions)
    mirrored = structure.rotated(np.diag([1.0, 1.0, -1.0]))
    np.testing.assert_allclose(mirrored.moments, structure.moments @ np.diag([-1.0, -1.0, 1.0]))


@pytest.mark.parametrize("handedness", [1, -1], ids=["proper", "improper"])
def test_rotation_keeps_the_cell_right_handed_and_the_lattice_the_turned_one(handedness):
    structure = crystal()
    turned = structure.rotated(handedness * ROTATION)
    assert turned.volume_ang3 == pytest.approx(structure.volume_ang3)
    coordinates = (structure.cell @ (handedness * ROTATION).T) @ np.linalg.inv(turned.cell)
    np.testing.assert_allclose(coordinates, np.rint(coordinates), atol=1e-12)


@pytest.mark.parametrize("matrix", [np.diag([1.0, 1.0, 1.1]), np.eye(2), np.full((3, 3), np.nan)])
def test_a_matrix_that_is_not_orthogonal_is_no_rotation(matrix):
    with pytest.raises(HamnetError, match="expected an orthogonal 3×3 matrix"):
        crystal().rotated(matrix)
    with pytest.raises(StructureError):
        checked_rotation(matrix)


def test_permuted_atoms_carry_their_label_number_and_moment_along():
    structure = crystal()
    shifts = np.array([[0, 0, 1], [0, 0, 0], [-2, 1, 0]])
    moved = structure.permuted([2, 0, 1], shifts)
    np.testing.assert_allclose(moved.positions, structure.positions[[2, 0, 1]] + shifts @ CELL)
    np.testing.assert_array_equal(moved.moments, structure.moments[[2, 0, 1]])
    assert moved.labels == ("Ni", "Ni", "Br")
    assert moved.numbers.tolist() == [28, 28, 35]


@pytest.mark.parametrize("order", [[0, 0, 1], [0, 1], [0, 1, 3]])
def test_an_order_that_loses_or_doubles_atoms_is_refused(order):
    with pytest.raises(ValueError, match="no permutation of 3 atoms"):
        crystal().permuted(order)


def test_translation_moves_atoms_and_nothing_else():
    structure = crystal()
    moved = structure.translated([0.1, 0.2, -0.3])
    np.testing.assert_allclose(moved.positions - structure.positions, np.tile([0.1, 0.2, -0.3], (3, 1)), atol=1e-15)
    np.testing.assert_array_equal(moved.cell, structure.cell)
    np.testing.assert_array_equal(moved.moments, structure.moments)


def test_unknown_magnetism_is_not_zero_moment():
    assert crystal().with_moments(None).moments is None
