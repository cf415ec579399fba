"""From the spread of a committee to the error that is to be expected: factors fitted where the error is known.

Models that were trained alike from different seeds disagree where the training data do not determine H. What they all
get wrong (labels that miss a symmetry, a network that is too small) does not show in their spread; but it goes with it,
so that error/spread is much the same for all blocks of two species at one distance. This ratio is the factor.

Spread and error of a block are root mean squares over its elements, part by part: `PARTS`. Arrays over parts have NaN
where a Hamiltonian has no such part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from .blocks import Pairs
from .structure import Structure, frozen

__all__ = [
    "PARTS",
    "Agreement",
    "Calibration",
    "PairKinds",
    "agreement",
    "mean_and_spread",
    "pair_kinds",
    "rms_by_part",
]

PARTS = ("spin_free", "exchange", "soc")
"""H_0; Re H_xyz (collinear: H_z), odd under time reversal; Im H_xyz."""
_BIN_ANG = 1.0
_ONSITE = -1
_NEGLIGIBLE_EV = 1e-6


def rms_by_part(blocks: Tensor) -> NDArray[np.float64]:
    """(n, 3) root mean square modulus of the elements of blocks (n, n_spin, n_row, n_col), by part."""
    n, n_spin = blocks.shape[:2]
    result = np.full((n, len(PARTS)), np.nan)

    def put(part: int, values: Tensor) -> None:
        square = values.abs().to(torch.float64).square().mean(dim=(1, 2, 3))
        result[:, part] = square.sqrt().detach().cpu().numpy()

    put(0, blocks[:, :1])
    if n_spin > 1:
        put(1, blocks[:, 1:].real)
    if n_spin == 4 and blocks.is_complex():
        put(2, blocks[:, 1:].imag)
    return result


def mean_and_spread(members: Sequence[Tensor]) -> tuple[Tensor, NDArray[np.float64]]:
    """(n, n_spin, n_row, n_col) mean of the members' blocks, and (n, 3) their standard deviation.

    Of Σ|x − x̄|²/(N − 1), the variance of an element, the mean over a block is taken. Zero for one member.
    """
    mean = torch.stack(list(members)).mean(dim=0)
    if len(members) == 1:
        return mean, 0 * rms_by_part(mean)
    square = sum(rms_by_part(member - mean) ** 2 for member in members)
    return mean, np.sqrt(square / (len(members) - 1))


Kind = tuple[str, int]
"""Unordered species pair, as ``Br-Ni``, and bin: −1 on-site, else whole Å of the distance."""


@dataclass(frozen=True, slots=True, eq=False)
class PairKinds:
    """What the factor of a pair depends on.

    kinds : those that occur. index : (n_pairs,) place of each pair's kind among them.
    """

    kinds: tuple[Kind, ...]
    index: NDArray[np.int64]

    @property
    def onsite(self) -> NDArray[np.bool_]:
        """(n_pairs,) whether row and column are the same atom."""
        return np.array([bin_ == _ONSITE for _, bin_ in self.kinds])[self.index]


def pair_kinds(structure: Structure, pairs: Pairs, labels: Sequence[str]) -> PairKinds:
    """The kinds of the pairs of a structure; `labels` of the species that the pairs number."""
    lengths = np.linalg.norm(pairs.vectors(structure.cell, structure.positions), axis=1)
    bins = np.where(pairs.is_self, _ONSITE, np.floor(lengths / _BIN_ANG)).astype(np.int64)
    kinds: dict[Kind, int] = {}
    index = np.zeros(len(pairs), np.int64)
    for group in pairs.groups:
        name = "-".join(sorted((labels[group.row_species], labels[group.col_species])))
        found, place = np.unique(bins[group.pairs], return_inverse=True)
        numbers = np.array([kinds.setdefault((name, bin_), len(kinds)) for bin_ in found.tolist()])
        index[group.pairs] = numbers[place]
    return PairKinds(tuple(kinds), frozen(index, np.int64))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Factors error/spread.

    factors : one for each part; None for a part that H has not. n_pairs : how many the factors were fitted to.
    """

    factors: dict[Kind, tuple[float | None, ...]]
    n_pairs: dict[Kind, int]

    @classmethod
    def fit(cls, samples: Sequence[tuple[PairKinds, NDArray[np.float64], NDArray[np.float64]]]) -> Self:
        """Factors √(Σ error² / Σ spread²) over all pairs of a kind.

        samples : kinds, spread (n_pairs, 3) and error (n_pairs, 3), both in one unit, of each.
        """
        sums: dict[Kind, NDArray] = {}
        counts: dict[Kind, int] = {}
        for pairs, spread, error in samples:
            for number, kind in enumerate(pairs.kinds):
                here = pairs.index == number
                both = np.stack([(error[here] ** 2).sum(axis=0), (spread[here] ** 2).sum(axis=0)])
                sums[kind] = sums.get(kind, 0) + both
                counts[kind] = counts.get(kind, 0) + int(here.sum())
        factors = {kind: tuple(_ratio(*column) for column in sums[kind].T.tolist()) for kind in sorted(sums)}
        return cls(factors, {kind: counts[kind] for kind in factors})

    def expected_error(self, pairs: PairKinds, spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n_pairs, 3) in the unit of `spread`: factor × spread."""
        factors = np.array([self._nearest(kind) for kind in pairs.kinds], dtype=np.float64)  # None becomes NaN
        return factors[pairs.index] * spread

    def _nearest(self, wanted: Kind) -> tuple[float | None, ...]:
        """The factors of a kind, or of the one most like it: on-site stays on-site, then species, then distance."""

        def unlike(kind: Kind) -> tuple[bool, bool, int]:
            return ((kind[1] == _ONSITE) != (wanted[1] == _ONSITE), kind[0] != wanted[0], abs(kind[1] - wanted[1]))

        return self.factors[min(self.factors, key=unlike)]

    def to_dict(self) -> list[dict[str, Any]]:
        """Rows for JSON; distances in Å, both 0 on-site."""
        return [
            {
                "pair": name,
                "from_ang": max(bin_, 0) * _BIN_ANG,
                "to_ang": (bin_ + 1) * _BIN_ANG,
                "n_pairs": self.n_pairs[name, bin_],
                **dict(zip(PARTS, factors, strict=True)),
            }
            for (name, bin_), factors in self.factors.items()
        ]

    @classmethod
    def from_dict(cls, rows: Sequence[dict[str, Any]]) -> Self:
        """The inverse of :meth:`to_dict`."""
        factors, counts = {}, {}
        for row in rows:
            kind = (row["pair"], _ONSITE if row["to_ang"] == 0 else round(row["from_ang"] / _BIN_ANG))
            factors[kind] = tuple(row[part] for part in PARTS)
            counts[kind] = row["n_pairs"]
        return cls(factors, counts)


def _ratio(error: float, spread: float) -> float | None:
    if np.isnan(error):
        return None
    return float(np.sqrt(error / spread)) if spread > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """How expected and true errors of blocks compare.

    within_factor_two : share of the blocks. rms_ratio : √(Σ true² / Σ expected²); above 1 errors are underestimated.
    rank_correlation : Spearman's, None for fewer than three blocks.
    """

    n_blocks: int
    within_factor_two: float
    rms_ratio: float
    rank_correlation: float | None


def agreement(expected_ev: NDArray[np.float64], true_ev: NDArray[np.float64]) -> Agreement | None:
    """Compare errors (n,) of blocks in eV; None where there is none.

    Errors below 1e-3 meV count as that much: nobody cares whether an error of nothing is predicted within a factor.
    """
    known = ~(np.isnan(expected_ev) | np.isnan(true_ev))
    expected, true = (np.maximum(e[known], _NEGLIGIBLE_EV) for e in (expected_ev, true_ev))
    if not len(true):
        return None
    ratio = np.abs(np.log(true / expected))
    varied = len(true) > 2 and np.ptp(true) > 0 and np.ptp(expected) > 0
    rank = float(np.corrcoef(rankdata(expected), rankdata(true))[0, 1]) if varied else None
    rms_ratio = float(np.sqrt((true**2).sum() / (expected**2).sum()))
    return Agreement(len(true), float((ratio <= np.log(2)).mean()), rms_ratio, rank)
