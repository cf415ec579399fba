"""Where the error sits: by angle between moments, and by shell pair and irrep.

A block between shells of degree l_a and l_b is the sum of irreps L = |l_a − l_b| … l_a + l_b of l_a ⊗ l_b. They are
orthogonal, so that mean squares of irreps, each of 2L + 1 elements, add up to the mean square of the block.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hamnet.basis import SpeciesBasis
from hamnet.blocks import BlockOperator
from hamnet.models.irreps import clebsch_gordan
from hamnet.structure import Structure
from hamnet.units import MEV_PER_EV

from .metrics import ErrorSums

__all__ = ["ErrorMap", "angles_between", "shell_names"]

_BIN_DEG = 15
_LETTERS = "spdfghi"


@dataclass(slots=True)
class ErrorMap:
    """Sums over pairs, of one sample or of several joined.

    by_angle : by bin of the angle between the moments of the two atoms of a pair, both magnetic, self pairs left out.
    squares : for (on-site, row shell, column shell) Σ|c|² in eV² of the coefficients c of ΔH, (3, n_degrees): of the
        spin-free, exchange and spin–orbit part. Each pair of shells is counted in one direction.
    degrees : L of each column.
    n_pairs : the blocks summed. n_spin : Pauli components of the Hamiltonians. is_complex : whether they have a
        spin–orbit part.
    """

    by_angle: dict[int, ErrorSums] = field(default_factory=dict)
    squares: dict[tuple[bool, str, str], Tensor] = field(default_factory=dict)
    n_pairs: dict[tuple[bool, str, str], int] = field(default_factory=dict)
    degrees: dict[tuple[bool, str, str], tuple[int, ...]] = field(default_factory=dict)
    n_spin: int = 1
    is_complex: bool = False

    def add(self, difference: BlockOperator, structure: Structure, magnetic: Collection[str]) -> None:
        """Add the error of one sample. magnetic : labels of the species whose moments are an input."""
        pairs, basis = difference.pairs, difference.basis
        self.n_spin, self.is_complex = difference.n_spin, difference.dtype.is_complex
        angles = angles_between(structure, pairs.row, pairs.col, magnetic)
        # 180° belongs to the last bin.
        bins = np.minimum(angles // _BIN_DEG, 180 / _BIN_DEG - 1)
        bins[pairs.is_self] = np.nan
        for group, block in zip(pairs.groups, difference.blocks, strict=True):
            here = bins[group.pairs]
            for key in np.unique(here[~np.isnan(here)]).astype(int).tolist():
                self.by_angle.setdefault(key, ErrorSums()).add(block[torch.as_tensor(np.flatnonzero(here == key))])
            if group.row_species <= group.col_species:
                onsite = torch.as_tensor(pairs.is_self[group.pairs])
                row, col = basis[group.row_species], basis[group.col_species]
                for flag, part in ((True, block[onsite]), (False, block[~onsite])):
                    if len(part):
                        self._add_shells(part, row, col, onsite=flag)

    def _add_shells(self, block: Tensor, row: SpeciesBasis, col: SpeciesBasis, *, onsite: bool) -> None:
        names = shell_names(row), shell_names(col)
        for a, rows in enumerate(row.shell_slices()):
            for b, cols in enumerate(col.shell_slices()):
                if row is col and a > b:
                    continue  # the adjoints
                key = (onsite, names[0][a], names[1][b])
                degrees = _degrees(row.degrees[a], col.degrees[b])
                squares = _squares(block[:, :, rows, cols], row.degrees[a], col.degrees[b])
                self.squares[key] = self.squares[key] + squares if key in self.squares else squares
                self.n_pairs[key] = self.n_pairs.get(key, 0) + len(block)
                self.degrees[key] = degrees

    def join(self, other: ErrorMap) -> None:
        """Add the sums of another map."""
        self.n_spin, self.is_complex = other.n_spin, other.is_complex
        self.degrees.update(other.degrees)
        for key, sums in other.by_angle.items():
            self.by_angle.setdefault(key, ErrorSums()).join(sums)
        for key, squares in other.squares.items():
            self.squares[key] = self.squares[key] + squares if key in self.squares else squares
            self.n_pairs[key] = self.n_pairs.get(key, 0) + other.n_pairs[key]

    def to_dict(self) -> dict[str, Any]:
        """Keys as documented in ``docs/json.md``."""
        angles = [
            {"from_deg": key * _BIN_DEG, "to_deg": (key + 1) * _BIN_DEG, **self.by_angle[key].means_mev()}
            for key in sorted(self.by_angle)
        ]
        shells = [self._entry(key) for key in sorted(self.squares)]
        return {"n_components": self.n_spin, "by_angle": angles, "by_shell_pair": shells}

    def _entry(self, key: tuple[bool, str, str]) -> dict[str, Any]:
        width = torch.tensor([2 * degree + 1 for degree in self.degrees[key]], dtype=torch.float64)
        components = torch.tensor([1, self.n_spin - 1, self.n_spin - 1], dtype=torch.float64)[:, None]
        rms = (self.squares[key].cpu() / (self.n_pairs[key] * width * components)).sqrt() * MEV_PER_EV
        has = (True, self.n_spin > 1, self.n_spin > 1 and self.is_complex)
        parts = ("rmse_spin_free_meV", "rmse_exchange_meV", "rmse_soc_meV")
        values = {part: rms[n].tolist() if has[n] else None for n, part in enumerate(parts)}
        onsite, row, col = key
        return {
            "onsite": onsite,
            "row": row,
            "col": col,
            "n_pairs": self.n_pairs[key],
            "degrees": list(self.degrees[key]),
            **values,
        }


def shell_names(species: SpeciesBasis) -> list[str]:
    """``Ni s1``, ``Ni s2``, ``Ni d1``: shells of equal l are counted from 1."""
    return [f"{species.label} {_LETTERS[shell.l]}{shell.zeta + 1}" for shell in species.shells]


def angles_between(
    structure: Structure, row: NDArray[np.int64], col: NDArray[np.int64], magnetic: Collection[str]
) -> NDArray[np.float64]:
    """(n_pairs,) degrees between the moments of both atoms; nan where one is not magnetic or has none."""
    chosen = np.array([label in magnetic for label in structure.labels])
    moments = np.zeros((len(structure), 3)) if structure.moments is None else structure.moments
    sizes = np.linalg.norm(moments, axis=1)
    directions = np.divide(moments, sizes[:, None], out=np.full(moments.shape, np.nan), where=sizes[:, None] > 0)
    directions[~chosen] = np.nan
    a, b = directions[row], directions[col]
    # 2 atan2(|a − b|, |a + b|) is exact for parallel and antiparallel directions, where arccos is not.
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1)))


def _degrees(l_row: int, l_col: int) -> tuple[int, ...]:
    return tuple(range(abs(l_row - l_col), l_row + l_col + 1))


def _squares(block: Tensor, l_row: int, l_col: int) -> Tensor:
    """(3, n_degrees) float64 Σ|c|² of the coefficients of all blocks (n, n_spin, 2 l_row + 1, 2 l_col + 1)."""
    columns = []
    for degree in _degrees(l_row, l_col):
        coupling = clebsch_gordan(l_row, l_col, degree).to(block.device, block.dtype)
        c = torch.einsum("nsab,abm->nsm", block, coupling)
        real, imaginary = (c.real, c.imag) if c.is_complex() else (c, torch.zeros_like(c))
        spin_free = (real[:, 0] ** 2 + imaginary[:, 0] ** 2).sum()
        columns.append(torch.stack([spin_free, (real[:, 1:] ** 2).sum(), (imaginary[:, 1:] ** 2).sum()]))
    return torch.stack(columns, dim=1).to(torch.float64)
