"""The frame of an edge, where the product with Y(r̂) becomes a linear map that mixes only equal |m|.

Rows of a feature in its edge frame are sorted by |m|: first m = 0 for l = 0 … l_max, then for each m ≥ 1 the components
l = m … l_max, then the same for each −m. Parity is kept by the mirror planes that hold the edge: a map between features
of equal naturality is (x_m, x_−m) → w (x_m, x_−m), between opposite ones (x_m, x_−m) → w (x_−m, −x_m). The turn
(x_m, x_−m) → (x_−m, −x_m) of unnatural features is made part of their rotation, so that both cases are one weight.

In the frame a feature is two arrays, laid out so that every map is a plain matrix product: *axial* (q, 2, n, l_max+1,
c) with m = 0, and *planar* (q, n, 2, rows, 2, c) with the axes q, edge, sign of m, (m, l), naturality, channel.

The equal-|m| form is that of Passaro and Zitnick (2023), arXiv:2302.03655, there without parity.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from .irreps import SpinAlgebra, clebsch_gordan

__all__ = ["EdgeLinear", "edge_rotation", "from_frame", "per_kind", "rotation_size", "to_frame"]


def rotation_size(l_max: int) -> int:
    """Elements of the matrices of all l ≤ l_max."""
    return (l_max + 1) * (2 * l_max + 1) * (2 * l_max + 3) // 3


def edge_rotation(vectors: Tensor, l_max: int) -> Tensor:
    """(n, :func:`rotation_size`): for each l the matrix D^l that turns into the frame of `vectors` (n, 3), row by row.

    The frame's z axis is the edge; its x axis is arbitrary – no result depends on it – and is made from the Cartesian
    axis that is most nearly normal to the edge. D^l is the part of D^(l−1) ⊗ D^1 that has the degree l.
    """
    z = vectors / vectors.norm(dim=-1, keepdim=True)
    helper = torch.nn.functional.one_hot(z.detach().abs().argmin(dim=-1), 3).to(z.dtype)
    x = torch.linalg.cross(helper, z, dim=-1)
    x = x / x.norm(dim=-1, keepdim=True)
    y = torch.linalg.cross(z, x, dim=-1)
    # House order of l = 1: y, z, x.
    first = torch.stack([y, z, x], dim=-2)[..., [1, 2, 0]]
    n = len(first)
    matrices = [first.new_ones(n, 1, 1), first]
    for l in range(2, l_max + 1):
        coupling = clebsch_gordan(l - 1, 1, l).flatten(0, 1).to(first)
        product = matrices[-1][:, :, None, :, None] * first[:, None, :, None, :]
        half = product.reshape(n * len(coupling), len(coupling)) @ coupling
        half = half.reshape(n, len(coupling), 2 * l + 1).transpose(1, 2).reshape(n * (2 * l + 1), len(coupling))
        matrices.append((half @ coupling).reshape(n, 2 * l + 1, 2 * l + 1).transpose(1, 2))
    return torch.cat([matrix.flatten(1) for matrix in matrices[: l_max + 1]], dim=1)


def to_frame(rotation: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, (l_max+1)², 2, q, c) as axial and planar arrays in the edge frames."""
    return _Sorted.apply(_turn(rotation, x, inverse=False))  # type: ignore[return-value]


def from_frame(rotation: Tensor, axial: Tensor, planar: Tensor) -> Tensor:
    """The inverse of :func:`to_frame`."""
    return _turn(rotation, _Unsorted.apply(axial, planar), inverse=True)  # type: ignore[arg-type]


def _turn(rotation: Tensor, x: Tensor, *, inverse: bool) -> Tensor:
    sizes = [2 * l + 1 for l in range(math.isqrt(x.shape[1]))]
    parts = list(x.flatten(2).split(sizes, dim=1))
    for l, matrix in enumerate(rotation.split([size**2 for size in sizes], dim=1)[1:], start=1):
        matrix = matrix.unflatten(1, (2 * l + 1, 2 * l + 1))
        parts[l] = torch.bmm(matrix.mT if inverse else matrix, parts[l])
    return torch.cat(parts, dim=1).reshape(x.shape)


