"""Unfolded bands: tiled cells give back the primitive bands, and every state is shared out exactly once."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import torch

from hamnet.bloch import bloch_csr, bloch_dense
from hamnet.blocks import BlockOperator
from hamnet.eigen import eigenstates, eigenvalues
from hamnet.errors import BasisError, ConfigError, SolverError
from hamnet.sample import Sample
from hamnet.structure import Structure
from hamnet.supercell import tile_operator, tile_structure
from postprocess.bands import solve_bands
from postprocess.characters import mulliken_weights, overlap_product, spinor_spin
from postprocess.grouping import group_orbitals
from postprocess.lowdin import lowdin_amplitudes
from postprocess.tiling import Tiling, match_primitive, primitive_shifts
from postprocess.unfold import (
    KStates,
    Spiral,
    UnfoldedBands,
    energy_grid,
    fold_orbitals,
    mean_overlap,
    spectral_function,
    supercell_k,
    unfold_bands,
    unfold_states,
    unique_k,
)
from preprocessing.readers import read_run
from tight_binding import basis_of, operator, structure_of

SQUARE, ROOT3 = np.diag([2, 2, 1]), np.array([[1, -1, 0], [1, 2, 0], [0, 0, 1]])
K = np.array([0.137, 0.219, 0.0])


def _operators(sample: Sample) -> tuple[BlockOperator, BlockOperator]:
    return sample.operator("hamiltonian"), sample.operator("overlap")


def _states(hamiltonian: BlockOperator, overlap: BlockOperator, k_frac) -> Iterator[KStates]:
    for k in k_frac:
        found = next(eigenstates(hamiltonian, overlap, k))
        s = bloch_dense(overlap, k).numpy()[0, 0]
        yield KStates(found.energies.numpy()[0], found.vectors.numpy()[0], (s + s.conj().T) / 2)


def _equivalent(matrix, k_frac=K) -> np.ndarray:
    """The N primitive k that fold to the K of k_frac."""
    steps = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    points = k_frac + steps @ np.linalg.inv(matrix).T
    inside = ((points > -1e-9) & (points < 1 - 1e-9)).all(axis=1)
    assert inside.sum() == round(np.linalg.det(matrix))
    return points[inside]


def _unfold(
    tiling: Tiling, hamiltonian: BlockOperator, overlap: BlockOperator, k_frac, *, lowdin: bool = False, **options
) -> UnfoldedBands:
    mean = None if lowdin else mean_overlap(overlap, tiling)[0]
    points, _ = unique_k(supercell_k(tiling, k_frac, options.get("spiral")))
    orbitals = fold_orbitals(tiling, hamiltonian.basis, hamiltonian.pairs.species)
    states = _states(hamiltonian, overlap, points)
    return unfold_bands(states, tiling, orbitals, k_frac, n_spin=hamiltonian.n_spin, mean=mean, **options)


def _table(bands: UnfoldedBands, n_k: int) -> tuple[np.ndarray, np.ndarray]:
    """(n_k, n) energies and weights, of all channels, for k of one K."""
    energies, weights = (
        np.stack([values[bands.k_index == k] for k in range(n_k)]) for values in (bands.energies_ev, bands.weights)
    )
    return energies, weights


def _tiled(sample: Sample, matrix, seed: int = 0) -> tuple[Structure, BlockOperator, BlockOperator]:
    """The sample on a supercell, its atoms in another order and in other cells."""
    structure = tile_structure(sample.structure, matrix)
    rng = np.random.default_rng(seed)
    order, shifts = rng.permutation(len(structure)), rng.integers(-1, 2, (len(structure), 3))
    h, s = (tile_operator(o, matrix).permuted(order, shifts) for o in _operators(sample))
    return structure.permuted(order, shifts), h, s


@pytest.fixture(scope="module")
def spin_orbit(tracked) -> Sample:
    return read_run(tracked("openmx/nibr2_1x1_nc")).sample


@pytest.fixture(scope="module")
def no_spin_orbit(tracked) -> Sample:
    return read_run(tracked("openmx/nibr2_v38_nc")).sample


@pytest.fixture(scope="module")
def tetrahedral(tmp_path_factory) -> Sample:
    """DFT's own 2×2 cell with four Ni moments that point to the corners of a tetrahedron."""
    folder = tmp_path_factory.mktemp("nibr2")
    with tarfile.open(Path(__file__).resolve().parents[2] / "examples" / "nibr2" / "nibr2_2x2.tar.xz") as tar:
        tar.extractall(folder, [m for m in tar.getmembers() if m.name.startswith("nibr2_2x2/tetra")], filter="data")
    return read_run(folder / "nibr2_2x2" / "tetra").sample


