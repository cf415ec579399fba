"""What goes wrong in sparse solvers of H c = E S c without a word: degenerate levels, missed states, shared arrays."""

import hashlib

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch

from hamnet.blocks import BlockOperator
from hamnet.errors import SolverError
from hamnet.supercell import tile_operator
from postprocess.solvers.backends import BACKENDS
from postprocess.solvers.factor import SingularFactorError, certified_factor
from postprocess.solvers.lanczos import states_near
from postprocess.solvers.multifrontal import Multifrontal
from postprocess.solvers.overlap import OverlapCheck
from postprocess.solvers.pencil import SparsePencil
from postprocess.solvers.superlu import SuperLU
from postprocess.solvers.window import nearest_window, solve_window
from preprocessing.readers import read_run
from preprocessing.readers.protocol import ReadOptions

GENERIC, GAMMA = (0.13, 0.21, 0.0), (0.0, 0.0, 0.0)


def _check(window, at) -> np.ndarray:
    """The window against dense diagonalisation; returns its levels."""
    h, s = at.dense()
    levels = scipy.linalg.eigvalsh(h, s)
    inside = levels[(levels > window.low_ev) & (levels < window.high_ev)]
    assert window.first == (levels < window.low_ev).sum()
    assert window.energies_ev.shape == inside.shape
    assert np.abs(window.energies_ev - inside).max() < 1e-10
    c = window.vectors
    assert np.abs(c.conj().T @ s @ c - np.eye(len(inside))).max() < 1e-11
    assert np.abs(h @ c - s @ c * window.energies_ev).max() < 1e-5
    return inside


def _multiplicities(levels: np.ndarray) -> np.ndarray:
    ends = np.flatnonzero(np.diff(levels, prepend=-np.inf, append=np.inf) > 1e-6)
    return np.diff(ends)


def test_degenerate_levels_of_a_symmetric_supercell_are_found_with_all_copies(tiled, backend):
    # At Γ bands of k and −k meet, and without magnetism each of them is there for both spins.
    h, s = tiled(3, 3, 0.0, name="nibr2_unpolarised")
    at = SparsePencil(h.with_spin(4), s).at(GAMMA)
    levels = _check(solve_window(backend(at.pencil), at, -6.9, -5.9), at)
    assert _multiplicities(levels).max() >= 4


