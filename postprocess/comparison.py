"""Two band structures of one crystal at the same k, compared raw: no shift of either."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import ConfigError

from .bands import Bands

__all__ = ["BandDeviation", "compare_bands", "matched_levels"]


@dataclass(frozen=True, slots=True)
class BandDeviation:
    """Deviation of the states whose reference lies in the window, in eV: mean and largest of |E − E_ref|, mean of
    E − E_ref (a common shift), and how many states that are."""

    mean_abs_ev: float
    max_abs_ev: float
    mean_ev: float
    n_compared: int


def matched_levels(bands: Bands, like: Bands) -> NDArray[np.float64]:
    """(n_k, n_channel, n) energies of `bands`, level by level those of `like`; NaN where one is not known."""
    whole = bands.first == like.first == 0
    if whole or bands.energies_ev.shape[:2] != like.energies_ev.shape[:2]:
        return bands.energies_ev  # if of other k, channels or states, compare_bands says so
    result = np.full(like.energies_ev.shape, np.nan)
    first = max(bands.first, like.first)
    last = min(b.first + b.energies_ev.shape[2] for b in (bands, like))
    if last > first:
        result[..., first - like.first : last - like.first] = bands.energies_ev[
            ..., first - bands.first : last - bands.first
        ]
    return result


def compare_bands(
    energies_ev: NDArray, reference_ev: NDArray, window_ev: tuple[float, float] = (-np.inf, np.inf)
) -> BandDeviation:
    """Two arrays (n_k, n_channel, n), state by state in order of energy.

    `window_ev` is absolute. Raises :class:`ConfigError` where the two are not states of one kind.
    """
    if energies_ev.shape != reference_ev.shape:
        raise ConfigError(
            "reference with {} k, {} channels, {} states".format(*reference_ev.shape),
            expected="{}, {} and {} as in the bands".format(*energies_ev.shape),
            remedy="overlay a Hamiltonian of the same cell, basis and spin kind",
        )
    inside = (reference_ev >= window_ev[0]) & (reference_ev <= window_ev[1])
    inside &= np.isfinite(reference_ev) & np.isfinite(energies_ev)
    difference = (energies_ev - reference_ev)[inside]
    if not difference.size:
        raise ConfigError("no state of the reference in the window", expected="a window with states")
    return BandDeviation(
        float(np.abs(difference).mean()),
        float(np.abs(difference).max()),
        float(difference.mean()),
        int(difference.size),
    )
