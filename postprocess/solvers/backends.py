"""Which back-end factorises a pencil, and what that will cost: known before the work starts.

Time and memory follow from the operations and entries of the factor, counted on the graph of atoms, and from the speed
of a matrix product on this machine. The shares of that speed which each back-end reaches are measured ones
(benchmarks/eigensolvers.py, one thread).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hamnet.errors import SolverError

from .dense import Dense
from .dissection import best_order, fill_of_order
from .factor import Analysis
from .multifrontal import Multifrontal
from .pardiso import Pardiso, mkl_library
from .pencil import SparsePencil
from .superlu import SuperLU

__all__ = ["BACKENDS", "Choice", "Estimate", "analyse", "choose", "default_memory_bytes", "estimates"]

BACKENDS: dict[str, Callable[[SparsePencil], Analysis]] = {
    "dense": Dense,
    "mkl": Pardiso,
    "multifrontal": Multifrontal,
    "superlu": SuperLU,
}
"""Names of back-ends, as on the command line."""

# Up to here LAPACK factorises as fast as any sparse back-end.
_DENSE_DIM = 1000
_RAM_SHARE = 0.8
# Window of about 50 states: factorisations, block solutions, vectors kept on the way (Lanczos basis and S times it).
_WINDOW_FACTORS, _WINDOW_SOLVES, _WINDOW_VECTORS = 3, 40, 640


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a back-end makes of counted operations and entries.

    operations, entries : of the factor in units of those counted. speed : share of the speed of matrix products.
    bytes_per_entry : of the factor. peak : memory while it is computed in units of that.
    """

    operations: float
    entries: float
    speed: float
    bytes_per_entry: float
    peak: float


