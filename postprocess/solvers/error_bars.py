"""Errors of levels from errors of the elements of a predicted H, and states in which they are amplified.

To first order a level moves by δE = Σ c_A† δH_AB c_B over the blocks of H. Two things are known of δH: how large it is
on each bond, and that a model makes much the same error on bonds that look the same. So errors of bonds between the
same species along the same vector are added up as they are, those of different bonds in squares:

    σ_E² = Σ_vectors (Σ_bonds σ_AB)²,   σ_AB² = ½ [σ₀² (n_A n_B + s_A·s_B) + σ_v² (3 n_A n_B − s_A·s_B)],

n_A = Σ_{a in A} c_a†c_a, s_A = Σ c_a†σ c_a, σ₀ of the spin-free elements, σ_v² = σ_exchange² + σ_soc² of each of the
three others. Σ n_A = κ = c†c/c†Sc, so that σ_E grows with the softness of the state; it does not fall with the size of
the cell. An error μS of H, common to all levels, is not in it: compare levels with each other, or with their own Fermi
level. How far this is to be trusted: docs/error_bars.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hamnet.blocks import Pairs
from hamnet.calibration import PARTS
from hamnet.errors import HamnetError, StoreError
from hamnet.structure import Structure
from hamnet.units import MEV_PER_EV

from .pencil import SparsePencil
from .states import States

__all__ = ["BondErrors", "bond_errors", "ghost_states", "ghost_warning", "level_errors", "read_pair_errors"]

# Vectors that differ by less belong to bonds that look the same.
_SAME_ANG = 0.5
_GHOST = 5.0
# States whose bonds are summed at a time: some 100 MB of work space.
_CHUNK_ELEMENTS = 2**23


@dataclass(frozen=True, slots=True, eq=False)
class BondErrors:
    """Errors of the blocks of H.

    row, col : (n_pairs,) atoms. kind : (n_pairs,) bonds of one kind have one error. spin_free_ev, magnetic_ev :
    (n_pairs,) σ₀ and σ_v, root mean squares over the elements of one Pauli component.
    """

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    kind: NDArray[np.int64]
    spin_free_ev: NDArray[np.float64]
    magnetic_ev: NDArray[np.float64]


def bond_errors(structure: Structure, pairs: Pairs, error_ev: float | NDArray[np.float64], n_spin: int) -> BondErrors:
    """Errors of the pairs of H.

    Parameters
    ----------
    error_ev : (n_pairs, 3) by part as in :data:`hamnet.calibration.PARTS`, NaN where H has no such part; or one number,
        the root mean square error of the elements of the assembled matrix, the same for all of them.
    n_spin : of the Hamiltonian.
    """
    if np.ndim(error_ev) == 0:
        if not (np.isfinite(error_ev) and error_ev >= 0):
            raise HamnetError(f"an error of H of {error_ev} eV", expected="a number of 0 or more")
        # A matrix element is H_0 or H_x with another component added or subtracted.
        share = float(error_ev) / np.sqrt(1 if n_spin == 1 else 2)
        parts = np.tile([share, 0.0 if n_spin == 1 else share, 0.0], (len(pairs), 1))
    else:
        parts = np.nan_to_num(np.asarray(error_ev, np.float64))
        if parts.shape != (len(pairs), len(PARTS)):
            raise HamnetError(f"errors of shape {parts.shape}", expected=f"{(len(pairs), len(PARTS))}: the pairs of H")
    vectors = np.rint(pairs.vectors(structure.cell, structure.positions) / _SAME_ANG).astype(np.int64)
    species = np.column_stack([pairs.species[pairs.row], pairs.species[pairs.col]])
    _, kind = np.unique(np.column_stack([species, vectors]), axis=0, return_inverse=True)
    return BondErrors(pairs.row, pairs.col, kind.ravel(), parts[:, 0], np.hypot(parts[:, 1], parts[:, 2]))


def level_errors(states: States, pencil: SparsePencil, bonds: BondErrors) -> NDArray[np.float64]:
    """(n,) eV: standard deviation of each level against the others. `states` with their vectors."""
    if states.vectors is None:
        raise ValueError("states without vectors: solve with Keep(vectors=True)")
    density = _atom_densities(states.vectors, pencil)
    order = np.argsort(bonds.kind, kind="stable")
    row, col = bonds.row[order], bonds.col[order]
    starts = np.flatnonzero(np.diff(bonds.kind[order], prepend=-1))
    spin_free, magnetic = (x[order, None] ** 2 for x in (bonds.spin_free_ev, bonds.magnetic_ev))
    result = np.empty(len(states))
    step = max(1, _CHUNK_ELEMENTS // max(1, len(row)))
    for first in range(0, len(states), step):
        some = density[:, first : first + step]
        charge = some[row, :, 0] * some[col, :, 0]
        if pencil.spinor:
            spin = np.einsum("pnv,pnv->pn", some[row, :, 1:], some[col, :, 1:])
            square = (spin_free * (charge + spin) + magnetic * (3 * charge - spin)) / 2
        else:
            square = (spin_free + magnetic) * charge
        sums = np.add.reduceat(np.sqrt(np.maximum(square, 0)), starts, axis=0)
        result[first : first + step] = np.sqrt((sums**2).sum(axis=0))
    return result


def _atom_densities(vectors: NDArray[np.complex128], pencil: SparsePencil) -> NDArray[np.float64]:
    """(n_atoms, n, 4) c†c and c†σc of each atom; of states without spinors c†c alone counts."""
    if not pencil.spinor:
        by_orbital, offsets = (np.abs(vectors) ** 2)[..., None], pencil.atom_offsets
    else:
        up, down = vectors[0::2], vectors[1::2]
        flip = np.conj(up) * down
        n_up, n_down = np.abs(up) ** 2, np.abs(down) ** 2
        by_orbital = np.stack([n_up + n_down, 2 * flip.real, 2 * flip.imag, n_up - n_down], axis=-1)
        offsets = pencil.atom_offsets // 2
    return np.add.reduceat(by_orbital, offsets[:-1], axis=0)


# -- where errors of elements are known from ---------------------------------------------------------------------------


def read_pair_errors(path: str | Path, structure: Structure, pairs: Pairs) -> tuple[NDArray[np.float64], str]:
    """(n_pairs, 3) eV by part, and in words what they are.

    path : ``…_uncertainty.npz`` that ``hamnet predict`` wrote beside this very prediction, or the output of
        ``hamnet evaluate --json``, whose errors by distance are taken for any structure.

    Raises :class:`StoreError` for another file, or one of other pairs.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return _of_pairs({name: stored[name] for name in stored.files}, pairs, path)
        bins = json.loads(path.read_text(encoding="utf-8"))["mae_by_distance"]
        return _by_distance(bins, structure, pairs), f"errors by distance of {path.name}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"no errors of H ({type(error).__name__}: {error})",
            expected="a file …_uncertainty.npz of `hamnet predict`, or the output of `hamnet evaluate --json`",
            path=path,
        ) from error


