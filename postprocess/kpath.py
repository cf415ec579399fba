"""Paths through the Brillouin zone: of the lattice, as a user writes them, or along k points that are there already.

k is always in fractions of the structure's *own* reciprocal vectors. Labels are plain text (``G``, ``X1``); figures
turn them into Γ and X₁.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamnet.blocks import Pairs
from hamnet.errors import ConfigError
from hamnet.structure import Structure, frozen

__all__ = ["KPath", "k_path", "k_path_through", "periodic_directions", "special_points"]

_LATTICE_TOLERANCE = 2e-4
# Interchange of the in-plane vectors, with z turned over to keep the hand.
_INTERCHANGE = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])


@dataclass(frozen=True, slots=True, eq=False)
class KPath:
    """k points in sections; inside a section they follow each other, between sections the path jumps.

    Attributes
    ----------
    k_frac : (n_k, 3) in fractions of the reciprocal vectors.
    distance : (n_k,) 1/Å along the path from 0; a jump adds nothing.
    ticks : (n_ticks,) 1/Å, where the named points are.
    labels : one per tick, ``X|Y`` at a jump, empty for a corner without a name.
    starts : index of the first point of each section, the first of them 0.
    """

    k_frac: NDArray[np.float64]
    distance: NDArray[np.float64]
    ticks: NDArray[np.float64]
    labels: tuple[str, ...]
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("k_frac", "distance", "ticks"):
            object.__setattr__(self, name, frozen(getattr(self, name), np.float64))

    def __len__(self) -> int:
        return len(self.k_frac)

    @property
    def sections(self) -> tuple[slice, ...]:
        """The points of each section."""
        ends = (*self.starts[1:], len(self))
        return tuple(slice(a, b) for a, b in zip(self.starts, ends, strict=True))


def periodic_directions(structure: Structure, pairs: Pairs | None = None) -> NDArray[np.bool_]:
    """(3,) lattice directions along which bands disperse.

    Plane-wave-like codes call every direction periodic. Where no pair reaches into the next cell along a direction
    (the vacuum of a slab), H(k) does not depend on that component of k, and a path has no business there.
    """
    periodic = np.array(structure.pbc)
    if pairs is not None:
        periodic &= pairs.shift.any(axis=0)
    return periodic


def special_points(
    structure: Structure, periodic: ArrayLike = (True, True, True)
) -> tuple[dict[str, NDArray[np.float64]], str]:
    """High-symmetry points of the lattice, {label: (3,) k_frac}, and the path that is usual for it, ``GXM,RG``.

    Atoms and moments play no part: the lattice decides. Labels follow ASE (Setyawan and Curtarolo, Comput. Mater. Sci.
    49, 299 (2010), doi:10.1016/j.commatsci.2010.05.010).
    """
    from ase.cell import Cell
    from ase.lattice import identify_lattice

    periodic = np.asarray(periodic, dtype=bool)
    if not periodic.any():
        return {"G": np.zeros(3)}, "G"
    cell = Cell(np.array(structure.cell))
    lattice, operation = identify_lattice(cell.uncomplete(periodic), eps=_LATTICE_TOLERANCE)
    standard = lattice.get_special_points()
    labels, points = list(standard), np.array(list(standard.values()))
    wanted = points @ lattice.tocell().complete().reciprocal().array
    # The points must lie to each other in our cell as they do in the standard one. ASE exchanges X and Y of a
    # rectangular lattice for some choices of its vectors.
    for candidate in (operation, _INTERCHANGE @ operation):
        k_frac = points @ candidate
        k_frac[:, ~periodic] = 0
        found = k_frac @ cell.reciprocal().array
        if np.allclose(found @ found.T, wanted @ wanted.T, rtol=0, atol=2e-3 * float((wanted**2).sum(axis=1).max())):
            return dict(zip(labels, k_frac, strict=True)), lattice.special_path
    raise ConfigError(
        f"lattice {lattice} whose special points could not be brought to this cell",
        expected="a cell near to a Bravais lattice",
        remedy="give the path as points, e.g. --path 'G=0,0,0 X=1/2,0,0'",
    )


# -- paths as text -----------------------------------------------------------------------------------------------------

_Corner = tuple[str, NDArray[np.float64]]


def _coordinates(text: str) -> NDArray[np.float64]:
    try:
        values = [float(Fraction(part)) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        values = []
    if len(values) != 3:
        raise ConfigError(f"k point {text!r}", expected="three numbers or fractions, e.g. 1/3,1/3,0")
    return np.array(values)


def _corners(text: str, known: dict[str, NDArray], structure: Structure) -> list[list[_Corner]]:
    """Sections of corners from ``GMKG``, ``GX|YG``, ``GX,YG``, ``0,0,0 1/2,0,0``, ``G=0,0,0 M=1/2,0,0 | K G``."""
    sections: list[list[_Corner]] = [[]]
    own = dict(known)
    for token in text.replace("Γ", "G").replace("|", " | ").replace(";", " ").split():
        if token == "|":
            sections.append([])
        elif "=" in token:
            label, _, numbers = token.partition("=")
            own[label] = _coordinates(numbers)
            sections[-1].append((label, own[label]))
        elif re.match(r"[-+.\d]", token):
            k_frac = _coordinates(token)
            sections[-1].append((_name_of(k_frac, _images(structure, own)), k_frac))
        else:
            for number, word in enumerate(token.split(",")):
                if number:
                    sections.append([])
                sections[-1].extend(_named(word, own, text))
    sections = [section for section in sections if section]
    lonely = [section for section in sections if len(section) == 1]
    if not sections or (lonely and sections != lonely[:1]):
        raise ConfigError(
            f"path {text!r} with a section of fewer than two points", expected="sections like GMKG or GX|YG"
        )
    return sections


def _named(word: str, known: dict[str, NDArray], text: str) -> list[_Corner]:
    if word in known:
        return [(word, known[word])]
    labels = re.findall(r"[A-Z][a-z0-9]*|.", word)
    unknown = [label for label in labels if label not in known]
    if unknown:
        listed = ", ".join(f"{name} ({_short(k)})" for name, k in sorted(known.items()))
        raise ConfigError(
            f"path {text!r} names the point {unknown[0]!r}",
            expected=f"points of this lattice: {listed}",
            remedy="or give it yourself, e.g. 'G=0,0,0 M=1/2,0,0 G'",
        )
    return [(label, known[label]) for label in labels]


def _short(k_frac: NDArray) -> str:
    return " ".join(str(Fraction(float(x)).limit_denominator(12)) if abs(x) > 1e-9 else "0" for x in k_frac)


def _images(structure: Structure, known: dict[str, NDArray]) -> dict[str, NDArray[np.float64]]:
    """All points (m, 3) that the point group of the lattice makes of each special point."""
    metric = structure.cell @ structure.cell.T
    # In a cell that is not far from reduced the group's matrices hold nothing but these numbers.
    entries = np.array(list(itertools.product((-1, 0, 1), repeat=9)), dtype=np.float64).reshape(-1, 3, 3)
    kept = np.abs(entries @ metric @ entries.swapaxes(1, 2) - metric).max(axis=(1, 2)) < 1e-3 * metric.max()
    return {label: point @ entries[kept].swapaxes(1, 2) for label, point in known.items()}


def _name_of(k_frac: NDArray, images: dict[str, NDArray]) -> str:
    """Label of a point up to the lattice's symmetry, empty if it has none. The tolerance is that of printed digits."""
    for label, points in images.items():
        offset = k_frac - points
        if np.abs(offset - np.rint(offset)).max(axis=-1).min() < 1e-4:
            return label
    return ""


