"""What a prediction will take: tiles that fit into the memory, and the time of the first ones on this machine."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np
import torch

from hamnet.errors import HamnetError
from hamnet.models.hamiltonian import HamiltonianModel
from hamnet.models.irreps import ALGEBRAS
from hamnet.models.readout import n_parts

from .tiles import Crystal, HalfPairs, blocks_of_tile, features_of_tile

__all__ = ["LARGEST", "Forecast", "Memory", "Tile", "Trial", "fitting_tile", "memory_bytes", "peak_bytes", "run_trial"]

WRITE_BYTES = 2**26
"""Memory of the step that puts the blocks in order."""


@dataclass(frozen=True, slots=True)
class Tile:
    """How many atoms and how many pairs are computed at once. No result depends on it beyond rounding."""

    n_atoms: int
    n_pairs: int


LARGEST = {"cpu": Tile(64, 256), "cuda": Tile(2048, 16384)}
"""On a processor tiles whose tensors stay in its cache are fastest; a GPU wants large ones."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a prediction will take, told before it starts.

    finished : part of the network's work that an earlier, killed call has done. seconds : for the rest, from small
    tiles timed on this machine. memory_gb : of all processes together, an upper guess. disk_gb : while it runs.
    """

    n_atoms: int
    n_pairs: int
    tile: Tile
    finished: float
    seconds: float
    memory_gb: float
    disk_gb: float


@dataclass(frozen=True, slots=True)
class Trial:
    """Time and shape of what the network gives, from a small tile.

    atom_s : seconds per atom for each round of messages. pair_s : per pair, direction by direction.
    features : shape of an atom and dtype, after each round. n_spin, dtype : of the blocks.
    """

    atom_s: tuple[float, ...]
    pair_s: float
    features: tuple[tuple[tuple[int, ...], np.dtype], ...]
    n_spin: int
    dtype: np.dtype


def run_trial(model: HamiltonianModel, crystal: Crystal, half: HalfPairs, tile: Tile) -> Trial:
    """Compute a part of a tile on features of zeros, whose time is that of any others."""
    n_atoms = len(crystal.species)
    # Where all is done in seconds, a good forecast is not worth its time: the first call meets cold caches, and small
    # tiles are slow.
    calls, part = (1, 16) if n_atoms < 16 * tile.n_atoms else (2, 4)
    atoms = slice(0, min(n_atoms, ceil(tile.n_atoms / part)))
    known, atom_s, features = None, [], []
    for layer in range(model.config.n_layers):
        seconds, values = _timed(calls, partial(features_of_tile, model, crystal, layer, atoms, known))
        atom_s.append(seconds / len(values))
        features.append((values.shape[1:], values.dtype))
        known = np.broadcast_to(np.zeros_like(values[:1]), (n_atoms, *values.shape[1:]))
    assert known is not None
    group = max(half.groups, key=lambda g: g.stop - g.start)
    pairs = slice(group.start, min(group.stop, group.start + ceil(tile.n_pairs / part)))
    seconds, blocks = _timed(calls, partial(blocks_of_tile, model, crystal, group, pairs, known))
    pair_s = seconds / len(blocks) / directions(group.row_species, group.col_species)
    return Trial(tuple(atom_s), pair_s, tuple(features), blocks.shape[1], blocks.dtype)


def directions(row_species: int, col_species: int) -> int:
    """How many directions of a pair are computed: both for equal species, see :mod:`hamnet.predict.tiles`."""
    return 2 if row_species == col_species else 1


def _timed(calls: int, function: Callable[[], torch.Tensor]) -> tuple[float, np.ndarray]:
    """(seconds of the last call, array)."""
    seconds, values = 0.0, np.zeros(0)
    for _ in range(calls):
        started = time.perf_counter()
        values = function().cpu().numpy()
        seconds = time.perf_counter() - started
    return seconds, values


@dataclass(frozen=True, slots=True)
class Memory:
    """Where the memory goes. held : this process, before it computes. worker : each worker, before it computes."""

    held: int
    worker: int
    workers: int

    def total(self, model: HamiltonianModel, crystal: Crystal, tile: Tile) -> int:
        """Bytes of all processes together while tiles of this size are computed, an upper guess."""
        need = _tile_bytes(model, crystal, tile)
        own = WRITE_BYTES + (0 if self.workers else need)  # both: the allocator gives little back
        return self.held + own + self.workers * (self.worker + need)


def fitting_tile(model: HamiltonianModel, crystal: Crystal, memory: Memory, limit_gb: float, largest: Tile) -> Tile:
    """The largest tile that the memory allows: `largest` halved as often as needed.

    Raises :class:`HamnetError` where not even one atom and one pair fit, with the least that would do.
    """
    tile = largest
    while not _fits(model, crystal, memory, limit_gb, tile):
        if tile == Tile(1, 1):
            least = ceil(100 * memory.total(model, crystal, tile) / 2**30) / 100
            several = f", or fewer than {memory.workers} workers" if memory.workers else ""
            raise HamnetError(
                f"{limit_gb:g} GB of memory",
                expected=f"at least {least:g} GB for {len(crystal.species)} atoms",
                remedy=f"give --memory-gb {least:g} or more{several}",
            )
        tile = Tile(max(1, tile.n_atoms // 2), max(1, tile.n_pairs // 2))
    return tile


def _fits(model: HamiltonianModel, crystal: Crystal, memory: Memory, limit_gb: float, tile: Tile) -> bool:
    device = model.edge_species.device
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        on_device = max(1, memory.workers) * _tile_bytes(model, crystal, tile)
        if on_device > free / 2 and tile != Tile(1, 1):
            return False
    return memory.total(model, crystal, tile) <= limit_gb * 2**30


def _tile_bytes(model: HamiltonianModel, crystal: Crystal, tile: Tile) -> int:
    """An upper guess: features in and out of an edge network, a few of each, two rotations; products on atoms.

    Half as much again for what the allocator keeps.
    """
    c, q = model.config, ALGEBRAS[model.config.mode].n_components
    size = torch.finfo(model.edge_species.dtype).bits // 8
    low, high = (c.l_max + 1) ** 2, (model.l_readout + 1) ** 2
    edge = 12 * low * q * c.hidden + 3 * low**2
    pair = 12 * high * q * max(c.hidden, c.pair_channels) + 3 * high**2
    product = 6 * q * max(c.channels * low * high, c.product_channels * high**2)
    orbitals = int(model.basis.n_orbitals.max())
    block = 6 * n_parts(c.mode) * orbitals**2
    neighbours = int(np.diff(crystal.edge_start).max(initial=0))
    atoms = tile.n_atoms * ((neighbours + 1) * edge + product)
    seen = 2 * q * c.channels + model.two_centre.n_self
    pair += 2 * high * q * c.n_two_centre
    pairs = tile.n_pairs * (2 * (pair + block) + high * seen) + min(tile.n_pairs, tile.n_atoms) * product
    return 3 * size * max(atoms, pairs) // 2


def memory_bytes() -> int:
    """What this process holds now."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """The most that this process ever held."""
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: it counts what the parent held when it started this process.
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