def _soft_model(seed: int = 5) -> tuple[Tiling, BlockOperator, BlockOperator]:
    """A 3×1 cell with an H that is periodic and a random S that is not; smallest eigenvalue of S about 0.1."""
    rng = np.random.default_rng(seed)
    small = structure_of(np.diag([3.0, 3.1, 3.3]), [(0, 0, 0), (0.5, 0.4, 0.5)], "AB")
    large = tile_structure(small, np.diag([3, 1, 1]))
    basis = basis_of(small, {"A": (0, 1), "B": (0, 0)})

    def blocks(structure: Structure, n_spin: int, scale: float) -> dict:
        sizes = basis.n_orbitals[basis.species_of(structure)]
        n, cells = len(sizes), ((0, 0, 0), (1, 0, 0), (0, 1, 0))
        keys = [(i, j, r) for r in cells for i in range(n) for j in range(n) if r != (0, 0, 0) or j > i]
        return {key: scale * rng.normal(size=(n_spin, sizes[key[0]], sizes[key[1]])) for key in keys} | {
            (i, i, (0, 0, 0)): np.stack([np.diag(rng.normal(size=m)) if n_spin == 4 else np.eye(m)] * n_spin)
            for i, m in enumerate(sizes)
        }

    h = tile_operator(operator(small, blocks(small, 4, 1.0), basis), np.diag([3, 1, 1]))
    return match_primitive(large, small), h, operator(large, blocks(large, 1, 0.05), basis)


# -- tiled cells -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", [SQUARE, ROOT3])
@pytest.mark.parametrize("lowdin", [False, True])
def test_tiled_cell_unfolds_to_the_primitive_bands_with_weights_0_and_1(spin_orbit, matrix, lowdin):
    structure, h, s = _tiled(spin_orbit, matrix)
    tiling = match_primitive(structure, spin_orbit.structure)
    k_frac = _equivalent(matrix)
    energies, weights = _table(_unfold(tiling, h, s, k_frac, lowdin=lowdin), len(k_frac))
    assert np.minimum(np.abs(weights), np.abs(1 - weights)).max() < 1e-10
    assert np.allclose(weights.sum(axis=0), 1, atol=1e-10), "each state has one k"
    assert np.allclose(weights.sum(axis=1), 58, atol=1e-9), "as many states at each k as the primitive cell has"
    wanted = eigenvalues(*_operators(spin_orbit), k_frac)[:, 0]
    for k in range(len(k_frac)):
        assert np.allclose(energies[k][weights[k] > 0.5], wanted[k], atol=1e-9)


@pytest.mark.parametrize(("run", "n_bands"), [("nibr2_v40_collinear", 58), ("nibr2_unpolarised", 29)])
def test_collinear_and_unpolarised_cells_unfold_channel_by_channel(tracked, run, n_bands):
    sample = read_run(tracked(f"openmx/{run}")).sample
    structure, h, s = _tiled(sample, ROOT3)
    k_frac = _equivalent(ROOT3)
    bands = _unfold(match_primitive(structure, sample.structure), h, s, k_frac)
    assert np.minimum(np.abs(bands.weights), np.abs(1 - bands.weights)).max() < 1e-10
    wanted = eigenvalues(*_operators(sample), k_frac)
    for k in range(3):
        for channel in range(wanted.shape[1]):
            own = (bands.k_index == k) & (bands.channel == channel) & (bands.weights > 0.5)
            assert np.allclose(bands.energies_ev[own], wanted[k, channel], atol=1e-9)
    assert bands.weights.sum() == pytest.approx(3 * n_bands)
    if run == "nibr2_unpolarised":
        assert bands.spin is None
    else:
        assert np.allclose(bands.spin[:, 2], np.where(bands.channel == 0, 1, -1) * bands.weights)


