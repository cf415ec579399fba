"""The local orbital basis: shells of each species and the order of their orbitals.

House order of orbitals in an atom: shells as listed, m = −l … l inside, real spherical harmonics without
Condon–Shortley sign and with polar axis z: l = 1 is (y, z, x), l = 2 is (xy, yz, 3z²−r², xz, x²−y²).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import BasisError
from .structure import Structure

__all__ = ["Basis", "Shell", "SpeciesBasis"]


@dataclass(frozen=True, slots=True)
class Shell:
    """2l + 1 orbitals with one radial function.

    `zeta` counts the shells of equal l in one species from 0; `cutoff_ang` is the radius beyond which it vanishes.
    """

    l: int
    zeta: int
    cutoff_ang: float


@dataclass(frozen=True, slots=True)
class SpeciesBasis:
    """Shells of one species and what else of it decides which pairs exist.

    Attributes
    ----------
    label : name of the species in the DFT input.
    number : atomic number.
    shells : in the order of the orbitals.
    source : what the DFT code was given (orbital set, pseudopotential): two species of one label with different
        sources are different species.
    valence : electrons that the neutral atom brings, or None where the code does not tell.
    projector_cutoff_ang : radius of the widest non-local projector where the code joins atoms through projectors
        alone (SIESTA); 0 where pairs follow from the orbitals (OpenMX).
    """

    label: str
    number: int
    shells: tuple[Shell, ...]
    source: str = ""
    valence: float | None = None
    projector_cutoff_ang: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shells", tuple(self.shells))
        if not self.shells:
            raise BasisError(f"species {self.label} has no shells", expected="at least one")
        seen: dict[int, int] = {}
        for shell in self.shells:
            if shell.l < 0 or not 0 < shell.cutoff_ang < np.inf:
                raise BasisError(f"species {self.label} has {shell}", expected="l ≥ 0 and a positive cutoff in Å")
            if shell.zeta != seen.get(shell.l, 0):
                raise BasisError(
                    f"species {self.label} has {shell} as number {seen.get(shell.l, 0) + 1} of its l = {shell.l}",
                    expected="zeta to count the shells of equal l from 0",
                )
            seen[shell.l] = shell.zeta + 1

    @property
    def n_orbitals(self) -> int:
        return sum(2 * shell.l + 1 for shell in self.shells)

    @property
    def cutoff_ang(self) -> float:
        """Radius of the widest orbital."""
        return max(shell.cutoff_ang for shell in self.shells)

    @property
    def degrees(self) -> tuple[int, ...]:
        """l of each shell."""
        return tuple(shell.l for shell in self.shells)

    def shell_slices(self) -> tuple[slice, ...]:
        """Orbital range of each shell."""
        ends = np.cumsum([2 * l + 1 for l in self.degrees])
        return tuple(slice(int(end) - 2 * l - 1, int(end)) for end, l in zip(ends, self.degrees, strict=True))

    def to_dict(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_dict(entry: dict) -> SpeciesBasis:
        try:
            return SpeciesBasis(**{**entry, "shells": tuple(Shell(**shell) for shell in entry["shells"])})
        except (KeyError, TypeError) as error:
            raise BasisError(
                f"species entry {entry}: {error}", expected="the fields of SpeciesBasis.to_dict"
            ) from error


@dataclass(frozen=True, slots=True)
class Basis:
    """The bases of all species, sorted by (atomic number, label): a species index is a place in this list."""

    species: tuple[SpeciesBasis, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.species, key=lambda s: (s.number, s.label)))
        object.__setattr__(self, "species", ordered)
        labels = [s.label for s in ordered]
        if len(set(labels)) != len(labels):
            raise BasisError(f"species listed twice: {labels}", expected="each label once")

    def __len__(self) -> int:
        return len(self.species)

    def __getitem__(self, index: int) -> SpeciesBasis:
        return self.species[index]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(s.label for s in self.species)

    @property
    def n_orbitals(self) -> NDArray[np.int64]:
        """(n_species,) orbitals per atom."""
        return np.array([s.n_orbitals for s in self.species], dtype=np.int64)

    def species_of(self, structure: Structure) -> NDArray[np.int64]:
        """(n_atoms,) species index of each atom.

        An atom whose label is not listed belongs to the one species with its atomic number, so that a structure from
        any file (labels are then chemical symbols) meets a basis with names like ``Fe_fept_SOC``.
        """
        by_label = {s.label: index for index, s in enumerate(self.species)}
        by_number: dict[int, list[int]] = {}
        for index, s in enumerate(self.species):
            by_number.setdefault(s.number, []).append(index)
        found: dict[tuple[str, int], int] = {}
        for label, number in dict.fromkeys(zip(structure.labels, structure.numbers.tolist(), strict=True)):
            if label in by_label:
                listed = self.species[by_label[label]].number
                if listed != number:
                    raise BasisError(
                        f"an atom labelled {label!r} with Z = {number}",
                        expected=f"Z = {listed}, as species {label!r} of the basis has",
                        remedy="correct the label or the atomic number",
                    )
                found[label, number] = by_label[label]
                continue
            candidates = by_number.get(number, [])
            if len(candidates) != 1:
                known = ", ".join(f"{s.label} (Z = {s.number})" for s in self.species)
                raise BasisError(
                    f"species {label!r} (Z = {number})" + (" is ambiguous" if candidates else " is unknown"),
                    expected=f"one of {known}",
                    remedy="label the atoms with these names"
                    if candidates
                    else "use a basis or model that holds this species",
                )
            found[label, number] = candidates[0]
        pairs = zip(structure.labels, structure.numbers.tolist(), strict=True)
        return np.array([found[pair] for pair in pairs], dtype=np.int64)

    def orbital_offsets(self, species: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n_atoms + 1,) index of the first orbital of each atom, and the total."""
        return np.concatenate([[0], np.cumsum(self.n_orbitals[species])])

    def restricted(self, labels: Iterable[str]) -> Basis:
        """The species named in `labels` only."""
        wanted = set(labels)
        missing = sorted(wanted - set(self.labels))
        if missing:
            raise BasisError(f"no species {', '.join(missing)}", expected=f"some of {', '.join(self.labels)}")
        return Basis(tuple(s for s in self.species if s.label in wanted))

    def merged(self, other: Basis) -> Basis:
        """All species of both; a label with two different bases is an error."""
        mine = {s.label: s for s in self.species}
        for s in other.species:
            if s.label in mine and mine[s.label] != s:
                raise BasisError(
                    f"species {s.label} with two bases: {_brief(mine[s.label])} and {_brief(s)}",
                    expected="one basis per species label",
                    remedy="give the species different labels in the DFT input, or make two sets",
                )
            mine[s.label] = s
        return Basis(tuple(mine.values()))

    def to_dict(self) -> dict:
        return {"species": [s.to_dict() for s in self.species]}

    @staticmethod
    def from_dict(entry: dict) -> Basis:
        return Basis(tuple(SpeciesBasis.from_dict(s) for s in entry["species"]))


def _brief(s: SpeciesBasis) -> str:
    shells = ", ".join(f"l={shell.l} r={shell.cutoff_ang:.3f} Å" for shell in s.shells)
    return f"[{s.source or 'no source'}: {shells}]"
