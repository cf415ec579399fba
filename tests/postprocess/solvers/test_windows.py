"""Windows, Fermi levels and tasks of real superlattices against dense diagonalisation of the same matrices."""

from __future__ import annotations

from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import scipy.linalg

from hamnet.errors import SolverError, StoreError
from postprocess.bands import solve_bands
from postprocess.fermi import fermi_level
from postprocess.grouping import group_orbitals
from postprocess.kmesh import k_mesh
from postprocess.solvers.factor import certified_factor
from postprocess.solvers.filling import sparse_fermi_level
from postprocess.solvers.lanczos import Lanczos
from postprocess.solvers.levels import joined
from postprocess.solvers.multifrontal import Multifrontal
from postprocess.solvers.pencil import SparsePencil
from postprocess.solvers.results import read_states, write_states
from postprocess.solvers.states import Keep
from postprocess.solvers.tasks import CountTask, NearestTask, Runner, Shard, WindowTask
from postprocess.solvers.window import nearest_window, solve_window

K = (0.13, 0.21, 0.0)
ELECTRONS_PER_CELL = 30


@pytest.fixture(scope="module")
def small(superlattice):
    return superlattice(2, 2)


@pytest.fixture(scope="module")
def levels(small):
    return scipy.linalg.eigh(*small.at(K).dense(), eigvals_only=True)


@pytest.mark.parametrize("k_frac", [K, (0.0, 0.0, 0.0)])
def test_a_window_holds_all_levels_of_dense_diagonalisation(superlattice, k_frac):
    pencil = superlattice(4, 3)
    at = pencil.at(k_frac)
    h, s = at.dense()
    dense = scipy.linalg.eigh(h, s, eigvals_only=True)
    filled = ELECTRONS_PER_CELL * 12
    low, high = dense[filled - 70] + 1e-3, dense[filled + 25] + 1e-3  # more states than one shift is asked for
    window = solve_window(Multifrontal(pencil), at, low, high)
    inside = (dense > window.low_ev) & (dense < window.high_ev)
    assert window.first == int((dense <= window.low_ev).sum())
    np.testing.assert_allclose(window.energies_ev, dense[inside], atol=1e-11)
    c = window.vectors
    np.testing.assert_allclose(c.conj().T @ s @ c, np.eye(c.shape[1]), atol=1e-11)
    assert np.abs(h @ c - s @ c * window.energies_ev).max() < 1e-5
    assert window.residual_ev < 1e-5


def test_the_nearest_states_are_the_nearest_and_their_edges_lie_in_gaps(small, levels):
    middle = float(levels[ELECTRONS_PER_CELL * 4] + levels[ELECTRONS_PER_CELL * 4 - 1]) / 2
    window = nearest_window(Multifrontal(small), small.at(K), middle, 20)
    assert len(window.energies_ev) >= 20
    inside = (levels > window.low_ev) & (levels < window.high_ev)
    np.testing.assert_allclose(window.energies_ev, levels[inside], atol=1e-11)
    assert min(np.abs(levels - edge).min() for edge in (window.low_ev, window.high_ev)) > 1e-7


@pytest.fixture(scope="module")
def large(superlattice):
    """A pencil that is scouted first, and its levels."""
    pencil = superlattice(3, 3)
    h, s = pencil.at(K).dense()
    return pencil, scipy.linalg.eigvalsh(h, s)


@pytest.mark.parametrize(
    ("place", "count", "factors"), [(0.5, 20, 3), (0.9, 6, None), (0.65, 3, 2), (0.99, 40, None), (-0.3, 30, 3)]
)
def test_the_nearest_states_are_those_of_dense_diagonalisation_from_gaps_and_bands(large, place, count, factors):
    """From the middle of the gap, where the edges of the window serve as shifts, and from beside and inside bands."""
    pencil, levels = large
    electrons = ELECTRONS_PER_CELL * 9
    energy = float(levels[electrons - 1] * (1 - place) + levels[electrons] * place)
    window = nearest_window(Multifrontal(pencil), pencil.at(K), energy, count)
    inside = (levels > window.low_ev) & (levels < window.high_ev)
    np.testing.assert_allclose(window.energies_ev, levels[inside], atol=1e-11)
    assert window.first == (levels < window.low_ev).sum()
    away = np.abs(levels - energy)
    assert inside[np.argsort(away)[:count]].all()
    assert factors in (None, window.n_factors)


def test_a_few_steps_tell_how_many_states_lie_around_a_gap(large):
    pencil, levels = large
    energy = float(levels[ELECTRONS_PER_CELL * 9 - 1 :][:2].mean())
    search = Lanczos(certified_factor(Multifrontal(pencil), pencil.at(K), energy), 20)
    for _ in range(6):
        search.step()
    energies, numbers = search.density()
    for reach in (0.5, 0.8, 1.2):
        assert numbers[np.abs(energies - energy) < reach].sum() == pytest.approx(
            (np.abs(levels - energy) < reach).sum(), rel=0.4
        )


