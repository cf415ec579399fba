"""Errors of Hamiltonians, split by what they mean.

|ΔH| is the modulus of a complex element of a Pauli component. Spin-free is μ = 0; exchange is Re of μ = x, y, z (odd
under time reversal); soc is Im of μ = x, y, z (even). The spinor figure is the mean over the elements of the 2×2
spinor blocks – for a collinear Hamiltonian those of its two channels. Each part has a mean of |ΔH| (``mae``) and a root
mean square (``rmse``), which few large elements decide, as they decide the bands: with spin–orbit coupling
4 rmse² = rmse_spin_free² + 3 rmse_exchange² + 3 rmse_soc².
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hamnet.units import MEV_PER_EV

__all__ = ["PARTS", "ErrorSums"]

PARTS = ("", "_spin_free", "_exchange", "_soc", "_spinor")
"""What is measured, in this order: everything, the three parts, and the elements of the spinor blocks."""


@dataclass(slots=True)
class ErrorSums:
    """Sums of |ΔH| and |ΔH|² and numbers of elements, from which means over any set of blocks follow."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, difference: Tensor, weight: Tensor | None = None) -> None:
        """Add blocks.

        difference : (n, n_spin, n_row, n_col) eV, real or complex. weight : (n,) how many pairs each stands for.
        """
        n_spin = difference.shape[1]
        area = difference.shape[2] * difference.shape[3]
        n = float(len(difference)) if weight is None else float(weight.sum())

        def put(part: str, size: Tensor, components: int) -> None:
            size = size.to(torch.float64)
            for store, values in ((self.sums, size), (self.squares, size**2)):
                per_pair = values.sum(dim=(1, 2, 3))
                total = per_pair.sum() if weight is None else (per_pair * weight).sum()
                store[part] = store.get(part, total.new_zeros(())) + total
            self.counts[part] = self.counts.get(part, 0.0) + n * components * area

        put("", difference.abs(), n_spin)
        put("_spin_free", difference[:, :1].abs(), 1)
        if n_spin > 1:
            put("_exchange", difference[:, 1:].real.abs(), n_spin - 1)
        if n_spin == 4 and difference.is_complex():
            put("_soc", difference[:, 1:].imag.abs(), 3)
        put("_spinor", _spinor(difference), {1: 1, 2: 2, 4: 4}[n_spin])

    def join(self, other: ErrorSums) -> None:
        for part, count in other.counts.items():
            for mine, theirs in ((self.sums, other.sums), (self.squares, other.squares)):
                mine[part] = mine.get(part, theirs[part].new_zeros(())) + theirs[part]
            self.counts[part] = self.counts.get(part, 0.0) + count

    def means_mev(self) -> dict[str, float | None]:
        """``mae_meV`` … ``rmse_spinor_meV``; None where the Hamiltonian has no such part."""
        means: dict[str, float | None] = {f"{kind}{part}_meV": None for kind in ("mae", "rmse") for part in PARTS}
        for part, count in self.counts.items():
            if count:
                means[f"mae{part}_meV"] = float(self.sums[part]) / count * MEV_PER_EV
                means[f"rmse{part}_meV"] = (float(self.squares[part]) / count) ** 0.5 * MEV_PER_EV
        return means


def _spinor(d: Tensor) -> Tensor:
    """(n, elements of a spinor block, n_row, n_col) moduli."""
    if d.shape[1] == 1:
        return d.abs()
    if d.shape[1] == 2:
        return torch.stack([(d[:, 0] + d[:, 1]).abs(), (d[:, 0] - d[:, 1]).abs()], dim=1)
    d = d.to(torch.promote_types(d.dtype, torch.complex64))
    turned = 1j * d[:, 2]
    elements = [d[:, 0] + d[:, 3], d[:, 0] - d[:, 3], d[:, 1] - turned, d[:, 1] + turned]
    return torch.stack([element.abs() for element in elements], dim=1)