def test_degenerate_states_of_symmetric_k_give_the_primitive_spectrum_all_the_same(spin_orbit):
    """Γ and the three M share one K and its multiplets; how the solver mixes them must not matter."""
    sample_h, sample_s = _operators(spin_orbit)
    structure, h, s = _tiled(spin_orbit, SQUARE)
    k_frac = _equivalent(SQUARE, np.zeros(3))
    bands = _unfold(match_primitive(structure, spin_orbit.structure), h, s, k_frac)
    primitive = eigenvalues(sample_h, sample_s, k_frac)[:, 0]
    n = primitive.shape[1]
    reference = UnfoldedBands(k_frac, 4, np.repeat(np.arange(4), n), np.zeros(4 * n), primitive.ravel(), np.ones(4 * n))
    grid = energy_grid((-12, 0), 0.02)
    found, wanted = (spectral_function(b, b.weights, grid, 0.02) for b in (bands, reference))
    assert np.abs(found - wanted).max() < 1e-6 * wanted.max()
    assert wanted.max() > 15


def test_spin_and_orbitals_at_k_are_those_of_the_primitive_states(spin_orbit):
    structure, h, s = _tiled(spin_orbit, ROOT3)
    sample_h, sample_s = _operators(spin_orbit)
    grouping = group_orbitals(sample_h.basis, sample_h.pairs.species, "shell")
    k_frac = _equivalent(ROOT3)
    bands = _unfold(match_primitive(structure, spin_orbit.structure), h, s, k_frac, grouping=grouping)
    wanted = solve_bands(sample_h, sample_s, k_frac, spin=True)
    for k, at_k in enumerate(_states(sample_h, sample_s, k_frac)):
        own = (bands.k_index == k) & (bands.weights > 0.5)
        assert np.allclose(bands.spin[own], wanted.spin[k, 0], atol=1e-8)
        amplitudes = lowdin_amplitudes(at_k.overlap, at_k.vectors[0])
        shares = (np.abs(amplitudes) ** 2).reshape(29, 2, -1).sum(axis=1).T @ grouping.membership
        assert np.allclose(bands.groups[own], shares, atol=1e-8)
    assert bands.group_labels == ("Ni s", "Ni p", "Ni d", "Br s", "Br p")
    assert np.allclose(bands.groups.sum(axis=1), bands.weights, atol=1e-12)


def test_only_the_k_that_are_asked_for_and_only_states_of_the_window_are_unfolded(spin_orbit):
    structure, h, s = _tiled(spin_orbit, SQUARE)
    tiling = match_primitive(structure, spin_orbit.structure)
    path = np.linspace(0.01, 0.49, 5)[:, None] * [1, 0.3, 0]
    whole = _unfold(tiling, h, s, path)
    part = _unfold(tiling, h, s, path, window_ev=(-8.0, -5.0))
    inside = (whole.energies_ev >= -8) & (whole.energies_ev <= -5)
    assert len(whole.weights) == 5 * 232 > 3 * len(part.weights) > 0
    assert np.allclose(part.weights, whole.weights[inside], atol=1e-12)
    assert np.array_equal(part.k_index, whole.k_index[inside])


# -- states that translations do not leave alone -----------------------------------------------------------------------


