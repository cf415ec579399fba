"""Windows of many k side by side, level by level, as the bands that figures and counts work with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import SolverError

from ..bands import Bands
from .states import States

__all__ = ["joined"]


def joined(states: Sequence[States], n_channels: int, n_spin: int, *, groups: tuple[str, ...] = ()) -> Bands:
    """Bands of windows at (k, channel), channel fastest.

    Band b holds level ``first`` + b of each k and channel, −inf or +inf where that lies below or above the window,
    without spin and weights there.
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

    def table(values: Sequence[NDArray | None], shape: tuple[int, ...], outside: float = 0.0) -> NDArray[np.float64]:
        result = np.full((len(states), width, *shape), outside)
        for row, state, value in zip(result, states, values, strict=True):
            start = state.first - first
            if value is not None and len(state):
                row[start : start + len(state)] = value
        return result.reshape(n_k, n_channels, width, *shape)

    energies = table([s.energies_ev for s in states], (), np.nan).reshape(len(states), width)
    below = first + np.arange(width) < np.array([s.first for s in states])[:, None]
    energies = np.where(np.isnan(energies), np.where(below, -np.inf, np.inf), energies)
    spin = None if states[0].spin is None else table([s.spin for s in states], (3,))
    weights = None if states[0].weights is None else table([s.weights for s in states], (states[0].weights.shape[1],))
    return Bands(
        np.stack([state.k_frac for state in states[::n_channels]]),
        energies.reshape(n_k, n_channels, width),
        n_spin,
        spin,
        weights,
        groups,
        first,
    )
