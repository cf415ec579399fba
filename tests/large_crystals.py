"""Crystals in which no two atoms have the same surroundings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hamnet.structure import Structure


def scattered(structure: Structure) -> Structure:
    """Every atom moved a little; every Ni with a moment of its own, the others without."""
    generator = np.random.default_rng(5)
    positions = structure.positions + generator.uniform(-0.1, 0.1, structure.positions.shape)
    moments = generator.normal(size=structure.positions.shape) * (structure.numbers == 28)[:, None]
    return replace(structure, positions=positions, moments=moments)
