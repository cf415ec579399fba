"""Bands and the character of states, on models with known answers."""

import numpy as np
import pytest

from hamnet.bloch import bloch_dense
from hamnet.eigen import eigenstates
from hamnet.errors import ConfigError, SolverError
from postprocess.bands import dense_cost, solve_bands
from postprocess.comparison import compare_bands
from postprocess.grouping import group_orbitals
from postprocess.kmesh import k_mesh
from postprocess.kpath import k_path
from tight_binding import basis_of, chain, honeycomb, identity, operator, structure_of

PAULI = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])


def _random_spinor_model(seed: int = 3):
    """Two species with s, p and s, d shells, overlap and a random Hermitian vector Hamiltonian."""
    rng = np.random.default_rng(seed)
    structure = structure_of(np.diag([3.0, 3.1, 3.3]), [(0, 0, 0), (0.5, 0.4, 0.5), (0.1, 0.6, 0.2)], "AAB")
    basis = basis_of(structure, {"A": (0, 1), "B": (0, 0, 2)})
    sizes = basis.n_orbitals[basis.species_of(structure)]

    def block(i, j, n_spin, scale):
        return scale * (
            rng.normal(size=(n_spin, sizes[i], sizes[j])) + 1j * rng.normal(size=(n_spin, sizes[i], sizes[j]))
        )

    pairs = [(0, 1, (0, 0, 0)), (0, 2, (0, 0, 0)), (1, 2, (1, 0, 0)), (0, 0, (0, 1, 0)), (2, 2, (0, 0, 1))]
    terms = {key: block(key[0], key[1], 4, 0.5) for key in pairs}
    overlap = {key: block(key[0], key[1], 1, 0.03).real for key in pairs}
    for a in range(3):
        onsite = block(a, a, 4, 1.0)
        terms[a, a, (0, 0, 0)] = onsite + onsite.conj().swapaxes(1, 2)
        overlap[a, a, (0, 0, 0)] = np.eye(sizes[a])[None]
    return structure, operator(structure, terms, basis), operator(structure, overlap, basis)


def test_chain_with_overlap_has_its_closed_form_dispersion():
    structure, h, s = chain(-1.0, 0.2)
    path = k_path(structure, n_points=41, periodic=(True, False, False))
    cosine = np.cos(2 * np.pi * path.k_frac[:, 0])
    energies = solve_bands(h, s, path.k_frac).energies_ev
    assert path.labels == ("G", "X")
    assert np.allclose(energies[:, 0, 0], -2 * cosine / (1 + 0.4 * cosine), atol=1e-12)


def test_honeycomb_bands_meet_at_k_and_a_mass_parts_them():
    for mass in (0.0, 0.3):
        structure, h, s = honeycomb(-1.0, mass)
        path = k_path(structure, "GMKG", n_points=60, periodic=(True, True, False))
        energies = solve_bands(h, s, path.k_frac).energies_ev
        f = 1 + np.exp(-2j * np.pi * path.k_frac[:, 0]) + np.exp(2j * np.pi * path.k_frac[:, 1])
        assert np.allclose(energies[:, 0, 1], np.sqrt(mass**2 + abs(f) ** 2), atol=1e-7)
        assert np.allclose(energies[:, 0, 0], -energies[:, 0, 1])
        k = int(np.argmin(np.abs(path.distance - path.ticks[2])))
        assert energies[k, 0, 1] == pytest.approx(mass, abs=1e-7)


def test_spin_of_a_state_in_a_field_lies_along_the_field():
    structure, _, s = chain(-1.0, 0.3)
    rng = np.random.default_rng(0)
    field = rng.normal(size=3)
    h = operator(
        structure,
        {
            (0, 0, (0, 0, 0)): np.array([0.0, *field]).reshape(4, 1, 1),
            (0, 0, (1, 0, 0)): np.array([-0.1, 0, 0, 0]).reshape(4, 1, 1),
        },
    )
    bands = solve_bands(h, s, rng.random((7, 3)), spin=True)
    unit = field / np.linalg.norm(field)
    assert bands.spin is not None
    assert np.allclose(bands.spin[:, 0, 0], -unit, atol=1e-12)
    assert np.allclose(bands.spin[:, 0, 1], unit, atol=1e-12)


