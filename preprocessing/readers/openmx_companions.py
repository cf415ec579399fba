"""The printed files beside a ``.scfout``: which of them belong to it, and what they say about the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hamnet.errors import ReaderError
from hamnet.structure import frozen

from .compressed import companion, files_ending, logical_name
from .openmx_input import InputText
from .openmx_output import OutFile, StdFile, read_band, read_out, read_std, system_name
from .openmx_scfout import Scfout
from .openmx_units import HARTREE_EV
from .protocol import BandReference

__all__ = ["Companions", "band_references", "find_companions"]

_SAME_RUN_HA = 1e-9  # the printed files repeat the chemical potential to 12 digits or more
_LAST_DIGIT_HA = 2e-12
_BAND_PRECISION_EV = 1e-6  # the stored H is Hermitian to 2e-9 Ha; made Hermitian it gives the bands to 3e-10 Ha
_DEFAULT_CRITERION_HA = 1e-6
_DEFAULT_MAX_STEPS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Companions:
    """Input text of the run, its ``.out`` and redirected output (None where there is none), and the release."""

    text: InputText
    out: OutFile | None
    std: StdFile | None

    @property
    def version(self) -> str | None:
        return next((file.version for file in (self.out, self.std) if file is not None and file.version), None)

    @property
    def criterion_ha(self) -> float:
        if self.std is not None:
            return self.std.criterion_ha
        return self.text.number("scf.criterion", _DEFAULT_CRITERION_HA)

    @property
    def max_steps(self) -> int:
        return int(self.text.number("scf.maxIter", _DEFAULT_MAX_STEPS))

    def convergence(self) -> tuple[bool, str]:
        """Whether self-consistency was reached, and one line about it.

        OpenMX stops when the band energy changes by less than ``scf.criterion``; an unconverged run is stored without
        a mark, so that without printed files the answer is no.
        """
        last = self.std or self.out
        if last is None or last.n_steps is None:
            return False, "not known: no .out or .std of the run with its SCF steps"
        change = last.energy_change_ha
        said = self.std.achieved if self.std is not None else None
        reached = change is not None and change <= self.criterion_ha + _LAST_DIGIT_HA
        changed = "no second step" if change is None else f"dUele {change:.3g} Ha"
        line = f"{changed} (criterion {self.criterion_ha:g} Ha), NormRD {last.residue:.3g}, "
        line += f"{last.n_steps} of at most {self.max_steps} steps"
        return (reached if said is None else said), line


def find_companions(raw: Scfout, warnings: list[str]) -> Companions:
    """Printed files and input text of a binary file. What could not be verified is added to `warnings`.

    Raises :class:`ReaderError` where a file of the run's name comes from another run, and where there is no input text.
    """
    folder, stem = raw.path.parent, logical_name(raw.path).removesuffix(".scfout")
    text = None if raw.text is None else InputText(raw.text, raw.path, "embedded input text")
    name = stem if text is None else text.word("System.Name", stem)
    out = _out(raw, folder, stem, name, warnings)
    std = _std(folder, out, warnings)
    if text is None:
        text = _text_beside(raw, folder, name, out, warnings)
    return Companions(text, out, std)


def _out(raw: Scfout, folder: Path, stem: str, name: str, warnings: list[str]) -> OutFile | None:
    path = companion(folder, f"{stem}.out")
    if path is None:  # renamed files
        path = next((p for p in files_ending(folder, ".out") if system_name(p) == name), None)
    if path is None:
        warnings.append(f"no {stem}.out beside the binary file: no total energy, forces, printed moments, convergence")
        return None
    out = read_out(path, raw.n_atoms, raw.spin_switch)
    if out.chemical_potential_ha is None:
        warnings.append(f"{path.name} is incomplete: no chemical potential")
    else:
        _same_run(path, out.chemical_potential_ha, raw)
    return out


def _same_run(path: Path, chemical_potential_ha: float, raw: Scfout) -> None:
    if not abs(chemical_potential_ha - raw.chemical_potential_ha) <= _SAME_RUN_HA:
        raise ReaderError(
            f"chemical potential {chemical_potential_ha:.12f} Ha",
            expected=f"{raw.chemical_potential_ha:.12f} Ha, as in {raw.path.name}",
            remedy="the two files are from different runs; keep those of one run in the folder",
            path=path,
        )


def _std(folder: Path, out: OutFile | None, warnings: list[str]) -> StdFile | None:
    found = [std for path in files_ending(folder, ".std") if (std := read_std(path)) is not None]
    if out is None:
        if len(found) != 1:
            return None
        warnings.append(f"{found[0].path.name} is taken for this run without proof")
        return found[0]
    energy = out.band_energy_ha
    same = [std for std in found if energy is not None and abs(std.band_energy_ha - energy) < _LAST_DIGIT_HA]
    if found and not same:
        warnings.append(f"{', '.join(std.path.name for std in found)}: of another run (other band energy), not used")
    return same[0] if same else None


def _text_beside(raw: Scfout, folder: Path, name: str, out: OutFile | None, warnings: list[str]) -> InputText:
    """The input where it is not embedded: repeated in the ``.out``, else the ``.dat`` of this System.Name."""
    if out is not None:
        text = InputText(out.input_text, out.path, "repeated input")
        if text.has_block("Definition.of.Atomic.Species"):
            warnings.append(f"no input text in the binary file; taken from {out.path.name}")
            return text
    for path in files_ending(folder, ".dat"):
        if system_name(path) == name:
            warnings.append(f"no input text in the binary file; taken from {path.name} without proof")
            return InputText.read(path)
    raise ReaderError(
        "no input text in the binary file, and no .out or .dat of the run beside it",
        expected="the definition of species: orbital sets and pseudopotentials",
        remedy=f"put the run's {name}.out or its input file (System.Name {name}) into the folder",
        path=raw.path,
    )


def band_references(raw: Scfout, warnings: list[str]) -> tuple[BandReference, ...]:
    """Eigenvalues of the ``.Band`` file, if there is one."""
    stem = logical_name(raw.path).removesuffix(".scfout")
    path = companion(raw.path.parent, f"{stem}.Band")
    if path is None:
        return ()
    dimension = int(raw.n_orbitals.sum()) * (2 if raw.spin_switch == 3 else 1)
    bands = read_band(path, dimension, 2 if raw.spin_switch == 1 else 1)
    _same_run(path, bands.chemical_potential_ha, raw)
    if bands.dropped_paths:
        warnings.append(f"{path.name}: {bands.dropped_paths} paths of one point, written as NaN, are left out")
    if not len(bands.k_frac):
        return ()
    k_frac, energies = frozen(bands.k_frac, np.float64), frozen(bands.energies_ha * HARTREE_EV, np.float64)
    return (BandReference(path.name, k_frac, energies, _BAND_PRECISION_EV, corners=bands.corners),)
