"""The units of SIESTA: which Bohr and Rydberg a release was compiled with.

Up to 4.1 the program has 1 Å = 1/0.529177 Bohr and 1 eV = 1/13.60580 Ry (``Src/units.f90``). From 5.0 on it has the
CODATA 2018 values unless it was built with the old ones. Matrices and geometry are stored in Bohr and Ry, eigenvalues
are printed in eV: the wrong pair shifts every level by 8e-6 of itself, 0.2 meV at 25 eV.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hamnet.errors import ReaderError
from hamnet.units import BOHR_ANG, RYDBERG_EV

__all__ = ["CODATA_2018", "LEGACY", "SiestaUnits", "choose_units"]


@dataclass(frozen=True, slots=True)
class SiestaUnits:
    """Å per Bohr and eV per Ry of one release."""

    name: str
    bohr_ang: float
    rydberg_ev: float


LEGACY = SiestaUnits("SIESTA up to 4.1", 0.529177, 13.60580)
CODATA_2018 = SiestaUnits("CODATA 2018", BOHR_ANG, RYDBERG_EV)

_TELLING_EV = 0.05  # an E_F above this tells the two Ry apart in the nine digits of .EIG


def choose_units(
    version: str, fermi_ry: float | None, fermi_ev: float | None, path: Path | None = None
) -> tuple[SiestaUnits, str]:
    """The units of a run and the reason for them.

    Parameters
    ----------
    version : as printed, e.g. ``5.2.1`` or ``master-post-4.1-268``.
    fermi_ry : Fermi energy in a file that holds Ry (HSX of version 1 on, ``.nc``), or None.
    fermi_ev : the same as printed in eV (``.EIG``), or None.

    Raises
    ------
    ReaderError : the two are the same number in neither system: files of different runs.
    """
    if fermi_ry is not None and fermi_ev is not None and abs(fermi_ev) > _TELLING_EV:
        deviation = {units: abs(fermi_ry * units.rydberg_ev / fermi_ev - 1) for units in (LEGACY, CODATA_2018)}
        best = min(deviation, key=lambda units: deviation[units])
        if deviation[best] > 1e-6:
            raise ReaderError(
                f"E_F = {fermi_ry:.9g} Ry here and {fermi_ev:.9g} eV in .EIG",
                expected="one Fermi energy in all files of a run",
                remedy="remove the files that an earlier run left behind",
                path=path,
            )
        return best, f"E_F in Ry and in eV have the ratio of {best.name}"
    release = re.search(r"(\d+)\.\d+", version)
    if release and int(release.group(1)) >= 5:
        return CODATA_2018, f"release {version} is 5.0 or newer"
    return LEGACY, f"release {version or 'unknown'} is older than 5.0"
