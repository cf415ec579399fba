"""On which moments the on-site levels of magnetic atoms depend: those around the atom, or those of the whole cell.

For each shell of each magnetic species the mean on-site energy (spin-free, trace over m) is fitted, over all atoms of
all given runs, to a constant, to the local sum n_i = Σ_j e_i · e_j over nearest magnetic neighbours, to its mean over
the magnetic atoms of the cell, and to both. In cells with two magnetic sublattices the two are the same number in every
run: what such cells cannot tell apart, no training set made of them teaches.

    python benchmarks/onsite_levels.py RUN or ARCHIVE.tar.xz … [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from reading import environment, scfout_files

from hamnet.neighbours import pairs_within
from hamnet.sample import Sample
from hamnet.units import MEV_PER_EV
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.protocol import ReadOptions

_MAGNETIC_MU_B = 0.5
# Distances within this of the shortest one between magnetic atoms belong to the same shell of neighbours.
_SAME_SHELL_ANG = 0.3


def local_sums(sample: Sample) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Magnetic atoms (n,) and Σ_j e_i · e_j over their nearest magnetic neighbours (n,)."""
    structure = sample.structure
    assert structure.moments is not None
    size = np.linalg.norm(structure.moments, axis=1)
    magnetic = np.flatnonzero(size > _MAGNETIC_MU_B)
    row, col, shift = pairs_within(structure, np.linalg.norm(structure.cell, axis=1).max() * 1.01)
    away = structure.positions[col] + shift @ structure.cell - structure.positions[row]
    distance = np.linalg.norm(away, axis=1)
    kept = (distance > 0) & np.isin(row, magnetic) & np.isin(col, magnetic)
    kept &= distance < distance[kept].min() + _SAME_SHELL_ANG
    direction = structure.moments / np.maximum(size, 1e-9)[:, None]
    sums = np.zeros(len(size))
    np.add.at(sums, row[kept], np.einsum("nx,nx->n", direction[row[kept]], direction[col[kept]]))
    return magnetic, sums[magnetic]


def shell_levels(sample: Sample, atom: int) -> NDArray[np.float64]:
    """(n_shells,) mean on-site energies in eV."""
    h = sample.hamiltonian
    assert h is not None
    diagonal = h.block(atom, atom, (0, 0, 0))[0].real.diagonal().numpy()
    return np.array([diagonal[shell].mean() for shell in h.basis[int(h.pairs.species[atom])].shell_slices()])


def fitted(levels: NDArray[np.float64], terms: list[NDArray[np.float64]]) -> tuple[list[float], float]:
    """Coefficients of the terms and the root mean square of what they leave, both meV."""
    matrix = np.stack([np.ones(len(levels)), *terms], axis=1)
    values = levels * MEV_PER_EV
    coefficients = np.linalg.lstsq(matrix, values, rcond=None)[0]
    return coefficients[1:].tolist(), float(np.sqrt(np.mean((values - matrix @ coefficients) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", type=Path, metavar="RUN", help="runs in which the sums differ")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    args = parser.parse_args()
    local, mean, levels, labels = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for path in scfout_files(args.sources, Path(scratch)):
            sample = OpenMXReader().read(path.parent, ReadOptions(operators=frozenset())).sample
            atoms, sums = local_sums(sample)
            for atom, value in zip(atoms.tolist(), sums.tolist(), strict=True):
                local.append(value)
                mean.append(sums.mean())
                levels.append(shell_levels(sample, atom))
                labels.append(sample.structure.labels[atom])
    results = []
    for species in sorted(set(labels)):
        here = np.array(labels) == species
        terms = {"constant": [], "local": [local], "mean": [mean], "local and mean": [local, mean]}
        table = np.stack([level for level, kept in zip(levels, here, strict=True) if kept])
        for shell, values in enumerate(table.T):
            for name, kinds in terms.items():
                slopes, rms = fitted(values, [np.array(kind)[here] for kind in kinds])
                results.append(
                    {"species": species, "shell": shell, "terms": name, "slopes_meV": slopes, "rms_meV": rms}
                )
                text = ", ".join(f"{slope:.2f}" for slope in slopes)
                print(
                    f"{species} shell {shell}, {len(values)} atoms, {name:15s} rms {rms:7.3f} meV  slopes [{text}] meV"
                )
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "fits": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
