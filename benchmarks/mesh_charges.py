"""How many electrons of each atom are due to the mesh of k points that a DFT run was made with.

The Mulliken electrons of the run's own Hamiltonian, filled on the given meshes and on a dense one. It is not the error
of a self-consistent run, but what drives it; runs of one crystal in unlike cells have unlike meshes, and labels that
differ by that.

    python benchmarks/mesh_charges.py [RUN or ARCHIVE.tar.xz] [--mesh 4 7 1 …] [--dense 8 14 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from reading import ROOT, environment, scfout_files

from hamnet.errors import ConfigError
from hamnet.sample import Sample
from hamnet.verify import computed_moments
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.protocol import ReadOptions

EXAMPLE = ROOT / "examples" / "nibr2" / "nibr2_2x1.tar.xz"


def mesh(counts: list[int]) -> NDArray[np.float64]:
    """(n, 3) Γ-centred, fractional."""
    return np.stack(np.meshgrid(*(np.arange(n) / n for n in counts), indexing="ij"), axis=-1).reshape(-1, 3)


def electrons(sample: Sample, counts: list[int]) -> NDArray[np.float64]:
    """(n_atoms,) Mulliken electrons of the states on a mesh."""
    if sample.n_electrons is None:
        raise ConfigError(f"{sample.name} without a number of electrons", expected="a run that prints it")
    h, s = sample.operator("hamiltonian"), sample.operator("overlap")
    return computed_moments(h, s, mesh(counts), sample.n_electrons).charges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=EXAMPLE, help="the first run of an archive (%(default)s)")
    parser.add_argument("--mesh", type=int, nargs=3, action="append", help="may be repeated (4 7 1)")
    parser.add_argument("--dense", type=int, nargs=3, default=[8, 14, 1])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = scfout_files([args.run], Path(scratch))[0]
        sample = OpenMXReader().read(path.parent, ReadOptions(operators=frozenset())).sample
    dense, results = electrons(sample, args.dense), []
    for counts in args.mesh or [[4, 7, 1]]:
        excess = (electrons(sample, counts) - dense).tolist()
        words = (f"{label} {1e5 * n:.1f}" for label, n in zip(sample.structure.labels, excess, strict=True))
        print(f"{'×'.join(map(str, counts))}: 1e-5 electrons too many: {', '.join(words)}")
        results.append({"mesh": counts, "excess_electrons": excess})
    if args.json:
        results = {"environment": environment(), "run": sample.name, "dense": args.dense, "meshes": results}
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
