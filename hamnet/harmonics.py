"""Real spherical harmonics in the house order, and how they turn under rotations.

Order m = −l … l, polar axis z, no Condon–Shortley sign: Y_1 ∝ (y, z, x). e3nn has polar axis y; its harmonics of
(x, y, z) are the house harmonics of (z, x, y): ``e3nn(l, v) == house(l, v[..., [2, 0, 1]])``, and the other way
round ``house(l, v) == e3nn(l, v[..., [1, 2, 0]])``.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["solid_harmonics", "spherical_harmonics", "wigner_d"]


def solid_harmonics(l_max: int, vectors: Tensor) -> list[Tensor]:
    """r^l Y_lm(r̂) for l = 0 … l_max, normalised such that Σ_m Y_lm² = 2l + 1 on the unit sphere.

    Polynomials in the components, so analytic everywhere, r = 0 included. Recurrences as in Helgaker, Jørgensen,
    Olsen, *Molecular Electronic-Structure Theory* (2000), eqs. 6.4.70–6.4.73.

    Parameters
    ----------
    vectors : (..., 3).

    Returns
    -------
    list of (..., 2l + 1), one per l.
    """
    x, y, z = vectors.unbind(-1)
    r2 = x * x + y * y + z * z
    # Unnormalised: cosine[m], sine[m] = Re, Im (x + iy)^m; legendre[l, m] the z-dependent factor.
    cosine, sine = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(l_max):
        cosine, sine = [*cosine, x * cosine[-1] - y * sine[-1]], [*sine, x * sine[-1] + y * cosine[-1]]
    legendre: dict[tuple[int, int], Tensor] = {}
    for m in range(l_max + 1):
        legendre[m, m] = torch.full_like(x, float(math.prod(range(1, 2 * m, 2))))
        if m < l_max:
            legendre[m + 1, m] = (2 * m + 1) * z * legendre[m, m]
        for l in range(m + 2, l_max + 1):
            legendre[l, m] = ((2 * l - 1) * z * legendre[l - 1, m] - (l + m - 1) * r2 * legendre[l - 2, m]) / (l - m)
    result = []
    for l in range(l_max + 1):
        scale = [
            math.sqrt((2 * l + 1) * (1 if m == 0 else 2) * math.factorial(l - m) / math.factorial(l + m))
            for m in range(l + 1)
        ]
        columns = [scale[m] * legendre[l, m] * sine[m] for m in range(l, 0, -1)]
        columns += [scale[m] * legendre[l, m] * cosine[m] for m in range(l + 1)]
        result.append(torch.stack(columns, dim=-1))
    return result


def spherical_harmonics(l_max: int, vectors: Tensor) -> list[Tensor]:
    """Y_lm of the directions of `vectors` (..., 3), which must not be zero; Σ_m Y_lm² = 2l + 1."""
    return solid_harmonics(l_max, vectors / vectors.norm(dim=-1, keepdim=True))


@lru_cache(maxsize=32)
def _sample_points(l_max: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Fixed well-spread directions p and, for each l, the pseudo-inverse of Y_l(p)."""
    n = 2 * (2 * l_max + 1) + 4
    step = np.arange(n) + 0.5
    height, angle = 1 - 2 * step / n, math.pi * (1 + math.sqrt(5)) * step  # Fibonacci sphere
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=-1)
    values = solid_harmonics(l_max, torch.from_numpy(points))
    return points, tuple(np.linalg.pinv(v.numpy()) for v in values)


def wigner_d(l_max: int, rotation: Tensor) -> list[Tensor]:
    """D^l(Q) with Y_l(Q r) = D^l(Q) Y_l(r), for orthogonal Q, proper or not: D^l(−1) = (−1)^l.

    D is found from Y at fixed directions p as D = Y(Q p) Y(p)⁺, which is exact because rotations map Y_l onto itself;
    it is differentiable in Q.

    Parameters
    ----------
    rotation : (..., 3, 3).

    Returns
    -------
    list of (..., 2l + 1, 2l + 1), one per l.
    """
    points, inverses = _sample_points(l_max)
    p = torch.as_tensor(points, dtype=rotation.dtype, device=rotation.device)
    turned = torch.einsum("...xy,py->...px", rotation, p)
    values = solid_harmonics(l_max, turned)
    # Row vectors: Y(Q p)^T (2l+1, n) = D Y(p)^T.
    return [
        torch.einsum("...pa,bp->...ab", value, torch.as_tensor(inverse, dtype=rotation.dtype, device=rotation.device))
        for value, inverse in zip(values, inverses, strict=True)
    ]
