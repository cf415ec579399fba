"""Fermi–Dirac occupations, and the chemical potential at which they hold a given number of electrons."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from .units import BOLTZMANN_EV_PER_K

__all__ = ["chemical_potential", "occupations"]


def occupations(energies_ev: NDArray, fermi_ev: float, temperature_k: float) -> NDArray[np.float64]:
    """Fermi–Dirac occupation 1/(1 + e^{(E−μ)/kT}) of each state, in [0, 1]; ½ at E = μ for T = 0."""
    offset = np.asarray(energies_ev) - fermi_ev
    if temperature_k == 0:
        return 0.5 * (1 - np.sign(offset))
    return expit(-offset / (BOLTZMANN_EV_PER_K * temperature_k))


def chemical_potential(energies_ev: NDArray, filled: float, temperature_k: float) -> float:
    """μ in eV with Σ f(E) = `filled` over all levels of `energies_ev`, 0 < filled < their number.

    Bisected until the bracket is one floating-point step. For T = 0: the middle between the last level that is filled
    and the first that is not, or a level that is filled in part.
    """
    levels = np.sort(np.asarray(energies_ev).ravel())
    if temperature_k == 0:
        below = min(max(int(np.ceil(filled - 1e-9)), 1), len(levels) - 1)
        # Between the last level that is filled at all and the next: the same energy where a level is filled in part.
        partial = filled < below - 1e-9
        return float(levels[below - 1] if partial else (levels[below - 1] + levels[below]) / 2)
    reach = 50 * BOLTZMANN_EV_PER_K * temperature_k
    # Levels at ±inf are those outside a window: always filled, always empty.
    known = levels[np.isfinite(levels)]
    low, high = known[0] - reach, known[-1] + reach
    while True:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return float(middle)
        if occupations(levels, middle, temperature_k).sum() < filled:
            low = middle
        else:
            high = middle
