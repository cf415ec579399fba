"""The dense generalised eigenproblem against scipy and closed forms, and what symmetry says about its spectra."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

import hamnet.eigen
from hamnet.basis import Basis, Shell, SpeciesBasis
from hamnet.bloch import bloch_dense
from hamnet.blocks import BlockOperator
from hamnet.eigen import eigenstates, eigenvalues, generalised_eigh, overlap_min_eigenvalue
from hamnet.errors import SolverError
from hamnet.symmetry import rotate, time_reverse
from small_models import BASIS, GENERIC_K, ROTATION, crystal, model_hamiltonian, model_overlap, random_operator


def test_chain_with_overlap_gives_its_closed_form():
    """E(k) = (e + 2t cos 2πk) / (1 + 2s cos 2πk)."""
    basis = Basis((SpeciesBasis("H", 1, (Shell(0, 0, 1.0),)),))
    shifts = [[0, 0, 0], [1, 0, 0], [-1, 0, 0]]

    def chain(here: float, bond: float) -> BlockOperator:
        values = torch.tensor([here, bond, bond], dtype=torch.float64).reshape(3, 1, 1, 1)
        return BlockOperator.from_unsorted(basis, [0], [0, 0, 0], [0, 0, 0], shifts, [values])

    k = np.linspace(-0.5, 0.5, 9)[:, None] * [1.0, 0, 0]
    cosine = 2 * np.cos(2 * np.pi * k[:, 0])
    expected = (0.4 - 1.3 * cosine) / (1 + 0.2 * cosine)
    np.testing.assert_allclose(eigenvalues(chain(0.4, -1.3), chain(1.0, 0.2), k)[:, 0, 0], expected, atol=1e-14)


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_eigenvalues_and_states_are_those_of_scipy(n_spin):
    structure = crystal()
    hamiltonian, overlap = random_operator(structure, BASIS, n_spin, seed=1), model_overlap(structure)
    h = bloch_dense(hamiltonian, GENERIC_K).numpy()
    s = bloch_dense(overlap.with_spin(n_spin), GENERIC_K).numpy()
    (states,) = eigenstates(hamiltonian, overlap, GENERIC_K)
    np.testing.assert_allclose(eigenvalues(hamiltonian, overlap, GENERIC_K), states.energies.numpy(), atol=1e-11)
    for k, channel in np.ndindex(h.shape[:2]):
        expected = scipy.linalg.eigh(h[k, channel], s[k, channel], eigvals_only=True)
        np.testing.assert_allclose(states.energies[k, channel].numpy(), expected, atol=1e-10)
        c = states.vectors[k, channel].numpy()
        np.testing.assert_allclose(h[k, channel] @ c, s[k, channel] @ c * expected, atol=1e-9)
        np.testing.assert_allclose(c.conj().T @ s[k, channel] @ c, np.eye(len(c)), atol=1e-12)


def test_portions_of_k_do_not_change_the_result(monkeypatch):
    structure = crystal()
    hamiltonian, overlap = model_hamiltonian(structure), model_overlap(structure)
    k = np.random.default_rng(5).uniform(size=(7, 3))
    at_once = eigenvalues(hamiltonian, overlap, k)
    monkeypatch.setattr(hamnet.eigen, "_BATCH_BYTES", 2 * 16 * 6 * 48**2)
    assert [len(states.energies) for states in eigenstates(hamiltonian, overlap, k)] == [2, 2, 2, 1]
    np.testing.assert_allclose(eigenvalues(hamiltonian, overlap, k), at_once, atol=1e-12)


def test_hamiltonian_in_single_precision_meets_the_overlap_in_double():
    structure = crystal()
    hamiltonian, overlap = model_hamiltonian(structure), model_overlap(structure)
    narrow = hamiltonian.to(dtype=torch.complex64)
    energies = eigenvalues(narrow, overlap, GENERIC_K)
    assert energies.dtype == np.float64
    np.testing.assert_allclose(energies, eigenvalues(narrow.to(dtype=torch.complex128), overlap, GENERIC_K), atol=1e-6)


def test_eigenvalues_of_a_prediction_that_carries_gradients_can_be_read():
    structure = crystal()
    hamiltonian = model_hamiltonian(structure).map(lambda block: block.clone().requires_grad_())
    assert np.isfinite(eigenvalues(hamiltonian, model_overlap(structure), GENERIC_K)).all()


def test_kramers_pairs_without_moments_at_invariant_momenta_and_none_with_moments():
    invariant = np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0.5]])
    for moments, paired in ((False, True), (True, False)):
        structure = crystal(moments=moments)
        energies = eigenvalues(model_hamiltonian(structure), model_overlap(structure), invariant)[:, 0]
        splitting = np.abs(energies[:, 1::2] - energies[:, ::2]).max()
        assert (splitting < 1e-11) == paired, splitting


def test_kramers_degeneracy_is_lifted_by_spin_orbit_coupling_at_generic_k_without_inversion():
    structure = crystal(moments=False)
    energies = eigenvalues(model_hamiltonian(structure), model_overlap(structure), GENERIC_K[1])[0, 0]
    assert np.abs(energies[1::2] - energies[::2]).max() > 1e-4
    free = model_hamiltonian(structure, spin_orbit_ev=0.0)
    energies = eigenvalues(free, model_overlap(structure), GENERIC_K[1])[0, 0]
    np.testing.assert_allclose(energies[1::2], energies[::2], atol=1e-11)


def test_reversed_moments_have_the_bands_of_minus_k():
    structure = crystal()
    hamiltonian, overlap = model_hamiltonian(structure), model_overlap(structure)
    here = eigenvalues(hamiltonian, overlap, GENERIC_K)
    np.testing.assert_allclose(eigenvalues(time_reverse(hamiltonian), overlap, -GENERIC_K), here, atol=1e-11)
    assert np.abs(eigenvalues(hamiltonian, overlap, -GENERIC_K) - here).max() > 1e-4


@pytest.mark.parametrize("handedness", [1, -1], ids=["proper", "improper"])
def test_rotated_crystal_has_the_same_bands_at_the_rotated_k(handedness):
    """In fractions of the turned reciprocal vectors k stays for a proper operation; for an improper one it is −k."""
    structure = crystal()
    hamiltonian, overlap = model_hamiltonian(structure), model_overlap(structure)
    turned = [rotate(operator, handedness * ROTATION) for operator in (hamiltonian, overlap)]
    here = eigenvalues(hamiltonian, overlap, GENERIC_K)
    np.testing.assert_allclose(eigenvalues(*turned, handedness * GENERIC_K), here, atol=1e-11)


def test_overlap_that_is_not_positive_is_refused_with_its_smallest_eigenvalue():
    structure = crystal()
    overlap = model_overlap(structure)
    broken = overlap * -0.5
    with pytest.raises(SolverError, match=r"smallest eigenvalue -0\.\d+; expected a positive definite overlap"):
        eigenvalues(model_hamiltonian(structure), broken, GENERIC_K)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    matrix = torch.eye(3, dtype=torch.complex128)
    wrong = matrix.clone()
    wrong[1, 1] = bad
    for h, s in ((wrong, matrix), (matrix, wrong)):
        with pytest.raises(SolverError, match="not finite"):
            generalised_eigh(h, s, vectors=True)


def test_smallest_eigenvalue_of_the_overlap_is_the_smallest_over_all_k():
    overlap = model_overlap(crystal())
    expected = min(float(np.linalg.eigvalsh(s[0].numpy())[0]) for s in bloch_dense(overlap, GENERIC_K))
    assert overlap_min_eigenvalue(overlap, GENERIC_K) == pytest.approx(expected, abs=1e-13)
