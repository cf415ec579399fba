"""Bloch sums against closed forms and sisl; dense, CSR and block form against each other; the two gauges."""

from __future__ import annotations

import numpy as np
import pytest
import sisl
import torch

from hamnet.basis import Basis, Shell, SpeciesBasis
from hamnet.bloch import bloch_blocks, bloch_csr, bloch_dense, channel_blocks, n_channels
from hamnet.blocks import BlockOperator, Pairs
from hamnet.structure import Structure
from small_models import BASIS, GENERIC_K, crystal, model_hamiltonian, random_blocks, random_operator

S_ONLY = Basis((SpeciesBasis("C", 6, (Shell(0, 0, 1.0),)),))


def _s_operator(n_atoms: int, pairs: dict[tuple[int, int, tuple[int, int, int]], complex]) -> BlockOperator:
    """A spin-free operator of s orbitals from {(i, j, R): value}; the reverse of each bond is added."""
    both = dict(pairs)
    both.update({(j, i, (-r[0], -r[1], -r[2])): np.conj(v) for (i, j, r), v in pairs.items()})
    row, col, shift = (np.array([key[a] for key in both]) for a in range(3))
    values = torch.tensor(list(both.values()), dtype=torch.complex128).reshape(-1, 1, 1, 1)
    return BlockOperator.from_unsorted(S_ONLY, np.zeros(n_atoms, int), row, col, shift, [values])


def test_graphene_gives_its_known_bands_and_the_phase_of_the_lattice_gauge():
    """One p_z orbital: H_AB(k) = t (1 + e^{−ik·a1} + e^{−ik·a2}) for B in the cells 0, −a1, −a2."""
    t = -2.7
    graphene = _s_operator(
        2,
        {(0, 0, (0, 0, 0)): 0, (1, 1, (0, 0, 0)): 0} | {(0, 1, r): t for r in ((0, 0, 0), (-1, 0, 0), (0, -1, 0))},
    )
    k = np.array([[0.0, 0.0, 0.0], [1 / 3, 2 / 3, 0.0], [0.2, 0.07, 0.4]])
    f = t * (1 + np.exp(-2j * np.pi * k[:, 0]) + np.exp(-2j * np.pi * k[:, 1]))
    matrix = bloch_dense(graphene, k)[:, 0].numpy()
    np.testing.assert_allclose(matrix[:, 0, 1], f, atol=1e-14)
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix), np.stack([-abs(f), abs(f)], axis=1), atol=1e-14)


def test_bloch_phase_is_plus_k_dot_R_from_the_row_atom_to_the_column_atom():
    """A complex hopping on a ring tells e^{+ik·R} from e^{−ik·R}: E(k) = 2|t| cos(2πk + arg t)."""
    hopping = 0.8 * np.exp(0.6j)
    ring = _s_operator(1, {(0, 0, (0, 0, 0)): 0, (0, 0, (1, 0, 0)): hopping})
    k = np.linspace(0, 1, 7)[:, None] * [1.0, 0, 0]
    np.testing.assert_allclose(
        bloch_dense(ring, k)[:, 0, 0, 0].numpy(), 1.6 * np.cos(2 * np.pi * k[:, 0] + 0.6), atol=1e-14
    )