def test_an_edge_on_a_level_is_moved_so_that_the_level_is_counted(small, levels):
    low, high = float(levels[100]), float(levels[110])
    window = solve_window(Multifrontal(small), small.at(K), low, high)
    assert window.low_ev < low
    assert window.high_ev > high
    np.testing.assert_allclose(window.energies_ev, levels[100:111], atol=1e-11)
    assert window.first == 100


def test_an_empty_window_is_empty_and_not_an_error(small, levels):
    gap = ELECTRONS_PER_CELL * 4
    low, high = (float(levels[gap - 1 + i] * (1 - t) + levels[gap + i] * t) for i, t in ((0, 0.3), (0, 0.6)))
    window = solve_window(Multifrontal(small), small.at(K), low, high)
    assert (len(window.energies_ev), window.first) == (0, gap)


def test_a_window_upside_down_is_refused(small):
    with pytest.raises(SolverError, match="lower end first"):
        solve_window(Multifrontal(small), small.at(K), 1.0, 0.0)


def test_an_overlap_that_is_not_positive_is_named(tiled, softened):
    h, s = tiled(2, 2)
    pencil = SparsePencil(h, softened(s, 0.2))
    with pytest.raises(SolverError, match="positive definite"):
        nearest_window(Multifrontal(pencil), pencil.at(K), -6.0, 30)
    with pytest.raises(SolverError, match="negative eigenvalue"):
        Runner(pencil).run([CountTask(K, 0, -6.0)])


@pytest.mark.parametrize("missing", [0.0, 7.0, 6.5])
@pytest.mark.parametrize("hint", [True, False])
def test_the_sparse_fermi_level_is_that_of_full_diagonalisation(tiled, layer, missing, hint):
    """Insulator, metal with whole and with broken filling."""
    h, s = tiled(2, 1)
    mesh = k_mesh((2, 2, 1))
    electrons = 2.0 * ELECTRONS_PER_CELL - missing
    dense = fermi_level(solve_bands(h, s, mesh.k_frac), electrons, temperature_k=0.0)
    start = layer("nibr2_1x1_nc").fermi_energy_ev if hint else None
    sparse, _ = sparse_fermi_level(Runner(SparsePencil(h, s)), mesh.k_frac, electrons, hint_ev=start)
    assert sparse.energy_ev == pytest.approx(dense.energy_ev, abs=1e-9)
    assert sparse.gap_ev == pytest.approx(dense.gap_ev, abs=1e-9)
    assert sparse.direct_gap_ev == pytest.approx(dense.direct_gap_ev, abs=1e-9)
    assert (sparse.vbm_ev is None) == (dense.vbm_ev is None) == (missing != 0)


def test_smearing_fills_the_same_levels_as_full_diagonalisation(tiled):
    h, s = tiled(2, 1)
    mesh = k_mesh((2, 2, 1))
    electrons = 2.0 * ELECTRONS_PER_CELL - 7
    dense = fermi_level(solve_bands(h, s, mesh.k_frac), electrons, temperature_k=300.0)
    sparse, _ = sparse_fermi_level(Runner(SparsePencil(h, s)), mesh.k_frac, electrons, hint_ev=-6.5, temperature_k=300)
    assert sparse.energy_ev == pytest.approx(dense.energy_ev, abs=1e-6)


def test_more_electrons_than_states_are_refused(small):
    with pytest.raises(SolverError, match="electrons for 232 states"):
        sparse_fermi_level(Runner(small), [K], 500.0)


def test_spin_and_weights_of_states_are_those_of_dense_bands(tiled, small):
    h, s = tiled(2, 2)
    grouping = group_orbitals(h.basis, h.pairs.species, "species")
    k_frac = np.array([K, (0.4, 0.0, 0.0)])
    dense = solve_bands(h, s, k_frac, spin=True, grouping=grouping)
    runner = Runner(small, keep=Keep(spin=True, membership=grouping.membership))
    states = runner.run([WindowTask(tuple(k), 0, -6.9, -5.2) for k in k_frac.tolist()])
    bands = joined(states, 1, 4, groups=grouping.labels)
    known = np.isfinite(bands.energies_ev)
    part = slice(bands.first, bands.first + bands.energies_ev.shape[2])
    assert known.sum() == sum(map(len, states)) > 20
    np.testing.assert_allclose(bands.energies_ev[known], dense.energies_ev[..., part][known], atol=1e-10)
    np.testing.assert_allclose(bands.spin[known], dense.spin[..., part, :][known], atol=1e-6)
    np.testing.assert_allclose(bands.weights[known], dense.weights[..., part, :][known], atol=1e-7)
    outside = bands.energies_ev[~known]
    assert (np.sign(outside) == np.where(dense.energies_ev[..., part][~known] > -6, 1, -1)).all()