def _check_sums(tiling: Tiling, h: BlockOperator, s: BlockOperator, k_frac, *, lowdin: bool) -> np.ndarray:
    grouping = group_orbitals(h.basis, h.pairs.species[tiling.atoms[0]], "species")
    n_k = len(tiling)
    bands = _unfold(tiling, h, s, k_frac, lowdin=lowdin, grouping=grouping)
    _, weights = _table(bands, n_k)
    assert weights.min() > -1e-12
    assert weights.max() < 1 + 1e-10
    assert np.allclose(weights.sum(axis=0), 1, atol=1e-10)
    assert np.allclose(weights.sum(axis=1), 2 * h.n_orbitals / n_k, atol=1e-9)
    assert np.allclose(bands.groups.sum(axis=1), bands.weights, atol=1e-12)
    assert (np.linalg.norm(bands.spin, axis=1) <= bands.weights + 1e-12).all()
    whole = solve_bands(h, s, supercell_k(tiling, k_frac)[:1], spin=True)
    by_k = bands.spin.reshape(n_k, -1, 3)
    assert np.allclose(by_k.sum(axis=0), whole.spin[0, 0], atol=1e-8), "the parts carry the spin of the state"
    return weights


def test_real_state_with_four_moments_is_shared_out_between_the_k(tetrahedral, spin_orbit):
    tiling = match_primitive(tetrahedral.structure, spin_orbit.structure)
    h, s = _operators(tetrahedral)
    assert mean_overlap(s, tiling)[1] < 1e-12, "atoms are on their sites, so S is that of the primitive cell"
    weights = _check_sums(tiling, h, s, _equivalent(SQUARE), lowdin=False)
    assert ((weights > 0.1) & (weights < 0.9)).mean() > 0.1, "the moments break the translations"
    assert np.allclose(weights, _check_sums(tiling, h, s, _equivalent(SQUARE), lowdin=True), atol=1e-9)


def test_displaced_and_strained_dft_cell_is_shared_out_exactly(unpacked, spin_orbit):
    sample = read_run(unpacked("openmx/nibr2_2x1_shaken") / "r00").sample
    tiling = match_primitive(sample.structure, spin_orbit.structure)
    assert 0.05 < tiling.largest_displacement_ang < 0.3
    h, s = _operators(sample)
    assert mean_overlap(s, tiling)[1] > 0.01
    _check_sums(tiling, h, s, _equivalent(tiling.matrix), lowdin=True)


def test_sum_rules_need_lowdin_orbitals_where_the_overlap_is_not_periodic():
    tiling, h, s = _soft_model()
    k_frac = np.array([0.1, 0.2, 0.3]) + np.arange(3)[:, None] / 3 * [1, 0, 0]
    _check_sums(tiling, h, s, k_frac, lowdin=True)
    # Without them: Re c†S P_k c, which is exact in a periodic crystal, leaves 0 … 1.
    orbitals = fold_orbitals(tiling, h.basis, h.pairs.species)
    (at_k,) = _states(h, s, supercell_k(tiling, k_frac[:1]))
    spinors = at_k.vectors[0].reshape(h.n_orbitals, 2, -1)
    waves = np.exp(2j * np.pi * (k_frac @ tiling.cells.T))
    naive = []
    for wave in waves:
        projected = np.zeros_like(spinors)
        mean = np.einsum("t,tasn->asn", wave.conj(), spinors[orbitals.index]) / 3
        projected[orbitals.index] = wave[:, None, None, None] * mean
        naive.append(np.einsum("asn,ab,bsn->n", spinors.conj(), at_k.overlap, projected).real)
    assert np.allclose(np.sum(naive, axis=0), 1)
    assert np.min(naive) < -1e-3


# -- spirals -----------------------------------------------------------------------------------------------------------


def _turning(sample: Sample, matrix, q, axis) -> tuple[Structure, BlockOperator, BlockOperator]:
    """A tiled state without spin–orbit coupling whose exchange field turns by 2π q·T about the axis.

    The exchange part of a bond turns by the mean of the angles of its ends.
    """
    structure = tile_structure(sample.structure, matrix)
    h, s = (tile_operator(o, matrix) for o in _operators(sample))
    n = len(sample.structure)
    home = structure.positions - sample.structure.positions[np.arange(len(structure)) % n]
    cells = np.rint(home @ np.linalg.inv(sample.structure.cell))
    angle = 2 * np.pi * (cells[h.pairs.row] + (cells[h.pairs.col] + h.pairs.shift @ matrix)) @ q / 2
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.zeros((len(angle), 4, 4))
    turn[:, 0, 0] = 1
    turn[:, 1:, 1:] = (
        np.eye(3) + np.sin(angle)[:, None, None] * cross + (1 - np.cos(angle))[:, None, None] * (cross @ cross)
    )
    blocks = [
        torch.einsum("nst,ntab->nsab", torch.from_numpy(turn[g.pairs]).to(b.dtype), b)
        for g, b in zip(h.pairs.groups, h.blocks, strict=True)
    ]
    return structure, BlockOperator(h.basis, h.pairs, tuple(blocks)), s


