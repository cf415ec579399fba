"""How many electrons of each atom are due to the mesh of k points that a DFT run was made with.

The Mulliken electrons of the run's own Hamiltonian, filled on the given meshes and on a dense one. It is not the error
of a self-consistent run, but what drives it; runs of one crystal with unlike cells have unlike meshes, and labels that
differ by that.

    python benchmarks/mesh_charges.py RUN --mesh 4 7 1 [--mesh …] --dense 16 16 1
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamnet.cli.sources import load_source
from hamnet.verify import computed_moments


def mesh(counts: list[int]) -> NDArray[np.float64]:
    """(n, 3) Γ-centred, fractional."""
    return np.stack(np.meshgrid(*(np.arange(n) / n for n in counts), indexing="ij"), axis=-1).reshape(-1, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--mesh", type=int, nargs=3, action="append", required=True)
    parser.add_argument("--dense", type=int, nargs=3, required=True)
    args = parser.parse_args()
    sample = load_source(args.run).sample
    assert sample.n_electrons is not None

    def electrons(counts: list[int]) -> NDArray[np.float64]:
        h, s = sample.operator("hamiltonian"), sample.operator("overlap")
        return computed_moments(h, s, mesh(counts), sample.n_electrons).charges

    dense = electrons(args.dense)
    for counts in args.mesh:
        off = 1e5 * (electrons(counts) - dense)
        words = (f"{label} {value:.1f}" for label, value in zip(sample.structure.labels, off, strict=True))
        print(f"{'×'.join(map(str, counts))}: 1e-5 electrons too many: {', '.join(words)}")


if __name__ == "__main__":
    main()