def _apart(operator: BlockOperator, n: int) -> BlockOperator:
    """n cells with no bonds between them."""
    tiled = tile_operator(operator, np.diag([n, 1, 1]))
    pairs, n_atoms = tiled.pairs, operator.pairs.n_atoms
    inside = (pairs.row // n_atoms == pairs.col // n_atoms) & ~pairs.shift.any(axis=1)
    blocks = [
        block[torch.from_numpy(inside[group.pairs])] for group, block in zip(pairs.groups, tiled.blocks, strict=True)
    ]
    return BlockOperator.from_unsorted(
        tiled.basis, pairs.species, pairs.row[inside], pairs.col[inside], pairs.shift[inside], blocks
    )


@pytest.mark.parametrize("name", ["multifrontal", "superlu"])
def test_levels_with_more_copies_than_a_block_has_columns_are_found(layer, name):
    sample, n = layer("nibr2_1x1_nc"), 11
    pencil = SparsePencil(_apart(sample.hamiltonian, n), _apart(sample.overlap, n))
    at = pencil.at(GAMMA)
    levels = _check(solve_window(BACKENDS[name](pencil), at, -7.0, -4.0), at)
    assert (_multiplicities(levels) % n == 0).all()
    assert len(levels) >= 5 * n


def test_a_number_of_states_that_cuts_a_level_is_rounded_to_whole_levels(layer):
    sample, n = layer("nibr2_1x1_nc"), 11
    pencil = SparsePencil(_apart(sample.hamiltonian, n), _apart(sample.overlap, n))
    at = pencil.at(GAMMA)
    levels = _check(nearest_window(Multifrontal(pencil), at, -5.0, 15), at)
    assert len(levels) >= 15
    assert (_multiplicities(levels) % n == 0).all()


@pytest.mark.parametrize("side", [-1, 1])
def test_states_on_one_side_of_a_gap_take_the_shift_as_an_edge(superlattice, side):
    at = superlattice(3, 3).at(GENERIC)
    levels = scipy.linalg.eigvalsh(*at.dense())
    gap = int(np.argmax(np.diff(levels[200:300]))) + 200
    energy = float(levels[gap] * (0.9 if side < 0 else 0.1) + levels[gap + 1] * (0.1 if side < 0 else 0.9))
    window = nearest_window(Multifrontal(at.pencil), at, energy, 6)
    assert len(_check(window, at)) >= 6
    assert (window.energies_ev > energy).all() if side > 0 else (window.energies_ev < energy).all()
    assert window.n_factors == 2


def test_single_vector_iteration_misses_copies_where_the_count_does_not(layer):
    """The trap itself: a converged group of states that is not complete, and only the inertia tells."""
    sample, n = layer("nibr2_1x1_nc"), 11
    pencil = SparsePencil(_apart(sample.hamiltonian, n), _apart(sample.overlap, n))
    at = pencil.at(GAMMA)
    h, s = at.dense()
    levels = scipy.linalg.eigvalsh(h, s)
    level = levels[(levels > -7) & (levels < -4)][0]
    factor = certified_factor(Multifrontal(pencil), at, float(level) + 1e-3)
    # As many Krylov steps with one vector as there are other levels: each level shows once.
    x = np.random.default_rng(0).normal(size=at.dim) + 0j
    basis: list[np.ndarray] = []
    for _ in range(5):
        for b in basis:
            x = x - b * (b.conj() @ at.apply_s(x[:, None])[:, 0])
        basis.append(x / np.sqrt((x.conj() @ at.apply_s(x[:, None])[:, 0]).real))
        x = factor.solve(at.apply_s(basis[-1][:, None]))[:, 0]
    v = np.stack(basis, axis=1)
    ritz = scipy.linalg.eigvalsh(v.conj().T @ h @ v)
    found = (np.abs(ritz - level) < 1e-6).sum()
    counts = [certified_factor(Multifrontal(pencil), at, float(level) + d).inertia.negative for d in (-1e-4, 1e-4)]
    assert found == 1
    assert counts[1] - counts[0] == n


def test_the_search_says_that_it_is_incomplete_when_states_run_out(superlattice):
    at = superlattice(2, 2).at(GENERIC)
    h, s = at.dense()
    levels = scipy.linalg.eigvalsh(h, s)
    middle = len(levels) // 2
    window = float(levels[middle] + 1e-4), float(levels[middle + 4] + 1e-4)
    factor = certified_factor(Multifrontal(at.pencil), at, sum(window) / 2)
    complete = states_near(factor, 4, window_ev=window)
    assert complete.complete
    assert np.abs(complete.energies_ev - levels[middle + 1 : middle + 5]).max() < 1e-10
    more = states_near(factor, 6, window_ev=window)
    assert not more.complete
    assert len(more.energies_ev) == 4


def test_windows_leave_the_arrays_that_all_matrices_share_alone(superlattice, backend):
    pencil = superlattice(3, 3)
    shared = pencil.indptr, pencil.indices, pencil.s_indptr, pencil.s_indices
    before = [hashlib.sha256(array).hexdigest() for array in shared]
    at = pencil.at(GENERIC)
    numbers = at.h_data.copy(), at.s_data.copy()
    solve_window(backend(pencil), at, -6.2, -5.5)
    assert [hashlib.sha256(array).hexdigest() for array in shared] == before
    assert np.array_equal(at.h_data, numbers[0])
    assert np.array_equal(at.s_data, numbers[1])
    with pytest.raises(ValueError, match="read-only"):
        at.h.indices[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        at.s_orbital.eliminate_zeros()


def test_eigsh_returns_states_of_a_level_that_are_not_orthogonal_and_windows_do(superlattice):
    """Why windows are not scipy's: at Γ of the ideal layer its states of one level are not S-orthogonal."""
    at = superlattice(3, 3, 0.0, name="nibr2_unpolarised").at(GAMMA)
    h, s = at.dense()
    window = solve_window(SuperLU(at.pencil), at, -8.0, -4.0)
    sigma = (window.low_ev + window.high_ev) / 2
    csc = (scipy.sparse.csc_matrix(m.astype(complex)) for m in (h, s))
    values, vectors = scipy.sparse.linalg.eigsh(next(csc), len(window.energies_ev), next(csc), sigma=sigma)
    theirs = np.abs(vectors.conj().T @ s @ vectors - np.eye(len(values))).max()
    c = window.vectors
    assert theirs > 1e-3
    assert np.abs(c.conj().T @ s @ c - np.eye(c.shape[1])).max() < 1e-11


def test_superlu_with_pivots_off_the_diagonal_gives_no_count(superlattice, monkeypatch):
    at = superlattice(2, 2).at(GENERIC)
    analysis = SuperLU(at.pencil)
    real = scipy.sparse.linalg.splu
    # As called by default: partial pivoting, where the signs on the diagonal of U are no inertia.
    pivoted = real(at.h.tocsc())
    assert not np.array_equal(pivoted.perm_r, pivoted.perm_c)
    h, s = at.dense()
    levels = scipy.linalg.eigvalsh(h, s)
    assert (pivoted.U.diagonal().real < 0).sum() != (levels < 0).sum()
    monkeypatch.setattr(scipy.sparse.linalg, "splu", lambda matrix, **_: real(matrix))
    with pytest.raises(SingularFactorError, match="off the diagonal"):
        analysis.factor(at.h_data)


@pytest.mark.parametrize("name", ["dense", "multifrontal", "superlu"])
def test_an_overlap_with_few_negative_eigenvalues_is_counted_and_named(tiled, softened, name):
    h, s = tiled(2, 2)
    smallest = scipy.linalg.eigvalsh(SparsePencil(h, s).at(GENERIC).dense()[1])
    for by in (smallest[0] - 1e-4, smallest[3] + 1e-4):
        pencil = SparsePencil(h, softened(s, by))
        negative = int((scipy.linalg.eigvalsh(pencil.at(GENERIC).dense()[1]) < 0).sum())
        check = OverlapCheck(pencil, name)
        if negative:
            with pytest.raises(SolverError, match=rf"{negative // 2} negative eigenvalues at k = \(0.13, 0.21, 0\)"):
                check.require_positive(GENERIC)
        else:
            check.require_positive(GENERIC)
    assert negative == 4


def test_an_indefinite_overlap_does_not_give_a_window(tiled, softened, backend):
    h, s = tiled(2, 2)
    at = SparsePencil(h, softened(s, 0.2)).at(GENERIC)
    with pytest.raises(SolverError, match="positive definite"):
        solve_window(backend(at.pencil), at, -8.0, -5.5)


def test_elements_that_are_no_numbers_are_named(tiled):
    h, s = tiled(2, 2)
    blocks = [block.clone() for block in h.blocks]
    blocks[1][3, 0, 0, 0] = float("nan")
    pencil = SparsePencil(BlockOperator(h.basis, h.pairs, tuple(blocks)), s)
    with pytest.raises(SolverError, match="not finite"):
        pencil.at(GENERIC)


def test_window_of_a_converged_spiral_on_a_long_strip(unpacked):
    """A magnetic state of another DFT run, 12 atoms, repeated so that fronts of several levels occur."""
    folder = unpacked("openmx/nibr2_2x2") / "spiral"
    sample = read_run(folder, ReadOptions(operators=frozenset())).sample
    pencil = SparsePencil(*(tile_operator(o, np.diag([5, 1, 1])) for o in (sample.hamiltonian, sample.overlap)))
    at, fermi = pencil.at(GENERIC), sample.fermi_energy_ev
    assert _check(solve_window(Multifrontal(pencil), at, fermi - 0.3, fermi + 0.8), at).size > 20
