"""Superlattices of real layers: tiled NiBr2 whose atoms are turned in spin space, one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from hamnet.blocks import BlockOperator
from hamnet.sample import Sample
from hamnet.supercell import tile_operator
from postprocess.solvers.backends import BACKENDS
from postprocess.solvers.factor import Analysis
from postprocess.solvers.pardiso import mkl_library
from postprocess.solvers.pencil import SparsePencil
from preprocessing.readers import read_run
from preprocessing.readers.protocol import ReadOptions

Tiled = Callable[..., tuple[BlockOperator, BlockOperator]]


def turned(hamiltonian: BlockOperator, angle_rad: float, seed: int) -> BlockOperator:
    """Each on-site block turned in spin space about a random axis by about this angle."""
    pairs = hamiltonian.pairs
    axes = np.random.default_rng(seed).normal(size=(pairs.n_atoms, 3)) * angle_rad / np.sqrt(3)
    turns = torch.from_numpy(Rotation.from_rotvec(axes).as_matrix())
    blocks = []
    for group, block in zip(pairs.groups, hamiltonian.blocks, strict=True):
        here = np.flatnonzero(pairs.is_self[group.pairs])
        block = block.clone()
        atoms = torch.as_tensor(pairs.row[group.pairs][here])
        block[here, 1:] = torch.einsum("nvw,nwab->nvab", turns[atoms].to(block.dtype), block[here, 1:])
        blocks.append(block)
    return BlockOperator(hamiltonian.basis, pairs, tuple(blocks))


def _softened(overlap: BlockOperator, by: float) -> BlockOperator:
    blocks = []
    for group, block in zip(overlap.pairs.groups, overlap.blocks, strict=True):
        here = np.flatnonzero(overlap.pairs.is_self[group.pairs])
        block = block.clone()
        block[here, 0] -= by * torch.eye(block.shape[-2], block.shape[-1], dtype=block.dtype)
        blocks.append(block)
    return BlockOperator(overlap.basis, overlap.pairs, tuple(blocks))


@pytest.fixture(scope="session")
def softened() -> Callable[[BlockOperator, float], BlockOperator]:
    """``softened(overlap, by)``: S − by·1, soft for `by` just below its smallest eigenvalue, indefinite above."""
    return _softened


@pytest.fixture(scope="session")
def layer(tracked) -> Callable[[str], Sample]:
    """``layer("nibr2_1x1_nc")``: the sample of a tracked set with a single run."""

    @cache
    def read(name: str) -> Sample:
        folder: Path = tracked(f"openmx/{name}")
        runs = sorted(path.parent for path in folder.rglob("*.scfout*"))
        return read_run(runs[0], ReadOptions(operators=frozenset())).sample

    return read


@pytest.fixture(scope="session")
def tiled(layer) -> Tiled:
    """``tiled(n1, n2, angle_rad=0.1, layer="nibr2_1x1_nc")``: H and S of n1 × n2 cells, atoms turned in spin space."""

    @cache
    def build(n1: int, n2: int, angle_rad: float = 0.1, name: str = "nibr2_1x1_nc"):
        sample = layer(name)
        h, s = (tile_operator(o, np.diag([n1, n2, 1])) for o in (sample.hamiltonian, sample.overlap))
        return (turned(h, angle_rad, seed=0) if angle_rad else h), s

    return build


@pytest.fixture(scope="session")
def superlattice(tiled) -> Callable[..., SparsePencil]:
    """The pencil of `tiled`."""
    return cache(lambda *args, **kwargs: SparsePencil(*tiled(*args, **kwargs)))


@pytest.fixture(params=list(BACKENDS))
def backend(request) -> Callable[[SparsePencil], Analysis]:
    if request.param == "mkl" and mkl_library() is None:
        pytest.skip("needs the package mkl: pip install 'hamnet[mkl]'")
    return BACKENDS[request.param]
