"""The frame of an edge, where the product with Y(r̂) becomes a linear map that mixes only equal |m|.

Rows of a feature in its edge frame are sorted by |m|: first m = 0 for l = 0 … l_max, then for each |m| ≥ 1 the
components +m and −m for l = |m| … l_max. Parity is kept by the mirror planes that hold the edge: a map between features
of equal naturality is (x_m, x_−m) → w (x_m, x_−m), between opposite ones (x_m, x_−m) → w (x_−m, −x_m). The turn
(x_m, x_−m) → (x_−m, −x_m) of unnatural features is made part of their rotation, so that both cases are one weight.

The equal-|m| form is that of Passaro and Zitnick (2023), arXiv:2302.03655, there without parity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hamnet.harmonics import wigner_d

from .irreps import SpinAlgebra, batched_matmul

__all__ = ["EdgeLinear", "edge_rotation", "frame_degree", "from_frame", "to_frame"]


def _frame_order(l_max: int) -> list[tuple[int, int]]:
    """(l, m) of each row in an edge frame."""
    order = [(l, 0) for l in range(l_max + 1)]
    for m in range(1, l_max + 1):
        order += [(l, m) for l in range(m, l_max + 1)] + [(l, -m) for l in range(m, l_max + 1)]
    return order


def frame_degree(l_max: int) -> Tensor:
    """((l_max+1)²,) l of each row in an edge frame."""
    return torch.tensor([l for l, _ in _frame_order(l_max)])


def edge_rotation(vectors: Tensor, l_max: int) -> Tensor:
    """(n, 2, (l_max+1)², (l_max+1)²): rotation of natural and unnatural features into the frames of `vectors` (n, 3).

    The frame's z axis is the edge; its x axis is arbitrary – no result depends on it – and is made from the Cartesian
    axis that is most nearly normal to the edge.
    """
    z = vectors / vectors.norm(dim=-1, keepdim=True)
    helper = torch.nn.functional.one_hot(z.detach().abs().argmin(dim=-1), 3).to(z.dtype)
    x = torch.linalg.cross(helper, z, dim=-1)
    x = x / x.norm(dim=-1, keepdim=True)
    rotation = torch.stack([x, torch.linalg.cross(z, x, dim=-1), z], dim=-2)
    size = (l_max + 1) ** 2
    matrix = z.new_zeros(len(z), size, size)
    for l, d in enumerate(wigner_d(l_max, rotation)):
        matrix[:, l * l : (l + 1) ** 2, l * l : (l + 1) ** 2] = d
    order = _frame_order(l_max)
    natural = torch.tensor([l * l + l + m for l, m in order], device=z.device)
    # (y_m, y_−m) = (x_−m, −x_m): row m takes component −m, with a minus sign where m < 0.
    unnatural = torch.tensor([l * l + l - m for l, m in order], device=z.device)
    sign = torch.tensor([-1.0 if m < 0 else 1.0 for _, m in order], dtype=z.dtype, device=z.device)
    return torch.stack([matrix[:, natural], sign[:, None] * matrix[:, unnatural]], dim=1)


def to_frame(rotation: Tensor, x: Tensor) -> Tensor:
    """Features (n, M, 2, q, c) in the edge frames: same axes, rows sorted by |m|."""
    return _turn(rotation, x)


def from_frame(rotation: Tensor, x: Tensor) -> Tensor:
    """The inverse of :func:`to_frame`."""
    return _turn(rotation.mT, x)


def _turn(rotation: Tensor, x: Tensor) -> Tensor:
    n, m, p, q, c = x.shape
    turned = batched_matmul(rotation.reshape(n * p, m, m), x.transpose(1, 2).reshape(n * p, m, q * c))
    return turned.reshape(n, p, m, q, c).transpose(1, 2)


class EdgeLinear(nn.Module):
    """The most general linear map in an edge frame that keeps rotations about it, mirrors and time parity."""

    irrep: Tensor

    def __init__(self, l_max: int, algebra: SpinAlgebra, c_in: int, c_out: int) -> None:
        super().__init__()
        self.l_max, self.c_out = l_max, c_out
        self.register_buffer("irrep", torch.tensor(algebra.irrep_of), persistent=False)
        # m = 0 does not join natural and unnatural features: the mirrors forbid it.
        fan = (l_max + 1) * c_in
        self.axial = nn.Parameter(
            torch.randn(algebra.n_irreps, 2, fan, (l_max + 1) * c_out, dtype=torch.float64) / math.sqrt(fan)
        )
        self.planar = nn.ParameterList()
        for m in range(1, l_max + 1):
            fan = 2 * (l_max - m + 1) * c_in
            self.planar.append(
                torch.randn(algebra.n_irreps, fan, 2 * (l_max - m + 1) * c_out, dtype=torch.float64) / math.sqrt(fan)
            )

    def forward(self, x: Tensor) -> Tensor:
        n, _, _, q, c = x.shape
        rows = self.l_max + 1
        # Split, not slices: the gradient of a slice is a whole array of zeros.
        axial, *planar = x.split([rows] + [2 * (rows - m) for m in range(1, rows)], dim=1)
        axial = axial.permute(3, 2, 0, 1, 4).reshape(q * 2, n, rows * c)
        y = batched_matmul(axial, self.axial.index_select(0, self.irrep).flatten(0, 1))
        parts = [y.reshape(q, 2, n, rows, self.c_out).permute(2, 3, 1, 0, 4)]
        for m, (z, weight) in enumerate(zip(planar, self.planar, strict=True), start=1):
            n_l = rows - m
            z = z.reshape(n, 2, n_l, 2, q, c).permute(4, 0, 1, 2, 3, 5).reshape(q, n * 2, n_l * 2 * c)
            y = batched_matmul(z, weight.index_select(0, self.irrep)).reshape(q, n, 2, n_l, 2, self.c_out)
            parts.append(y.permute(1, 2, 3, 4, 0, 5).reshape(n, 2 * n_l, 2, q, self.c_out))
        return torch.cat(parts, dim=1)
