"""Windows of many k side by side, level by level, as the bands that figures and counts work with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import SolverError

from ..bands import Bands
from .states import States

__all__ = ["filled_outside", "joined"]

# Levels outside a window stand so far from it in counts that no smearing reaches them.
_FAR_EV = 1e4


def joined(
    states: Sequence[States], n_channels: int, n_spin: int, *, groups: tuple[str, ...] = ()
) -> tuple[Bands, int]:
    """Bands of windows at (k, channel), channel fastest, and the number of the first one, counted from 0.

    Band b holds level `first` + b of each k and channel, NaN where that lies outside the window of this k.
    Raises :class:`SolverError` where no window holds a state.
    """
    filled = [state for state in states if len(state)]
    if not filled:
        raise SolverError(
            f"no state between {min(s.low_ev for s in states):.4f} and {max(s.high_ev for s in states):.4f} eV",
            expected="a window with states", remedy="widen the window, or look at another energy",
        )  # fmt: skip
    first = min(state.first for state in filled)
    width = max(state.first + len(state) for state in filled) - first
    n_k = len(states) // n_channels

    def table(values: Sequence[NDArray | None], shape: tuple[int, ...]) -> NDArray[np.float64]:
        result = np.full((len(states), width, *shape), np.nan)
        for row, state, value in zip(result, states, values, strict=True):
            start = state.first - first
            if value is not None and len(state):
                row[start : start + len(state)] = value
        return result.reshape(n_k, n_channels, width, *shape)

    spin = None if states[0].spin is None else table([s.spin for s in states], (3,))
    weights = None if states[0].weights is None else table([s.weights for s in states], (states[0].weights.shape[1],))
    bands = Bands(
        np.stack([state.k_frac for state in states[::n_channels]]),
        table([s.energies_ev for s in states], ()),
        n_spin,
        spin,
        weights,
        groups,
    )
    return bands, first


def filled_outside(bands: Bands, states: Sequence[States], first: int) -> Bands:
    """Bands with energies far below and above in the place of levels outside the windows, for counts and densities."""
    energies = bands.energies_ev.copy().reshape(len(states), -1)
    levels = first + np.arange(energies.shape[1])
    below = levels < np.array([state.first for state in states])[:, None]
    outside = np.isnan(energies)
    low, high = min(s.low_ev for s in states), max(s.high_ev for s in states)
    energies[outside & below], energies[outside & ~below] = low - _FAR_EV, high + _FAR_EV
    zero = None if bands.weights is None else np.nan_to_num(bands.weights)
    spin = None if bands.spin is None else np.nan_to_num(bands.spin)
    return Bands(bands.k_frac, energies.reshape(bands.energies_ev.shape), bands.n_spin, spin, zero, bands.groups)
