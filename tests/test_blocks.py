"""Pairs and block operators: order, partners, adjoint, and what moves blocks about."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hamnet.basis import Basis, Shell, SpeciesBasis
from hamnet.bloch import bloch_dense
from hamnet.blocks import BlockOperator, Pairs
from hamnet.errors import BasisError, HamnetError
from hamnet.neighbours import basis_pairs
from small_models import BASIS, GENERIC_K, crystal, model_hamiltonian, random_blocks, random_operator

SPECIES = [1, 0, 1]
# (i, j, R): three self pairs, one bond and its reverse.
ROW, COL = [0, 1, 2, 0, 1], [0, 1, 2, 1, 0]
SHIFT = [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, -1], [-1, 0, 1]]


def test_partner_of_pair_ijR_is_ji_minus_R():
    pairs = basis_pairs(crystal(), BASIS)
    np.testing.assert_array_equal(pairs.row[pairs.partner], pairs.col)
    np.testing.assert_array_equal(pairs.col[pairs.partner], pairs.row)
    np.testing.assert_array_equal(pairs.shift[pairs.partner], -pairs.shift)
    np.testing.assert_array_equal(pairs.partner[pairs.partner], np.arange(len(pairs)))
    assert np.count_nonzero(pairs.is_self) == 3
    assert not (pairs.shift[pairs.is_self]).any()


def test_equal_sets_of_pairs_have_equal_arrays_whatever_the_order_given():
    mixed = np.random.default_rng(3).permutation(5)
    one, order = Pairs.build(SPECIES, ROW, COL, SHIFT)
    two, other = Pairs.build(SPECIES, np.array(ROW)[mixed], np.array(COL)[mixed], np.array(SHIFT)[mixed])
    assert one.equals(two)
    np.testing.assert_array_equal(np.array(ROW)[order], one.row)
    np.testing.assert_array_equal(mixed[other], order)


def test_pair_order_is_by_species_then_atoms_then_cell():
    pairs = basis_pairs(crystal(), BASIS)
    keys = np.column_stack([pairs.species[pairs.row], pairs.species[pairs.col], pairs.row, pairs.col, pairs.shift])
    assert keys.tolist() == sorted(keys.tolist())
    starts = [(g.row_species, g.col_species) for g in pairs.groups]
    assert starts == sorted(set(starts))
    covered = np.concatenate([np.arange(g.pairs.start, g.pairs.stop) for g in pairs.groups])
    np.testing.assert_array_equal(covered, np.arange(len(pairs)))


def test_pair_vector_points_from_the_row_atom_to_the_column_atom():
    structure = crystal()
    pairs = basis_pairs(structure, BASIS)
    vectors = pairs.vectors(structure.cell, structure.positions)
    p = int(np.flatnonzero((pairs.row == 0) & (pairs.col == 2))[0])
    expected = structure.positions[2] + pairs.shift[p] @ structure.cell - structure.positions[0]
    np.testing.assert_allclose(vectors[p], expected)
    np.testing.assert_allclose(vectors[pairs.partner], -vectors, atol=1e-14)


def test_pairs_are_read_only():
    pairs, _ = Pairs.build(SPECIES, ROW, COL, SHIFT)
    for name in ("species", "row", "col", "shift", "partner"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(pairs, name)[0] = 1


@pytest.mark.parametrize(
    ("keep", "extra", "words"),
    [
        ([0, 1, 2, 3], [], r"\(0, 1, \(1, 0, -1\)\) has no reverse"),
        ([0, 1, 2, 3, 4], [3], r"\(0, 1, \(1, 0, -1\)\) occurs twice"),
        ([0, 2, 3, 4], [], r"no self pair \(i, i, 0\) of atom 1"),
    ],
)
def test_pairs_that_are_lonely_doubled_or_missing_are_named(keep, extra, words):
    chosen = keep + extra
    with pytest.raises(HamnetError, match=words):
        Pairs.build(SPECIES, np.array(ROW)[chosen], np.array(COL)[chosen], np.array(SHIFT)[chosen])


@pytest.mark.parametrize("atom", [-1, 3])
def test_pairs_of_atoms_that_do_not_exist_are_refused(atom):
    with pytest.raises(HamnetError, match="expected 0 … 2"):
        Pairs.build(SPECIES, [*ROW[:4], atom], COL, SHIFT)


def test_find_gives_the_place_of_each_pair_and_minus_one_for_a_missing_one():
    pairs, order = Pairs.build(SPECIES, ROW, COL, SHIFT)
    fewer, _ = Pairs.build(SPECIES, ROW[:3], COL[:3], SHIFT[:3])
    assert fewer.find(pairs).tolist().count(-1) == 2
    np.testing.assert_array_equal(pairs.find(pairs), np.arange(5))
    found = pairs.find(fewer)
    np.testing.assert_array_equal(pairs.row[found], fewer.row)
    np.testing.assert_array_equal(pairs.shift[found], fewer.shift)
    assert sorted(order.tolist()) == list(range(5))


def test_block_ij_is_adjoint_of_ji():
    operator = random_operator(crystal(), BASIS, 4, seed=1)
    pairs = operator.pairs
    p = int(np.flatnonzero((pairs.row == 0) & (pairs.col == 1))[0])
    here = operator.block(0, 1, pairs.shift[p])
    there = operator.block(1, 0, -pairs.shift[p])
    torch.testing.assert_close(here, there.mH, rtol=0, atol=0)
    assert operator.hermiticity_violation() == 0
    with pytest.raises(KeyError):
        operator.block(0, 1, (7, 7, 7))


def test_hermiticity_violation_is_the_size_of_one_wrong_element():
    operator = model_hamiltonian(crystal())
    assert operator.hermiticity_violation() < 1e-14
    damaged = [b.clone() for b in operator.blocks]
    damaged[1][0, 2, 0, 0] += 1e-3j
    broken = BlockOperator(operator.basis, operator.pairs, tuple(damaged))
    assert broken.hermiticity_violation() == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_adjoint_of_the_operator_is_the_adjoint_of_every_matrix(n_spin):
    operator = random_blocks(crystal(), BASIS, n_spin, seed=5)
    torch.testing.assert_close(bloch_dense(operator.adjoint(), GENERIC_K), bloch_dense(operator, GENERIC_K).mH)
    assert operator.adjoint().adjoint().max_abs_difference(operator) == 0
    assert operator.hermiticity_violation() > 0.1
    assert operator.symmetrised().hermiticity_violation() == 0


def test_sums_and_multiples_of_operators_are_those_of_their_matrices():
    a, b = (random_operator(crystal(), BASIS, 2, seed=s) for s in (1, 2))
    matrix = 2 * bloch_dense(a, GENERIC_K) - bloch_dense(b, GENERIC_K) * 0.5 + bloch_dense(b, GENERIC_K)
    torch.testing.assert_close(bloch_dense(2 * a - b * 0.5 + b, GENERIC_K), matrix)
    with pytest.raises(ValueError, match="use with_spin and with_pairs first"):
        a + b.with_spin(4)


def test_differences_are_measured_over_all_elements():
    a = random_operator(crystal(), BASIS, 4, seed=1)
    b = a.map(lambda block: block + (3 + 4j))
    assert a.max_abs_difference(b) == pytest.approx(5)
    assert a.mean_abs_difference(b) == pytest.approx(5)


def test_more_spin_components_leave_the_matrices_alone():
    free = random_operator(crystal(), BASIS, 1, seed=1)
    matrix = bloch_dense(free, GENERIC_K)
    torch.testing.assert_close(bloch_dense(free.with_spin(2), GENERIC_K), matrix.repeat(1, 2, 1, 1))
    spinor = bloch_dense(free.with_spin(4), GENERIC_K)
    torch.testing.assert_close(spinor, torch.kron(matrix, torch.eye(2, dtype=matrix.dtype)))
    collinear = random_operator(crystal(), BASIS, 2, seed=2)
    spinor, channels = bloch_dense(collinear.with_spin(4), GENERIC_K), bloch_dense(collinear, GENERIC_K)
    for s in (0, 1):
        torch.testing.assert_close(spinor[:, 0, s::2, s::2], channels[:, s])
    assert spinor[:, 0, 0::2, 1::2].abs().max() == 0
    for n_spin in (1, 2, 3):
        with pytest.raises(ValueError, match=r"n_spin|cannot hold"):
            collinear.with_spin(4).with_spin(n_spin)


def test_new_pairs_hold_zero_and_unlisted_ones_are_dropped():
    structure = crystal()
    operator = random_operator(structure, BASIS, 4, seed=3)
    own = np.arange(3)
    onsite, _ = Pairs.build(operator.pairs.species, own, own, np.zeros((3, 3)))
    few = operator.with_pairs(onsite)
    assert len(few.pairs) == 3
    torch.testing.assert_close(few.block(2, 2, (0, 0, 0)), operator.block(2, 2, (0, 0, 0)))
    back = few.with_pairs(operator.pairs)
    p = int(np.flatnonzero(~operator.pairs.is_self)[0])
    pair = (operator.pairs.row[p], operator.pairs.col[p], operator.pairs.shift[p])
    assert back.block(*pair).abs().max() == 0
    torch.testing.assert_close(bloch_dense(back, GENERIC_K), bloch_dense(few, GENERIC_K))
    assert operator.with_pairs(operator.pairs).max_abs_difference(operator) == 0


def test_pairs_of_other_atoms_are_refused():
    operator = random_operator(crystal(), BASIS, 1, seed=3)
    with pytest.raises(ValueError, match="pairs of other atoms"):
        operator.with_pairs(Pairs.build([0], [0], [0], [[0, 0, 0]])[0])


def test_a_larger_basis_renumbers_species_and_leaves_the_matrices_alone():
    larger = BASIS.merged(
        Basis((SpeciesBasis("Mg", 12, (Shell(0, 0, 2.0),)), SpeciesBasis("Zn", 30, (Shell(0, 0, 2.0),))))
    )
    operator = random_operator(crystal(), BASIS, 4, seed=4)
    moved = operator.with_basis(larger)
    assert moved.pairs.species.tolist() == [1, 3, 1]
    torch.testing.assert_close(bloch_dense(moved, GENERIC_K), bloch_dense(operator, GENERIC_K), rtol=0, atol=0)
    rebuilt, _ = Pairs.build(moved.pairs.species, moved.pairs.row, moved.pairs.col, moved.pairs.shift)
    assert rebuilt.equals(moved.pairs)
    assert rebuilt.groups == moved.pairs.groups


def test_a_basis_without_the_species_or_with_another_one_of_that_name_is_refused():
    operator = random_operator(crystal(), BASIS, 1, seed=4)
    with pytest.raises(BasisError, match="no species Br among Ni"):
        operator.with_basis(BASIS.restricted(["Ni"]))
    other = Basis((*BASIS.restricted(["Br"]).species, SpeciesBasis("Ni", 28, (Shell(0, 0, 2.0),))))
    with pytest.raises(BasisError, match="species Ni with two bases"):
        operator.with_basis(other)


def test_permuted_atoms_in_other_cells_give_the_hamiltonian_of_the_permuted_crystal():
    structure, order, shifts = crystal(), [2, 0, 1], np.array([[1, 0, -1], [0, 2, 0], [0, 0, 0]])
    moved = model_hamiltonian(structure).permuted(order, shifts)
    expected = model_hamiltonian(structure.permuted(order, shifts))
    assert moved.pairs.equals(expected.pairs)
    assert moved.max_abs_difference(expected) < 1e-14
    with pytest.raises(ValueError, match="no permutation of 3 atoms"):
        moved.permuted([0, 0, 1])


def test_blocks_that_do_not_fit_their_pairs_are_refused():
    operator = random_operator(crystal(), BASIS, 4, seed=1)
    with pytest.raises(ValueError, match="3 block arrays for 4 groups"):
        BlockOperator(BASIS, operator.pairs, operator.blocks[:3])
    with pytest.raises(ValueError, match="blocks of shape"):
        BlockOperator(BASIS, operator.pairs, operator.blocks[::-1])
    with pytest.raises(ValueError, match="with n_spin 1, 2 or 4"):
        BlockOperator(BASIS, operator.pairs, tuple(b[:, :3] for b in operator.blocks))
    with pytest.raises(ValueError, match="species index 1 in a basis of 1"):
        BlockOperator(BASIS.restricted(["Ni"]), operator.pairs, operator.blocks)


def test_unsorted_pairs_take_their_blocks_along_and_a_mixed_up_order_of_species_is_refused():
    operator = random_operator(crystal(), BASIS, 4, seed=6)
    pairs, rng = operator.pairs, np.random.default_rng(1)
    inside = [rng.permutation(np.arange(g.pairs.start, g.pairs.stop)) for g in pairs.groups]
    mixed = np.concatenate(inside)
    blocks = [
        b[torch.from_numpy(i - g.pairs.start)] for g, b, i in zip(pairs.groups, operator.blocks, inside, strict=True)
    ]
    again = BlockOperator.from_unsorted(
        BASIS, pairs.species, pairs.row[mixed], pairs.col[mixed], pairs.shift[mixed], blocks
    )
    assert again.pairs.equals(pairs)
    assert again.max_abs_difference(operator) == 0
    wrong = mixed[::-1]
    with pytest.raises(ValueError, match="sorted by"):
        BlockOperator.from_unsorted(
            BASIS, pairs.species, pairs.row[wrong], pairs.col[wrong], pairs.shift[wrong], operator.blocks
        )


def test_precision_is_narrowed_only_where_asked():
    operator = random_operator(crystal(), BASIS, 4, seed=1)
    narrow = operator.to(dtype=torch.complex64)
    assert narrow.dtype == torch.complex64
    assert 0 < narrow.to(dtype=torch.complex128).max_abs_difference(operator) < 1e-6
    assert operator.to().dtype == torch.complex128
