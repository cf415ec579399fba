"""One crystal and what a DFT run, or the network, says about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from .basis import Basis
from .blocks import BlockOperator, Pairs
from .errors import HamnetError
from .structure import Structure, frozen

__all__ = ["Sample", "SpinKind", "mulliken"]

SpinKind = Literal["none", "collinear", "vector"]

_REMEDIES = {
    "overlap": "bands and densities of states need one: predict with --overlap RUN, where RUN is this very structure",
    "hamiltonian": "predict it first with `hamnet predict`",
    "density": "read the run again with --operators density",
}
_PER_ATOM = {"forces_ev_per_ang": (3,), "constraint_field_ev": (3,), "charges": (), "computed_moments": (3,)}


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Structure, basis and operators on one set of pairs.

    Attributes
    ----------
    name : unique within a set, e.g. ``nibr2_2x1/r07``.
    structure : with the *input* moments of the network.
    basis : shells of the species in the structure.
    overlap : spin-free, real, dimensionless; None for a prediction of a structure whose overlap nobody computed.
    hamiltonian : eV; None for a structure that waits for its prediction.
    density : ρ_ij(R) = 1/N_k Σ_nk f c_i c_j* e^{−ik·R} in Pauli components, so Tr ρO = Σ ρ_ij(R) O_ji(−R).
    position : three spin-free operators ⟨i,0| r − r_i |j,R⟩ in Å (origin: row atom), x, y, z.
    momentum : three spin-free operators ⟨i,0| ∂/∂x |j,R⟩ in 1/Å, x, y, z (p = −iħ∂).
    fermi_energy_ev, total_energy_ev, n_electrons : numbers of the run.
    forces_ev_per_ang : (n, 3).
    constraint_field_ev : (n, 3) b_A = −∂E/∂m_A per μ_B, of direction-constrained runs.
    charges : (n,) Mulliken electrons of each atom.
    computed_moments : (n, 3) μ_B, from the density matrix.
    spin_orbit : whether spin–orbit coupling was on; None if not known.
    provenance : code, version, settings, checksum and choices of the reader; JSON values only.
    """

    name: str
    structure: Structure
    basis: Basis
    overlap: BlockOperator | None
    hamiltonian: BlockOperator | None = None
    density: BlockOperator | None = None
    position: tuple[BlockOperator, BlockOperator, BlockOperator] | None = None
    momentum: tuple[BlockOperator, BlockOperator, BlockOperator] | None = None
    fermi_energy_ev: float | None = None
    total_energy_ev: float | None = None
    n_electrons: float | None = None
    forces_ev_per_ang: NDArray[np.float64] | None = None
    constraint_field_ev: NDArray[np.float64] | None = None
    charges: NDArray[np.float64] | None = None
    computed_moments: NDArray[np.float64] | None = None
    spin_orbit: bool | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.structure)
        if self.overlap is None and self.hamiltonian is None:
            raise HamnetError(f"{self.name} has neither overlap nor Hamiltonian", expected="one of them")
        for name, shape in _PER_ATOM.items():
            values = getattr(self, name)
            if values is not None:
                values = frozen(values, np.float64)
                if values.shape != (n, *shape):
                    raise HamnetError(f"{self.name}: {name} of shape {values.shape}", expected=f"{(n, *shape)}")
                object.__setattr__(self, name, values)
        for operator in (self.overlap, self.hamiltonian, self.density):
            if operator is not None and operator.pairs.n_atoms != n:
                raise HamnetError(
                    f"{self.name}: an operator on {operator.pairs.n_atoms} atoms", expected=f"{n}, as in the structure"
                )

    @property
    def spin(self) -> SpinKind:
        """Spin kind of the Hamiltonian."""
        return {1: "none", 2: "collinear", 4: "vector"}[self.operator("hamiltonian").n_spin]  # type: ignore[return-value]

    @property
    def pairs(self) -> Pairs:
        """The pairs that all operators share."""
        return self.operator("hamiltonian" if self.overlap is None else "overlap").pairs

    def operator(self, name: Literal["overlap", "hamiltonian", "density"]) -> BlockOperator:
        """An operator that must be there; raises :class:`HamnetError` that says how to get it where it is not."""
        value = getattr(self, name)
        if value is None:
            raise HamnetError(f"{self.name} has no {name}", expected=f"a sample with {name}", remedy=_REMEDIES[name])
        return value

    def with_basis(self, basis: Basis) -> Self:
        """The sample with species numbered as in `basis`, which holds at least its own species."""

        def move(value):
            if isinstance(value, BlockOperator):
                return value.with_basis(basis)
            return tuple(move(v) for v in value) if isinstance(value, tuple) else value

        names = ("overlap", "hamiltonian", "density", "position", "momentum")
        return replace(self, basis=basis, **{name: move(getattr(self, name)) for name in names})


def mulliken(density: BlockOperator, overlap: BlockOperator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mulliken electrons (n,) and spin moments (n, 3) μ_B of each atom.

    n_A = 2 Σ_{j,R} tr ρ_0 S, m_A = 2 Σ tr ρ_xyz S over the row A and the column A of the pair list, averaged: each bond
    is shared half to its row atom and half to its column atom. Only this average is odd under time reversal and turns
    as a vector in a non-collinear state.
    """
    n_spin, n_atoms = density.n_spin, density.pairs.n_atoms
    by_row, by_col = np.zeros((n_atoms, n_spin)), np.zeros((n_atoms, n_spin))
    for group, rho, s in zip(
        density.pairs.groups, density.blocks, overlap.with_pairs(density.pairs).blocks, strict=True
    ):
        # S is real and S_ji(−R) = S_ij(R)^T, so Tr ρS is an elementwise product.
        weight = 2 * torch.einsum("nsab,nab->ns", rho, s[:, 0].to(rho.dtype)).real.detach().cpu().numpy()
        np.add.at(by_row, density.pairs.row[group.pairs], weight)
        np.add.at(by_col, density.pairs.col[group.pairs], weight)
    mean = (by_row + by_col) / 2
    moments = np.zeros((n_atoms, 3))
    if n_spin == 2:
        moments[:, 2] = mean[:, 1]
    elif n_spin == 4:
        moments = mean[:, 1:]
    return mean[:, 0], moments