@lru_cache(maxsize=64)
def _frame_rows(l_max: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Row (component, naturality) of a feature at each row of its frame, the inverse, and l of each planar (m, l).

    Frame rows: (naturality, l) with m = 0, then (sign of m, m, l, naturality). For unnatural features the row of m
    takes component −m, and the sign of the rows m < 0 is still to be changed.
    """
    planar = [(l, m) for m in range(1, l_max + 1) for l in range(m, l_max + 1)]
    rows = [2 * (l * l + l) + p for p in (0, 1) for l in range(l_max + 1)]
    rows += [2 * (l * l + l + (s if p == 0 else -s) * m) + p for s in (1, -1) for l, m in planar for p in (0, 1)]
    with torch.inference_mode(False):  # what is kept serves training too
        order = torch.tensor(rows, device=device)
        return order, torch.argsort(order), torch.tensor([l for l, _ in planar], device=device)


class _Sorted(torch.autograd.Function):
    """Rows (n, (l_max+1)², 2, q, c) → axial and planar arrays."""

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        n_l = math.isqrt(x.shape[1])
        rows = x.flatten(1, 2).index_select(1, _frame_rows(n_l - 1, x.device)[0])
        axial, planar = rows[:, : 2 * n_l].unflatten(1, (2, n_l)), rows[:, 2 * n_l :].unflatten(1, (2, -1, 2))
        planar[:, 1, :, 1].neg_()
        return axial.permute(3, 1, 0, 2, 4).contiguous(), planar.permute(4, 0, 1, 2, 3, 5).contiguous()

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        return _Unsorted.apply(*gradients)  # type: ignore[return-value]


class _Unsorted(torch.autograd.Function):
    """The inverse, and the adjoint, of :class:`_Sorted`."""

    @staticmethod
    def forward(ctx, axial: Tensor, planar: Tensor) -> Tensor:
        q, _, n, n_l, c = axial.shape
        rows = axial.new_empty(n, 2 * n_l**2, q, c)
        for component in range(q):  # copied in long rows
            rows[:, : 2 * n_l, component].unflatten(1, (2, n_l)).copy_(axial[component].transpose(0, 1))
            rows[:, 2 * n_l :, component] = planar[component].flatten(1, 3)
        rows[:, 2 * n_l :].unflatten(1, (2, -1, 2))[:, 1, :, 1].neg_()
        rows = rows.index_select(1, _frame_rows(n_l - 1, axial.device)[1])
        return rows.unflatten(1, (-1, 2))

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return _Sorted.apply(gradients[0])  # type: ignore[return-value]


def per_kind(values: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (n, q, l_max+1, 2, c), one for each kind, as arrays that axial and planar ones can be multiplied by."""
    planar = values.index_select(2, _frame_rows(values.shape[2] - 1, values.device)[2])
    return values.permute(1, 3, 0, 2, 4), planar.transpose(0, 1)[:, :, None]


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

    def forward(self, axial: Tensor, planar: Tensor, l_out: int) -> tuple[Tensor, Tensor]:
        """Axial and planar arrays with c_out channels, up to degree `l_out` ≤ l_max."""
        q, _, n, n_l, c = axial.shape
        weight = self._of_component(self.axial, (l_out + 1) * self.c_out).flatten(0, 1)
        y_axial = torch.bmm(axial.reshape(q * 2, n, n_l * c), weight).reshape(q, 2, n, l_out + 1, self.c_out)
        # Split, not slices: the gradient of a slice is a whole array of zeros.
        widths = [2 * (n_l - m) * c for m in range(1, n_l)]
        parts = planar.reshape(q, n * 2, sum(widths)).split(widths, dim=-1)
        y_planar = [
            torch.bmm(part, self._of_component(weight, 2 * (l_out + 1 - m) * self.c_out))
            for m, (part, weight) in enumerate(zip(parts[:l_out], self.planar, strict=False), start=1)
        ]
        return y_axial, torch.cat(y_planar, dim=-1).unflatten(2, (-1, 2, self.c_out)).unflatten(1, (n, 2))

    def _of_component(self, weight: Tensor, width: int) -> Tensor:
        """Weights of each spin component, of the first `width` outputs."""
        weight = weight if weight.shape[-1] == width else weight[..., :width]
        return weight if len(weight) == len(self.irrep) else weight.index_select(0, self.irrep)
