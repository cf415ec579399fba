"""How many electrons of each atom are due to the mesh of k points that a DFT run was made with.

The Mulliken electrons of the run's own Hamiltonian, filled on the given meshes and on a dense one. It is not the error
of a self-consistent run, but what drives it; runs of one crystal in unlike cells have unlike meshes, and labels that
differ by that.

With several runs it is also said how on-site levels go with the electrons of their atom (both of the dense mesh): a
slope over all atoms of a species, which tells the size of what such an excess does.

    python benchmarks/mesh_charges.py [RUN or ARCHIVE.tar.xz …] [--mesh 4 7 1 …] [--dense 8 14 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onsite_levels import shell_levels
from reading import ROOT, environment, scfout_files

from hamnet.errors import ConfigError
from hamnet.sample import Sample
from hamnet.verify import computed_moments
from postprocess.kmesh import k_mesh
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.protocol import ReadOptions

EXAMPLE = ROOT / "examples" / "nibr2" / "nibr2_2x1.tar.xz"


def electrons(sample: Sample, counts: list[int]) -> NDArray[np.float64]:
    """(n_atoms,) Mulliken electrons of the states on a mesh."""
    if sample.n_electrons is None:
        raise ConfigError(f"{sample.name} without a number of electrons", expected="a run that prints it")
    h, s = sample.operator("hamiltonian"), sample.operator("overlap")
    return computed_moments(h, s, k_mesh(counts).k_frac, sample.n_electrons).charges


def slopes(samples: list[Sample], charges: list[NDArray[np.float64]]) -> list[dict[str, object]]:
    """Straight lines through level over electrons, for the shells of each species; correlation beside the slope."""
    labels = np.concatenate([sample.structure.labels for sample in samples])
    electrons_all = np.concatenate(charges)
    levels = [shell_levels(sample, atom) for sample in samples for atom in range(len(sample.structure.labels))]
    found: list[dict[str, object]] = []
    for label in sorted(set(labels.tolist())):
        here = np.flatnonzero(labels == label)
        for shell, values in enumerate(np.stack([levels[index] for index in here]).T):
            slope = float(np.polyfit(electrons_all[here], values, 1)[0])
            correlation = float(np.corrcoef(electrons_all[here], values)[0, 1])
            found.append({"species": label, "shell": shell, "slope_ev": slope, "correlation": correlation})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help=f"the first run of {EXAMPLE.name}")
    parser.add_argument("--mesh", type=int, nargs=3, action="append", help="may be repeated (4 7 1)")
    parser.add_argument("--dense", type=int, nargs=3, default=[8, 14, 1])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        paths = scfout_files(args.runs or [EXAMPLE], Path(scratch))
        chosen = paths if args.runs else paths[:1]
        samples = [OpenMXReader().read(path.parent, ReadOptions(operators=frozenset())).sample for path in chosen]
    dense, results = [], []
    for sample in samples:
        dense.append(electrons(sample, args.dense))
        for counts in args.mesh or [[4, 7, 1]]:
            excess = (electrons(sample, counts) - dense[-1]).tolist()
            words = (f"{label} {1e5 * n:.1f}" for label, n in zip(sample.structure.labels, excess, strict=True))
            print(f"{sample.name} {'×'.join(map(str, counts))}: 1e-5 electrons too many: {', '.join(words)}")
            results.append({"run": sample.name, "mesh": counts, "excess_electrons": excess})
    lines = slopes(samples, dense) if len(samples) > 1 else []
    for line in lines:
        print("{species} shell {shell}: {slope_ev:.1f} eV per electron, correlation {correlation:.2f}".format(**line))
    if args.json:
        report = {"environment": environment(), "dense": args.dense, "meshes": results, "levels": lines}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
