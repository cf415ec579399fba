"""What the tests of the SIESTA reader share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamnet.blocks import BlockOperator
from hamnet.structure import Structure
from hamnet.symmetry import match_atoms, rotate
from preprocessing.readers.protocol import ReadOptions, Run
from preprocessing.readers.siesta import SiestaReader

SMALL = (
    "fe_bcc_nc_a060",
    "fe_collinear_c00",
    "fept_soc_2x1x1_c01",
    "fept_soc_sym_base",
    "fept_soc_sym_rot",
    "si_none_c00",
)


@cache
def read(folder: Path, moments: str = "auto") -> Run:
    """A run; tests share it and change nothing."""
    return SiestaReader().read(folder, ReadOptions(moments=moments))  # type: ignore[arg-type]


def copied(run: Path, into: Path, *, without: Callable[[str], bool] = lambda name: False) -> Path:
    """A copy of a run folder to be changed, without the files whose name is chosen."""
    target = into / run.name
    shutil.copytree(run, target, ignore=lambda _, names: [n for n in names if without(n)])
    return target


def is_run_netcdf(name: str) -> bool:
    """``label.nc``, not ``label.ion.nc``."""
    return name.endswith(".nc") and not name.endswith(".ion.nc")


def mapped(
    operator: BlockOperator, structure: Structure, rotation: NDArray, target: Structure
) -> tuple[BlockOperator, Structure]:
    """The operator of the turned crystal in the cell and with the atom order of `target`, the same crystal."""
    turned = structure.rotated(rotation)
    change = np.rint(turned.cell @ np.linalg.inv(target.cell)).astype(np.int64)
    assert np.abs(change @ target.cell - turned.cell).max() < 1e-6, "another lattice"
    operator = rotate(operator, rotation)
    pairs = operator.pairs
    operator = operator.relabelled(pairs.species, pairs.row, pairs.col, pairs.shift @ change)
    turned = replace(turned, cell=target.cell)
    order, shifts = match_atoms(turned, target)
    return operator.permuted(order, shifts), turned.permuted(order, shifts)