_COSTS = {
    "mkl": _Cost(1.0, 1.0, 0.65, 20.0, 1.3),
    "multifrontal": _Cost(1.05, 1.06, 0.6, 16.0, 2.2),
    "superlu": _Cost(2.0, 2.0, 0.45, 20.0, 2.2),
}
_DENSE_SPEED = 0.5
_SOLVE_SPEED = 0.4


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected cost of a back-end, on as many threads as are set.

    Attributes
    ----------
    backend, dim : which, and of what dimension.
    flops : real operations of one factorisation.
    factor_seconds : one factorisation, the certificate of its inertia not counted.
    window_seconds : the certified window of about 50 states at one k.
    memory_bytes : largest need of such a window, the matrices included.
    """

    backend: str
    dim: int
    flops: float
    factor_seconds: float
    window_seconds: float
    memory_bytes: float

    def __str__(self) -> str:
        return (
            f"{self.backend}: {self.dim} orbitals, about {_duration(self.factor_seconds)} for a factorisation, "
            f"{_duration(self.window_seconds)} for 50 states at one k, {self.memory_bytes / 1e9:.2g} GB"
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """A back-end, what it will cost, and one line that tells why it was taken."""

    estimate: Estimate
    reason: str

    @property
    def backend(self) -> str:
        return self.estimate.backend


def analyse(pencil: SparsePencil, backend: str = "auto", *, memory_limit_bytes: float | None = None) -> Analysis:
    """The symbolic factorisation of a pencil by the back-end of :func:`choose`."""
    return BACKENDS[choose(pencil, backend, memory_limit_bytes=memory_limit_bytes).backend](pencil)


def choose(pencil: SparsePencil, backend: str = "auto", *, memory_limit_bytes: float | None = None) -> Choice:
    """Which back-end to take for a pencil.

    backend : "auto" – dense for small cells, else MKL where it is installed, else the multifrontal one of hamnet –
        or one of `BACKENDS`.
    memory_limit_bytes : default 0.8 of the memory of the machine.

    Raises :class:`SolverError` for an unknown or missing back-end, and with numbers where none fits into the memory.
    """
    if backend not in ("auto", *BACKENDS):
        raise SolverError(f"back-end {backend!r}", expected=", ".join(["auto", *BACKENDS]))
    if backend == "mkl" and mkl_library() is None:
        raise SolverError(
            "back-end 'mkl' without the package mkl",
            expected="MKL PARDISO",
            remedy="install the extra, pip install 'hamnet[mkl]', or take another back-end",
        )
    limit = default_memory_bytes() if memory_limit_bytes is None else memory_limit_bytes
    found = estimates(pencil)
    fitting = [name for name, estimate in found.items() if estimate.memory_bytes <= limit]
    if backend != "auto":
        if backend not in fitting:
            raise _too_large(found[backend], limit, fitting, found)
        return Choice(found[backend], f"{backend}, as asked for")
    if pencil.dim <= _DENSE_DIM:
        preferred, reason = "dense", f"dense: {pencil.dim} orbitals, no sparse back-end is faster up to {_DENSE_DIM}"
    elif mkl_library() is not None:
        preferred, reason = "mkl", "mkl: installed, and the fastest or as fast as any other"
    else:
        preferred, reason = "multifrontal", "multifrontal: MKL is not installed (hamnet[mkl], up to 20 % faster)"
    if preferred in fitting:
        return Choice(found[preferred], reason)
    if not fitting:
        raise _too_large(min(found.values(), key=lambda e: e.memory_bytes), limit, fitting, found)
    fastest = min(fitting, key=lambda name: found[name].window_seconds)
    wanted, gigabytes = found[preferred].memory_bytes / 1e9, limit / 1e9
    return Choice(
        found[fastest], f"{fastest}: {preferred} would need {wanted:.3g} GB of the {gigabytes:.3g} GB allowed"
    )


def estimates(pencil: SparsePencil, *, flops_per_s: float | None = None) -> dict[str, Estimate]:
    """What each installed back-end would cost. flops_per_s : of complex matrix products, default measured (0.1 s)."""
    rate = _product_speed() if flops_per_s is None else flops_per_s
    dim = pencil.dim
    sizes = np.diff(pencil.atom_offsets)
    entries, flops = fill_of_order(pencil.atom_graph, sizes, best_order(pencil.atom_graph, sizes))
    # H, S and H − σS at one k beside the sums over the home cell; vectors of the window.
    shared = pencil.memory_bytes + 40.0 * pencil.nnz + 16.0 * _WINDOW_VECTORS * dim
    per_step = 8 * 8 * dim * _WINDOW_VECTORS  # orthogonalisation against half of them on average, twice, both ways

    def estimate(name: str, flops: float, entries: float, speed: float, peak_bytes: float) -> Estimate:
        factor = flops / (speed * rate)
        solve = 8 * 2 * 8 * entries / (_SOLVE_SPEED * rate)
        window = _WINDOW_FACTORS * factor + _WINDOW_SOLVES * (solve + per_step / rate)
        return Estimate(name, dim, flops, factor, window, shared + peak_bytes)

    result = {"dense": estimate("dense", 4 / 3 * dim**3, dim**2, _DENSE_SPEED, 16.0 * dim**2)}
    for name, cost in _COSTS.items():
        if name == "mkl" and mkl_library() is None:
            continue
        own = cost.entries * entries
        peak = cost.peak * cost.bytes_per_entry * own
        result[name] = estimate(name, cost.operations * flops, own, cost.speed, peak)
    return result


def default_memory_bytes() -> float:
    """0.8 of the memory of this machine."""
    return _RAM_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _too_large(estimate: Estimate, limit: float, fitting: list[str], found: dict[str, Estimate]) -> SolverError:
    if fitting:
        needs = ", ".join(f"{name} ({found[name].memory_bytes / 1e9:.3g} GB)" for name in fitting)
        remedy = f"take {needs}"
    else:
        remedy = "take a smaller cell, or a machine with more memory"
        if "mkl" not in found:
            remedy += "; with the extra hamnet[mkl] there is one back-end more"
    return SolverError(
        f"{estimate.dim} orbitals need about {estimate.memory_bytes / 1e9:.3g} GB with {estimate.backend}",
        expected=f"at most {limit / 1e9:.3g} GB",
        remedy=remedy,
    )


def _product_speed() -> float:
    """Real operations per second in a product of complex matrices."""
    a = torch.randn(512, 512, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    best = np.inf
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 8 * 512**3 / best


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
