"""Pairs by distance and from the basis, against a brute force and against ASE's neighbour list."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from ase.neighborlist import primitive_neighbor_list

from hamnet.basis import Basis, Shell, SpeciesBasis
from hamnet.errors import StructureError
from hamnet.neighbours import basis_pairs, check_distances, pairs_within
from hamnet.structure import Structure
from hamnet.supercell import tile_structure
from small_models import BASIS, ROTATION, crystal

LONELY = Structure(np.diag([2.5, 2.7, 3.0]), np.array([[0.3, 0.2, 0.1]]), np.array([28]), ("Ni",))
SKEWED = Structure(
    np.array([[3.0, 0.0, 0.0], [7.4, 2.1, 0.0], [-5.2, 3.3, 2.7]]),
    np.array([[0.0, 0.0, 0.0], [1.3, 0.9, 0.7]]),
    np.array([28, 35]),
    ("Ni", "Br"),
)
OUTSIDE = crystal().permuted([0, 1, 2], [[5, 0, -3], [0, 0, 0], [-1, 2, 4]])
CASES = {
    "cell small against the cutoff": (LONELY, 8.2),
    "skewed cell": (SKEWED, 5.3),
    "atoms outside the cell": (OUTSIDE, 4.7),
    "slab": (replace(crystal(), pbc=(True, True, False)), 5.1),
    "wire": (replace(SKEWED, pbc=(False, True, False)), 7.9),
    "molecule": (replace(OUTSIDE, pbc=(False, False, False)), 30.0),
    "cutoff below the nearest distance": (crystal(), 0.5),
}


def _brute_force(structure: Structure, joined, reach: int = 13) -> set[tuple[int, ...]]:
    """{(i, j, R)} with ``joined(i, j, distance)`` over a block of cells that is surely large enough."""
    ranges = [range(-reach, reach + 1) if periodic else (0,) for periodic in structure.pbc]
    cells = np.array(list(itertools.product(*ranges)))
    found = set()
    for i, j in itertools.product(range(len(structure)), repeat=2):
        vectors = structure.positions[j] + cells @ structure.cell - structure.positions[i]
        inside = joined(i, j, np.linalg.norm(vectors, axis=1))
        found.update((i, j, *cell) for cell in cells[inside].tolist())
    return found


def _as_set(row, col, shift) -> set[tuple[int, ...]]:
    keys = [(int(i), int(j), *map(int, r)) for i, j, r in zip(row, col, shift, strict=True)]
    assert len(set(keys)) == len(keys), "a pair is listed twice"
    return set(keys)


@pytest.mark.parametrize("name", CASES)
def test_pairs_within_a_distance_are_those_of_a_brute_force(name):
    structure, cutoff = CASES[name]
    assert _as_set(*pairs_within(structure, cutoff)) == _brute_force(structure, lambda i, j, d: d <= cutoff)


@pytest.mark.parametrize("name", CASES)
def test_pairs_within_a_distance_are_those_of_ase(name):
    structure, cutoff = CASES[name]
    i, j, shift = primitive_neighbor_list(
        "ijS", structure.pbc, structure.cell, structure.positions, cutoff, self_interaction=False
    )
    own = {(a, a, 0, 0, 0) for a in range(len(structure))}
    assert _as_set(*pairs_within(structure, cutoff)) == _as_set(i, j, shift) | own


@pytest.mark.parametrize("name", CASES)
def test_pairs_of_a_basis_are_those_whose_orbitals_touch(name):
    structure, _ = CASES[name]
    radius = np.array([s.cutoff_ang for s in BASIS.species])[BASIS.species_of(structure)]
    pairs = basis_pairs(structure, BASIS)
    expected = _brute_force(structure, lambda i, j, d: d <= radius[i] + radius[j])
    assert _as_set(pairs.row, pairs.col, pairs.shift) == expected


@pytest.mark.parametrize("name", ["cell small against the cutoff", "skewed cell", "atoms outside the cell", "slab"])
def test_pairs_through_projectors_join_atoms_whose_orbitals_do_not_touch(name):
    structure, _ = CASES[name]
    basis = Basis(
        (
            SpeciesBasis("Ni", 28, (Shell(0, 0, 1.6), Shell(1, 0, 1.3)), projector_cutoff_ang=0.9),
            SpeciesBasis("Br", 35, (Shell(0, 0, 1.1),), projector_cutoff_ang=1.2),
        )
    )
    species = basis.species_of(structure)
    orbital = np.array([s.cutoff_ang for s in basis.species])[species]
    projector = np.array([s.projector_cutoff_ang for s in basis.species])[species]
    direct = _brute_force(structure, lambda i, j, d: d <= orbital[i] + orbital[j])
    legs: dict[int, list] = {}
    for i, c, *cell in _brute_force(structure, lambda i, c, d: d <= orbital[i] + projector[c]):
        legs.setdefault(c, []).append((i, np.array(cell)))
    through = {
        (i, j, *(a - b).tolist()) for ends in legs.values() for (i, a), (j, b) in itertools.product(ends, repeat=2)
    }
    assert through - direct, "the case must tell the two rules apart"
    pairs = basis_pairs(structure, basis)
    assert _as_set(pairs.row, pairs.col, pairs.shift) == direct | through


def test_projectors_of_one_species_only_join_through_that_species():
    line = Structure(
        np.diag([20.0, 20.0, 20.0]),
        np.array([[0, 0, 0], [3.0, 0, 0], [6.0, 0, 0], [9.0, 0, 0]]),
        np.array([28, 35, 28, 28]),
        ("Ni", "Br", "Ni", "Ni"),
    )
    basis = Basis(
        (
            SpeciesBasis("Ni", 28, (Shell(0, 0, 2.0),)),
            SpeciesBasis("Br", 35, (Shell(0, 0, 1.2),), projector_cutoff_ang=1.1),
        )
    )
    pairs = basis_pairs(line, basis)
    off = {(i, j) for i, j in zip(pairs.row.tolist(), pairs.col.tolist(), strict=True) if i < j}
    assert off == {(0, 1), (1, 2), (0, 2), (2, 3)}


@pytest.mark.parametrize("turn", [np.eye(3), ROTATION], ids=["as it is", "turned"])
def test_pairs_exactly_at_the_cutoff_are_all_there_whatever_round_off_does(turn):
    """Third neighbours of a simple cubic lattice at a cutoff of exactly √3 a: 1 + 6 + 12 + 8 pairs of each atom."""
    a = 2.87
    cubic = Structure(np.eye(3) * a, np.full((1, 3), 0.1), np.array([28]), ("Ni",))
    structure = tile_structure(cubic, np.diag([2, 3, 1])).rotated(turn).translated([0.07, -9.3, 1 / 3])
    row, _, _ = pairs_within(structure, np.sqrt(3) * a)
    assert np.bincount(row).tolist() == [27] * 6
    basis = Basis((SpeciesBasis("Ni", 28, (Shell(0, 0, np.sqrt(3) * a / 2),)),))
    assert len(basis_pairs(structure, basis)) == 27 * 6


def test_overlapping_atoms_and_images_are_named_with_their_distance():
    structure = crystal()
    check_distances(structure)
    close = replace(structure, positions=structure.positions[[0, 1, 0]] + [[0, 0, 0], [0, 0, 0], [0, 0, 0.2]])
    with pytest.raises(StructureError, match=r"atoms 0 \(Ni\) and 2 \(Ni\) overlap: 0.200 Å apart.*check units"):
        check_distances(close)
    flat = replace(LONELY, cell=np.diag([2.5, 2.7, 0.3]))
    with pytest.raises(StructureError, match=r"atoms 0 \(Ni\) and 0 \(Ni\) in cell \(0, 0, -?1\) overlap: 0.300 Å"):
        check_distances(flat)


@pytest.mark.parametrize("projector_ang", [0.0, 1.0], ids=["orbitals", "projectors"])
def test_ten_thousand_atoms_have_the_pairs_of_their_unit_cell_each(projector_ang):
    basis = Basis(tuple(replace(s, projector_cutoff_ang=projector_ang) for s in BASIS.species))
    small = basis_pairs(crystal(), basis)
    structure = tile_structure(crystal(), np.diag([16, 15, 14]))
    pairs = basis_pairs(structure, basis)
    assert len(structure) == 10_080
    assert len(pairs) == len(small) * 16 * 15 * 14
    np.testing.assert_array_equal(
        np.bincount(pairs.row).reshape(-1, 3), np.tile(np.bincount(small.row), (16 * 15 * 14, 1))
    )