def test_spin_is_the_expectation_value_with_the_overlap():
    _, h, s = _random_spinor_model()
    k = np.random.default_rng(1).random((5, 3))
    bands = solve_bands(h, s, k, spin=True)
    states = next(eigenstates(h, s, k))
    c, orbital = states.vectors.numpy()[:, 0], bloch_dense(s, k).numpy()[:, 0]
    for axis, sigma in enumerate(PAULI):
        big = np.einsum("kab,xy->kaxby", orbital, sigma).reshape(5, c.shape[1], c.shape[1])
        wanted = np.einsum("kan,kab,kbn->kn", c.conj(), big, c).real
        assert np.allclose(bands.spin[:, 0, :, axis], wanted, atol=1e-12)
    assert np.linalg.norm(bands.spin, axis=-1).max() <= 1 + 1e-12


def test_collinear_channels_have_spin_plus_and_minus_one():
    structure, _, s = chain()
    h = operator(structure, {(0, 0, (0, 0, 0)): np.array([0, 0.5]).reshape(2, 1, 1)})
    bands = solve_bands(h, s, np.zeros((1, 3)), spin=True)
    assert bands.energies_ev[0, :, 0].tolist() == [0.5, -0.5]
    assert bands.spin[0, :, 0].tolist() == [[0, 0, 1], [0, 0, -1]]


@pytest.mark.parametrize("kind", ["species", "shell", "atom"])
def test_mulliken_weights_of_every_state_sum_to_one(kind):
    _, h, s = _random_spinor_model()
    grouping = group_orbitals(h.basis, h.pairs.species, kind)
    bands = solve_bands(h, s, np.random.default_rng(2).random((4, 3)), grouping=grouping)
    wanted = {"species": ("A", "B"), "shell": ("A s", "A p", "B s", "B d"), "atom": ("A 0", "A 1", "B 2")}
    assert bands.groups == wanted[kind]
    assert bands.weights.shape == (4, 1, 2 * h.n_orbitals, len(bands.groups))
    assert np.allclose(bands.weights.sum(axis=-1), 1, atol=1e-12)
    # All states together hold every orbital (times spin) once.
    orbitals = np.bincount(grouping.of_orbital)
    assert np.allclose(bands.weights.sum(axis=2), 2 * orbitals, atol=1e-9)


def test_projection_changes_no_energy():
    _, h, s = _random_spinor_model()
    k = np.random.default_rng(3).random((6, 3))
    grouping = group_orbitals(h.basis, h.pairs.species, "shell")
    done = []
    plain = solve_bands(h, s, k, progress=lambda n, total: done.append((n, total)))
    full = solve_bands(h, s, k, spin=True, grouping=grouping)
    assert np.allclose(plain.energies_ev, full.energies_ev, atol=1e-11)
    assert done[-1] == (6, 6)


def test_matrices_beyond_memory_are_refused_with_their_size():
    _, h, _ = chain()
    cost = dense_cost(h, 10)
    assert (cost.n_k, cost.n_channel, cost.dim) == (10, 1, 1)
    with pytest.raises(SolverError, match="dimension of at most"):
        dense_cost(_random_spinor_model()[1], 10, memory_limit_gb=1e-6)


def test_a_shift_of_all_levels_is_reported_as_it_is():
    _, h, s = honeycomb()
    mesh = k_mesh((4, 4, 1))
    energies = solve_bands(h, s, mesh.k_frac).energies_ev
    deviation = compare_bands(energies + 0.25, energies)
    assert deviation.mean_abs_ev == deviation.mean_ev == pytest.approx(0.25)
    assert deviation.n_compared == 32
    assert compare_bands(energies, energies, (0.1, 4.0)).n_compared < 17
    with pytest.raises(ConfigError, match="same cell"):
        compare_bands(energies, energies[..., :1])


def test_operators_of_the_identity_are_orthonormal():
    structure, _, _ = honeycomb()
    assert np.allclose(solve_bands(identity(structure), identity(structure), np.zeros((1, 3))).energies_ev, 1)
