"""Feature space of the network and its products.

A feature tensor has the axes ``(n, (l_max+1)², 2, q, channel)``:

* the components (l, m) of O(3), m = −l … l in the house order;
* naturality: 0 for parity p = (−1)^l, 1 for p = −(−1)^l;
* the components of a small *spin algebra*, which holds time parity and, without spin–orbit coupling, free spin vectors;
* channels.

Every kind (l, parity, spin irrep) has the same number of channels, so that whole layers are single tensor operations.
"""

from __future__ import annotations

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
    "EquivariantNorm",
    "Gate",
    "Mode",
    "SpinAlgebra",
    "TensorProduct",
    "batched_matmul",
    "clebsch_gordan",
    "degree_index",
    "per_component",
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

    def structure_constants(self) -> Tensor:
        q = self.n_components
        constants = torch.zeros(q, q, q, dtype=torch.float64)
        for a, b, c, value in self.product:
            constants[a, b, c] += value
        return constants


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


class _Contiguous(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.contiguous()

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


def batched_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for (batch, n, k) and (batch, k, m).

    The batched BLAS call takes contiguous items only; others, which autograd hands back through permuted views, make
    it fall back to one product after another, several times slower.
    """
    return _Contiguous.apply(torch.bmm(_Contiguous.apply(a), _Contiguous.apply(b)))  # type: ignore[return-value]


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
        weight = per_component(self.weight, self.degree, self.irrep)
        n, m, p, q, c = x.shape
        flat = x.reshape(n, m * p * q, c).transpose(0, 1)
        y = batched_matmul(flat, weight.reshape(m * p * q, c, -1)).transpose(0, 1).reshape(n, m, p, q, -1)
        if self.bias is not None:
            padded = nn.functional.pad(self.bias[None], (0, 0, 0, m * p * q - 1))
            y = y + padded.reshape(m, p, q, -1)
        return y


class EquivariantNorm(nn.Module):
    """x / √(1 + mean square of all components), and a learned scale per kind: smooth at x = 0."""

    degree: Tensor
    irrep: Tensor

    def __init__(self, l_max: int, algebra: SpinAlgebra, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(l_max + 1, 2, algebra.n_irreps, channels, dtype=torch.float64))
        self.register_buffer("degree", degree_index(l_max), persistent=False)
        self.register_buffer("irrep", torch.tensor(algebra.irrep_of), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        square = (x * x).sum(dim=(1, 2, 3), keepdim=True).mean(dim=-1, keepdim=True)
        return x * torch.rsqrt(1 + square / len(self.scale)) * per_component(self.scale, self.degree, self.irrep)


class Gate(nn.Module):
    """Even scalars through SiLU; every other kind times a sigmoid of them."""

    degree: Tensor
    irrep: Tensor

    def __init__(self, l_max: int, algebra: SpinAlgebra, channels: int, *, degree: Tensor | None = None) -> None:
        super().__init__()
        self.shape = (l_max + 1, 2, algebra.n_irreps, channels)
        self.linear = nn.Linear(channels, math.prod(self.shape), dtype=torch.float64)
        self.register_buffer("degree", degree_index(l_max) if degree is None else degree, persistent=False)
        self.register_buffer("irrep", torch.tensor(algebra.irrep_of), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scalars = x[:, 0, 0, 0]
        gates = per_component(
            torch.sigmoid(self.linear(scalars)).reshape(-1, *self.shape), self.degree, self.irrep, first=1
        )
        # σ(a)·s with a linear in the scalars s generalises SiLU, so that scalars need no other road.
        return x * gates


class TensorProduct(nn.Module):
    """Channel-wise product of two features, all couplings (l1, l2) → l3 with parities, spin algebra included."""

    coupling: Tensor
    kinds: Tensor

    def __init__(self, l_in: int, l_out: int, algebra: SpinAlgebra) -> None:
        super().__init__()
        m_in, m_out = (l_in + 1) ** 2, (l_out + 1) ** 2
        coupling = torch.zeros(2, m_in, m_in, m_out, dtype=torch.float64)  # even, odd l1 + l2 + l3
        for l3 in range(l_out + 1):
            paths = [(l1, l2) for l1 in range(l_in + 1) for l2 in range(l_in + 1) if abs(l1 - l2) <= l3 <= l1 + l2]
            for l1, l2 in paths:
                part = coupling[(l1 + l2 + l3) % 2, l1**2 : (l1 + 1) ** 2, l2**2 : (l2 + 1) ** 2, l3**2 : (l3 + 1) ** 2]
                part += clebsch_gordan(l1, l2, l3) / math.sqrt(max(len(paths), 1))
        constants = algebra.structure_constants()
        q = algebra.n_components
        # Naturalities multiply, and an odd coupling (a cross product) turns the result over once more.
        kinds = torch.zeros(2, 2, q, 2, q, 2, q, dtype=torch.float64)
        for odd in (0, 1):
            for a in (0, 1):
                for b in (0, 1):
                    kinds[odd, a, :, b, :, a ^ b ^ odd, :] = constants
        self.register_buffer("coupling", coupling, persistent=False)
        self.register_buffer("kinds", kinds.reshape(2, 2 * q, 2 * q, 2 * q), persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        n, m, _, q, c = a.shape
        m_out = self.coupling.shape[-1]
        left = a.permute(0, 4, 2, 3, 1).reshape(n * c, 2 * q, m)
        right = b.permute(0, 4, 2, 3, 1).reshape(n * c, 2 * q, m)
        total = None
        for coupling, kinds in zip(self.coupling, self.kinds, strict=True):
            half = torch.matmul(left.reshape(-1, m), coupling.reshape(m, -1)).reshape(n * c, 2 * q, m, m_out)
            half = half.transpose(1, 2).reshape(n * c, m, 2 * q * m_out)
            product = batched_matmul(right, half).reshape(n * c, 2 * q, 2 * q, m_out)
            term = torch.einsum("xbaz,abk->xkz", product, kinds)
            total = term if total is None else total + term
        assert total is not None
        return total.reshape(n, c, 2, q, m_out).permute(0, 4, 2, 3, 1)
