"""What a sample refuses, and density matrix and Mulliken moments of a Hamiltonian in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hamnet.basis import Basis, Shell, SpeciesBasis
from hamnet.blocks import BlockOperator
from hamnet.eigen import eigenstates
from hamnet.errors import HamnetError
from hamnet.sample import Sample, mulliken
from hamnet.structure import Structure
from hamnet.symmetry import rotate, time_reverse
from small_models import BASIS, ROTATION, crystal, model_hamiltonian, model_overlap

MESH = np.stack(np.meshgrid(*(np.arange(3) / 3,) * 3, indexing="ij"), axis=-1).reshape(-1, 3)
N_STATES = 11
"""States filled at each k: a density matrix of any occupation obeys what is tested here."""


def _density(hamiltonian: BlockOperator, overlap: BlockOperator) -> tuple[BlockOperator, float]:
    """ρ_ij(R) = 1/N_k Σ_nk c_i c_j* e^{−ik·R} of the lowest states, and the sum of their energies."""
    (states,) = eigenstates(hamiltonian, overlap, MESH)
    c = states.vectors[:, 0, :, :N_STATES]
    rho_k = c @ c.mH
    pairs, offsets = hamiltonian.pairs, hamiltonian.orbital_offsets
    pauli = torch.tensor([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]]).to(rho_k.dtype)
    phase = torch.from_numpy(np.exp(-2j * np.pi * MESH @ pairs.shift.T))
    blocks = []
    for group in pairs.groups:
        here = []
        for p in range(group.pairs.start, group.pairs.stop):
            i, j = pairs.row[p], pairs.col[p]
            block = torch.einsum(
                "k,kab->ab",
                phase[:, p],
                rho_k[:, 2 * offsets[i] : 2 * offsets[i + 1], 2 * offsets[j] : 2 * offsets[j + 1]],
            )
            spinor = block.reshape(block.shape[0] // 2, 2, block.shape[1] // 2, 2) / len(MESH)
            here.append(torch.einsum("axby,myx->mab", spinor, pauli) / 2)
        blocks.append(torch.stack(here))
    return BlockOperator(hamiltonian.basis, pairs, tuple(blocks)), float(states.energies[:, 0, :N_STATES].sum()) / len(
        MESH
    )


def _trace(density: BlockOperator, operator: BlockOperator) -> complex:
    """Tr ρO = 2 Σ_μ Σ ρ_μ,ij(R) O_μ,ji(−R) over the pairs."""
    transposed = operator.adjoint().map(torch.conj)
    return 2 * sum(complex((a * b).sum()) for a, b in zip(density.blocks, transposed.blocks, strict=True))


@pytest.fixture(scope="module")
def filled() -> tuple[Structure, BlockOperator, BlockOperator, BlockOperator, float]:
    structure = crystal()
    hamiltonian, overlap = model_hamiltonian(structure), model_overlap(structure)
    return structure, hamiltonian, overlap, *_density(hamiltonian, overlap)


def test_trace_of_density_and_operator_is_the_expectation_value(filled):
    """Tr ρS counts the electrons and Tr ρH is the band energy; the conjugate density misses the energy."""
    _, hamiltonian, overlap, density, energy = filled
    assert density.hermiticity_violation() < 1e-12
    assert _trace(density, overlap.with_spin(4).to(dtype=torch.complex128)) == pytest.approx(N_STATES, abs=1e-10)
    assert _trace(density, hamiltonian) == pytest.approx(energy, abs=1e-10)
    conjugate = density.map(torch.conj_physical)
    assert abs(_trace(conjugate, hamiltonian) - energy) > 1e-2


def test_mulliken_electrons_add_up_to_all_electrons_and_moments_to_the_total_spin(filled):
    structure, _, overlap, density, _ = filled
    electrons, moments = mulliken(density, overlap)
    assert electrons.sum() == pytest.approx(N_STATES, abs=1e-10)
    sigma = [_trace(density, overlap.with_spin(4).map(lambda b, m=m: b.roll(m, 1))) for m in (1, 2, 3)]
    np.testing.assert_allclose(moments.sum(axis=0), np.real(sigma), atol=1e-10)
    assert np.abs(moments).max() > 0.1
    assert moments.shape == (len(structure), 3)


def test_moments_averaged_over_rows_and_columns_turn_with_the_crystal_and_flip_under_time_reversal(filled):
    _, hamiltonian, overlap, density, _ = filled
    _, moments = mulliken(density, overlap)
    for operation in (ROTATION, -ROTATION):
        turned_density, _ = _density(rotate(hamiltonian, operation), rotate(overlap, operation))
        _, turned = mulliken(turned_density, rotate(overlap, operation))
        np.testing.assert_allclose(turned, np.linalg.det(operation) * moments @ operation.T, atol=1e-9)
    reversed_density, _ = _density(time_reverse(hamiltonian), overlap)
    np.testing.assert_allclose(mulliken(reversed_density, overlap)[1], -moments, atol=1e-9)


def test_collinear_moments_lie_along_z_and_a_spin_free_density_has_none(filled):
    _, _, overlap, density, _ = filled
    full = mulliken(density, overlap)
    collinear = density.map(lambda b: b[:, [0, 3]])
    electrons, moments = mulliken(collinear, overlap)
    np.testing.assert_allclose(electrons, full[0])
    np.testing.assert_allclose(moments, full[1] * [0, 0, 1])
    electrons, moments = mulliken(density.map(lambda b: b[:, :1]), overlap)
    np.testing.assert_allclose(electrons, full[0])
    assert not moments.any()


def _sample() -> Sample:
    structure = crystal()
    return Sample("a", structure, BASIS, model_overlap(structure), model_hamiltonian(structure))


@pytest.mark.parametrize("name", ["forces_ev_per_ang", "constraint_field_ev", "charges", "computed_moments"])
def test_numbers_per_atom_are_read_only_and_one_for_each_atom(name):
    shape = (3,) if name == "charges" else (3, 3)
    sample = replace(_sample(), **{name: np.ones(shape)})
    with pytest.raises(ValueError, match="read-only"):
        getattr(sample, name)[0] = 0
    with pytest.raises(HamnetError, match=rf"a: {name} of shape .*; expected \(3"):
        replace(_sample(), **{name: np.ones((2, *shape[1:]))})


def test_operators_of_another_crystal_are_refused():
    single = Structure(np.eye(3) * 5, np.zeros((1, 3)), [28], ("Ni",))
    with pytest.raises(HamnetError, match="an operator on 1 atoms; expected 3"):
        replace(_sample(), hamiltonian=model_hamiltonian(single))


def test_spin_kind_follows_from_the_hamiltonian_and_is_asked_for_in_vain_without_one():
    assert _sample().spin == "vector"
    with pytest.raises(HamnetError, match="a has no hamiltonian"):
        _ = replace(_sample(), hamiltonian=None).spin


def test_a_larger_basis_renumbers_all_operators_of_a_sample():
    larger = BASIS.merged(Basis((SpeciesBasis("Mg", 12, (Shell(0, 0, 2.0),)),)))
    overlap = model_overlap(crystal())
    moved = replace(_sample(), position=(overlap,) * 3).with_basis(larger)
    assert moved.position is not None
    for operator in (moved.overlap, moved.hamiltonian, *moved.position):
        assert operator is not None
        assert operator.pairs.species.tolist() == [1, 2, 1]
    assert moved.density is None
