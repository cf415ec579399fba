"""Physical constants and conversions (CODATA 2018). Inside hamnet: eV, Å, μ_B, e.

A DFT program's own values (its Bohr, its Hartree) stay in its reader, under its name: they convert its numbers
back to the digits that it was given.
"""

from __future__ import annotations

__all__ = ["BOHR_ANG", "BOLTZMANN_EV_PER_K", "HARTREE_EV", "MEV_PER_EV", "RYDBERG_EV"]

HARTREE_EV = 27.211386245988
RYDBERG_EV = HARTREE_EV / 2
BOHR_ANG = 0.529177210903
BOLTZMANN_EV_PER_K = 8.617333262e-5
MEV_PER_EV = 1000.0
