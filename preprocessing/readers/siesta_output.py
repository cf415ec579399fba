"""What SIESTA prints to its main output: version, self-consistency, energy, Mulliken populations, settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import ReaderError

from .compressed import read_text

__all__ = ["MainOutput", "Populations", "read_output"]

_NUMBER = r"[-+]?\d+\.\d+(?:[EeDd][-+]?\d+)?"


@dataclass(frozen=True, slots=True, eq=False)
class Populations:
    """Mulliken analysis as printed: electrons (n,), moments (n, 3) μ_B or None, and the rounding of the moments."""

    charges: NDArray[np.float64]
    moments: NDArray[np.float64] | None
    moment_precision_mub: float


@dataclass(frozen=True, slots=True, eq=False)
class MainOutput:
    """The main output of one run.

    Attributes
    ----------
    version : as printed.
    steps : SCF steps of the last geometry. converged : whether SIESTA said so.
    residue : last max |DM_out − DM_in|, or None. tolerance : its limit, or None.
    start : where the first density came from – ``given`` by DM.InitSpin, ``atomic`` (ferromagnetic or as
        DM.InitSpin.AF says), ``other`` (a file, or not told).
    mixed : quantity that was mixed, ``density`` or ``hamiltonian``.
    total_energy_ev, fermi_ev : or None.
    populations : or None if they were not printed.
    settings : lines of the parameter table that matter, as printed.
    k_mesh : (3, 4) supercell matrix and displacement of the Monkhorst–Pack mesh, or None.
    finished : whether the run came to its end.
    """

    version: str
    steps: int
    converged: bool
    residue: float | None
    tolerance: float | None
    start: Literal["given", "atomic", "other"]
    mixed: Literal["density", "hamiltonian"]
    total_energy_ev: float | None
    fermi_ev: float | None
    populations: Populations | None
    settings: dict[str, str]
    k_mesh: NDArray[np.float64] | None
    finished: bool

    @property
    def convergence(self) -> str:
        """One line for people."""
        said = "converged" if self.converged else "not converged"
        residue = "" if self.residue is None else f", max |DM_out − DM_in| = {self.residue:.3g}"
        limit = "" if self.tolerance is None else f" (limit {self.tolerance:g})"
        return f"{said} after {self.steps} SCF step{'s' if self.steps != 1 else ''}{residue}{limit}"


def _last(pattern: str, text: str) -> str | None:
    found = re.findall(pattern, text, re.MULTILINE)
    return found[-1] if found else None


def _last_number(pattern: str, text: str) -> float | None:
    found = _last(pattern, text)
    return None if found is None else float(found.lower().replace("d", "e"))


def read_output(path: Path, n_atoms: int, *, n_spin: int) -> MainOutput:
    """Parse the main output.

    Raises :class:`ReaderError` if the file is not one of SIESTA's or its populations are not those of `n_atoms`.
    """
    text = read_text(path)
    version = _last(r"^\s*(?:Siesta\s+)?[Vv]ersion\s*:\s*(\S+)", text[:4000])
    if version is None:
        raise ReaderError(
            "no line `Siesta Version`",
            expected="the main output of SIESTA",
            remedy="keep what SIESTA prints: siesta < x.fdf > x.out",
            path=path,
        )
    settings = {name.strip(): value.strip() for name, value in re.findall(r"^redata: (.+?)\s*= +(.+)$", text, re.M)}
    last_scf = text[max(text.rfind("iscf"), 0) :]
    steps = re.findall(r"^\s*scf:\s+(\d+)\s", last_scf, re.MULTILINE)
    if not steps:  # up to 4.0; forces have three numbers, SCF steps five
        steps = re.findall(r"^siesta:\s+(\d+)(?:\s+[-+]?\d+\.\d+){5}", last_scf, re.MULTILINE)
    mixed = settings.get("SCF mix quantity", settings.get("Mix quantity", "Hamiltonian")).lower()
    mesh = re.findall(rf"^siesta: k-grid:\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)\s+({_NUMBER})", text, re.MULTILINE)
    return MainOutput(
        version=version,
        steps=int(steps[-1]) if steps else 0,
        converged=bool(re.search(r"SCF cycle converged", last_scf)) and "SCF_NOT_CONV" not in last_scf,
        residue=_last_number(rf"max \|DM_out - DM_in\|\s*:\s*({_NUMBER})", last_scf),
        tolerance=_last_number(rf"^redata: (?:New )?DM [Tt]olerance for SCF\s*=\s*({_NUMBER})", text),
        start=_start(text),
        mixed="density" if mixed.startswith("density") else "hamiltonian",
        total_energy_ev=_last_number(rf"^siesta:\s+Total =\s+({_NUMBER})", text),
        fermi_ev=_last_number(rf"^siesta:\s+Fermi =\s+({_NUMBER})", text),
        populations=_populations(text, n_atoms, n_spin, path),
        settings=settings,
        k_mesh=np.array(mesh[-3:], dtype=np.float64) if len(mesh) >= 3 else None,
        finished=">> End of run" in text or "Job completed" in text,
    )


def _start(text: str) -> Literal["given", "atomic", "other"]:
    found = _last(r"^DM filled with atomic data( \(user-defined\))?:?", text)
    several = len(re.findall(r"^\s+iscf\s", text, re.MULTILINE)) > 1  # later geometries start from the last density
    if found is None or several or re.search(r"Attempting to read DM from file\.*\s*Succeeded", text):
        return "other"
    return "given" if found else "atomic"


def _populations(text: str, n_atoms: int, n_spin: int, path: Path) -> Populations | None:
    start = text.rfind("mulliken: Atomic and Orbital Populations")
    if start < 0:
        return None
    end = text.find("siesta: Program's energy", start)
    block = text[start : end if end > 0 else len(text)]
    if n_spin >= 4:
        line = rf"^\s*(\d+)\s+Total\s+({_NUMBER})\s+{_NUMBER}\s+({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})\s*$"
        table = _by_atom(re.findall(line, block, re.MULTILINE), n_atoms, path)
        return None if table is None else Populations(table[:, 0], table[:, 1:], 5.1e-4)
    spins = re.split(r"mulliken: Spin (?:UP|DOWN)", block)[1:] if n_spin == 2 else [block]
    tables = [
        _by_atom(re.findall(rf"^\s+(\d+)\s+({_NUMBER})(?:\s+{_NUMBER})+\s*$", s, re.M), n_atoms, path) for s in spins
    ]
    if len(tables) != n_spin or any(t is None for t in tables):
        return None
    charges = [t[:, 0] for t in tables if t is not None]
    if n_spin == 1:
        return Populations(charges[0], None, 0.0)
    moments = np.zeros((n_atoms, 3))
    moments[:, 2] = charges[0] - charges[1]
    return Populations(charges[0] + charges[1], moments, 1.02e-3)


def _by_atom(rows: list[tuple[str, ...]], n_atoms: int, path: Path) -> NDArray[np.float64] | None:
    """Lines are grouped by species: put them in the order of the atoms. None if the format is another one."""
    if not rows:
        return None
    atoms = np.array([int(row[0]) for row in rows])
    if sorted(atoms.tolist()) != list(range(1, n_atoms + 1)):
        raise ReaderError(
            f"Mulliken populations of atoms {sorted(atoms.tolist())[:10]}",
            expected=f"each of the {n_atoms} atoms once",
            remedy="is this the output of this run?",
            path=path,
            place="mulliken: Atomic and Orbital Populations",
        )
    table = np.empty((n_atoms, len(rows[0]) - 1))
    table[atoms - 1] = np.array([row[1:] for row in rows], dtype=np.float64)
    return table
