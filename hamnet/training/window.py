"""Errors of H as the states near the Fermi energy feel them: ⟨n k| ΔH |m k⟩ between eigenstates of the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hamnet.basis import Basis
from hamnet.blocks import BlockOperator
from hamnet.eigen import eigenstates
from hamnet.errors import ConfigError
from hamnet.models.graph import Graph

__all__ = ["WindowStates", "projected", "window_penalty", "window_states"]

_GOLDEN = 1.2207440846057596  # root of x⁴ = x + 1


@dataclass(frozen=True, slots=True)
class WindowStates:
    """Eigenstates of a label at some k points.

    k_frac : (n_k, 3) fractions of the reciprocal vectors.
    vectors : (n_k, n_channel, dim, n_states) complex, c† S c = 1, dim as in the assembled matrices.
    inside : (n_k, n_channel, n_states) 1 for states in the window, 0 for the padding.
    """

    k_frac: Tensor
    vectors: Tensor
    inside: Tensor


def spread_k_points(n_k: int) -> np.ndarray:
    """(n_k, 3) points that fill the unit cube evenly, whatever their number.

    The additive recurrence of M. Roberts (2018), "The unreasonable effectiveness of quasirandom sequences".
    """
    steps = _GOLDEN ** -np.arange(1.0, 4.0)
    return (0.5 + np.arange(1, n_k + 1)[:, None] * steps) % 1.0


def window_states(
    hamiltonian: BlockOperator,
    overlap: BlockOperator,
    fermi_ev: float,
    *,
    width_ev: float,
    n_k: int,
    dtype: torch.dtype,
) -> WindowStates:
    """States within `width_ev` of `fermi_ev` at `n_k` evenly spread points.

    Raises :class:`ConfigError` where there are none.
    """
    k_frac = spread_k_points(n_k)
    states = list(eigenstates(hamiltonian, overlap, k_frac))
    near = (torch.cat([s.energies for s in states]) - fermi_ev).abs() <= width_ev
    most = int(near.sum(dim=-1).max())
    if not most:
        raise ConfigError(
            f"no state within {width_ev} eV of the Fermi energy {fermi_ev} eV",
            expected="a wider training.band_window_ev",
        )
    # The window's states first, in each (k, channel).
    order = torch.argsort(near.to(torch.int8), dim=-1, descending=True, stable=True)[..., :most]
    vectors = torch.take_along_dim(torch.cat([s.vectors for s in states]), order[..., None, :], dim=-1)
    inside = torch.take_along_dim(near, order, dim=-1)
    complex_type = torch.complex128 if dtype == torch.float64 else torch.complex64
    return WindowStates(torch.as_tensor(k_frac, dtype=dtype), vectors.to(complex_type), inside.to(dtype))


def projected(
    blocks: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]],
    graph: Graph,
    basis: Basis,
    k_frac: Sequence[Tensor],
    vectors: Sequence[Tensor],
) -> list[Tensor]:
    """(n_channel, n_states, n_states) matrices C† ΔH(k) C in eV, one for each crystal of `graph`.

    Parameters
    ----------
    blocks : (row, column, shift, weight, Pauli blocks (n, n_spin, n_row, n_col)) of the
        pairs that the network computes; weight 2 for a pair that stands for its adjoint too.
    k_frac, vectors : for each crystal a point (3,) and states (n_channel, dim, n_states).
    """
    n_orbitals = torch.as_tensor(np.asarray(basis.n_orbitals), device=graph.species.device)[graph.species]
    n_crystals = len(graph.cells)
    total = torch.zeros(n_crystals, dtype=torch.int64, device=n_orbitals.device).index_add(0, graph.crystal, n_orbitals)
    before = torch.cumsum(n_orbitals, 0) - n_orbitals
    offset = before - (torch.cumsum(total, 0) - total)[graph.crystal]
    start = torch.cumsum(total**2, 0) - total**2
    points = torch.stack(list(k_frac))
    n_spin = blocks[0][-1].shape[1]
    complex_type = vectors[0].dtype
    flat = torch.zeros(n_spin, int((total**2).sum()), dtype=complex_type, device=points.device)
    for row, col, shift, weight, block in blocks:
        crystal = graph.crystal[row]
        angle = 2 * torch.pi * (shift * points[crystal]).sum(dim=-1)
        phase = torch.polar(weight / 2, angle)
        rows = offset[row][:, None] + torch.arange(block.shape[2], device=row.device)
        cols = offset[col][:, None] + torch.arange(block.shape[3], device=row.device)
        place = start[crystal][:, None, None] + rows[:, :, None] * total[crystal][:, None, None] + cols[:, None, :]
        values = (block.to(complex_type) * phase[:, None, None, None]).transpose(0, 1)
        flat = flat.index_add(1, place.reshape(-1), values.reshape(n_spin, -1))
    result = []
    for n, begin, c in zip(total.tolist(), start.tolist(), vectors, strict=True):
        h = flat[:, begin : begin + n * n].reshape(n_spin, n, n)
        h = h + h.mH
        if n_spin == 4:
            up, down = c[0, 0::2], c[0, 1::2]
            h_up = (h[0] + h[3]) @ up + (h[1] - 1j * h[2]) @ down
            h_down = (h[1] + 1j * h[2]) @ up + (h[0] - h[3]) @ down
            result.append((up.mH @ h_up + down.mH @ h_down)[None])
        else:
            channels = h if n_spin == 1 else torch.stack([h[0] + h[1], h[0] - h[1]])
            result.append(c.mH @ channels @ c)
    return result


def window_penalty(matrices: Sequence[Tensor], inside: Sequence[Tensor]) -> Tensor:
    """Mean over states n of √Σ_m |⟨n|ΔH|m⟩|², in the unit of the matrices.

    Its diagonal is the first-order error of the band energy; the rest mixes states of the window.
    """
    sums, counts = [], []
    for matrix, weight in zip(matrices, inside, strict=True):
        square = (matrix.real**2 + matrix.imag**2) * weight[:, None, :]
        tiny = torch.finfo(square.dtype).tiny
        sums.append(((square.sum(dim=-1) + tiny).sqrt() * weight).sum())
        counts.append(weight.sum())
    return torch.stack(sums).sum() / torch.stack(counts).sum()
