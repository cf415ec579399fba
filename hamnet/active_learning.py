"""Which of many structures to compute next: those of which least is known, and not the same thing twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import HamnetError

__all__ = ["greedy_selection", "structure_kernel"]


def structure_kernel(descriptors: ArrayLike) -> NDArray[np.float64]:
    """(n, n) how much structures have in common, 1 for equal ones: exp(−mean (z_a − z_b)²/2) of descriptors (n, d).

    z are the descriptors in units of their standard deviation over the n structures; those that do not vary are left
    out. Structures that are independent draws then have about 1/e.
    """
    values = np.asarray(descriptors, np.float64)
    width = values.std(axis=0)
    varied = width > 1e-9 * np.abs(values).max(axis=0, initial=1e-12)
    if not varied.any():
        return np.ones((len(values), len(values)))
    z = (values[:, varied] - values[:, varied].mean(axis=0)) / width[varied]
    square = (z**2).mean(axis=1)
    distance = square[:, None] + square[None] - 2 * z @ z.T / z.shape[1]
    return np.exp(-np.maximum(distance, 0) / 2)


def greedy_selection(uncertainty: ArrayLike, kernel: ArrayLike, count: int) -> list[tuple[int, float]]:
    """The `count` structures that leave least unknown, best first, each with the uncertainty that it had when chosen.

    The error is taken as a Gaussian process with standard deviation u_a and correlation k_ab. Each step takes the
    structure of the largest variance given all that were taken before, Σ_aa − Σ_aT Σ_TT⁻¹ Σ_Ta with Σ = u k u: the
    pivots of a Cholesky factorisation.

    uncertainty : (n,) u. kernel : (n, n) k with a diagonal of ones.
    """
    u, k = np.asarray(uncertainty, np.float64), np.asarray(kernel, np.float64)
    if not 0 < count <= len(u):
        raise HamnetError(f"{count} of {len(u)} structures", expected=f"a number from 1 to {len(u)}")
    left = u**2
    rows = np.zeros((0, len(u)))
    free = np.ones(len(u), bool)
    chosen: list[tuple[int, float]] = []
    for _ in range(count):
        best = int(np.argmax(np.where(free, left, -1.0)))
        chosen.append((best, float(np.sqrt(max(left[best], 0.0)))))
        free[best] = False
        if left[best] > 1e-12 * u[best] ** 2:
            row = (u[best] * k[best] * u - rows[:, best] @ rows) / np.sqrt(left[best])
            rows = np.vstack([rows, row])
            left = left - row**2
    return chosen
