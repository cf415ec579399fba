"""Stages of a prediction, and the tiles of one: rows that are computed from what the stage before wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hamnet.errors import ModelError
from hamnet.models.hamiltonian import HamiltonianModel

from .partial import load_array, write_rows
from .tiles import Crystal, HalfGroup, blocks_of_tile, features_of_tile

__all__ = ["Stage", "compute_rows"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass over all atoms (a round of messages) or over the computed pairs of two species.

    name : of its array in the folder. shape : of a row. tile, task : rows computed, and handed out, at once.
    seconds : guess for one row. known : the array that it reads.
    """

    name: str
    step: str
    n_rows: int
    shape: tuple[int, ...]
    dtype: np.dtype
    tile: int
    task: int
    seconds: float
    known: str | None
    layer: int = 0
    group: HalfGroup | None = None


def compute_rows(folder: Path, stage: Stage, model: HamiltonianModel, crystal: Crystal, start: int, stop: int) -> None:
    """Compute rows `start` to `stop` of a stage, tile by tile, and write them. Raises :class:`ModelError` for NaN."""
    for first in range(start, stop, stage.tile):
        rows = slice(first, min(first + stage.tile, stop))
        # Mapped anew for each tile: pages of the file that were read do not pile up.
        known = None if stage.known is None else load_array(folder, stage.known)
        if stage.group is None:
            values = features_of_tile(model, crystal, stage.layer, rows, known)
        else:
            assert known is not None
            shift = stage.group.start
            pairs = slice(shift + rows.start, shift + rows.stop)
            values = blocks_of_tile(model, crystal, stage.group, pairs, known)
        if not bool(torch.isfinite(values).all()):
            raise ModelError(
                f"numbers that are not finite, in {stage.name} {rows.start} … {rows.stop - 1}",
                expected="a finite Hamiltonian",
                remedy="is the model sound? Try `hamnet evaluate` on a run that it was trained on",
            )
        write_rows(folder, stage.name, rows.start, values.cpu().numpy())
