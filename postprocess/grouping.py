"""Sets of orbitals that projections are summed over: species, shells, atoms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hamnet.basis import Basis
from hamnet.structure import frozen

__all__ = ["GroupKind", "Grouping", "group_orbitals"]

GroupKind = Literal["species", "shell", "atom"]
_LETTERS = "spdfghik"


@dataclass(frozen=True, slots=True, eq=False)
class Grouping:
    """Every orbital belongs to one group.

    Attributes
    ----------
    labels : one per group, e.g. ``Ni``, ``Ni d``, ``Ni 0`` (atom indices count from 0).
    of_orbital : (n_orbitals,) group of each orbital, in the order of the matrices, spin not counted.
    """

    labels: tuple[str, ...]
    of_orbital: NDArray[np.int64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "of_orbital", frozen(self.of_orbital, np.int64))

    @property
    def membership(self) -> NDArray[np.float64]:
        """(n_orbitals, n_groups) of 0 and 1."""
        return np.eye(len(self.labels))[self.of_orbital]


def group_orbitals(basis: Basis, species: Sequence[int] | NDArray[np.int64], kind: GroupKind) -> Grouping:
    """Orbitals of atoms of these `species` by species, by shell (species and l, all radial functions) or by atom."""
    species = np.asarray(species, dtype=np.int64)
    names: list[str] = []
    per_species: list[NDArray[np.int64]] = []
    for s in basis.species:
        letters = np.repeat(s.degrees, [2 * l + 1 for l in s.degrees])
        own = [f"{s.label} {_LETTERS[l]}" for l in letters] if kind == "shell" else [s.label] * len(letters)
        names.extend(name for name in sorted(set(own), key=own.index) if name not in names)
        per_species.append(np.array([names.index(name) for name in own]))
    atom = np.repeat(np.arange(len(species)), basis.n_orbitals[species])
    if kind == "atom":
        return Grouping(tuple(f"{basis.labels[s]} {a}" for a, s in enumerate(species)), atom)
    found, of_orbital = np.unique(np.concatenate([per_species[s] for s in species]), return_inverse=True)
    return Grouping(tuple(names[g] for g in found), of_orbital)
