"""The input text of an OpenMX run: keywords, blocks, species and atoms."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from hamnet.basis import Shell, SpeciesBasis
from hamnet.errors import ReaderError

from .compressed import read_text
from .openmx_blocks import MAX_DEGREE
from .openmx_units import BOHR_ANG

__all__ = ["AtomRows", "InputText"]

_TRUE, _FALSE = {"on", "yes", "true", ".true.", "1"}, {"off", "no", "false", ".false.", "0"}
_ORBITAL_SET = re.compile(r"(?P<element>[A-Z][a-z]?)(?P<cutoff>\d+(?:\.\d+)?)(?P<variant>[^-]*)-(?P<shells>\S+)")
_SHELLS = re.compile(r"([a-z])(\d{1,3})")
_LETTERS = "spdfgh"
_EMPTY_ATOM = "E"


@dataclass(frozen=True, slots=True, eq=False)
class AtomRows:
    """``Atoms.SpeciesAndCoordinates`` without the coordinates (the binary file has those that count).

    Attributes
    ----------
    labels : species of each atom.
    occupations : (n, 2) initial electrons with spin up and down.
    directions : (n, 3) unit vectors of the spin angles (z without angles), reversed where up < down as OpenMX does.
    constrained : (n,) whether the constraint on directions acts on the atom.
    """

    labels: tuple[str, ...]
    occupations: NDArray[np.float64]
    directions: NDArray[np.float64]
    constrained: NDArray[np.bool_]

    @property
    def initial_moments(self) -> NDArray[np.float64]:
        """(n, 3) μ_B."""
        return np.abs(self.occupations[:, 0] - self.occupations[:, 1])[:, None] * self.directions


class InputText:
    """Keywords of an OpenMX input; names are not case-sensitive, ``#`` starts a comment.

    `path` and `place` say in errors where the text is from.
    """

    def __init__(self, text: str, path: Path, place: str) -> None:
        self.path, self.place = path, place
        self._lines = [words for line in text.splitlines() if (words := line.split("#", 1)[0].split())]
        self._values: dict[str, list[str]] = {}
        for words in self._lines:
            self._values.setdefault(words[0].lower(), words[1:])

    @classmethod
    def read(cls, path: Path) -> InputText:
        """An input file."""
        return cls(read_text(path), path, "input file")

    def has_block(self, key: str) -> bool:
        return f"<{key}".lower() in self._values

    def fault(self, key: str, found: str, expected: str = "", remedy: str = "") -> ReaderError:
        return ReaderError(found, expected=expected, remedy=remedy, path=self.path, place=f"{self.place}, {key}")

    def words(self, key: str) -> list[str]:
        """Words after the keyword; empty if it is not there."""
        return self._values.get(key.lower(), [])

    def word(self, key: str, default: str) -> str:
        return (self.words(key) or [default])[0]

    def flag(self, key: str) -> bool:
        """on or off; off if it is not there."""
        word = self.word(key, "off").lower()
        if word not in _TRUE | _FALSE:
            raise self.fault(key, repr(word), "on or off")
        return word in _TRUE

    def number(self, key: str, default: float) -> float:
        return self._number(key, self.word(key, repr(default)))

    def integers(self, key: str, default: list[int]) -> list[int]:
        """As many whole numbers as the default has."""
        words = self.words(key)
        if not words:
            return default
        values = [self._number(key, word) for word in words[: len(default)]]
        if len(values) != len(default) or any(v != round(v) for v in values):
            raise self.fault(key, " ".join(words), f"{len(default)} whole numbers")
        return [int(v) for v in values]

    def _number(self, key: str, word: str) -> float:
        try:
            value = float(word.lower().replace("d", "e"))
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise self.fault(key, repr(word), "a number")
        return value

    def block(self, key: str) -> list[list[str]]:
        """Rows between ``<key`` and ``key>``. Raises if the block is missing or does not end."""
        first, last = f"<{key}".lower(), f"{key}>".lower()
        if not self.has_block(key):
            raise self.fault(key, "no such block", f"<{key} … {key}>")
        names = [words[0].lower() for words in self._lines]
        start = names.index(first) + 1
        if last not in names[start:]:
            raise self.fault(key, "a block without end", f"{key}>")
        return self._lines[start : names.index(last, start)]

    # -- species and atoms -----------------------------------------------------------------------------------------

    def species(self) -> tuple[SpeciesBasis, ...]:
        """Species in the order of the definition, without valence electrons."""
        key = "Definition.of.Atomic.Species"
        if self.word("orbitalOpt.Method", "off").lower() != "off":
            raise self.fault(
                "orbitalOpt.Method",
                "a run with orbital optimisation",
                "primitive orbitals",
                "the stored matrices of such runs do not belong together; repeat with orbitalOpt.Method off",
            )
        rows = self.block(key)
        if not rows or any(len(row) < 3 for row in rows):
            raise self.fault(key, f"{rows}", "label, orbital set and pseudopotential in each row")
        found = tuple(self._species(key, *row[:3]) for row in rows)
        if len({s.label for s in found}) != len(found):
            raise self.fault(key, f"labels {[s.label for s in found]}", "each label once")
        return found

    def _species(self, key: str, label: str, orbitals: str, potential: str) -> SpeciesBasis:
        match = _ORBITAL_SET.fullmatch(orbitals)
        if match is None:
            raise self.fault(key, f"orbital set {orbitals!r}", "a name like Ni6.0S-s2p2d1")
        element = match["element"]
        if element == _EMPTY_ATOM:
            number = 0
        elif element in atomic_numbers:
            number = atomic_numbers[element]
        else:
            raise self.fault(key, f"orbital set {orbitals!r} of element {element!r}", "a chemical symbol in front")
        if _SHELLS.sub("", match["shells"]):
            raise self.fault(
                key,
                f"shells {match['shells']!r} of {orbitals!r}",
                "letters with counts, like s2p2d1 (contracted sets, s4>2, are not supported)",
            )
        cutoff = float(match["cutoff"]) * BOHR_ANG
        shells = []
        for letter, count in _SHELLS.findall(match["shells"]):
            l = _LETTERS.find(letter)
            if not 0 <= l <= MAX_DEGREE:
                raise self.fault(key, f"{letter} orbitals in {orbitals!r}", f"{', '.join(_LETTERS[: MAX_DEGREE + 1])}")
            shells += [Shell(l, zeta, cutoff) for zeta in range(int(count))]
        degrees = [s.l for s in shells]
        if not shells or degrees != sorted(degrees) or cutoff <= 0:
            raise self.fault(key, f"orbital set {orbitals!r}", "a positive cutoff and shells in the order s, p, d, f")
        return SpeciesBasis(label, number, tuple(shells), source=f"{orbitals} {potential}")

    def atoms(self, n_atoms: int, known: tuple[str, ...], *, angles: bool) -> AtomRows:
        """Rows of the atoms, which must be `n_atoms` of the `known` species; `angles` as in non-collinear runs."""
        key = "Atoms.SpeciesAndCoordinates"
        rows = self.block(key)
        if len(rows) != n_atoms:
            raise self.fault(
                key, f"{len(rows)} atoms", f"{n_atoms}, as in the binary part", "was the input changed during the run?"
            )
        for row in rows:
            if len(row) < 7 or row[1] not in known:
                raise self.fault(key, " ".join(row), f"index, one of {', '.join(known)}, x, y, z, up, down")
        occupations = np.array([[self._number(key, word) for word in row[5:7]] for row in rows])
        direction = np.zeros((n_atoms, 2))
        constrained = np.zeros(n_atoms, bool)
        if angles:
            for place, row in enumerate(rows):
                if len(row) < 9:
                    raise self.fault(key, " ".join(row), "the spin angles theta and phi behind the occupations")
                direction[place] = [self._number(key, word) for word in row[7:9]]
                constrained[place] = len(row) > 11 and self._number(key, row[11]) == 1
        theta, phi = np.deg2rad(direction).T
        directions = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=1)
        directions[occupations[:, 0] < occupations[:, 1]] *= -1
        return AtomRows(tuple(row[1] for row in rows), occupations, directions, constrained)
