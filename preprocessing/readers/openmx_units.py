"""OpenMX's own constants: they take its numbers back to the digits of its input (CODATA would not)."""

from __future__ import annotations

__all__ = ["BOHR_ANG", "HARTREE_EV"]

HARTREE_EV = 27.2113845
BOHR_ANG = 0.529177249
