"""What a reader of a DFT code must offer, and what it returns.

A new code is one module with a class that has this shape, and one line in ``preprocessing/readers/__init__.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hamnet.blocks import BlockOperator
from hamnet.sample import Sample

__all__ = ["BandReference", "ReadOptions", "Reader", "Run"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Choices of a reader. They are recorded in the provenance of each sample.

    constraint : what becomes of the penalty that direction-constrained runs carry inside the stored H.
    moments : where the input moments come from – ``auto`` decides from the run, ``density`` is the density matrix,
        ``initial`` the prescribed start (right for a single diagonalisation of a prescribed density).
    operators : which operators besides H and S are read.
    """

    constraint: Literal["subtract", "keep"] = "subtract"
    moments: Literal["auto", "density", "initial"] = "auto"
    operators: frozenset[Literal["density", "position", "momentum"]] = frozenset({"density", "position", "momentum"})


@dataclass(frozen=True, slots=True, eq=False)
class BandReference:
    """Eigenvalues that the code itself printed.

    source : file they are from.
    k_frac : (n_k, 3) in fractions of the reciprocal vectors.
    energies_ev : (n_k, n_channel, n_states), absolute, ascending; n_channel as in :mod:`hamnet.bloch`.
    precision_ev : what the file's digits (or the precision of the stored H) allow.
    highest_ev : compare states up to this energy only (inf: all).
    corners : (index of the k point, name that the run gave it) of the ends of its lines.
    """

    source: str
    k_frac: NDArray[np.float64]
    energies_ev: NDArray[np.float64]
    precision_ev: float
    highest_ev: float = np.inf
    corners: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A DFT run as read: the sample for the network, and what the code printed, for checks.

    sample : with the choices of :class:`ReadOptions` applied.
    stored_hamiltonian : the H that reproduces the code's own bands (penalties kept).
    references : eigenvalues printed by the code; empty if there are none.
    printed_moments : (n, 3) μ_B as printed, or None; `code_moments` are ours by the same definition.
    moment_precision_mub : half of the last printed digit, and a little.
    converged : whether self-consistency (or the single step that was asked for) was reached.
    convergence : one line for people: residue, steps, criterion.
    code_electrons : Tr ρS of the density matrix as read, or None; known also where the file holds only part of ρ.
    printed_band_energy_ev : Σ f ε as printed, or None; it is Tr ρH, the one cheap test of H where no bands are printed.
    """

    sample: Sample
    stored_hamiltonian: BlockOperator
    references: tuple[BandReference, ...]
    printed_moments: NDArray[np.float64] | None
    code_moments: NDArray[np.float64] | None
    moment_precision_mub: float
    converged: bool
    convergence: str
    printed_band_energy_ev: float | None = None
    code_electrons: float | None = None


class Reader(Protocol):
    """Reads run folders of one DFT code."""

    code: str
    """Name of the code, lower case; stands in ``sample.provenance["code"]``."""

    def recognises(self, path: Path) -> bool:
        """Whether the folder (or file) holds output of this code. Cheap; never raises."""
        ...

    def read(self, path: Path, options: ReadOptions) -> Run:
        """Read one run. Raises :class:`hamnet.errors.ReaderError` for whatever is missing, damaged or unknown."""
        ...
