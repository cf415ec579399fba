"""Extended xyz files that keep every digit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hamnet.structure import Structure

__all__ = ["write_extxyz"]


def write_extxyz(path: Path, structure: Structure, *, comment: str) -> None:
    """Write cell, positions and moments (μ_B), and labels of species that are no chemical symbols; numbers read back
    are the same to the last bit.

    ASE's own writer rounds to 1e-8. `comment` is kept under the key ``texture``. Whole or not at all; raises
    :class:`hamnet.errors.ConfigError` where nothing can be written.
    """
    import numpy as np
    from ase.data import chemical_symbols

    from postprocess.files import replacing

    moments = np.zeros_like(structure.positions) if structure.moments is None else structure.moments
    lattice = " ".join(map(repr, structure.cell.ravel().tolist()))
    periodic = " ".join("FT"[int(flag)] for flag in structure.pbc)
    quoted = comment.replace('"', "'").replace("\\", "/")
    symbols = [chemical_symbols[number] for number in structure.numbers]
    labelled = list(structure.labels) != symbols
    names = [f"{symbol} {label}" for symbol, label in zip(symbols, structure.labels, strict=True)]
    columns = f"species:S:1:{'labels:S:1:' if labelled else ''}pos:R:3:moments:R:3"
    head = f'Lattice="{lattice}" Properties={columns} pbc="{periodic}" texture="{quoted}"'
    rows = np.concatenate([structure.positions, moments], axis=1).tolist()
    lines = (
        f"{name} {' '.join(map(repr, row))}\n" for name, row in zip(names if labelled else symbols, rows, strict=True)
    )
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f"{len(structure)}\n{head}\n")
        file.writelines(lines)