def k_path(
    structure: Structure, text: str | None = None, *, n_points: int = 200, periodic: ArrayLike | None = None
) -> KPath:
    """A path with about equal steps in 1/Å.

    Parameters
    ----------
    text : ``GMKG`` with the labels of :func:`special_points`, ``GX|YG`` with a jump, explicit points
        ``0,0,0 1/2,0,0``, or both with names: ``G=0,0,0 M=1/2,0,0 G``. None: the usual path of the lattice.
    n_points : wanted number of k points; every corner is a point, every edge has one step at least.
    periodic : (3,) directions to go along; default: those of the structure.

    Raises :class:`ConfigError` for unknown labels (with those that are known) and for text that is not a path.
    """
    if n_points < 2:
        raise ConfigError(f"{n_points} points along the path", expected="2 or more")
    known, usual = special_points(structure, structure.pbc if periodic is None else periodic)
    sections = _corners(usual if text is None else text, {"G": np.zeros(3)} | known, structure)
    lengths = [_steps(structure, np.array([k for _, k in section])) for section in sections]
    total = sum(float(length.sum()) for length in lengths)
    if total == 0 and sum(map(len, lengths)):
        raise ConfigError(f"path {text!r} of zero length", expected="different points")
    k_frac, starts, corners, names = [], [], [], []
    for section, length in zip(sections, lengths, strict=True):
        starts.append(sum(map(len, k_frac)))
        n_steps = np.maximum(1, np.rint(length / total * (n_points - 1)).astype(int)) if len(length) else []
        corners.append(starts[-1] + np.concatenate([[0], np.cumsum(n_steps)]).astype(int))
        names.append([label for label, _ in section])
        for (_, a), (_, b), n in zip(section[:-1], section[1:], n_steps, strict=True):
            k_frac.append(a + np.arange(n)[:, None] / n * (b - a))
        k_frac.append(section[-1][1][None])
    return _path(structure, np.concatenate(k_frac), starts, corners, names)


