"""The integrated density of states from counts alone: N(E) of each k by the inertia of H − ES, exact at each energy.

Between two energies that were counted, N(E) lies between the two counts. Where these differ by more than is wanted, the
interval is halved; where they are equal, there is nothing to look for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamnet.errors import ConfigError

from .tasks import CountTask, Runner, Shard

__all__ = ["CountedStates", "count_states", "most_counts"]


@dataclass(frozen=True, slots=True, eq=False)
class CountedStates:
    """Counts of states at single k.

    Attributes
    ----------
    k_frac : (n_places, 3). channel : (n_places,) one row for each k and channel, channel fastest.
    energies_ev : for each place (n,) ascending. counts : for each place (n,) states below each energy, from the lowest.
    n_channels : matrices at each k. electrons_per_state : 2 without spin, else 1.
    """

    k_frac: NDArray[np.float64]
    channel: NDArray[np.int64]
    energies_ev: tuple[NDArray[np.float64], ...]
    counts: tuple[NDArray[np.int64], ...]
    n_channels: int
    electrons_per_state: int

    @property
    def n_counted(self) -> int:
        """Counts that were made, a factorisation each (more where an energy hit a state and was moved)."""
        return sum(len(energies) for energies in self.energies_ev)

    def bounds(self, energies_ev: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper bound (n_channels, n_e) of N(E) per cell, spins counted, k of equal weight.

        Both are N(E) itself at energies of the grid. Raises :class:`ConfigError` outside the energies counted.
        """
        grid = np.atleast_1d(np.asarray(energies_ev, np.float64))
        low, high = max(e[0] for e in self.energies_ev), min(e[-1] for e in self.energies_ev)
        if grid.size and not (low <= grid.min() and grid.max() <= high):
            raise ConfigError(
                f"energies {grid.min():g} … {grid.max():g} eV",
                expected=f"some of {low:g} … {high:g} eV that were counted",
            )
        result = np.zeros((2, self.n_channels, len(grid)))
        for channel, energies, counts in zip(self.channel, self.energies_ev, self.counts, strict=True):
            result[0, channel] += counts[np.searchsorted(energies, grid, side="right") - 1]
            result[1, channel] += counts[np.searchsorted(energies, grid, side="left")]
        result *= self.electrons_per_state * self.n_channels / len(self.counts)
        return result[0], result[1]

    def density(self, energies_ev: ArrayLike) -> NDArray[np.float64]:
        """(n_channels, n_e − 1) mean density of states between energies that were counted at every k, states/eV."""
        edges = np.asarray(energies_ev, np.float64)
        lower, upper = self.bounds(edges)
        unknown = np.flatnonzero((lower != upper).any(axis=0))
        if len(unknown):
            raise ConfigError(
                f"{edges[unknown[0]]:g} eV, between two counts", expected="energies of the grid that was counted"
            )
        return np.diff(lower, axis=1) / np.diff(edges)


def count_states(
    runner: Runner,
    k_frac: ArrayLike,
    energies_ev: ArrayLike,
    *,
    resolution_ev: float | None = None,
    most_inside: int = 0,
    shard: Shard | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> CountedStates:
    """Count the states below each energy (n_e,) ascending at k_frac (n_k, 3), and closer where there are states.

    Parameters
    ----------
    resolution_ev : intervals are halved until they hold no more than `most_inside` states or are this narrow; None: the
        grid as it is.
    shard : the part of the k and channels that this process counts; the result holds these. Of a runner with a folder
        a later call without a shard collects all.
    on_progress : called with (finished, all) in each round. say : told the number of factorisations before they begin.

    Raises :class:`ConfigError` for a grid that does not ascend.
    """
    grid = np.unique(np.asarray(energies_ev, np.float64))
    if len(grid) < 2 or len(grid) != np.size(energies_ev) or not np.isfinite(grid).all():
        raise ConfigError(f"a grid of {np.size(energies_ev)} energies", expected="two or more different ones")
    if resolution_ev is not None and not resolution_ev > 0:
        raise ConfigError(f"resolution {resolution_ev} eV", expected="a positive width")
    if most_inside < 0:
        raise ConfigError(f"intervals with {most_inside} states", expected="0 or more")
    pencil = runner.pencil
    points = [(a, b, c) for a, b, c in np.atleast_2d(np.asarray(k_frac, np.float64)).tolist()]
    places = [(k, channel) for k in points for channel in range(pencil.n_channels)]
    if shard is not None:
        places = places[shard.index :: shard.of]
        if not places:
            raise ConfigError(f"no k for shard {shard.index} of {shard.of}", expected="no more shards than k")
    energies = [grid] * len(places)
    counts = [np.zeros(0, np.int64)] * len(places)
    wanted = [grid] * len(places)
    first = True
    while any(len(new) for new in wanted):
        tasks = [
            CountTask(*place, energy) for place, new in zip(places, wanted, strict=True) for energy in new.tolist()
        ]
        if say is not None and first:
            say(f"{len(tasks)} factorisations for {len(grid)} energies at {len(places)} k and channels")
        found = np.array(runner.run(tasks, on_progress=on_progress), np.int64)
        for n, new in enumerate(np.split(found, np.cumsum([len(new) for new in wanted])[:-1])):
            energies[n] = grid if first else np.concatenate([energies[n], wanted[n]])
            order = np.argsort(energies[n])
            energies[n], counts[n] = energies[n][order], np.concatenate([counts[n], new])[order]
        if say is not None and first and resolution_ev is not None:
            most = most_counts(energies, counts, resolution_ev, most_inside)
            say(f"at most {most} more to {resolution_ev:g} eV")
        first = False
        wanted = [
            _halved(e, c, resolution_ev, most_inside) if resolution_ev is not None else np.zeros(0)
            for e, c in zip(energies, counts, strict=True)
        ]
    return CountedStates(
        np.array([k for k, _ in places]),
        np.array([channel for _, channel in places]),
        tuple(energies),
        tuple(counts),
        pencil.n_channels,
        pencil.electrons_per_state,
    )


def _halved(energies: NDArray, counts: NDArray, resolution_ev: float, most_inside: int) -> NDArray[np.float64]:
    """Middles of the intervals that are too wide for the states in them."""
    wide = (np.diff(counts) > most_inside) & (np.diff(energies) > resolution_ev)
    return ((energies[:-1] + energies[1:]) / 2)[wide]


def most_counts(
    energies_ev: Sequence[NDArray[np.float64]],
    counts: Sequence[NDArray[np.int64]],
    resolution_ev: float,
    most_inside: int = 0,
) -> int:
    """How many more factorisations it takes at most to close in on states; `energies_ev` and `counts` as counted.

    An interval of width w with m states is halved ⌈log₂ w/resolution⌉ times; of its 2^l parts after l halvings at most
    m/(most_inside + 1) hold too many.
    """
    total = 0
    for energies, below in zip(energies_ev, counts, strict=True):
        full = np.maximum(np.diff(below), 0) // (most_inside + 1)
        halvings = np.ceil(np.log2(np.maximum(np.diff(energies) / resolution_ev, 1))).astype(np.int64)
        levels = np.arange(halvings.max(initial=0))
        parts = np.minimum(2.0**levels, full[:, None]) * (levels < halvings[:, None])
        total += int(parts.sum())
    return total