def test_channels_of_a_collinear_hamiltonian_are_solved_apart(layer):
    sample = layer("nibr2_v40_collinear")
    pencil = SparsePencil(sample.hamiltonian, sample.overlap)
    dense = solve_bands(sample.hamiltonian, sample.overlap, [K])
    tasks = [WindowTask(K, channel, -7.5, -4.0) for channel in (0, 1)]
    for channel, states in enumerate(Runner(pencil, keep=Keep(spin=True)).run(tasks)):
        expected = dense.energies_ev[0, channel]
        np.testing.assert_allclose(states.energies_ev, expected[(expected > -7.5) & (expected < -4)], atol=1e-10)
        assert (states.spin == [0, 0, 1 - 2 * channel]).all()


# -- tasks -------------------------------------------------------------------------------------------------------------

TASKS = [WindowTask((x, 0.1, 0.0), 0, -6.6, -5.4) for x in (0.0, 0.1, 0.2)] + [NearestTask(K, 0, -5.9, 10)]


def _same(found, expected) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.energies_ev, b.energies_ev, atol=1e-10)
        assert (a.first, a.channel) == (b.first, b.channel)


def test_a_pool_of_processes_finds_the_same_states(small, tmp_path):
    expected = Runner(small).run(TASKS)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        runner = Runner(small, folder=tmp_path / "work", executor=pool, workers=2)
        _same(runner.run(TASKS), expected)
        assert runner.run([CountTask(K, 0, -5.9)]) == [ELECTRONS_PER_CELL * 4]


def test_two_dask_workers_find_the_same_states(small):
    distributed = pytest.importorskip("distributed")
    expected = Runner(small).run(TASKS)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        _same(Runner(small, executor=client.get_executor(), workers=2).run(TASKS), expected)


class _Dying(Executor):
    """Does two tasks, then its worker is gone."""

    def __init__(self) -> None:
        self.left = 2

    def submit(self, fn, /, *args, **kwargs):
        from concurrent.futures.process import BrokenProcessPool

        future: Future = Future()
        self.left -= 1
        if self.left < 0:
            future.set_exception(BrokenProcessPool("a process ended"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_a_lost_worker_is_named_and_what_was_finished_is_used_again(small, tmp_path, monkeypatch):
    with pytest.raises(SolverError, match="a worker was lost"):
        Runner(small, folder=tmp_path, executor=_Dying()).run(TASKS)
    finished = sorted(tmp_path.glob("*.npz"))
    assert len(finished) in (1, 2)
    stamps = [path.stat().st_mtime_ns for path in finished]
    seen = []
    _same(
        Runner(small, folder=tmp_path).run(TASKS, on_progress=lambda *now: seen.append(now)), Runner(small).run(TASKS)
    )
    assert seen[0] == (len(finished), len(TASKS))
    assert [path.stat().st_mtime_ns for path in finished] == stamps


def test_shards_together_do_every_task_once(small, tmp_path):
    done = [Runner(small, folder=tmp_path).run(TASKS, shard=Shard(n, 2)) for n in range(2)]
    assert sum(map(len, done)) == len(TASKS)
    seen = []
    _same(
        Runner(small, folder=tmp_path).run(TASKS, on_progress=lambda *now: seen.append(now)), Runner(small).run(TASKS)
    )
    assert seen == [(len(TASKS), len(TASKS))]


def test_results_of_another_hamiltonian_are_refused(small, superlattice, tmp_path):
    Runner(small, folder=tmp_path)
    with pytest.raises(StoreError, match="results of another call"):
        Runner(superlattice(2, 2, angle_rad=0.2), folder=tmp_path)


def test_a_pencil_comes_back_from_the_disk_as_it_was(small, tmp_path):
    small.save(tmp_path)
    ours, theirs = small.at(K), SparsePencil.load(tmp_path).at(K)
    np.testing.assert_array_equal(ours.h_data, theirs.h_data)
    np.testing.assert_array_equal(ours.s_data, theirs.s_data)
    np.testing.assert_array_equal(ours.shifted(-5.0), theirs.shifted(-5.0))


def test_written_states_come_back(small, tmp_path):
    states = Runner(small, keep=Keep(spin=True, vectors=True)).run(TASKS[:2])
    write_states(tmp_path / "states.h5", states, {"sample": "x"})
    for a, b in zip(read_states(tmp_path / "states.h5"), states, strict=True):
        np.testing.assert_array_equal(a.vectors, b.vectors)
        np.testing.assert_array_equal(a.spin, b.spin)
        assert (a.first, a.low_ev, a.weights) == (b.first, b.low_ev, None)
    (tmp_path / "other.h5").write_bytes(b"no")
    with pytest.raises(StoreError, match="cannot be read"):
        read_states(tmp_path / "other.h5")
