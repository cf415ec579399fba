"""Losses: pure functions of the difference of predicted and true blocks, in meV.

A loss maps a real tensor of differences, elementwise, to penalties; :func:`weighted_mean` averages them over pairs,
parts and orbitals. The parts of a block are those of :mod:`hamnet.models.readout`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from hamnet.models.irreps import Mode

__all__ = ["LOSSES", "Loss", "part_weights", "weighted_mean", "without_shift"]

Loss = Callable[[Tensor, float], Tensor]
"""(difference in meV, δ in meV) → penalty of the same shape."""


def _mae(difference: Tensor, delta: float) -> Tensor:
    return difference.abs()


def _mse(difference: Tensor, delta: float) -> Tensor:
    return difference**2


def _huber(difference: Tensor, delta: float) -> Tensor:
    size = difference.abs()
    return torch.where(size < delta, difference**2 / (2 * delta), size - delta / 2)


def _pseudo_huber(difference: Tensor, delta: float) -> Tensor:
    return torch.sqrt(difference**2 + delta**2) - delta


def _mae_mse(difference: Tensor, delta: float) -> Tensor:
    return difference.abs() + difference**2 / (2 * delta)


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {"mae": _mae, "mse": _mse, "huber": _huber, "pseudo-huber": _pseudo_huber, "mae-mse": _mae_mse}
)
"""What a configuration may ask for. ``huber``: |x| − δ/2 beyond δ and x²/2δ below; ``pseudo-huber``: √(x² + δ²) − δ;
``mae-mse``: |x| + x²/2δ, which neither loses the many small elements nor leaves a few large errors to the last."""


def part_weights(mode: Mode, spin_free: float, exchange: float, soc: float) -> Tensor:
    """(n_parts, 1, 1) float64 weights of the parts: H_0, Re H_xyz (or H_z), Im H_xyz. Im H_0 goes with H_0."""
    values = {
        "none": [spin_free],
        "collinear": [spin_free, exchange],
        "spin-group": [spin_free] + 3 * [exchange],
        "soc": [spin_free] + 3 * [exchange] + [spin_free] + 3 * [soc],
    }[mode]
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def without_shift(
    differences: Sequence[Tensor],
    overlaps: Sequence[Tensor],
    pair_weights: Sequence[Tensor],
    crystals: Sequence[Tensor],
    n_crystals: int,
) -> list[Tensor]:
    """ΔH − μS with the μ of each crystal that makes it least in the mean square: what H + μS does not change.

    differences : (n, n_parts, n_row, n_col), H_0 first. overlaps : (n, n_row, n_col). crystals : (n,) of each pair.
    """
    along = differences[0].new_zeros(n_crystals)
    square = differences[0].new_zeros(n_crystals)
    for d, s, weight, crystal in zip(differences, overlaps, pair_weights, crystals, strict=True):
        along = along.index_add(0, crystal, (d[:, 0] * s).sum(dim=(1, 2)) * weight)
        square = square.index_add(0, crystal, (s * s).sum(dim=(1, 2)) * weight)
    mu = along / square
    result = []
    for d, s, crystal in zip(differences, overlaps, crystals, strict=True):
        spin_free = d[:, :1] - (mu[crystal][:, None, None] * s)[:, None]
        result.append(torch.cat([spin_free, d[:, 1:]], dim=1))
    return result


def weighted_mean(penalties: Sequence[Tensor], pair_weights: Sequence[Tensor], parts: Tensor) -> Tensor:
    """Σ w_pair w_part x / Σ w_pair over all blocks.

    penalties : (n, n_parts, n_row, n_col) for each species pair. pair_weights : (n,) each, 2 for a pair that stands
    for its adjoint too. parts : (n_parts, 1, 1).
    """
    total = parts.new_zeros(())
    count = parts.new_zeros(())
    for penalty, weight in zip(penalties, pair_weights, strict=True):
        total = total + (penalty * parts * weight[:, None, None, None]).sum()
        count = count + weight.sum() * (penalty[0].numel())
    return total / count
