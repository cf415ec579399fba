"""Integrated density of states by inertia: it is the number of dense levels below each energy, to the last one."""

import numpy as np
import pytest

from hamnet.eigen import eigenvalues
from hamnet.errors import ConfigError
from postprocess.solvers.counts import count_states, most_counts
from postprocess.solvers.tasks import Runner, Shard

K = np.array([[0.0, 0, 0], [0.13, 0.21, 0], [0.5, 0, 0]])
GRID = np.linspace(-11.0, 3.0, 15)


@pytest.fixture(scope="module", params=[(2, 1, 0.1, "nibr2_1x1_nc"), (1, 1, 0.0, "nibr2_v40_collinear")])
def case(request, tiled, superlattice):
    """A pencil and its levels (n_k, n_channels, n) from dense matrices."""
    return superlattice(*request.param), eigenvalues(*tiled(*request.param), K)


def _below(levels: np.ndarray, energies) -> np.ndarray:
    """(n_channels, n_e) levels per k below each energy."""
    return (levels[..., None] < np.asarray(energies)).sum(axis=2).mean(axis=0)


def test_counts_are_those_of_the_dense_levels(case):
    pencil, levels = case
    counted = count_states(Runner(pencil), K, GRID)
    lower, upper = counted.bounds(GRID)
    assert np.array_equal(lower, upper)
    assert np.allclose(lower, _below(levels, GRID), rtol=0, atol=1e-12)
    assert counted.n_counted == len(K) * pencil.n_channels * len(GRID)


def test_density_between_counts_times_the_interval_is_the_number_of_levels(case):
    pencil, levels = case
    density = count_states(Runner(pencil), K, GRID).density(GRID)
    assert np.allclose(density * np.diff(GRID), np.diff(_below(levels, GRID), axis=1), rtol=0, atol=1e-12)


def test_halving_closes_in_on_every_level_and_takes_no_more_than_was_said(case):
    pencil, levels = case
    said: list[str] = []
    counted = count_states(Runner(pencil), K[:2], [-8.5, -6.5], resolution_ev=0.01, say=said.append)
    first = 2 * 2 * pencil.n_channels
    ends = [np.array([-8.5, -6.5])] * (first // 2)
    below = [(levels[k, c][:, None] < ends[0]).sum(axis=0) for k in range(2) for c in range(pencil.n_channels)]
    most = most_counts(ends, below, 0.01)
    assert said[0].startswith(f"{first} factorisations")
    assert str(most) in said[1]
    assert counted.n_counted - first <= most
    # One factorisation for each half of each interval with a state: far fewer than a grid of this width.
    assert counted.n_counted < 200 * pencil.n_channels * 2
    for energies, counts, place in zip(
        counted.energies_ev, counted.counts, np.ndindex(2, pencil.n_channels), strict=True
    ):
        assert np.array_equal(counts, (levels[place][:, None] < energies).sum(axis=0))
        assert (np.diff(energies)[np.diff(counts) > 0] <= 0.01).all()
    exact = _below(levels[:2], energies := np.linspace(-8.5, -6.5, 401))
    lower, upper = counted.bounds(energies)
    assert (lower <= exact + 1e-12).all()
    assert (exact <= upper + 1e-12).all()


def test_intervals_with_few_enough_states_are_left_as_they_are(case):
    pencil, levels = case
    counted = count_states(Runner(pencil), K[1], [-8.5, -6.5], resolution_ev=0.001, most_inside=5)
    assert max(np.diff(counts).max() for counts in counted.counts) <= 5
    inside = [int(((own > -8.5) & (own < -6.5)).sum()) for own in levels[1]]
    total = most_counts([np.array([-8.5, -6.5])] * len(inside), [np.array([0, n]) for n in inside], 0.001, 5)
    assert counted.n_counted - 2 * len(inside) <= total


def test_shards_count_apart_and_a_later_call_counts_nothing_again(case, tmp_path, monkeypatch):
    pencil, _ = case
    kwargs = {"resolution_ev": 0.5}
    alone = count_states(Runner(pencil), K, GRID, **kwargs)
    for index in range(2):
        count_states(Runner(pencil, folder=tmp_path / "counts"), K, GRID, shard=Shard(index, 2), **kwargs)
    monkeypatch.setattr("postprocess.solvers.tasks.count_below", None)
    together = count_states(Runner(pencil, folder=tmp_path / "counts"), K, GRID, **kwargs)
    for one, other in zip(alone.energies_ev + alone.counts, together.energies_ev + together.counts, strict=True):
        assert np.array_equal(one, other)


def test_energies_that_were_not_counted_and_senseless_grids_are_refused(case):
    pencil, _ = case
    runner = Runner(pencil)
    counted = count_states(runner, K[0], [-8.5, -6.5])
    with pytest.raises(ConfigError, match=r"some of -8\.5 … -6\.5 eV"):
        counted.bounds([-9.0])
    with pytest.raises(ConfigError, match="between two counts"):
        counted.density([-8.5, -7.5, -6.5])
    for grid in ([1.0], [1.0, 1.0], [0.0, np.nan]):
        with pytest.raises(ConfigError, match="energies"):
            count_states(runner, K[0], grid)
    with pytest.raises(ConfigError, match="resolution 0"):
        count_states(runner, K[0], GRID, resolution_ev=0)
    with pytest.raises(ConfigError, match="no k for shard"):
        count_states(runner, K[0], GRID, shard=Shard(3, 4))
