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

import torch
from torch import Tensor, nn

from hamnet.harmonics import wigner_d

from .irreps import SpinAlgebra

__all__ = ["EdgeLinear", "edge_rotation", "from_frame", "per_kind", "reduced_rotation", "to_frame"]


def _frame_order(l_max: int) -> list[tuple[int, int]]:
    """(l, m) of each row in an edge frame."""
    planar = [(l, m) for m in range(1, l_max + 1) for l in range(m, l_max + 1)]
    return [(l, 0) for l in range(l_max + 1)] + planar + [(l, -m) for l, m in planar]


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


def reduced_rotation(rotation: Tensor, l_max: int) -> Tensor:
    """(n, 2, (l_max+1)², (l_max+1)²): the part of a rotation up to a lower degree."""
    size = (l_max + 1) ** 2
    if size == rotation.shape[-1]:
        return rotation
    order = _frame_order(math.isqrt(rotation.shape[-1]) - 1)
    rows = torch.tensor([i for i, (l, _) in enumerate(order) if l <= l_max], device=rotation.device)
    return rotation[..., :size].index_select(2, rows)


def to_frame(rotation: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, 2, M, q, c) – mind the order of axes – as axial and planar arrays in the edge frames."""
    return _Sorted.apply(_turn(rotation, x), math.isqrt(x.shape[2]))  # type: ignore[return-value]


def from_frame(rotation: Tensor, axial: Tensor, planar: Tensor) -> Tensor:
    """The inverse of :func:`to_frame`."""
    return _turn(rotation.mT, _Unsorted.apply(axial, planar))  # type: ignore[arg-type]


def _turn(rotation: Tensor, x: Tensor) -> Tensor:
    n, p, m, q, c = x.shape
    return torch.bmm(rotation.reshape(n * p, *rotation.shape[2:]), x.reshape(n * p, m, q * c)).reshape(x.shape)


class _Sorted(torch.autograd.Function):
    """Rows (n, 2, M, q, c) of the frame → axial and planar arrays."""

    @staticmethod
    def forward(ctx, y: Tensor, n_axial: int) -> tuple[Tensor, Tensor]:
        axial, planar = y[:, :, :n_axial], y[:, :, n_axial:].unflatten(2, (2, -1))
        return axial.permute(3, 1, 0, 2, 4).contiguous(), planar.permute(4, 0, 2, 3, 1, 5).contiguous()

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Unsorted.apply(*gradients), None  # type: ignore[return-value]


class _Unsorted(torch.autograd.Function):
    """The inverse, and the adjoint, of :class:`_Sorted`."""

    @staticmethod
    def forward(ctx, axial: Tensor, planar: Tensor) -> Tensor:
        q, _, n, n_axial, c = axial.shape
        y = axial.new_empty(n, 2, n_axial + 2 * planar.shape[3], q, c)
        y[:, :, :n_axial] = axial.permute(2, 1, 3, 0, 4)
        y[:, :, n_axial:].unflatten(2, (2, -1)).copy_(planar.permute(1, 4, 2, 3, 0, 5))
        ctx.n_axial = n_axial
        return y

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return _Sorted.apply(gradients[0], ctx.n_axial)  # type: ignore[return-value]


class _Spread(torch.autograd.Function):
    """(n, q, l_max+1, 2, c) → (n, q, rows, 2, c): values by l to each (m ≥ 1, l)."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        ctx.n_l = values.shape[2]
        return torch.cat([values[:, :, m:] for m in range(1, ctx.n_l)], dim=2)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        g = gradients[0]
        total = g.new_zeros(*g.shape[:2], ctx.n_l, *g.shape[3:])
        for m, part in enumerate(g.split(list(range(ctx.n_l - 1, 0, -1)), dim=2), start=1):
            total[:, :, m:] += part
        return total


def per_kind(values: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (n, q, l_max+1, 2, c), one for each kind, as arrays that axial and planar ones can be multiplied by."""
    planar: Tensor = _Spread.apply(values)  # type: ignore[assignment]
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
