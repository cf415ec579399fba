"""Samples that are the same input of the network, and whether their labels agree."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree

from hamnet.basis import Basis
from hamnet.errors import StructureError
from hamnet.structure import Structure
from hamnet.symmetry import match_atoms
from hamnet.units import MEV_PER_EV

from .samples import SampleList

__all__ = ["Disagreement", "Twins", "disagreement", "find_twins", "match"]

_POSITION_ANG = 1e-3
_MOMENT_MUB = 1e-3
_N_WAVES = 2
_REACH = 0.02
"""How much descriptors of equal inputs may differ, per √n_atoms: tolerance times |G| times the size of a moment."""


@dataclass(frozen=True, slots=True)
class Twins:
    """Two samples of one input: atom ``order[a]`` of `second`, moved by the lattice vector ``shifts[a]``, is atom a of
    `first`, up to one translation of all."""

    first: int
    second: int
    order: NDArray[np.int64]
    shifts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How far two Hamiltonians of one input are apart, in meV: the largest and the mean |ΔH| of a complex element of a
    Pauli block, and the largest that is left after the best μS, None where no overlap is stored."""

    largest_mev: float
    mean_mev: float
    largest_mu_aligned_mev: float | None


def find_twins(
    samples: SampleList,
    basis: Basis,
    magnetic: Collection[str],
    *,
    sizes: bool = True,
    others: SampleList | None = None,
) -> Iterator[Twins]:
    """Pairs of samples with equal species, cells and, within 1e-3 Å, positions, and with equal moments of `magnetic`
    species within 1e-3 μ_B, up to a translation and the order of the atoms. Each sample is paired with the first one
    that is equal to it.

    sizes : whether the sizes of moments are an input beside their directions.
    others : where given, its samples are the second ones.
    """
    lists = (samples,) if others is None else (samples, others)
    structures = [s for entry in lists for s in entry.structures()]
    is_input = np.array([label in magnetic for label in basis.labels])
    inputs = []
    for structure in structures:
        species = basis.species_of(structure)
        moments = np.zeros((len(structure), 3)) if structure.moments is None else structure.moments
        if not sizes:
            lengths = np.linalg.norm(moments, axis=1, keepdims=True)
            moments = np.divide(moments, lengths, where=lengths > 0, out=np.zeros_like(moments))
        inputs.append((structure, species, moments * is_input[species][:, None]))
    n_first = 0 if others is None else len(samples)
    by_atoms: dict[tuple, list[int]] = {}
    for index, (_, species, _) in enumerate(inputs):
        by_atoms.setdefault(tuple(np.bincount(species)), []).append(index)
    for members in by_atoms.values():
        points = np.array([_descriptor(*inputs[index]) for index in members])
        reach = _REACH * np.sqrt(len(structures[members[0]]))
        tree = KDTree(points)
        for place, second in enumerate(members):
            if second < n_first:
                continue
            near = sorted(members[p] for p in tree.query_ball_point(points[place], reach, p=np.inf))
            for first in near:
                if first >= (n_first or second):
                    break
                found = match(inputs[first], inputs[second])
                if found is not None:
                    yield Twins(first, second - n_first, *found)
                    break


def _descriptor(structure: Structure, species: NDArray, moments: NDArray) -> NDArray[np.float64]:
    """Cell, and moduli of a few Fourier components of species and moments: no translation or renumbering changes them.

    Only a first sieve: what passes is compared atom by atom.
    """
    fractional = structure.fractional_positions
    waves = np.stack(np.meshgrid(*[np.arange(_N_WAVES)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    phases = np.exp(2j * np.pi * fractional @ waves.T)  # (n_atoms, n_waves)
    values = [structure.cell.ravel()]
    fields = [(species == kind).astype(float) for kind in np.unique(species)] + list(moments.T)
    values += [np.abs(field @ phases) / np.sqrt(len(structure)) for field in fields]
    return np.concatenate(values)


def match(
    first: tuple[Structure, NDArray, NDArray], second: tuple[Structure, NDArray, NDArray]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """(order, shifts) that make `second` equal `first` up to one translation, or None.

    Each is (structure, species, moments that are an input). Cells must agree as they stand.
    """
    (a, species_a, moments_a), (b, species_b, moments_b) = first, second
    if not np.allclose(a.cell, b.cell, rtol=0, atol=_POSITION_ANG) or not np.array_equal(a.pbc, b.pbc):
        return None
    kinds, counts = np.unique(species_a, return_counts=True)
    rare = kinds[counts.argmin()]
    anchor = int(np.flatnonzero(species_a == rare)[0])
    for candidate in np.flatnonzero(species_b == rare).tolist():
        try:
            moved = b.translated(a.positions[anchor] - b.positions[candidate])
            order, shifts = match_atoms(moved, a, tolerance_ang=2 * _POSITION_ANG)
        except StructureError:
            continue
        distance = np.linalg.norm(moments_a - moments_b[order], axis=1).max()
        if distance < _MOMENT_MUB and np.array_equal(species_a, species_b[order]) and not shifts[:, ~a.pbc].any():
            return order, shifts
    return None


def disagreement(firsts: SampleList, seconds: SampleList, basis: Basis, twins: Twins) -> Disagreement:
    """Of the two Hamiltonians, on the pairs of the first."""
    h = firsts.operator(twins.first, "hamiltonian", basis)
    moved = seconds.operator(twins.second, "hamiltonian", basis).permuted(twins.order, twins.shifts)
    difference = (h - moved.with_pairs(h.pairs)).blocks
    sizes = torch.cat([d.abs().flatten() for d in difference])
    largest, mean = float(sizes.max()) * MEV_PER_EV, float(sizes.mean()) * MEV_PER_EV
    if not firsts.has(twins.first, "overlap"):
        return Disagreement(largest, mean, None)
    overlap = firsts.operator(twins.first, "overlap", basis).with_pairs(h.pairs).with_spin(h.n_spin).blocks
    product = sum(float((d.real * o).sum()) for d, o in zip(difference, overlap, strict=True))
    mu = product / sum(float((o**2).sum()) for o in overlap)
    aligned = max(float((d - mu * o).abs().max()) for d, o in zip(difference, overlap, strict=True))
    return Disagreement(largest, mean, aligned * MEV_PER_EV)
