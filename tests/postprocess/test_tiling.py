"""Sites of a supercell: found from geometry, whatever the order, origin, displacements and strain."""

from dataclasses import replace

import numpy as np
import pytest

from hamnet.errors import StructureError
from hamnet.structure import Structure
from hamnet.supercell import tile_operator, tile_structure
from postprocess.tiling import Tiling, average_primitive, match_primitive, primitive_shifts, smallest_cell
from tight_binding import HEXAGONAL, operator

ROOT3 = ((1, -1, 0), (1, 2, 0), (0, 0, 1))
SLAB = (True, True, False)


@pytest.fixture
def layer() -> Structure:
    """Two species, three atoms, as in NiBr2."""
    cell = HEXAGONAL * [[3.7], [3.7], [1.5]]
    fractional = np.array([[0.1, 0.2, 0.5], [0.1 + 2 / 3, 0.2 + 1 / 3, 0.62], [0.1 + 1 / 3, 0.2 + 2 / 3, 0.38]])
    return Structure(cell, fractional @ cell, [ord("N"), ord("B"), ord("B")], ("Ni", "Br", "Br"))


def _disturbed(structure: Structure, matrix, size_ang: float, seed: int = 0, strain: float = 0.0) -> Structure:
    """Tiled, atoms in another order, in other cells, displaced by up to `size_ang`, the origin moved."""
    rng = np.random.default_rng(seed)
    large = tile_structure(structure, matrix)
    off = rng.normal(size=(len(large), 3))
    off *= size_ang * rng.random((len(large), 1)) / np.linalg.norm(off, axis=1, keepdims=True)
    large = replace(large, positions=large.positions + off + rng.random(3))
    deform = np.eye(3) + strain * rng.uniform(-1, 1, (3, 3))
    large = replace(large, cell=large.cell @ deform, positions=large.positions @ deform)
    shifts = rng.integers(-2, 3, (len(large), 3))
    return large.permuted(rng.permutation(len(large)), shifts)


def _rebuilt(structure: Structure, tiling: Tiling) -> np.ndarray:
    """Positions from sites, cells and displacements, up to the origin."""
    cell = np.linalg.inv(tiling.matrix) @ structure.cell
    fractional = tiling.primitive.fractional_positions + tiling.cells[:, None] + tiling.shifts @ tiling.matrix
    positions = np.empty((len(structure), 3))
    positions[tiling.atoms] = fractional @ cell
    return positions + tiling.displacements_ang


@pytest.mark.parametrize("matrix", [np.diag([2, 2, 1]), np.diag([5, 3, 1]), ROOT3])
@pytest.mark.parametrize(("size_ang", "strain"), [(0.0, 0.0), (0.3, 0.0), (0.1, 0.01)])
def test_every_atom_is_its_site_its_cell_and_its_displacement(layer, matrix, size_ang, strain):
    large = _disturbed(layer, matrix, size_ang, strain=strain)
    tiling = match_primitive(large, layer)
    assert np.array_equal(tiling.matrix, matrix)
    assert len(tiling) == round(np.linalg.det(matrix))
    assert np.array_equal(np.sort(tiling.atoms.ravel()), np.arange(len(large)))
    assert (large.numbers[tiling.atoms] == layer.numbers).all()
    origin = large.positions - _rebuilt(large, tiling)
    assert np.allclose(origin, origin[0], atol=1e-9)
    assert tiling.largest_displacement_ang <= size_ang * 1.4 + 1e-12
    assert tiling.largest_displacement_ang >= size_ang / 2
    assert np.allclose(tiling.displacements_ang.mean(axis=0), 0, atol=1e-12)
    assert tiling.strain <= strain + 1e-12


@pytest.mark.parametrize("matrix", [np.diag([2, 2, 1]), np.diag([6, 4, 1]), ROOT3, ((2, 1, 0), (-1, 3, 0), (0, 0, 1))])
@pytest.mark.parametrize("size_ang", [0.0, 0.25])
def test_smallest_cell_of_a_displaced_crystal_is_that_of_the_ideal_one(layer, matrix, size_ang):
    large = _disturbed(layer, matrix, size_ang)
    found = smallest_cell(large, periodic=SLAB)
    assert round(np.linalg.det(found)) == round(np.linalg.det(matrix))
    small = average_primitive(large, found)
    assert np.allclose(small.cell[2], layer.cell[2])
    assert np.allclose(np.sort(np.linalg.norm(small.cell, axis=1)), np.sort(np.linalg.norm(layer.cell, axis=1)))
    tiling = match_primitive(large, small)
    assert tiling.largest_displacement_ang <= size_ang * 1.4 + 1e-9
    if np.array_equal(matrix, np.diag(np.diag(matrix))):
        assert np.array_equal(found, matrix)


