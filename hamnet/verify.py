"""The moments that a Hamiltonian has, held against those that it was made for.

H[m] of a self-consistent state with moments m has just these moments: its density matrix gives them back. A Hamiltonian
predicted for moments that no state can have (too large, on an atom that carries none) does not, so the difference tells
an impossible input without any DFT.

The size of a moment is the sensor. Its direction is one of torque: where an external field b held the moments, as in
direction-constrained runs, and H is that without the field, the moments of H turn away from m by about b/B, with the
exchange field B of the atom. This angle is physical, and no error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .blocks import BlockOperator
from .eigen import eigenstates
from .errors import HamnetError, SolverError
from .occupations import chemical_potential, occupations
from .structure import frozen

__all__ = [
    "ComputedMoments",
    "MomentResidual",
    "NormalResidual",
    "computed_moments",
    "moment_residual",
    "spin_populations",
    "unusual_atoms",
]

_LEAST_MUB = 0.01
"""A moment smaller than this has no direction, and on an atom whose moment is no input it was not meant."""
_MARGIN_MUB = 0.05
_MARGIN_DEG = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class ComputedMoments:
    """Mulliken populations of the states of H, filled with electrons.

    moments_mub : (n, 3). charges : (n,) electrons. chemical_potential_ev : at the temperature of the occupations.
    """

    moments_mub: NDArray[np.float64]
    charges: NDArray[np.float64]
    chemical_potential_ev: float


@dataclass(frozen=True, slots=True, eq=False)
class MomentResidual:
    """Computed against given moments, atom by atom.

    labels : species of each atom. given_mub, computed_mub : (n, 3).
    compared : (n,) atoms whose given moment means something; the moments of the others are a result of H alone.
    size_mub : (n,) |computed| − |given|; NaN where not compared.
    angle_deg : (n,) between them, 0 … 180; NaN where not compared or where one of them has no direction.
    """

    labels: tuple[str, ...]
    given_mub: NDArray[np.float64]
    computed_mub: NDArray[np.float64]
    compared: NDArray[np.bool_]
    size_mub: NDArray[np.float64]
    angle_deg: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """Keys as documented in ``docs/json.md``; null where nothing is compared."""
        labels, found = np.array(self.labels), np.linalg.norm(self.computed_mub, axis=1)
        species = []
        for label in dict.fromkeys(self.labels):
            here = labels == label
            species.append(
                {
                    "label": label,
                    "n_atoms": int(here.sum()),
                    "n_compared": int((here & self.compared).sum()),
                    "computed_size_mean_muB": float(found[here].mean()),
                    **self._figures(here),
                }
            )
        atoms = [
            {
                "label": label,
                "given_muB": self.given_mub[a].tolist(),
                "computed_muB": self.computed_mub[a].tolist(),
                "size_muB": float(self.size_mub[a]),
                "angle_deg": float(self.angle_deg[a]),
            }
            for a, label in enumerate(self.labels)
        ]
        return {**self._figures(self.compared), "species": species, "atoms": atoms}

    def _figures(self, atoms: NDArray[np.bool_]) -> dict[str, float | None]:
        """Mean and worst of |size| and angle of some atoms."""
        figures: dict[str, float | None] = {}
        for name, values in (("size", np.abs(self.size_mub[atoms])), ("angle", self.angle_deg[atoms])):
            known = values[~np.isnan(values)]
            unit = {"size": "muB", "angle": "deg"}[name]
            figures[f"{name}_mean_{unit}"] = float(known.mean()) if len(known) else None
            figures[f"{name}_worst_{unit}"] = float(known.max()) if len(known) else None
        return figures


def computed_moments(
    hamiltonian: BlockOperator,
    overlap: BlockOperator,
    k_frac: ArrayLike,
    n_electrons: float,
    *,
    temperature_k: float = 300.0,
) -> ComputedMoments:
    """Charges and spin moments of the density matrix that the states of H at k_frac (n_k, 3), of equal weight, make.

    m_A = Σ_nk f_nk Re Σ_{a in A} c_a† σ (S c)_a / N_k: the real part is the average of row and column sums, as in
    :func:`hamnet.sample.mulliken`. Dense diagonalisation, O(n_k n_orbitals³).

    Raises :class:`HamnetError` for a Hamiltonian without spin, :class:`SolverError` where the states cannot hold the
    electrons.
    """
    if hamiltonian.n_spin == 1:
        raise HamnetError("a Hamiltonian without spin", expected="one that can have moments")
    atom = torch.from_numpy(np.repeat(np.arange(hamiltonian.pairs.n_atoms), np.diff(hamiltonian.orbital_offsets)))
    energies, populations = [], []
    # ↑ and ↓ of the two channels of a collinear Hamiltonian.
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None, None]
    for states in eigenstates(hamiltonian, overlap, k_frac):
        energies.append(states.energies.cpu().numpy())
        found = spin_populations(
            states.vectors,
            states.overlap @ states.vectors,
            atom,
            hamiltonian.pairs.n_atoms,
            spinor=hamiltonian.n_spin == 4,
            sign=sign.to(states.energies),
        )
        populations.append(found.cpu().numpy())
    levels = np.concatenate(energies)  # (n_k, n_channel, n)
    n_states = levels[0].size
    if not 0 < n_electrons < n_states:
        raise SolverError(f"{n_electrons} electrons for {n_states} states per cell", expected=f"0 … {n_states}")
    mu = chemical_potential(levels, n_electrons * len(levels), temperature_k)
    filled = occupations(levels, mu, temperature_k) / len(levels)
    summed = np.einsum("kcn,kcnas->as", filled, np.concatenate(populations))
    return ComputedMoments(frozen(summed[:, 1:], np.float64), frozen(summed[:, 0], np.float64), mu)


def spin_populations(
    vectors: Tensor, along: Tensor, atom: Tensor, n_atoms: int, *, spinor: bool, sign: Tensor | float = 0.0
) -> Tensor:
    """(..., n, n_atoms, 4) Mulliken electrons and spin x, y, z of states on atoms.

    Parameters
    ----------
    vectors, along : (..., dim, n) c and S c, spin fast where they are spinors. atom : (n_orbitals,) of each orbital.
    sign : of the spin z of states that are no spinors: 1 for ↑, −1 for ↓; broadcast against (..., n_orbitals, n).
    """
    if not spinor:
        electrons = (vectors.conj() * along).real
        zero = torch.zeros_like(electrons)
        by_orbital = torch.stack([electrons, zero, zero, sign * electrons], dim=-1)
    else:
        up, down = vectors[..., 0::2, :].conj(), vectors[..., 1::2, :].conj()
        s_up, s_down = along[..., 0::2, :], along[..., 1::2, :]
        z, flip, flop = up * s_up, up * s_down, down * s_up
        w = down * s_down
        by_orbital = torch.stack([(z + w).real, (flip + flop).real, (flip - flop).imag, (z - w).real], dim=-1)
    axis = by_orbital.dim() - 3
    shape = (*by_orbital.shape[:axis], n_atoms, *by_orbital.shape[axis + 1 :])
    summed = by_orbital.new_zeros(shape).index_add(axis, atom.to(by_orbital.device), by_orbital)
    return summed.transpose(axis, axis + 1)


def moment_residual(
    labels: Sequence[str], given_mub: ArrayLike, computed_mub: ArrayLike, *, is_input: ArrayLike
) -> MomentResidual:
    """Compare moments (n, 3).

    is_input : (n,) atoms whose moments determine H: these are compared. Those of the others are induced; they are
        compared where a moment is given, since a wrong one is then a claim that H contradicts.
    """
    given, computed = np.asarray(given_mub, np.float64), np.asarray(computed_mub, np.float64)
    sizes, found = np.linalg.norm(given, axis=1), np.linalg.norm(computed, axis=1)
    compared = np.asarray(is_input, bool) | (sizes > _LEAST_MUB)
    angle = np.degrees(np.arctan2(np.linalg.norm(np.cross(given, computed), axis=1), (given * computed).sum(axis=1)))
    directed = compared & (sizes > _LEAST_MUB) & (found > _LEAST_MUB)
    return MomentResidual(
        tuple(labels),
        frozen(given, np.float64),
        frozen(computed, np.float64),
        frozen(compared, np.bool_),
        frozen(np.where(compared, found - sizes, np.nan), np.float64),
        frozen(np.where(directed, angle, np.nan), np.float64),
    )


@dataclass(frozen=True, slots=True)
class NormalResidual:
    """What residuals of one species are like where DFT knows the answer.

    size_mub : smallest and largest |computed| − |given|. angle_deg : largest angle. n_atoms : how many were looked at.
    """

    size_mub: tuple[float, float]
    angle_deg: float
    n_atoms: int

    @classmethod
    def of(cls, residuals: Sequence[MomentResidual]) -> dict[str, Self]:
        """By species, from the residuals of several crystals; species that were never compared are left out."""
        labels = np.array([label for r in residuals for label in r.labels])
        compared = np.concatenate([r.compared for r in residuals])
        sizes, angles = (np.concatenate([getattr(r, name) for r in residuals]) for name in ("size_mub", "angle_deg"))
        result = {}
        for label in np.unique(labels[compared]).tolist():
            here = compared & (labels == label)
            angle = float(np.nanmax(angles[here], initial=0.0))
            result[label] = cls((float(sizes[here].min()), float(sizes[here].max())), angle, int(here.sum()))
        return result


def unusual_atoms(residual: MomentResidual, normal: Mapping[str, NormalResidual]) -> NDArray[np.bool_]:
    """(n,) atoms whose residual is clearly beyond the normal ones of their species.

    Clearly: in size by more than 0.05 μ_B, or the width of the normal interval if that is larger; in angle by more than
    3° and more than half of the largest normal one. Species of which nothing is known are held against a residual of 0.
    """
    unknown = NormalResidual((0.0, 0.0), 0.0, 0)
    known = [normal.get(label, unknown) for label in residual.labels]
    low, high = np.array([n.size_mub for n in known]).T
    margin = np.maximum(_MARGIN_MUB, high - low)
    largest = np.array([n.angle_deg for n in known])
    # NaN, where nothing is compared, is never beyond.
    size = (residual.size_mub < low - margin) | (residual.size_mub > high + margin)
    return size | (residual.angle_deg > largest + np.maximum(_MARGIN_DEG, largest / 2))
