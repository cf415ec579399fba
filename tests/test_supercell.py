"""Supercells: the same crystal and the same operator, counted in larger cells."""

from __future__ import annotations

from dataclasses import replace

import ase
import ase.build
import numpy as np
import pytest

from hamnet.eigen import eigenvalues
from hamnet.errors import HamnetError
from hamnet.supercell import tile_operator, tile_structure
from hamnet.symmetry import match_atoms
from small_models import BASIS, crystal, model_hamiltonian, model_overlap, random_operator

MATRICES = {
    "diagonal": np.diag([2, 1, 3]),
    "skewed": np.array([[1, 1, 0], [-1, 2, 0], [0, 1, 2]]),
    "negative entries": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]),
    "same volume": np.array([[1, 4, -2], [0, 1, 0], [0, 3, 1]]),
}


def _folded(matrix: np.ndarray, k_supercell: np.ndarray) -> np.ndarray:
    """Fractional k of the small cell that fold onto K of the supercell: k = M⁻¹ (K + G)."""
    reach = range(-8, 9)
    g = np.array([[a, b, c] for a in reach for b in reach for c in reach])
    k = (k_supercell + g) @ np.linalg.inv(matrix).T
    inside = ((k > -1e-9) & (k < 1 - 1e-9)).all(axis=1)
    return k[inside]


@pytest.mark.parametrize("name", MATRICES)
def test_supercell_folds_to_same_bands(name):
    matrix, structure = MATRICES[name], crystal()
    hamiltonian, overlap = model_hamiltonian(structure), model_overlap(structure)
    k_supercell = np.array([0.13, -0.21, 0.4])
    k = _folded(matrix, k_supercell)
    assert len(k) == round(np.linalg.det(matrix))
    expected = np.sort(eigenvalues(hamiltonian, overlap, k).ravel())
    tiled = eigenvalues(tile_operator(hamiltonian, matrix), tile_operator(overlap, matrix), k_supercell)
    np.testing.assert_allclose(tiled[0, 0], expected, atol=1e-10)


@pytest.mark.parametrize("name", MATRICES)
def test_tiled_operator_is_the_operator_of_the_tiled_structure(name):
    matrix, structure = MATRICES[name], crystal()
    tiled = tile_operator(model_hamiltonian(structure), matrix)
    expected = model_hamiltonian(tile_structure(structure, matrix))
    assert tiled.pairs.equals(expected.pairs)
    assert tiled.max_abs_difference(expected) < 1e-12


def test_one_changed_moment_in_the_supercell_is_noticed():
    matrix, structure = MATRICES["diagonal"], crystal()
    supercell = tile_structure(structure, matrix)
    assert supercell.moments is not None
    moments = supercell.moments.copy()
    moments[4] += [0.01, 0, 0]
    changed = model_hamiltonian(supercell.with_moments(moments))
    assert tile_operator(model_hamiltonian(structure), matrix).max_abs_difference(changed) > 1e-4


@pytest.mark.parametrize("name", MATRICES)
def test_tiled_atoms_are_those_of_ase(name):
    matrix, structure = MATRICES[name], crystal()
    atoms = ase.Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=True)
    theirs = ase.build.make_supercell(atoms, matrix)
    ours = tile_structure(structure, matrix)
    np.testing.assert_allclose(ours.cell, theirs.cell.array, atol=1e-12)
    order, _ = match_atoms(ours, replace(ours, positions=theirs.positions, numbers=theirs.numbers))
    assert sorted(order.tolist()) == list(range(len(ours)))


def test_copies_of_a_cell_are_contiguous_and_keep_order_label_and_moment():
    structure = crystal()
    tiled = tile_structure(structure, np.diag([1, 2, 1]))
    assert tiled.labels == structure.labels * 2
    np.testing.assert_allclose(tiled.positions[3:] - tiled.positions[:3], np.tile(structure.cell[1], (3, 1)))
    np.testing.assert_array_equal(tiled.moments, np.tile(structure.moments, (2, 1)))
    assert tiled.volume_ang3 == pytest.approx(2 * structure.volume_ang3)


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_tiling_twice_is_tiling_by_the_product(n_spin):
    first, second = MATRICES["skewed"], np.diag([1, 2, 1])
    structure = crystal()
    operator = random_operator(structure, BASIS, n_spin, seed=1)
    twice = tile_operator(tile_operator(operator, first), second)
    at_once = tile_operator(operator, second @ first)
    order, shifts = match_atoms(
        tile_structure(tile_structure(structure, first), second), tile_structure(structure, second @ first)
    )
    assert twice.permuted(order, shifts).pairs.equals(at_once.pairs)
    assert twice.permuted(order, shifts).max_abs_difference(at_once) == 0


def test_the_unit_matrix_changes_nothing():
    operator = random_operator(crystal(), BASIS, 4, seed=2)
    assert tile_operator(operator, np.eye(3)).max_abs_difference(operator) == 0


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.diag([1, 1, -1]), "determinant -1; expected a positive determinant"),
        (np.zeros((3, 3)), "determinant 0"),
        (np.diag([1, 1, 1.5]), "3×3 matrix of integers"),
        (np.eye(2), "3×3 matrix of integers"),
        (np.full((3, 3), np.nan), "3×3 matrix of integers"),
    ],
)
def test_matrices_that_make_no_supercell_are_refused(matrix, words):
    for tile in (lambda: tile_structure(crystal(), matrix), lambda: tile_operator(model_overlap(crystal()), matrix)):
        with pytest.raises(HamnetError, match=words):
            tile()