def _of_pairs(arrays: dict[str, NDArray], pairs: Pairs, path: Path) -> tuple[NDArray[np.float64], str]:
    stored = np.column_stack([arrays["row"], arrays["col"], arrays["shift"]])
    wanted = np.column_stack([pairs.row, pairs.col, pairs.shift])
    places = [np.lexsort(keys.T[::-1]) for keys in (stored, wanted)]
    if stored.shape != wanted.shape or not np.array_equal(stored[places[0]], wanted[places[1]]):
        raise StoreError(
            f"errors of {len(stored)} pairs that are not the {len(wanted)} of H", expected="the file beside this H",
            path=path,
        )  # fmt: skip
    name = "expected_error" if f"expected_error_{PARTS[0]}_meV" in arrays else "spread"
    values = np.empty((len(wanted), len(PARTS)))
    values[places[1]] = np.column_stack([arrays[f"{name}_{part}_meV"] for part in PARTS])[places[0]] / MEV_PER_EV
    what = "expected errors" if name == "expected_error" else "bare spread (committee without calibration)"
    return values, f"{what} of {path.name}"


def _by_distance(bins: Sequence[dict[str, Any]], structure: Structure, pairs: Pairs) -> NDArray[np.float64]:
    """Bins of a table of `hamnet evaluate`; pairs farther apart than the last one get its errors."""
    table = np.array([[row[f"rmse_{part}_meV"] for part in PARTS] for row in bins], np.float64) / MEV_PER_EV
    onsite = np.array([row["to_ang"] == 0 for row in bins])
    lengths = np.linalg.norm(pairs.vectors(structure.cell, structure.positions), axis=1)
    ends = np.array([row["to_ang"] for row in bins], np.float64)[~onsite]
    if not onsite.any() or not len(ends) or (np.diff(ends) <= 0).any():
        raise ValueError("a table of distances without an on-site row or out of order")
    result = table[~onsite][np.minimum(np.searchsorted(ends, lengths, side="right"), len(ends) - 1)]
    result[pairs.is_self] = table[onsite][0]
    return result


# -- ghost states ------------------------------------------------------------------------------------------------------


def ghost_states(softness: NDArray[np.float64], *, threshold: float = _GHOST) -> NDArray[np.bool_]:
    """(n,) states whose κ = c†c/c†Sc is above `threshold` times the median: NaN, outside a window, is not."""
    if not threshold > 0:
        raise HamnetError(f"a threshold of {threshold}", expected="a positive factor")
    if not np.isfinite(softness).any():
        return np.zeros(np.shape(softness), bool)
    return np.nan_to_num(softness) > threshold * np.nanmedian(softness)


def ghost_warning(states: Sequence[States], *, threshold: float = _GHOST, limit: int = 5) -> str | None:
    """One sentence about the ghost states of windows of the same energies, or None where there are none."""
    if not any(len(state) for state in states):
        return None
    softness = np.concatenate([state.softness for state in states])
    energies = np.concatenate([state.energies_ev for state in states])
    found = np.flatnonzero(ghost_states(softness, threshold=threshold))
    if not len(found):
        return None
    worst = found[np.argsort(-softness[found])]
    some = ", ".join(f"{softness[n]:.3g} at {energies[n]:.4f} eV" for n in worst[:limit])
    more = f" and {len(worst) - limit} more" if len(worst) > limit else ""
    return (
        f"{len(found)} of {len(softness)} states lie in soft directions of the overlap, c†c/c†Sc above {threshold:g} "
        f"times the median of {np.median(softness):.3g}: {some}{more}. Errors of a predicted H move them that much "
        "more: they may be ghosts. Nothing was removed."
    )