def k_path_through(
    structure: Structure,
    k_frac: ArrayLike,
    *,
    periodic: ArrayLike | None = None,
    starts: Sequence[int] | None = None,
    names: Mapping[int, str] | None = None,
) -> KPath:
    """The path along k points in the order given (n_k, 3): a DFT code's own.

    Corners are where the direction changes; they get the `names` that the run gave them (by index of k), or else those
    of special points. Where the path jumps is told by `starts` (first index of each section), or else taken from the
    steps: a jump is unlike the steps on both sides of it and longer than either.
    """
    k_frac = np.atleast_2d(np.asarray(k_frac, dtype=np.float64))
    vectors = np.diff(k_frac, axis=0) @ structure.reciprocal_cell
    size = np.linalg.norm(vectors, axis=1)
    same = 1e-4 * size.max(initial=1e-12)  # printed digits
    like_next = np.linalg.norm(np.diff(vectors, axis=0), axis=1) < same
    like_either = np.r_[like_next, False] | np.r_[False, like_next]
    if starts is None:
        beside = np.maximum(np.r_[size[1:], 0], np.r_[0, size[:-1]])
        jump = ~like_either & (size > 1.5 * beside) & (beside > 0)
        starts = [0, *(np.flatnonzero(jump) + 1).tolist()]
    known, _ = special_points(structure, structure.pbc if periodic is None else periodic)
    images = _images(structure, known)
    corners, labels = [], []
    for first, end in zip(starts, (*starts[1:], len(k_frac)), strict=True):
        moving = first + np.flatnonzero(size[first : end - 1] > same)
        unit = vectors[moving] / size[moving, None]
        turned = np.linalg.norm(np.diff(unit, axis=0), axis=1) > 1e-3
        section = np.r_[first, moving[1:][turned], end - 1] if end - first > 1 else np.array([first])
        corners.append(section)
        labels.append([(names or {}).get(int(i)) or _name_of(k_frac[i], images) for i in section])
    return _path(structure, k_frac, starts, corners, labels)


def _steps(structure: Structure, k_frac: NDArray) -> NDArray[np.float64]:
    return np.linalg.norm(np.diff(k_frac, axis=0) @ structure.reciprocal_cell, axis=1)


def _path(
    structure: Structure,
    k_frac: NDArray,
    starts: Sequence[int],
    corners: Sequence[NDArray],
    names: Sequence[Sequence[str]],
) -> KPath:
    steps = np.concatenate([[0.0], _steps(structure, k_frac)])
    steps[list(starts)] = 0
    distance = np.cumsum(steps)
    ticks: list[float] = []
    labels: list[str] = []
    for number, (section, section_names) in enumerate(zip(corners, names, strict=True)):
        places = distance[section].tolist()
        if number and section_names[0] != labels[-1]:
            labels[-1] = f"{labels[-1]}|{section_names[0]}"
        first = 1 if number else 0
        ticks.extend(places[first:])
        labels.extend(section_names[first:])
    return KPath(k_frac, distance, np.array(ticks), tuple(labels), tuple(starts))
