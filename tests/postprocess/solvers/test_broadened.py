"""Broadened densities of states from resolvents: those of the dense levels, exactly or within the errors they tell."""

import numpy as np
import pytest
from scipy.stats import chi2

from hamnet.errors import ConfigError, SolverError
from postprocess.bands import Bands, solve_bands
from postprocess.grouping import group_orbitals
from postprocess.solvers.broadened import (
    BroadenedDos,
    broadened_dos,
    check_memory,
    kernel_values,
    resolvent_cost,
    shared_grid,
)
from postprocess.solvers.chebyshev import spectrum_ends
from postprocess.solvers.resolvent import ResolventAnalysis
from postprocess.solvers.states import Keep
from postprocess.solvers.tasks import Runner, Shard

K = np.array([[0.13, 0.21, 0.0], [0.41, 0.1, 0.0]])
WIDTH = 0.3
GRID = shared_grid(-9.0, -6.0, WIDTH)


@pytest.fixture(
    scope="module",
    params=[(2, 1, 0.1, "nibr2_1x1_nc"), (2, 1, 0.0, "nibr2_v40_collinear"), (2, 2, 0.0, "nibr2_unpolarised")],
    ids=["vector", "collinear", "none"],
)
def case(request, tiled, superlattice):
    """A runner that projects onto shells, and all dense levels with their spins and weights."""
    h, s = tiled(*request.param)
    grouping = group_orbitals(h.basis, h.pairs.species, "shell")
    bands = solve_bands(h, s, K, spin=True, grouping=grouping)
    return Runner(superlattice(*request.param), keep=Keep(membership=grouping.membership)), bands


