"""The species of SIESTA: orbitals, projectors and valence from ``.ion.nc``, ``.ion.xml`` or the ``.nc`` of the run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hamnet.basis import Shell, SpeciesBasis
from hamnet.errors import ReaderError

from .compressed import companion, read_buffer, read_text
from .siesta_netcdf import NetcdfGroup, open_netcdf
from .siesta_units import SiestaUnits

__all__ = ["Ion", "IonShell", "Projector", "ion_from_group", "read_ion"]

_LETTERS = "spdfghik"
_CUTOFF_DIGITS = 8  # .ion.xml has 12 significant digits, .ion.nc 16: both shall give the same basis


class IonShell(NamedTuple):
    """One shell of orbitals; `population` counts its electrons in the free atom."""

    n: int
    l: int
    zeta: int
    polarisation: bool
    population: float
    cutoff_bohr: float


class Projector(NamedTuple):
    """One Kleinman–Bylander projector."""

    l: int
    energy_ry: float
    cutoff_bohr: float


@dataclass(frozen=True, slots=True)
class Ion:
    """What SIESTA made of one species.

    valence counts the electrons outside the pseudopotential core; shells are in the order of the orbitals.
    """

    label: str
    number: int
    valence: float
    shells: tuple[IonShell, ...]
    projectors: tuple[Projector, ...]
    path: Path

    @property
    def largest_moment(self) -> float:
        """μ_B of the atom with as much spin as its free-atom populations allow: Σ min(q, 2 − q) over orbitals."""
        return sum(
            max(0.0, min(s.population, 2 * (2 * s.l + 1) - s.population)) for s in self.shells if s.population > 0
        )

    def basis(self, units: SiestaUnits, *, projectors: bool = True) -> SpeciesBasis:
        """The species for :class:`hamnet.basis.Basis`.

        `source` names shells and projector energies: equal labels with another pseudopotential differ there.
        `projectors` tells whether the run joined atoms through projectors (not with ``NeglNonOverlapInt T``).
        """
        seen: dict[int, int] = {}
        shells = []
        for shell in self.shells:
            zeta = seen.get(shell.l, 0)
            seen[shell.l] = zeta + 1
            shells.append(Shell(shell.l, zeta, round(shell.cutoff_bohr * units.bohr_ang, _CUTOFF_DIGITS)))
        widest = max((p.cutoff_bohr for p in self.projectors), default=0.0) if projectors else 0.0
        orbitals = " ".join(f"{s.n}{_LETTERS[s.l]}{'*' if s.polarisation else ''}" for s in self.shells)
        energies = " ".join(f"{_LETTERS[p.l]}{p.energy_ry:.4f}" for p in self.projectors)
        return SpeciesBasis(
            label=self.label,
            number=self.number,
            shells=tuple(shells),
            source=f"SIESTA orbitals {orbitals}; KB projectors (Ry) {energies or 'none'}",
            valence=self.valence,
            projector_cutoff_ang=round(widest * units.bohr_ang, _CUTOFF_DIGITS),
        )


def read_ion(folder: Path, label: str) -> Ion:
    """The species `label` of a run.

    Raises :class:`ReaderError` if neither ``.ion.nc`` nor ``.ion.xml`` is there, for damaged files and ghost atoms.
    """
    netcdf = companion(folder, f"{label}.ion.nc")
    if netcdf is not None:
        with open_netcdf(bytes(read_buffer(netcdf)), netcdf) as group:
            return ion_from_group(group, netcdf)
    xml = companion(folder, f"{label}.ion.xml")
    if xml is None:
        raise ReaderError(
            f"no {label}.ion.nc or {label}.ion.xml",
            expected="orbitals and projectors of the species, which SIESTA writes at the start of a run",
            remedy=f"copy {label}.ion.xml from the folder where SIESTA ran",
            path=folder,
        )
    try:
        return _read_xml(read_text(xml), xml)
    except (ValueError, KeyError, StopIteration, AttributeError) as error:
        raise _damaged(xml, error) from error


def ion_from_group(group: NetcdfGroup, path: Path) -> Ion:
    """The species in an ``.ion.nc`` or in one group of BASIS in the ``.nc`` of a run (the same variables)."""

    def columns(*names: str) -> Iterator[tuple]:
        arrays = [group.array(name) for name in names]
        if any(a is None for a in arrays) or len({len(a) for a in arrays if a is not None}) != 1:
            raise ValueError(f"{', '.join(names)} of different lengths or never written")
        return zip(*(a.tolist() for a in arrays if a is not None), strict=True)

    for table in ("orb", "proj"):  # a truncated classic file may read as zeros
        rows = group.array(table) if group.has(table) else np.ones((1, 1))
        if rows is None or not rows.any(axis=1).all():
            raise ValueError(f"empty radial functions in {table}")
    shells = columns("orbnl_n", "orbnl_l", "orbnl_z", "orbnl_ispol", "orbnl_pop", "cutoff")
    projectors = columns("pjnl_l", "pjnl_ekb", "kbcutoff") if group.has("kbcutoff") else ()
    return _checked(
        Ion(
            label=str(group.attribute("Label")).strip(),
            number=int(group.attribute("Atomic_number")),
            valence=float(group.attribute("Valence_charge")),
            shells=tuple(IonShell(int(n), int(l), int(z), bool(p), float(q), float(c)) for n, l, z, p, q, c in shells),
            projectors=tuple(Projector(int(l), float(e), float(c)) for l, e, c in projectors),
            path=path,
        )
    )


def _read_xml(text: str, path: Path) -> Ion:
    # Regular expressions: the free text in <preamble> need not be XML, and the tables make up 99 % of the file.
    def field(name: str) -> str:
        return re.search(rf"<{name}>\s*(.*?)\s*</{name}>", text).group(1)  # type: ignore[union-attr]

    shells, projectors = [], []
    for kind, attributes, cutoff in re.findall(r"<(orbital|projector)\s([^>]*)>.*?<cutoff>\s*(\S+)", text, re.DOTALL):
        entry = {name: value.strip() for name, value in re.findall(r'(\w+)="([^"]*)"', attributes)}
        if kind == "orbital":
            shells.append(
                IonShell(
                    int(entry["n"]),
                    int(entry["l"]),
                    int(entry["z"]),
                    bool(int(entry["ispol"])),
                    float(entry["population"]),
                    float(cutoff),
                )
            )
        else:
            energy = next(entry[name] for name in ("ref_energy", "energy") if name in entry)
            projectors.append(Projector(int(entry["l"]), float(energy), float(cutoff)))
    if len(shells) != int(field("norbs_nl")) or len(projectors) != int(field("nprojs_nl")):
        raise ValueError(f"{len(shells)} of {field('norbs_nl')} orbitals, {len(projectors)} projectors")
    return _checked(
        Ion(field("label"), int(field("z")), float(field("valence")), tuple(shells), tuple(projectors), path)
    )


def _checked(ion: Ion) -> Ion:
    if not 0 < ion.number <= 120:
        kind = "ghost atom (floating orbitals)" if ion.number < 0 else "synthetic atom"
        raise ReaderError(
            f"species {ion.label} with Z = {ion.number}: a {kind}",
            expected="real atoms only; these have no place in a structure",
            remedy="leave this run out",
            path=ion.path,
        )
    radii = [s.cutoff_bohr for s in ion.shells] + [p.cutoff_bohr for p in ion.projectors]
    if not ion.shells or not np.isfinite(radii).all() or min(radii) <= 0:
        raise ReaderError(f"species {ion.label} with radii {radii}", expected="positive radii", path=ion.path)
    return ion


def _damaged(path: Path, error: Exception) -> ReaderError:
    return ReaderError(
        f"cannot be read: {type(error).__name__}: {error}",
        expected="a species as SIESTA writes it",
        remedy="copy the file again from the folder where SIESTA ran",
        path=path,
    )