def _generalised_bloch(operator_: BlockOperator, q, axis) -> BlockOperator:
    """U(q·R/2) O(R) U(q·R/2) with U(x) = exp(−iπ x n·σ): the operator in the frame that turns with the moments."""
    wide = operator_.with_spin(4)
    half = np.pi * wide.pairs.shift @ np.asarray(q)
    cosine, sine = np.cos(half), np.sin(half)
    n = np.asarray(axis)
    # The part along n commutes with U, which then acts twice; the part across anticommutes, and U drops out.
    mix = np.zeros((len(half), 4, 4), dtype=complex)
    mix[:, 0, 0], mix[:, 0, 1:] = cosine, -1j * sine[:, None] * n
    mix[:, 1:, 0] = -1j * sine[:, None] * n
    mix[:, 1:, 1:] = np.eye(3) + (cosine - 1)[:, None, None] * np.outer(n, n)
    blocks = [
        torch.einsum("nst,ntab->nsab", torch.from_numpy(mix[g.pairs]), b.to(torch.complex128))
        for g, b in zip(wide.pairs.groups, wide.blocks, strict=True)
    ]
    return BlockOperator(wide.basis, wide.pairs, tuple(blocks))


@pytest.mark.parametrize(
    ("matrix", "q"),
    [
        (np.diag([4, 1, 1]), (1 / 4, 0, 0)),  # one turn along a vector: spinors change sign along it
        (ROOT3, (1 / 3, 1 / 3, 0)),
        (np.diag([3, 2, 1]), (2 / 3, 1 / 2, 0)),
    ],
)
@pytest.mark.parametrize("lowdin", [False, True])
def test_spiral_without_spin_orbit_coupling_unfolds_with_the_translation_that_turns_spin(
    no_spin_orbit, matrix, q, lowdin
):
    axis = np.array([1, 2, 2]) / 3
    structure, h, s = _turning(no_spin_orbit, matrix, np.array(q), axis)
    tiling = match_primitive(structure, no_spin_orbit.structure)
    k_frac = _equivalent(matrix)
    spiral = Spiral(np.array(q), 2 * axis)
    energies, weights = _table(_unfold(tiling, h, s, k_frac, spiral=spiral, lowdin=lowdin), len(k_frac))
    assert np.minimum(np.abs(weights), np.abs(1 - weights)).max() < 1e-8
    assert np.allclose(weights.sum(axis=0), 1, atol=1e-10)
    # Truth by the generalised Bloch theorem, in the primitive cell.
    h_turned, s_turned = (_generalised_bloch(o, q, axis) for o in _operators(no_spin_orbit))
    for k in range(len(k_frac)):
        pencil = [bloch_dense(o, k_frac[k]).numpy()[0, 0] for o in (h_turned, s_turned)]
        wanted = scipy.linalg.eigh(*[(m + m.conj().T) / 2 for m in pencil], eigvals_only=True)
        assert np.allclose(energies[k][weights[k] > 0.5], wanted, atol=1e-8)
    # With plain translations, or about the axis the wrong way, states are no Bloch waves.
    for other in (None, Spiral(-np.array(q), axis)):
        if other is not None and np.allclose(2 * np.array(q), np.rint(2 * np.array(q))):
            continue
        _, plain = _table(_unfold(tiling, h, s, k_frac, spiral=other), len(k_frac))
        assert np.minimum(plain, 1 - plain).max() > 0.2


