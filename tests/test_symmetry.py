"""Rotations, inversion, time reversal and spin rotation of operators, against a Hamiltonian in closed form.

The closed form (``small_models.model_hamiltonian``) takes a structure with moments, so turning the operator is
compared with the operator of the turned structure.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from hamnet.bloch import bloch_dense
from hamnet.errors import HamnetError, StructureError
from hamnet.symmetry import match_atoms, orbital_rotation, rotate, rotate_spin, time_reverse
from small_models import BASIS, GENERIC_K, ROTATION, angular_momentum_p, crystal, model_hamiltonian, random_operator

OPERATIONS = {
    "rotation": ROTATION,
    "inversion": -np.eye(3),
    "mirror": np.diag([1.0, -1.0, 1.0]),
    "rotoinversion": -ROTATION,
}
PAULI = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])


@pytest.mark.parametrize("name", OPERATIONS)
def test_rotating_structure_and_moments_rotates_every_block(name):
    structure, operation = crystal(), OPERATIONS[name]
    turned = rotate(model_hamiltonian(structure), operation)
    expected = model_hamiltonian(structure.rotated(operation))
    assert turned.pairs.equals(expected.pairs)
    assert turned.max_abs_difference(expected) < 1e-12


@pytest.mark.parametrize("name", OPERATIONS)
def test_polar_moments_or_a_spin_left_behind_are_noticed(name):
    structure, operation = crystal(), OPERATIONS[name]
    hamiltonian = model_hamiltonian(structure)
    wrong = structure.rotated(operation)
    assert wrong.moments is not None
    wrong = wrong.with_moments(-wrong.moments)  # an improper operation taken for polar flips the moments
    assert rotate(hamiltonian, operation).max_abs_difference(model_hamiltonian(wrong)) > 1e-2
    if name != "inversion":
        left_behind = rotate(hamiltonian, operation, spin=False)
        assert left_behind.max_abs_difference(model_hamiltonian(structure.rotated(operation))) > 1e-2


def test_operations_follow_each_other_as_their_matrices_do():
    operator = random_operator(crystal(), BASIS, 4, seed=1)
    a, b = OPERATIONS["rotoinversion"], np.linalg.matrix_power(ROTATION, 2) @ OPERATIONS["mirror"]
    assert rotate(rotate(operator, a), b).max_abs_difference(rotate(operator, b @ a)) < 1e-12
    assert rotate(rotate(operator, a), a.T).max_abs_difference(operator) < 1e-12


def test_orbitals_turn_by_the_exponential_of_the_textbook_angular_momentum():
    """D(Q) for Q = exp(θ n×) on p orbitals is exp(−iθ n·L)."""
    angle, axis = 0.8, np.array([0.6, 0.0, 0.8])
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    generator = np.einsum("k,kab->ab", axis, angular_momentum_p().numpy())
    d = orbital_rotation(BASIS[BASIS.labels.index("Br")], expm(angle * cross)).numpy()
    np.testing.assert_allclose(d[:3, :3], expm(-1j * angle * generator), atol=1e-12)
    assert d[3, 3] == pytest.approx(1)


def test_rotated_spin_components_are_the_conjugation_with_the_spin_half_matrix():
    """(O_x, O_y, O_z) → Q (O_x, O_y, O_z) is U O U† with U = exp(−iθ n·σ/2)."""
    angle, axis = 1.1, np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    operator = random_operator(crystal(), BASIS, 4, seed=2)
    u = expm(-0.5j * angle * np.einsum("k,kab->ab", axis, PAULI))
    full = torch.from_numpy(np.kron(np.eye(operator.n_orbitals), u))
    expected = full @ bloch_dense(operator, GENERIC_K) @ full.mH
    turned = rotate_spin(operator, expm(angle * cross))
    torch.testing.assert_close(bloch_dense(turned, GENERIC_K), expected, rtol=0, atol=1e-12)


def test_without_spin_orbit_coupling_the_spin_turns_free_of_the_crystal():
    structure = crystal()
    assert structure.moments is not None
    turned = structure.with_moments(structure.moments @ ROTATION.T)
    free = rotate_spin(model_hamiltonian(structure, spin_orbit_ev=0.0), ROTATION)
    assert free.max_abs_difference(model_hamiltonian(turned, spin_orbit_ev=0.0)) < 1e-13
    tied = rotate_spin(model_hamiltonian(structure), ROTATION)
    assert tied.max_abs_difference(model_hamiltonian(turned)) > 1e-2


def test_collinear_operators_turn_about_z_and_flip_but_do_not_tilt():
    operator = random_operator(crystal(), BASIS, 2, seed=3)
    flip = np.diag([1.0, -1.0, -1.0])
    torch.testing.assert_close(
        bloch_dense(rotate_spin(operator, flip), GENERIC_K), bloch_dense(operator, GENERIC_K).flip(1)
    )
    about_z = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]])
    assert rotate_spin(operator, about_z).max_abs_difference(operator) == 0
    wide = rotate(operator.with_spin(4), about_z)
    assert rotate(operator, about_z).with_spin(4).max_abs_difference(wide) < 1e-13
    with pytest.raises(HamnetError, match=r"Use with_spin\(4\) first"):
        rotate_spin(operator, ROTATION)


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_impossible_rotations_are_refused_for_every_spin_kind(n_spin):
    operator = random_operator(crystal(), BASIS, n_spin, seed=3)
    with pytest.raises(HamnetError, match="an improper rotation of spin"):
        rotate_spin(operator, -np.eye(3))
    for turn in (rotate, rotate_spin):
        with pytest.raises(StructureError, match="orthogonal"):
            turn(operator, 2 * np.eye(3))


def test_time_reversal_maps_H_of_m_to_conj_H_of_minus_m():
    structure = crystal()
    assert structure.moments is not None
    reversed_moments = structure.with_moments(-structure.moments)
    assert time_reverse(model_hamiltonian(structure)).max_abs_difference(model_hamiltonian(reversed_moments)) < 1e-14
    assert time_reverse(model_hamiltonian(structure)).max_abs_difference(model_hamiltonian(structure)) > 1e-2


def test_time_reversed_matrix_is_sigma_y_conj_H_minus_k_sigma_y():
    operator = random_operator(crystal(), BASIS, 4, seed=4)
    theta = torch.from_numpy(np.kron(np.eye(operator.n_orbitals), 1j * PAULI[1]))
    expected = theta @ bloch_dense(operator, -GENERIC_K).conj() @ theta.mH
    torch.testing.assert_close(bloch_dense(time_reverse(operator), GENERIC_K), expected, rtol=0, atol=1e-13)
    assert time_reverse(time_reverse(operator)).max_abs_difference(operator) == 0


@pytest.mark.parametrize("n_spin", [1, 2])
def test_time_reversal_exchanges_the_two_spins_of_a_collinear_operator(n_spin):
    operator = random_operator(crystal(), BASIS, n_spin, seed=4)
    expected = bloch_dense(operator, -GENERIC_K).conj().flip(1)
    torch.testing.assert_close(bloch_dense(time_reverse(operator), GENERIC_K), expected)


def test_time_even_and_time_odd_parts_are_re0_imxyz_and_im0_rexyz():
    operator = random_operator(crystal(), BASIS, 4, seed=5)
    odd = (operator - time_reverse(operator)) * 0.5
    for whole, part in zip(operator.blocks, odd.blocks, strict=True):
        torch.testing.assert_close(part[:, 0], 1j * whole[:, 0].imag)
        torch.testing.assert_close(part[:, 1:], whole[:, 1:].real.to(part.dtype))


def test_matching_atoms_finds_order_and_cells_of_a_shuffled_copy():
    structure = crystal()
    order, shifts = np.array([2, 0, 1]), np.array([[1, 0, -1], [0, 2, 0], [0, 0, 3]])
    found, moved = match_atoms(structure, structure.permuted(order, shifts))
    np.testing.assert_array_equal(found, order)
    np.testing.assert_array_equal(moved, shifts)


def test_matching_works_for_atoms_on_the_cell_face_and_a_hair_off_it():
    structure = crystal().translated(-crystal().positions[0])
    target = structure.translated([-1e-5, 2e-5, -1e-17])
    order, shifts = match_atoms(structure, target)
    assert order.tolist() == [0, 1, 2]
    assert not shifts.any()


def test_atoms_without_counterpart_are_named():
    structure = crystal()
    with pytest.raises(StructureError, match=r"atom 0 \(Ni\) has no counterpart"):
        match_atoms(structure, structure.translated([0.1, 0, 0]))
    exchanged = replace(structure, numbers=structure.numbers[[1, 0, 2]], labels=("Br", "Ni", "Ni"))
    with pytest.raises(StructureError, match=r"atom 0 \(Br\) has no counterpart: the nearest is Ni at 0 Å"):
        match_atoms(structure, exchanged)
    with pytest.raises(StructureError, match="different cells"):
        match_atoms(structure, structure.rotated(ROTATION))
