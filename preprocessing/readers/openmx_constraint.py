"""The penalty that fixes moment directions (``scf.Constraint.NC.Spin on``) and sits inside the stored H.

E = V Σ_A (|m_A|² − |m_A| m_A·e_A) over the flagged atoms, with the target direction e_A and V in energy per μ_B².
In H it is (b_A + b_B)/2 · σ S_AB.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .openmx_scfout import Scfout

__all__ = ["constraint_energy", "constraint_field", "subtract_penalty"]


def constraint_field(
    moments: NDArray[np.float64], directions: NDArray[np.float64], constrained: NDArray[np.bool_], strength: float
) -> NDArray[np.float64]:
    """(n, 3) fields b_A as the code puts them into H, in the unit of `strength`; zero for atoms without flag.

    With c = m·e/|m|: b = V[(2 − c) m − |m| e], the derivative of the penalty, for x and z; but the code has
    b_y = V[c m_y − |m| e_y], which differs in second order of the misalignment. The field of the code is what stands
    in H, so that is what must be taken out.

    Parameters
    ----------
    moments : (n, 3) μ_B, the average of row and column sums (:func:`hamnet.sample.mulliken`).
    directions : (n, 3) unit vectors e.
    constrained : (n,) flags.
    """
    size = np.linalg.norm(moments, axis=1, keepdims=True)
    along = np.sum(moments * directions, axis=1, keepdims=True)
    cosine = np.divide(along, size, out=np.ones_like(size), where=size > 1e-12)
    factor = np.concatenate([2 - cosine, cosine, 2 - cosine], axis=1)
    return np.where(constrained[:, None], strength * (factor * moments - size * directions), 0.0)


def constraint_energy(
    moments: NDArray[np.float64], directions: NDArray[np.float64], constrained: NDArray[np.bool_], strength: float
) -> float:
    """The penalty itself, printed as ``Ucs.``; unit of `strength`."""
    size = np.linalg.norm(moments, axis=1)
    return float(strength * np.sum((size**2 - size * np.sum(moments * directions, axis=1))[constrained]))


def subtract_penalty(
    rows: NDArray[np.complex128], field_ev: NDArray[np.float64], overlap_row: NDArray[np.float64], raw: Scfout
) -> None:
    """Take (b_A + b_B)/2 · σ S_AB out of the rows (4, total) of H in eV, in place."""
    bond_field = (field_ev[raw.row] + field_ev[raw.col]) / 2
    for axis in range(3):
        rows[1 + axis].real -= np.repeat(bond_field[:, axis], np.diff(raw.start)) * overlap_row
