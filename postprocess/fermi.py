"""Fermi level and gap by counting electrons over the states of a mesh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import SolverError
from hamnet.occupations import chemical_potential

from .bands import Bands

__all__ = ["FermiLevel", "fermi_level"]

# Levels of one energy differ by the rounding of the eigensolver.
_DEGENERATE_EV = 1e-8


@dataclass(frozen=True, slots=True)
class FermiLevel:
    """Where the electrons end.

    Attributes
    ----------
    energy_ev : middle of the gap of an insulator, chemical potential of a metal.
    chemical_potential_ev : μ at `temperature_k`, with N(μ) = `n_electrons`.
    vbm_ev, cbm_ev : highest filled and lowest empty level of an insulator, None for a metal.
    gap_ev : their difference, 0 for a metal.
    direct_gap_ev : smallest difference at one k (and in one channel of a collinear state); 0 for a metal.
    n_electrons : per cell.
    temperature_k : of the Fermi–Dirac occupation.
    """

    energy_ev: float
    chemical_potential_ev: float
    vbm_ev: float | None
    cbm_ev: float | None
    gap_ev: float
    direct_gap_ev: float
    n_electrons: float
    temperature_k: float


def fermi_level(bands: Bands, n_electrons: float, *, temperature_k: float = 300.0) -> FermiLevel:
    """Fermi level of states on a whole mesh of equal weights.

    A state holds two electrons without spin and one otherwise. The state is insulating if the same number of bands
    is filled at every k of each channel and a gap is left; the level is then the middle of the gap, whatever the
    temperature. Otherwise it is the chemical potential, bisected until the bracket is one floating-point step.

    Raises :class:`SolverError` where the states cannot hold `n_electrons`.
    """
    energies = bands.energies_ev
    n_k = len(energies)
    below = bands.first * energies.shape[1] * bands.electrons_per_state
    if not below < n_electrons < bands.n_states:
        raise SolverError(
            f"{n_electrons} electrons for {bands.n_states} states per cell",
            expected=f"between {below} and {bands.n_states}",
            remedy="give the number of valence electrons with --electrons",
        )
    if not temperature_k >= 0:
        raise SolverError(f"temperature {temperature_k} K", expected="0 or more")
    # Levels to fill, all k together: the same for every channel, whose levels compete for the electrons.
    filled = n_electrons / bands.electrons_per_state * n_k - bands.first * energies.shape[1] * n_k
    mu = chemical_potential(energies, filled, temperature_k)
    edges = _band_edges(energies, filled)
    if edges is None:
        return FermiLevel(mu, mu, None, None, 0.0, 0.0, n_electrons, temperature_k)
    vbm, cbm, direct = edges
    return FermiLevel((vbm + cbm) / 2, mu, vbm, cbm, cbm - vbm, direct, n_electrons, temperature_k)


def _band_edges(energies: NDArray, filled: float) -> tuple[float, float, float] | None:
    """(VBM, CBM, direct gap) if the lowest `filled` levels are whole bands, else None."""
    number = round(filled)
    # The count comes from a density matrix or a file: 1e-6 electrons per k are its rounding.
    if abs(filled - number) > 1e-6 * len(energies) + 1e-9 * filled or not 0 < number < energies.size:
        return None
    below, above = np.partition(energies.ravel(), [number - 1, number])[number - 1 : number + 1]
    if above - below < _DEGENERATE_EV:
        return None
    counts = (energies <= below).sum(axis=2)  # (n_k, n_channel)
    if (counts != counts[0]).any():
        return None
    direct = np.inf
    for channel, count in enumerate(counts[0]):
        if 0 < count < energies.shape[2]:
            direct = min(direct, float((energies[:, channel, count] - energies[:, channel, count - 1]).min()))
    return float(below), float(above), direct