def _sisl_hamiltonian(structure: Structure, operator: BlockOperator, spin: str) -> sisl.Hamiltonian:
    """The same blocks written element by element into sisl."""
    atoms = [sisl.Atom(6, orbitals=[1.0] * int(n)) for n in operator.basis.n_orbitals]
    kinds = operator.pairs.species
    geometry = sisl.Geometry(structure.positions, [atoms[s] for s in kinds], lattice=structure.cell)
    reach = np.abs(operator.pairs.shift).max(axis=0)
    geometry.set_nsc(2 * reach + 1)
    h = sisl.Hamiltonian(geometry, spin=spin, dtype=np.complex128)
    offsets = operator.orbital_offsets
    for group, block in zip(operator.pairs.groups, channel_blocks(operator), strict=True):
        for p, values in zip(range(group.pairs.start, group.pairs.stop), block.numpy(), strict=True):
            i, j, r = operator.pairs.row[p], operator.pairs.col[p], operator.pairs.shift[p]
            column = geometry.lattice.sc_index(r) * geometry.no + offsets[j]
            for a, b in np.ndindex(values.shape[1] // len_spin(operator), values.shape[2] // len_spin(operator)):
                if operator.n_spin == 1:
                    h[offsets[i] + a, column + b] = values[0, a, b]
                else:
                    spinor = values[0, 2 * a : 2 * a + 2, 2 * b : 2 * b + 2]
                    h[offsets[i] + a, column + b] = [spinor[0, 0], spinor[1, 1], spinor[0, 1], spinor[1, 0]]
    return h


def len_spin(operator: BlockOperator) -> int:
    return 2 if operator.n_spin == 4 else 1


@pytest.mark.parametrize(("n_spin", "spin"), [(1, "unpolarized"), (4, "spin-orbit")])
@pytest.mark.parametrize("gauge", ["lattice", "atomic"])
def test_H_of_k_is_that_of_sisl_in_both_gauges(n_spin, spin, gauge):
    """Spinors too: orbital slow, spin (↑, ↓) fast, as in sisl."""
    structure = crystal()
    operator = model_hamiltonian(structure, BASIS)
    if n_spin == 1:
        operator = operator.map(lambda block: block[:, :1])
    theirs = _sisl_hamiltonian(structure, operator, spin)
    ours = bloch_dense(operator, GENERIC_K, gauge=gauge, structure=structure)
    for k, matrix in zip(GENERIC_K, ours[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(
            matrix, theirs.Hk(k, gauge=gauge, format="array", dtype=np.complex128), rtol=0, atol=1e-12
        )


def test_pauli_components_add_up_to_the_spinor_with_orbital_slow_and_spin_fast():
    """O = Σ_μ O_μ σ_μ, and the spinor of an atom starts at twice its orbital offset."""
    operator = random_operator(crystal(), BASIS, 4, seed=1)
    pauli = np.array([np.eye(2), [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
    parts = [bloch_dense(operator.map(lambda b, m=m: b[:, m : m + 1]), GENERIC_K)[:, 0].numpy() for m in range(4)]
    expected = sum(np.kron(part, sigma) for part, sigma in zip(parts, pauli, strict=True))
    np.testing.assert_allclose(bloch_dense(operator, GENERIC_K)[:, 0].numpy(), expected, atol=1e-13)


def test_collinear_channels_are_up_and_down():
    operator = random_operator(crystal(), BASIS, 2, seed=1)
    zero, z = (bloch_dense(operator.map(lambda b, m=m: b[:, m : m + 1]), GENERIC_K)[:, 0] for m in (0, 1))
    torch.testing.assert_close(bloch_dense(operator, GENERIC_K), torch.stack([zero + z, zero - z], dim=1))
    assert (n_channels(operator), n_channels(operator.with_spin(4))) == (2, 1)


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_gauges_differ_by_the_diagonal_unitary_of_the_positions(n_spin):
    structure = crystal()
    operator = random_operator(structure, BASIS, n_spin, seed=2)
    lattice = bloch_dense(operator, GENERIC_K)
    atomic = bloch_dense(operator, GENERIC_K, gauge="atomic", structure=structure)
    counts = np.diff(operator.orbital_offsets) * len_spin(operator)
    place = np.repeat(structure.fractional_positions, counts, axis=0)
    phase = torch.from_numpy(np.exp(2j * np.pi * GENERIC_K @ place.T))[:, None]
    torch.testing.assert_close(atomic, phase[..., None].conj() * lattice * phase[..., None, :], rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.eigvalsh(atomic), torch.linalg.eigvalsh(lattice), rtol=0, atol=1e-11)
    assert (atomic - lattice).abs().max() > 0.1


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_lattice_gauge_is_periodic_in_k_and_indifferent_to_where_atoms_are(n_spin):
    structure = crystal()
    operator = random_operator(structure, BASIS, n_spin, seed=2)
    torch.testing.assert_close(
        bloch_dense(operator, GENERIC_K + np.array([1, -2, 3])), bloch_dense(operator, GENERIC_K)
    )
    moved = operator.permuted([0, 1, 2], [[0, 1, 0], [2, 0, 0], [0, 0, -1]])
    here = torch.linalg.eigvalsh(bloch_dense(operator, GENERIC_K))
    torch.testing.assert_close(torch.linalg.eigvalsh(bloch_dense(moved, GENERIC_K)), here)


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_hermitian_operators_give_hermitian_matrices_and_others_do_not(n_spin):
    good = bloch_dense(random_operator(crystal(), BASIS, n_spin, seed=3), GENERIC_K)
    torch.testing.assert_close(good, good.mH)
    bad = bloch_dense(random_blocks(crystal(), BASIS, n_spin, seed=3), GENERIC_K)
    assert (bad - bad.mH).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("n_spin", [1, 2, 4])
@pytest.mark.parametrize("gauge", ["lattice", "atomic"])
def test_dense_csr_and_block_form_hold_the_same_numbers(n_spin, gauge, dtype):
    structure = crystal()
    operator = random_operator(structure, BASIS, n_spin, seed=4, dtype=dtype)
    dense = bloch_dense(operator, GENERIC_K, gauge=gauge, structure=structure).numpy()
    blocks = bloch_blocks(operator, GENERIC_K, gauge=gauge, structure=structure)
    offsets = operator.orbital_offsets * len_spin(operator)
    filled = np.zeros_like(dense)
    for rows, cols, values in blocks.values():
        for p, (i, j) in enumerate(zip(rows, cols, strict=True)):
            filled[:, :, offsets[i] : offsets[i + 1], offsets[j] : offsets[j + 1]] = values[:, p].numpy()
    np.testing.assert_array_equal(filled, dense)
    for k, matrices in zip(GENERIC_K, dense, strict=True):
        csr = bloch_csr(operator, k, gauge=gauge, structure=structure)
        assert len(csr) == n_channels(operator)
        for sparse, matrix in zip(csr, matrices, strict=True):
            np.testing.assert_allclose(sparse.toarray(), matrix, rtol=0, atol=1e-14)


def test_bloch_sum_is_the_plain_sum_over_pairs():
    operator = random_operator(crystal(), BASIS, 1, seed=5)
    offsets, pairs = operator.orbital_offsets, operator.pairs
    k = GENERIC_K[1]
    matrix = np.zeros((offsets[-1], offsets[-1]), complex)
    for i, j, r in zip(pairs.row, pairs.col, pairs.shift, strict=True):
        phase = np.exp(2j * np.pi * k @ r)
        matrix[offsets[i] : offsets[i + 1], offsets[j] : offsets[j + 1]] += phase * operator.block(i, j, r)[0].numpy()
    np.testing.assert_allclose(bloch_dense(operator, k)[0, 0].numpy(), matrix, atol=1e-13)


def test_csr_pattern_is_sorted_the_same_for_all_k_and_not_shared_between_channels():
    operator = random_operator(crystal(), BASIS, 2, seed=6)
    up, down = bloch_csr(operator, [0.0, 0.0, 0.0])
    other = bloch_csr(operator, [0.5, 0.5, 0.5])[0]
    np.testing.assert_array_equal(up.indices, other.indices)
    np.testing.assert_array_equal(up.indptr, other.indptr)
    assert up.has_sorted_indices
    up.data[:] = 0
    up.eliminate_zeros()
    assert down.nnz == other.nnz > up.nnz


def test_wrong_gauge_missing_structure_and_several_k_for_csr_are_refused():
    operator = random_operator(crystal(), BASIS, 1, seed=6)
    with pytest.raises(ValueError, match="atomic gauge needs the structure"):
        bloch_dense(operator, [0, 0, 0], gauge="atomic")
    with pytest.raises(ValueError, match="expected 'lattice' or 'atomic'"):
        bloch_dense(operator, [0, 0, 0], gauge="r")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a single k"):
        bloch_csr(operator, GENERIC_K)


def test_matrix_elements_carry_gradients_to_the_blocks():
    pairs, _ = Pairs.build([0], [0, 0, 0], [0, 0, 0], [[0, 0, 0], [1, 0, 0], [-1, 0, 0]])
    t = torch.tensor([0.3, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    order = Pairs.build([0], [0, 0, 0], [0, 0, 0], [[0, 0, 0], [1, 0, 0], [-1, 0, 0]])[1]
    operator = BlockOperator(S_ONLY, pairs, (t[torch.from_numpy(order)].reshape(3, 1, 1, 1),))
    energy = bloch_dense(operator, [0.1, 0, 0])[0, 0, 0, 0].real
    (gradient,) = torch.autograd.grad(energy, t)
    np.testing.assert_allclose(gradient.numpy(), [1, np.cos(0.2 * np.pi), np.cos(0.2 * np.pi)])
