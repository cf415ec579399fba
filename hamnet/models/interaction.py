"""Message passing between near atoms, and products on each atom."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .frames import EdgeLinear, frame_degree, from_frame, to_frame
from .irreps import EquivariantLinear, EquivariantNorm, Gate, SpinAlgebra, TensorProduct, per_component

__all__ = ["EdgeNetwork", "Interaction", "NodeProduct"]


class EdgeNetwork(nn.Module):
    """Features of an edge from those of its two ends and its length, in the frame of the edge.

    The two ends are mixed, turned into the frame and scaled by functions of the length; two equal-|m| maps with a gate
    between them follow. `edge_scalars` (n, n_scalars) are even invariants of the edge: radial basis and species.
    """

    degree: Tensor
    irrep: Tensor

    def __init__(
        self, l_max: int, algebra: SpinAlgebra, channels: int, hidden: int, n_scalars: int, c_out: int
    ) -> None:
        super().__init__()
        self.from_row = EquivariantLinear(l_max, algebra, channels, hidden)
        self.from_col = EquivariantLinear(l_max, algebra, channels, hidden)
        self.gain_shape = (l_max + 1, 2, algebra.n_irreps, hidden)
        n_gain = (l_max + 1) * 2 * algebra.n_irreps * hidden
        self.hidden, self.c_out, self.n_rows = hidden, c_out, l_max + 1
        n_axial = (l_max + 1) * (hidden + c_out)
        last = nn.Linear(64, n_gain + n_axial, dtype=torch.float64)
        self.radial = nn.Sequential(
            nn.Linear(n_scalars, 64, dtype=torch.float64),
            nn.SiLU(),
            nn.Linear(64, 64, dtype=torch.float64),
            nn.SiLU(),
            last,
        )
        with torch.no_grad():  # gains begin near one: at first all lengths count alike, and messages are not small
            last.bias[:n_gain] += 1
        degree = frame_degree(l_max)
        self.first = EdgeLinear(l_max, algebra, hidden, hidden)
        self.gate = Gate(l_max, algebra, hidden, degree=degree)
        self.second = EdgeLinear(l_max, algebra, hidden, c_out)
        self.register_buffer("degree", degree, persistent=False)
        self.register_buffer("irrep", torch.tensor(algebra.irrep_of), persistent=False)

    def forward(self, x: Tensor, row: Tensor, col: Tensor, rotation: Tensor, edge_scalars: Tensor) -> Tensor:
        z = to_frame(rotation, self.from_row(x)[row] + self.from_col(x)[col])
        radial = self.radial(edge_scalars)
        gain, inner, outer = radial.split(
            [
                radial.shape[1] - self.n_rows * (self.hidden + self.c_out),
                self.n_rows * self.hidden,
                self.n_rows * self.c_out,
            ],
            dim=1,
        )
        gain = per_component(gain.reshape(-1, *self.gain_shape), self.degree, self.irrep, first=1)
        z = _add_axial(z * gain, inner.reshape(-1, self.n_rows, self.hidden))
        z = self.second(self.gate(self.first(z)))
        return from_frame(rotation, _add_axial(z, outer.reshape(-1, self.n_rows, self.c_out)))


def _add_axial(z: Tensor, term: Tensor) -> Tensor:
    """Add f_l(r) to the m = 0, natural, even rows: in the laboratory these are f_l(r) Y_l(r̂)."""
    padded = torch.zeros_like(z)
    padded[:, : term.shape[1], 0, 0] = term
    return z + padded


class NodeProduct(nn.Module):
    """x + linear(A(x) · B(x)): body order, and moments of several atoms acting together."""

    def __init__(self, l_max: int, algebra: SpinAlgebra, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = EquivariantNorm(l_max, algebra, channels)
        self.left = EquivariantLinear(l_max, algebra, channels, hidden, bias=True)
        self.right = EquivariantLinear(l_max, algebra, channels, hidden, bias=True)
        self.product = TensorProduct(l_max, l_max, algebra)
        self.out = EquivariantLinear(l_max, algebra, hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.out(self.product(self.left(y), self.right(y)))


class Interaction(nn.Module):
    """One round: messages from the neighbours, then the product on each atom."""

    def __init__(
        self, l_max: int, algebra: SpinAlgebra, channels: int, hidden: int, product_channels: int, n_scalars: int
    ) -> None:
        super().__init__()
        self.norm = EquivariantNorm(l_max, algebra, channels)
        self.edge = EdgeNetwork(l_max, algebra, channels, hidden, n_scalars, hidden)
        self.out = EquivariantLinear(l_max, algebra, hidden, channels)
        self.product = NodeProduct(l_max, algebra, channels, product_channels)

    def forward(
        self,
        x: Tensor,
        row: Tensor,
        col: Tensor,
        rotation: Tensor,
        edge_scalars: Tensor,
        weight: Tensor,
        n_rows: int | None = None,
    ) -> Tensor:
        """`weight` (e,): cutoff envelope over the square root of the typical number of neighbours.

        n_rows : how many atoms, the first ones, are updated and returned; default: all.
        """
        messages = self.edge(self.norm(x), row, col, rotation, edge_scalars) * weight[:, None, None, None, None]
        x = x[:n_rows]
        summed = torch.zeros(len(x), *messages.shape[1:], dtype=x.dtype, device=x.device).index_add(0, row, messages)
        return self.product(x + self.out(summed))