def test_moments_play_no_part_and_a_primitive_cell_stays_itself(layer):
    large = tile_structure(layer, np.diag([2, 1, 1]))
    moments = np.zeros((6, 3))
    moments[0], moments[3] = (0, 0, 1), (0, 0, -1)
    assert np.array_equal(smallest_cell(large.with_moments(moments)), np.diag([2, 1, 1]))
    assert np.array_equal(smallest_cell(layer), np.eye(3))


def test_a_long_supercell_is_not_confused_by_its_shape(layer):
    large = _disturbed(layer, np.diag([40, 1, 1]), 0.3)
    assert np.array_equal(smallest_cell(large, periodic=SLAB), np.diag([40, 1, 1]))


def test_averaging_over_the_cells_removes_the_displacements(layer):
    large = _disturbed(layer, np.diag([12, 10, 1]), 0.2)
    small = average_primitive(large, np.diag([12, 10, 1]))
    tiling = match_primitive(small, layer)
    assert tiling.largest_displacement_ang < 0.05


def test_pairs_of_a_tiled_operator_are_those_of_the_primitive_one(layer):
    h = operator(layer, {(0, 1, (0, 1, 0)): 1.0, (0, 2, (-1, 0, 0)): 1.0, (0, 0, (1, 1, 0)): 1.0})
    rng = np.random.default_rng(4)
    order, shifts = rng.permutation(9), rng.integers(-1, 2, (9, 3))
    large = tile_structure(layer, ROOT3).permuted(order, shifts)
    pairs = tile_operator(h, ROOT3).permuted(order, shifts).pairs
    row, col, shift = primitive_shifts(pairs, match_primitive(large, layer))
    found = np.unique(np.column_stack([row, col, shift]), axis=0)
    wanted = np.unique(np.column_stack([h.pairs.row, h.pairs.col, h.pairs.shift]), axis=0)
    assert np.array_equal(found, wanted)


def test_primitive_cell_that_does_not_tile_is_refused_with_the_nearest_matrix_and_the_misfit(layer):
    large = tile_structure(layer, np.diag([2, 2, 1]))
    wrong = replace(layer, cell=layer.cell * [[1.2], [1], [1]])
    with pytest.raises(StructureError, match=r"nearest integer matrix, 2 2 1, misses a lattice vector by 1\.48 Å"):
        match_primitive(large, wrong)
    turned = layer.rotated([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    with pytest.raises(StructureError, match="orientation of the supercell"):
        match_primitive(large, turned)


def test_other_species_vacancies_and_strayed_atoms_are_refused(layer):
    large = tile_structure(layer, np.diag([2, 2, 1]))
    doped = replace(large, numbers=[*large.numbers[:-1], 53], labels=(*large.labels[:-1], "I"))
    with pytest.raises(StructureError, match=r"Br7 I1 Ni4 is not 4 × Br2 Ni1 \(matrix 2 2 1\)"):
        match_primitive(doped, layer)
    positions = large.positions.copy()
    positions[5] += [0, 0, 0.9]
    with pytest.raises(StructureError, match=r"atom 5 \(Br\) is 0\.8\d* Å from the nearest site"):
        match_primitive(replace(large, positions=positions), layer)
    positions[5] = large.positions[2] + [0, 0, 0.1]
    with pytest.raises(StructureError, match=r"atoms 2 and 5 \(Br\) on one site"):
        match_primitive(replace(large, positions=positions), layer, tolerance_ang=5.0)


def test_matrix_that_is_no_translation_is_refused_with_the_one_that_is(layer):
    large = tile_structure(layer, np.diag([2, 2, 1]))
    with pytest.raises(StructureError, match=r"the matrix 4 1 1 asks for 4 copies of atom 0 .*has the matrix 2 2 1"):
        average_primitive(large, np.diag([4, 1, 1]))
    with pytest.raises(StructureError, match="determinant 0"):
        average_primitive(large, np.diag([2, 0, 1]))