def _exact(bands: Bands, kernel, width: float = WIDTH) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Total (n_channels, n_e), by group (n_groups, n_channels, n_e), spin of all groups (n_channels, n_e, 3)."""
    values = kernel_values(kernel, GRID[:, None, None, None] - bands.energies_ev, width)
    values *= bands.electrons_per_state / len(K)
    return (
        np.einsum("ekcn->ce", values),
        np.einsum("ekcn,kcng->gce", values, bands.weights),
        np.einsum("ekcn,kcnv->cev", values, bands.spin),
    )


@pytest.mark.parametrize("kernel", ["lorentzian", "quartic"])
def test_exact_trace_gives_the_density_of_the_dense_levels(case, kernel):
    runner, bands = case
    found = broadened_dos(runner, K, GRID, width_ev=WIDTH, kernel=kernel, n_vectors=0)
    total, groups, spin = _exact(bands, kernel)
    assert isinstance(found, BroadenedDos)
    assert np.abs(found.total - total).max() < 1e-10 * total.max()
    assert np.abs(found.projected - groups).max() < 1e-10 * total.max()
    assert np.abs(found.spin.sum(axis=0) - spin).max() < 1e-10 * total.max()
    assert not found.total_error.any()


@pytest.mark.parametrize("kernel", ["gaussian", "lorentzian", "quartic"])
def test_random_vectors_give_it_within_the_errors_that_are_told(case, kernel):
    runner, bands = case
    found = broadened_dos(runner, K, GRID, width_ev=WIDTH, kernel=kernel, n_vectors=24, seed=1)
    total, groups, _ = _exact(bands, kernel)
    assert isinstance(found, BroadenedDos)
    for value, error, exact in (
        (found.total, found.total_error, total),
        (found.projected, found.projected_error, groups),
    ):
        off = np.abs(value - exact)
        assert (off < 4 * error + 1e-3 * total.max()).all()
        assert (off < 3 * error + 1e-4 * total.max()).mean() > 0.97  # the expansion of the Gaussian ends at 1e-4
    # Errors that are far too large would pass this, too. Groups scatter by themselves, energies together.
    off = found.projected - groups
    assert 0.5 < np.sqrt((off**2).mean() / (found.projected_error**2).mean()) < 1.5
    assert np.allclose(found.projected.sum(axis=0), found.total, rtol=0, atol=1e-10 * total.max())


def test_estimates_of_many_seeds_scatter_about_the_truth_as_students_t(case):
    """Neither biased nor with errors that are too small or too large: 8 vectors, 7 degrees of freedom."""
    runner, bands = case
    values = kernel_values("lorentzian", -7.0 - bands.energies_ev[0], WIDTH) * bands.electrons_per_state
    exact = np.einsum("cn,cng->gc", values, bands.weights[0])
    found = [
        broadened_dos(runner, K[0], [-7.0], width_ev=WIDTH, kernel="lorentzian", n_vectors=8, seed=seed)
        for seed in range(60)
    ]
    z = np.stack([(f.projected[..., 0] - exact) / f.projected_error[..., 0] for f in found if f is not None])
    assert (np.abs(z.mean(axis=0)) < 4 * np.sqrt(7 / 5 / len(z))).all()
    assert np.sqrt(7 / 5) * 0.8 < np.sqrt((z**2).mean()) < np.sqrt(7 / 5) * 1.25
    assert (np.abs(z) > 3).mean() < 0.05


def test_error_falls_as_the_root_of_the_number_of_vectors(case):
    runner, _ = case
    few, many = (
        broadened_dos(runner, K[0], [-7.5], width_ev=1.0, n_vectors=n, seed=1, kernel="lorentzian") for n in (64, 1024)
    )
    assert isinstance(few, BroadenedDos)
    assert isinstance(many, BroadenedDos)
    ratio = float(few.total_error[0, 0] / many.total_error[0, 0])
    low, high = np.sqrt(chi2.ppf([1e-4, 1 - 1e-4], 63) / 63)
    assert 0.9 * low < ratio / 4 < 1.1 * high


def test_expansion_of_a_gaussian_gives_that_of_the_dense_levels_where_the_vectors_span_all(case, monkeypatch):
    runner, bands = case
    dim = runner.pencil.dim
    monkeypatch.setattr("postprocess.solvers.chebyshev.random_phases", lambda *_: np.eye(dim) * np.sqrt(dim) + 0j)
    monkeypatch.setattr("postprocess.solvers.broadened._VECTORS_AT_ONCE", dim)
    found = broadened_dos(runner, K, GRID, width_ev=2.0, kernel="gaussian", n_vectors=dim)
    total, groups, spin = _exact(bands, "gaussian", 2.0)
    assert isinstance(found, BroadenedDos)
    assert np.abs(found.total - total).max() < 1e-4 * total.max()
    assert np.abs(found.projected - groups).max() < 1e-4 * total.max()
    assert np.abs(found.spin.sum(axis=0) - spin).max() < 1e-4 * total.max()


def test_all_levels_lie_within_the_ends_of_the_spectrum(case):
    runner, bands = case
    for n, k in enumerate(K):
        for channel in range(runner.pencil.n_channels):
            centre, half = spectrum_ends(runner.pencil.at(k, channel))
            levels = bands.energies_ev[n, channel]
            assert centre - half < levels.min() < levels.max() < centre + half
            assert half < 0.55 * np.ptp(levels)


@pytest.mark.parametrize("kernel", ["lorentzian", "quartic"])
def test_kernels_are_normalised_and_half_as_high_at_their_width(kernel):
    x = np.linspace(-1000, 1000, 2_000_001)
    tail = 2 / (np.pi * 1000) * 0.3 if kernel == "lorentzian" else 0.0
    assert kernel_values(kernel, x, 0.3).sum() * 1e-3 == pytest.approx(1 - tail, abs=1e-6)
    assert kernel_values(kernel, 0.3, 0.3) == pytest.approx(kernel_values(kernel, 0.0, 0.3) / 2)
    closed = {"lorentzian": 1 / np.pi / (1 + 4.0), "quartic": np.sqrt(2) / np.pi / (1 + 16.0)}[kernel]
    assert kernel_values(kernel, 0.6, 0.3) == pytest.approx(closed / 0.3)


@pytest.mark.parametrize("per_width", [1, 2])
def test_neighbours_on_the_grid_share_poles(case, per_width):
    runner, _ = case
    said: list[str] = []
    grid = shared_grid(-8, -7.5, WIDTH, per_width=per_width)
    found = broadened_dos(runner, K[0], grid, width_ev=WIDTH, say=said.append)
    assert isinstance(found, BroadenedDos)
    channels = runner.pencil.n_channels
    assert found.n_factors == (len(grid) + 2 * per_width) * channels
    assert len(said) == 1
    assert said[0].startswith(f"{found.n_factors} complex factorisations for {len(grid)} energies at 1 k: about ")


def test_shards_leave_results_that_a_later_call_collects(case, tmp_path, monkeypatch):
    runner, _ = case
    alone = broadened_dos(runner, K, GRID[:4], width_ev=WIDTH, n_vectors=2)
    for index in range(3):
        part = Runner(runner.pencil, keep=runner.keep, folder=tmp_path / "dos")
        assert broadened_dos(part, K, GRID[:4], width_ev=WIDTH, n_vectors=2, shard=Shard(index, 3)) is None
    monkeypatch.setattr("postprocess.solvers.resolvent.ResolventAnalysis.factor", None)
    whole = Runner(runner.pencil, keep=runner.keep, folder=tmp_path / "dos")
    together = broadened_dos(whole, K, GRID[:4], width_ev=WIDTH, n_vectors=2)
    assert isinstance(alone, BroadenedDos)
    assert isinstance(together, BroadenedDos)
    assert np.array_equal(alone.projected, together.projected)
    assert np.array_equal(alone.spin_error, together.spin_error)


def test_memory_is_told_and_too_little_is_refused(case):
    runner, _ = case
    analysis = ResolventAnalysis(runner.pencil)
    stats = analysis.factor(runner.pencil.at(K[0]), -7 + 0.1j).stats
    cost = resolvent_cost(runner.pencil, elements=True)
    assert cost.memory_bytes > stats.memory_bytes
    with pytest.raises(SolverError, match=r"need about .* GB at a complex energy.*Gaussian kernel"):
        check_memory(runner.pencil, memory_limit_bytes=cost.memory_bytes / 2)
    check_memory(runner.pencil, memory_limit_bytes=cost.memory_bytes)


def test_what_makes_no_sense_is_refused(case):
    runner, _ = case
    for options, text in (
        ({"width_ev": 0.0}, "width 0"),
        ({"width_ev": 0.1, "n_vectors": 1}, "1 random vectors"),
        ({"width_ev": float("nan")}, "width nan"),
    ):
        with pytest.raises(ConfigError, match=text):
            broadened_dos(runner, K, GRID, **options)
    with pytest.raises(ConfigError, match="0 energies"):
        broadened_dos(runner, K, [], width_ev=0.1)
    with pytest.raises(ConfigError, match="lower end first"):
        shared_grid(1, 0, 0.1)