def test_spin_along_the_axis_is_the_same_in_the_turning_frame(no_spin_orbit):
    axis, q = np.array([0.6, 0.0, 0.8]), np.array([1 / 3, 1 / 3, 0])
    structure, h, s = _turning(no_spin_orbit, ROOT3, q, axis)
    tiling = match_primitive(structure, no_spin_orbit.structure)
    k_frac = _equivalent(ROOT3)
    bands = _unfold(tiling, h, s, k_frac, spiral=Spiral(q, axis))
    whole = solve_bands(h, s, supercell_k(tiling, k_frac[:1], Spiral(q, axis)), spin=True)
    assert np.allclose(bands.spin.reshape(3, -1, 3).sum(axis=0) @ axis, whole.spin[0, 0] @ axis, atol=1e-8)
    # The occupied states carry, in the turning frame, the moment of the cell T = 0: that of the untwisted state.
    moment = no_spin_orbit.structure.moments[0] / np.linalg.norm(no_spin_orbit.structure.moments[0])
    occupied = bands.energies_ev < no_spin_orbit.fermi_energy_ev
    total = bands.spin[occupied].sum(axis=0)
    assert total @ moment / np.linalg.norm(total) > 0.98


def test_real_neel_state_is_nearest_to_bloch_waves_in_its_own_turning_frame(unpacked, spin_orbit):
    """DFT with spin–orbit coupling, 120° in a √3×√3 cell; then without its spin–orbit part."""
    sample = read_run(unpacked("openmx/nibr2_r3") / "neel").sample
    tiling = match_primitive(sample.structure, spin_orbit.structure)
    h, s = _operators(sample)
    without = h.map(lambda block: block.real.to(block.dtype))  # spin–orbit coupling is what is imaginary

    def sharpness(hamiltonian, sign):
        spiral = Spiral(sign * np.array([1 / 3, 1 / 3, 0]), np.array([0, 0, 1])) if sign else None
        level = sample.fermi_energy_ev
        weights = _unfold(tiling, hamiltonian, s, K[None], spiral=spiral, window_ev=(level - 6, level + 4)).weights
        return (weights**2).sum() / weights.sum()

    for hamiltonian in (h, without):
        assert sharpness(hamiltonian, 1) > sharpness(hamiltonian, 0) + 0.1
        assert sharpness(hamiltonian, 1) > sharpness(hamiltonian, -1) + 0.1
    assert sharpness(without, 1) > 0.9


# -- roots, grids, errors ----------------------------------------------------------------------------------------------


def test_expanded_root_of_a_sparse_overlap_is_that_of_diagonalisation(tetrahedral):
    _, s = _operators(tetrahedral)
    k = [0.13, 0.21, 0.0]
    sparse, dense = bloch_csr(s, k)[0], bloch_dense(s, k).numpy()[0, 0]
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2 * s.n_orbitals, 5)) + 1j * rng.normal(size=(2 * s.n_orbitals, 5))
    found = lowdin_amplitudes(sparse, vectors)
    assert np.allclose(found, lowdin_amplitudes(dense, vectors), atol=1e-10)
    twice = lowdin_amplitudes(sparse, found)
    assert np.allclose(twice, overlap_product(sparse, vectors), atol=1e-10)
    assert lowdin_amplitudes(sparse, vectors[:, :0]).shape == (2 * s.n_orbitals, 0)


@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_matrix])
def test_overlap_that_is_not_positive_is_refused(form):
    matrix = np.diag([1.0, 0.5, -0.1, 2.0])
    with pytest.raises(SolverError, match=r"smallest eigenvalue -0\.1"):
        lowdin_amplitudes(form(matrix), np.ones((4, 1)))


def test_mean_overlap_of_a_tiled_cell_is_the_primitive_one(spin_orbit):
    structure, _, s = _tiled(spin_orbit, ROOT3)
    mean, deviation = mean_overlap(s, match_primitive(structure, spin_orbit.structure))
    own = spin_orbit.operator("overlap")
    assert deviation < 1e-14
    assert mean.pairs.equals(own.pairs)
    assert mean.max_abs_difference(own) < 1e-14


