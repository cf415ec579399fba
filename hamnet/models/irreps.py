"""Feature space of the network and its products.

A feature tensor has the axes ``(n, (l_max+1)², 2, q, channel)``:

* the components (l, m) of O(3), m = −l … l in the house order;
* naturality: 0 for parity p = (−1)^l, 1 for p = −(−1)^l;
* the components of a small *spin algebra*, which holds time parity and, without spin–orbit coupling, free spin vectors;
* channels.

Every kind (l, parity, spin irrep) has the same number of channels, so that whole layers are single tensor operations.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from e3nn import o3
from torch import Tensor, nn

__all__ = [
    "ALGEBRAS",
    "EquivariantLinear",
    "Gate",
    "Mode",
    "SpinAlgebra",
    "TensorProduct",
    "clebsch_gordan",
    "degree_index",
    "per_component",
    "permuted",
]

Mode = Literal["none", "collinear", "soc", "spin-group"]


@dataclass(frozen=True, slots=True)
class SpinAlgebra:
    """Components that features carry besides (l, m): time parity and free spin.

    irreps : (dimension, time parity) of each irrep; the first is the even scalar.
    product : (q, q, q) structure constants, x·y = Σ product[a, b, c] x_a y_b.
    """

    irreps: tuple[tuple[int, int], ...]
    product: tuple[tuple[int, int, int, float], ...]

    @property
    def n_components(self) -> int:
        return sum(dimension for dimension, _ in self.irreps)

    @property
    def n_irreps(self) -> int:
        return len(self.irreps)

    @property
    def irrep_of(self) -> list[int]:
        """Irrep of each component."""
        return [i for i, (dimension, _) in enumerate(self.irreps) for _ in range(dimension)]

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """A (r, q), B (r, q), V (q, r) such that x·y = V ((A x) ⊙ (B y)).

        Time parity is a sign: sums and differences of even and odd components multiply apart. What is left are the
        products of pairs of even components.
        """
        start = dict(zip(self.irreps, itertools.accumulate((d for d, _ in self.irreps), initial=0), strict=False))
        odd = {start[d, 1] + k: start[d, -1] + k for d, t in self.irreps if t == -1 for k in range(d)}
        signs = (1.0, -1.0) if odd else (1.0,)
        even = {start[d, t] + k for d, t in self.irreps if t == 1 for k in range(d)}
        pairs = sorted({(a, b) for a, b, _, _ in self.product if a in even and b in even})
        left, right, out = (torch.zeros(len(signs), len(pairs), self.n_components, dtype=torch.float64) for _ in "ABV")
        for s, sign in enumerate(signs):
            for r, (a, b) in enumerate(pairs):
                left[s, r, a], right[s, r, b] = 1, 1
                if odd:
                    left[s, r, odd[a]], right[s, r, odd[b]] = sign, sign
            for a, b, c, value in self.product:
                if (a, b) in pairs:
                    out[s, pairs.index((a, b)), c] = value / len(signs)
                    if odd:
                        out[s, pairs.index((a, b)), odd[c]] = sign * value / len(signs)
        return left.flatten(0, 1), right.flatten(0, 1), out.flatten(0, 1).T


def _trivial() -> SpinAlgebra:
    return SpinAlgebra(((1, 1),), ((0, 0, 0, 1.0),))


def _time_parity() -> SpinAlgebra:
    return SpinAlgebra(((1, 1), (1, -1)), tuple((a, b, a ^ b, 1.0) for a in (0, 1) for b in (0, 1)))


def _spin_vectors() -> SpinAlgebra:
    """Scalars and vectors of free spin, each even and odd under time reversal: s·s, s·v, v·v and v×v.

    Components: even scalar, odd vector, even vector, odd scalar. The moments are odd vectors, their cross product is an
    even vector, their triple product an odd scalar.
    """
    scalar, vector = {1: 0, -1: 7}, {-1: 1, 1: 4}
    entries: list[tuple[int, int, int, float]] = []
    for t in (1, -1):
        for u in (1, -1):
            entries.append((scalar[t], scalar[u], scalar[t * u], 1.0))
            for x in range(3):
                entries.append((scalar[t], vector[u] + x, vector[t * u] + x, 1.0))
                entries.append((vector[u] + x, scalar[t], vector[t * u] + x, 1.0))
                entries.append((vector[t] + x, vector[u] + x, scalar[t * u], 1 / math.sqrt(3)))
                y, z = (x + 1) % 3, (x + 2) % 3
                entries.append((vector[t] + x, vector[u] + y, vector[t * u] + z, 1 / math.sqrt(2)))
                entries.append((vector[t] + y, vector[u] + x, vector[t * u] + z, -1 / math.sqrt(2)))
    return SpinAlgebra(((1, 1), (3, -1), (3, 1), (1, -1)), tuple(entries))


ALGEBRAS: dict[str, SpinAlgebra] = {
    "none": _trivial(),
    "collinear": _time_parity(),
    "soc": _time_parity(),
    "spin-group": _spin_vectors(),
}
"""The spin algebra of each mode."""


def degree_index(l_max: int) -> Tensor:
    """((l_max+1)²,) l of each component."""
    return torch.repeat_interleave(torch.arange(l_max + 1), 2 * torch.arange(l_max + 1) + 1)


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, order: tuple[int, ...]) -> Tensor:
        ctx.order = order
        return x.permute(order).contiguous()

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        inverse = tuple(sorted(range(len(ctx.order)), key=ctx.order.__getitem__))
        return _Permuted.apply(gradients[0], inverse), None  # type: ignore[return-value]


def permuted(x: Tensor, *order: int) -> Tensor:
    """A contiguous copy with permuted axes, which hands back a contiguous gradient.

    Batched BLAS calls take items with unit stride in rows or columns; others, which autograd hands back through
    permuted views, make them fall back to one product after another, several times slower.
    """
    return _Permuted.apply(x, order)  # type: ignore[return-value]


def per_component(values: Tensor, degree: Tensor, irrep: Tensor, *, first: int = 0) -> Tensor:
    """Spread (…, l_max+1, 2, n_irreps, …) to (…, (l_max+1)², 2, q, …): one value for all components of a kind.

    `first` is the axis of l. Without spin vectors the irreps are the components already.
    """
    spread = values.index_select(first, degree)
    return spread if len(irrep) == values.shape[first + 2] else spread.index_select(first + 2, irrep)


@lru_cache(maxsize=256)
def clebsch_gordan(l1: int, l2: int, l3: int) -> Tensor:
    """(2l1+1, 2l2+1, 2l3+1) float64, orthonormal: Σ_{m1 m2} C[m1, m2, m] C[m1, m2, m'] = δ_mm'.

    e3nn's 3j symbols times √(2l3+1). They are invariant tensors, so its other polar axis makes no difference.
    """
    with torch.inference_mode(False):  # what is kept serves training too
        return o3.wigner_3j(l1, l2, l3, dtype=torch.float64) * math.sqrt(2 * l3 + 1)


class EquivariantLinear(nn.Module):
    """Mixes channels of equal (l, parity, spin irrep); a bias for the even scalars alone."""

    degree: Tensor
    irrep: Tensor

    def __init__(self, l_max: int, algebra: SpinAlgebra, c_in: int, c_out: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(l_max + 1, 2, algebra.n_irreps, c_in, c_out, dtype=torch.float64) / math.sqrt(c_in)
        )
        self.bias = nn.Parameter(torch.zeros(c_out, dtype=torch.float64)) if bias else None
        self.register_buffer("degree", degree_index(l_max), persistent=False)
        self.register_buffer("irrep", torch.tensor(algebra.irrep_of), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _mixed(x, self.weight, self.bias, self.degree, self.irrep)

    def beside(self, other: EquivariantLinear, x: Tensor) -> Tensor:
        """(…, 2 c_out) the channels of this map and after them those of another map of the same input, in one go."""
        bias = None if self.bias is None or other.bias is None else torch.cat([self.bias, other.bias])
        return _mixed(x, torch.cat([self.weight, other.weight], dim=-1), bias, self.degree, self.irrep)


def _mixed(x: Tensor, weight: Tensor, bias: Tensor | None, degree: Tensor, irrep: Tensor) -> Tensor:
    """`weight` (l_max+1, 2, n_irreps, c_in, c_out) on features (n, M, 2, q, c_in).

    The result lies in memory as a matrix of atom and channel for each component, so that the next map need not copy it.
    """
    n, m, p, q, c = x.shape
    weight = per_component(weight, degree, irrep).reshape(m * p * q, c, -1)
    y = torch.bmm(x.reshape(n, m * p * q, c).transpose(0, 1), weight).transpose(0, 1)
    if bias is not None:
        y = y + nn.functional.pad(bias[None], (0, 0, 0, m * p * q - 1))
    return y.reshape(n, m, p, q, -1)


class Gate(nn.Module):
    """Factors between 0 and 1 for each kind, from the even scalars of a feature.

    σ(a)·s with a linear in the scalars s generalises SiLU, so that scalars need no other road.
    """

    irrep: Tensor

    def __init__(self, l_max: int, algebra: SpinAlgebra, channels: int) -> None:
        super().__init__()
        self.shape = (l_max + 1, 2, algebra.n_irreps, channels)
        self.linear = nn.Linear(channels, math.prod(self.shape), dtype=torch.float64)
        self.register_buffer("irrep", torch.tensor(algebra.irrep_of), persistent=False)

    def forward(self, scalars: Tensor) -> Tensor:
        """(n, q, l_max+1, 2, channels) from scalars (n, channels)."""
        return self.by_kind(torch.sigmoid(self.linear(scalars)))

    def by_kind(self, values: Tensor) -> Tensor:
        """(n, q, l_max+1, 2, channels) from values (n, …) in the order (l, naturality, spin irrep, channel)."""
        values = permuted(values.reshape(-1, *self.shape), 0, 3, 1, 2, 4)
        return values if len(self.irrep) == self.shape[2] else values.index_select(1, self.irrep)


class TensorProduct(nn.Module):
    """Channel-wise product of two features, all couplings (l1, l2) → l3 with parities, spin algebra included.

    The mirror y → −y turns the sign of components m < 0, and once more of unnatural features. Couplings keep this
    mirror parity, so that sums and differences of the two parities multiply apart – as time parities do – each with the
    one matrix of all Clebsch–Gordan coefficients.
    """

    coupling: Tensor
    split: Tensor
    join: Tensor

    def __init__(self, l_in: int, l_out: int, algebra: SpinAlgebra) -> None:
        super().__init__()
        m_in, m_out = (l_in + 1) ** 2, (l_out + 1) ** 2
        coupling = torch.zeros(m_out, m_in, m_in, dtype=torch.float64)
        for l3 in range(l_out + 1):
            paths = [(l1, l2) for l1 in range(l_in + 1) for l2 in range(l_in + 1) if abs(l1 - l2) <= l3 <= l1 + l2]
            for l1, l2 in paths:
                part = coupling[l3**2 : (l3 + 1) ** 2, l1**2 : (l1 + 1) ** 2, l2**2 : (l2 + 1) ** 2]
                part += clebsch_gordan(l1, l2, l3).permute(2, 0, 1) / math.sqrt(len(paths))
        left, right, out = algebra.factors()
        split = torch.stack([torch.stack([torch.kron(s, x) for s in _mirror_signs(l_in)]) for x in (left, right)])
        join = torch.stack([torch.kron(s.T / 2, out) for s in _mirror_signs(l_out)])
        self.register_buffer("coupling", coupling.reshape(m_out, -1), persistent=False)
        self.register_buffer("split", split.flatten(0, 1), persistent=False)
        self.register_buffer("join", join, persistent=False)

    def forward(self, both: Tensor) -> Tensor:
        """(n, M_out, 2, q, c) from (n, M, 2, q, 2c): channels of the left factor, then those of the right."""
        n, m, _, q, c = both.shape
        c //= 2
        factors = permuted(both.reshape(n, m, 2 * q, 2, c), 3, 1, 2, 0, 4).reshape(2 * m, 2 * q, n * c)
        left, right = torch.bmm(self.split, factors).reshape(2, m, -1).unbind()
        product = self.coupling @ (left[:, None] * right).reshape(m * m, -1)
        product = torch.bmm(self.join, product.reshape(len(self.join), -1, n * c))
        return product.reshape(-1, 2, q, n, c).permute(3, 0, 1, 2, 4)


def _mirror_signs(l_max: int) -> Tensor:
    """((l_max+1)², 2, 2): (sum or difference of mirror parities, naturality) for each component (l, m)."""
    negative = torch.tensor([m < 0 for l in range(l_max + 1) for m in range(-l, l + 1)])
    signs = torch.ones(len(negative), 2, 2, dtype=torch.float64)
    signs[:, 1, 1] = -1
    signs[negative, 1] *= -1
    return signs
