"""Message passing between near atoms, and products on each atom.

Features are nowhere divided by their own size: what several moments do would then depend on each of them, where it is
very nearly a sum, and a model would not carry over from few directions of moments in a cell to many.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .frames import EdgeLinear, from_frame, per_kind, rotation_size, to_frame
from .incidence import Incidence
from .irreps import EquivariantLinear, Gate, SpinAlgebra, TensorProduct, permuted

__all__ = ["EdgeNetwork", "Interaction", "NodeProduct"]


class EdgeNetwork(nn.Module):
    """Features of an edge from those of its two ends and its length, in the frame of the edge.

    The two ends are mixed, turned into the frame and scaled by functions of the length; two equal-|m| maps with a gate
    between them follow. `edge_scalars` (n, n_scalars) are even invariants of the edge: radial basis and species.
    """

    def __init__(
        self, l_max: int, algebra: SpinAlgebra, channels: int, hidden: int, n_scalars: int, c_out: int
    ) -> None:
        super().__init__()
        self.from_row = EquivariantLinear(l_max, algebra, channels, hidden)
        self.from_col = EquivariantLinear(l_max, algebra, channels, hidden)
        n_gain = (l_max + 1) * 2 * algebra.n_irreps * hidden
        self.l_max, self.hidden, self.c_out = l_max, hidden, c_out
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
        self.first = EdgeLinear(l_max, algebra, hidden, hidden)
        self.gate = Gate(l_max, algebra, hidden)
        self.second = EdgeLinear(l_max, algebra, hidden, c_out)

    def forward(
        self,
        x: Tensor,
        ends: Incidence,
        rotation: Tensor,
        edge_scalars: Tensor,
        weight: Tensor,
        wanted: Sequence[tuple[int, int]],
    ) -> list[Tensor]:
        """Features (n, (l+1)², 2, q, c_out) for each (n, l) of `wanted`: the next n edges, up to degree l.

        ends : rows of a table that has all row atoms and after them all column atoms. weight : (n_edges,) factor of the
        result.
        """
        n, m, _, q, _ = x.shape
        n_l, h = self.l_max + 1, self.hidden
        both = self.from_row.beside(self.from_col, x).reshape(n, m, 2, q, 2, h)
        table = permuted(both, 4, 0, 1, 2, 3, 5).reshape(2 * n, -1)
        axial, planar = to_frame(rotation, ends.gathered(table).reshape(-1, m, 2, q, h))
        radial = self.radial(edge_scalars)
        gain, inner, outer = radial.split([radial.shape[1] - n_l * (h + self.c_out), n_l * h, n_l * self.c_out], dim=1)
        of_axial, of_planar = per_kind(self.gate.by_kind(gain))
        inner = _axial_term(inner.reshape(-1, n_l, h), q)
        axial, planar = self.first(torch.addcmul(inner, axial, of_axial), planar * of_planar, self.l_max)
        # As a factor of gates and outer terms the weight is one of all that they make.
        of_axial, of_planar = per_kind(self.gate(axial[0, 0, :, 0]) * weight[:, None, None, None, None])
        outer = outer.reshape(-1, n_l, self.c_out) * weight[:, None, None]
        counts = [count for count, _ in wanted]
        parts = (
            (axial * of_axial).split(counts, 2),
            (planar * of_planar).split(counts, 1),
            outer.split(counts),
            rotation.split(counts),
        )
        result = []
        for (_, degree), axial, planar, term, frame in zip(wanted, *parts, strict=True):
            axial, planar = self.second(axial, planar, degree)
            axial = axial + _axial_term(term[:, : degree + 1], q)
            result.append(from_frame(frame[:, : rotation_size(degree)], axial, planar))
        return result


def _axial_term(term: Tensor, q: int) -> Tensor:
    """f_l(r) (n, l_max+1, c) as natural, even axial rows: in the laboratory these are f_l(r) Y_l(r̂)."""
    return nn.functional.pad(term[None, None], (0, 0, 0, 0, 0, 0, 0, 1, 0, q - 1))


class NodeProduct(nn.Module):
    """x + linear(A(x) · B(x)): body order, and moments of several atoms acting together."""

    def __init__(self, l_max: int, algebra: SpinAlgebra, channels: int, hidden: int) -> None:
        super().__init__()
        self.left = EquivariantLinear(l_max, algebra, channels, hidden, bias=True)
        self.right = EquivariantLinear(l_max, algebra, channels, hidden, bias=True)
        self.product = TensorProduct(l_max, l_max, algebra)
        self.out = EquivariantLinear(l_max, algebra, hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.product(self.left.beside(self.right, x)))


class Interaction(nn.Module):
    """One round: messages from the neighbours, then the product on each atom."""

    def __init__(
        self, l_max: int, algebra: SpinAlgebra, channels: int, hidden: int, product_channels: int, n_scalars: int
    ) -> None:
        super().__init__()
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
        ends = Incidence.of(torch.stack([row, col + len(x)], dim=1), 2 * len(x))
        (messages,) = self.edge(x, ends, rotation, edge_scalars, weight, [(len(row), self.edge.l_max)])
        x = x[:n_rows]
        summed = Incidence.of(row[:, None], len(x)).scattered(messages.flatten(1)).reshape(-1, *messages.shape[1:])
        return self.product(x + self.out(summed))
