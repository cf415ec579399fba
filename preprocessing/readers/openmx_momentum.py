"""The sign of the stored derivative matrices: OpenMX 3.9 writes −⟨i| d/dx |j⟩, 4.0 writes +⟨i| d/dx |j⟩."""

from __future__ import annotations

import numpy as np

from hamnet.errors import ReaderError

from .openmx_scfout import Scfout

__all__ = ["momentum_sign", "overlap_decay_score"]

_DECISIVE = 0.1  # real files: 0.44 … 0.51


def overlap_decay_score(raw: Scfout) -> float:
    """Positive if `raw.momentum` is +⟨i| d/dx |j⟩, negative if it is −⟨i| d/dx |j⟩; about 0 without bonds.

    Moving atom j by d along the bond changes S_ij by −⟨i| d/dd |j⟩, and Σ S_ij² over two whole atoms, which depends on
    their distance only, decays with it: Σ_ij S_ij ⟨i| d/dd |j⟩ = −½ d/dd Σ_ij S_ij² > 0. Summed over the bonds of one
    atom and divided by the norms of both factors.
    """
    assert raw.momentum is not None
    # Pairs are sorted by row atom; the bonds of the one with most neighbours tell as much as all.
    atom = int(np.argmax(np.bincount(raw.row)))
    first, last = np.searchsorted(raw.row, [atom, atom + 1])
    row, col, shift = raw.row[first:last], raw.col[first:last], raw.shift[first:last]
    elements = slice(raw.start[first], raw.start[last])
    begin = raw.start[first:last] - raw.start[first]
    bond = raw.positions_bohr[col] + shift @ raw.cell_bohr - raw.positions_bohr[row]
    length = np.linalg.norm(bond, axis=1)
    apart = length > 0
    direction = np.divide(bond, length[:, None], out=np.zeros_like(bond), where=apart[:, None])
    overlap, momentum = raw.overlap[elements], raw.momentum[:, elements]
    product = np.add.reduceat(overlap * momentum, begin, axis=1)
    squares = (np.add.reduceat(v, begin)[apart].sum() for v in (overlap**2, np.square(momentum).sum(axis=0)))
    norm = float(np.sqrt(np.prod(list(squares))))
    return float(np.sum(product.T * direction)) / norm if norm > 0 else 0.0


def momentum_sign(raw: Scfout, version: str | None) -> float:
    """+1 or −1: what the stored matrices must be multiplied with to be ⟨i| d/dx |j⟩.

    The release decides (by its name, or by the tail that 3.9 writes and 4.0 does not), and the data must agree.
    """
    expected = 0.0
    if version is not None and version.startswith(("3.9", "4.")):
        expected = -1.0 if version.startswith("3.9") else 1.0
    elif raw.has_xc_tail:
        expected = -1.0
    score = overlap_decay_score(raw)
    if abs(score) < _DECISIVE:
        # Isolated atoms tell nothing; without a name and a tail it is 4.0.
        return expected or 1.0
    measured = float(np.sign(score))
    if expected and measured != expected:
        raise ReaderError(
            f"derivative matrices with sign {measured:+.0f} (score {score:+.2f}) from release "
            f"{version or 'unknown'} {'with' if raw.has_xc_tail else 'without'} exchange–correlation tail",
            expected=f"sign {expected:+.0f}",
            remedy="read without the operator 'momentum', and report this release",
            path=raw.path,
            place="record OLPmo",
        )
    return measured
