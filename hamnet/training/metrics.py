"""Errors of Hamiltonians, split by what they mean.

|ΔH| is the modulus of a complex element of a Pauli component. Spin-free is μ = 0; exchange is Re of μ = x, y, z (odd
under time reversal); soc is Im of μ = x, y, z (even). The spinor figure is the mean over the elements of the 2×2
spinor blocks – for a collinear Hamiltonian those of its two channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hamnet.units import MEV_PER_EV

__all__ = ["KINDS", "ErrorSums"]

KINDS = ("mae", "mae_spin_free", "mae_exchange", "mae_soc", "mae_spinor")
"""What is measured, in this order."""


@dataclass(slots=True)
class ErrorSums:
    """Sums of |ΔH| and numbers of elements, from which means over any set of blocks follow."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, difference: Tensor, weight: Tensor | None = None) -> None:
        """Add blocks.

        difference : (n, n_spin, n_row, n_col) eV, real or complex. weight : (n,) how many pairs each stands for.
        """
        n_spin = difference.shape[1]
        area = difference.shape[2] * difference.shape[3]
        n = float(len(difference)) if weight is None else float(weight.sum())

        def put(kind: str, values: Tensor, components: int) -> None:
            per_pair = values.to(torch.float64).sum(dim=(1, 2, 3))
            total = per_pair.sum() if weight is None else (per_pair * weight).sum()
            self.sums[kind] = self.sums.get(kind, total.new_zeros(())) + total
            self.counts[kind] = self.counts.get(kind, 0.0) + n * components * area

        put("mae", difference.abs(), n_spin)
        put("mae_spin_free", difference[:, :1].abs(), 1)
        if n_spin > 1:
            put("mae_exchange", difference[:, 1:].real.abs(), n_spin - 1)
        if n_spin == 4 and difference.is_complex():
            put("mae_soc", difference[:, 1:].imag.abs(), 3)
        put("mae_spinor", _spinor(difference), {1: 1, 2: 2, 4: 4}[n_spin])

    def join(self, other: ErrorSums) -> None:
        for kind, total in other.sums.items():
            self.sums[kind] = self.sums.get(kind, total.new_zeros(())) + total
            self.counts[kind] = self.counts.get(kind, 0.0) + other.counts[kind]

    def means_mev(self) -> dict[str, float | None]:
        """``mae_meV`` and so on; None where the Hamiltonian has no such part."""
        return {
            f"{kind}_meV": float(self.sums[kind]) / self.counts[kind] * MEV_PER_EV if self.counts.get(kind) else None
            for kind in KINDS
        }


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