def test_map_integrates_to_the_weights_however_narrow_the_gaussian():
    rng = np.random.default_rng(2)
    n = 500
    energies, weights = rng.uniform(-3, 3, n), rng.random((n, 2))
    bands = UnfoldedBands(np.zeros((4, 3)), 1, rng.integers(0, 4, n), np.zeros(n), energies, weights[:, 0])
    grid = energy_grid((-5, 5), 0.05)
    for width in (0.2, 1e-5):
        found = spectral_function(bands, weights, grid, width)
        assert found.shape == (4, len(grid), 2)
        wanted = np.stack([weights[bands.k_index == k].sum(axis=0) for k in range(4)])
        assert np.allclose(found.sum(axis=1) * (grid[1] - grid[0]), wanted, atol=1e-9)
    single = UnfoldedBands(np.zeros((1, 3)), 1, [0], [0], [0.3], [1.0])  # type: ignore[arg-type]
    curve = spectral_function(single, single.weights, grid, 0.2)[0]
    wanted = np.exp(-(((grid - 0.3) / 0.2) ** 2) / 2) / (0.2 * np.sqrt(2 * np.pi))
    assert np.allclose(curve, wanted, atol=2e-3 * wanted.max())


def test_characters_of_sparse_states_are_those_of_the_bands(tetrahedral):
    h, s = _operators(tetrahedral)
    k = np.array([[0.13, 0.21, 0.0]])
    grouping = group_orbitals(h.basis, h.pairs.species, "atom")
    wanted = solve_bands(h, s, k, spin=True, grouping=grouping)
    (at_k,) = _states(h, s, k)
    some = at_k.vectors[0][:, 30:70]
    along = overlap_product(bloch_csr(s, k[0])[0], some)
    assert np.allclose(spinor_spin(some, along), wanted.spin[0, 0, 30:70], atol=1e-8)
    assert np.allclose(mulliken_weights(some, along, grouping.membership), wanted.weights[0, 0, 30:70], atol=1e-8)


def test_k_of_different_K_are_not_unfolded_together(spin_orbit):
    structure, h, _ = _tiled(spin_orbit, SQUARE)
    tiling = match_primitive(structure, spin_orbit.structure)
    orbitals = fold_orbitals(tiling, h.basis, h.pairs.species)
    with pytest.raises(ValueError, match="different K"):
        unfold_states(np.zeros((232, 1), dtype=complex), tiling, orbitals, [[0, 0, 0], [0.1, 0, 0]])


def test_spiral_without_spinors_and_grids_of_no_width_are_refused(tracked):
    sample = read_run(tracked("openmx/nibr2_unpolarised")).sample
    structure, h, s = _tiled(sample, SQUARE)
    tiling = match_primitive(structure, sample.structure)
    with pytest.raises(ConfigError, match="vector Hamiltonian"):
        _unfold(tiling, h, s, K[None], spiral=Spiral(np.array([0.5, 0, 0]), np.array([0, 0, 1])))
    with pytest.raises(ConfigError, match="not zero"):
        Spiral(np.zeros(3), np.zeros(3))
    with pytest.raises(ConfigError, match="lower end first"):
        energy_grid((1, -1), 0.1)
    with pytest.raises(ConfigError, match="positive width"):
        energy_grid((-1, 1), 0)


def test_two_species_on_one_site_are_refused():
    small = structure_of(np.eye(3) * 3, [(0, 0, 0)], "A")
    large = tile_structure(small, np.diag([2, 1, 1]))
    tiling = match_primitive(large, small)
    basis = basis_of(structure_of(np.eye(3) * 3, [(0, 0, 0), (0.5, 0, 0)], "AB"))
    with pytest.raises(BasisError, match="species A and B on one site"):
        fold_orbitals(tiling, basis, np.array([0, 1]))


def test_pairs_of_sites_reach_where_pairs_of_atoms_do(spin_orbit):
    structure, h, _ = _tiled(spin_orbit, ROOT3)
    tiling = match_primitive(structure, spin_orbit.structure)
    _, _, shift = primitive_shifts(h.pairs, tiling)
    assert np.array_equal(np.abs(shift).max(axis=0), np.abs(spin_orbit.pairs.shift).max(axis=0))
