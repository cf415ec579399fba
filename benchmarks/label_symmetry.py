"""How far DFT Hamiltonians miss the symmetry of their own crystal.

The real-space grid of a DFT code has a lower symmetry than the crystal, and so has its H. The spin-free part of H is
averaged over the operations of the crystal's point group; what is lost is what no exactly equivariant function of
species, positions and moments can predict. For each run: the mean and largest change of a matrix element, and of the
band energies within 2 eV of the Fermi level.

The default run is a ferromagnetic NiBr2 monolayer; its group is found among the 48 operations of a cubic and the 24 of
a hexagonal lattice. Spin–orbit coupling makes H_0 a little anisotropic about the moment, so this is an upper bound.

    python benchmarks/label_symmetry.py [RUN or ARCHIVE.tar.xz ...] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from reading import ROOT, environment, scfout_files

from hamnet.blocks import BlockOperator
from hamnet.eigen import eigenvalues
from hamnet.errors import StructureError
from hamnet.structure import Structure
from hamnet.symmetry import match_atoms, rotate
from hamnet.units import MEV_PER_EV
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.protocol import ReadOptions

DEFAULT = (ROOT / "tests/data/openmx/nibr2_1x1_nc.tar.xz",)


def candidates() -> list[np.ndarray]:
    """Orthogonal matrices of the cubic group, and of the hexagonal one with its axis along z and a vector along x."""
    cubic = [
        np.diag(signs)[list(order)]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    ]
    c, s = 0.5, np.sqrt(0.75)
    sixth = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    mirrors = [np.diag([1.0, sy, sz]) for sy in (1, -1) for sz in (1, -1)]
    return cubic + [np.linalg.matrix_power(sixth, n) @ m for n in (1, 2, 4, 5) for m in mirrors]


def image(operator: BlockOperator, structure: Structure, rotation: np.ndarray) -> BlockOperator | None:
    """The operator turned by `rotation` and named by the atoms of `structure`; None if this is no symmetry."""
    turned = structure.rotated(rotation)
    change = np.rint(turned.cell @ np.linalg.inv(structure.cell))
    if np.abs(change @ structure.cell - turned.cell).max() > 1e-5:
        return None
    moved = rotate(operator, rotation)
    pairs = moved.pairs
    moved = moved.relabelled(pairs.species, pairs.row, pairs.col, pairs.shift @ change.astype(np.int64))
    back = Structure(structure.cell, turned.positions, turned.numbers, turned.labels)
    for atom in np.flatnonzero(structure.numbers == structure.numbers[0]):
        shifted = back.translated(structure.positions[0] - back.positions[atom])
        try:
            order, shifts = match_atoms(shifted, structure)
        except StructureError:
            continue
        return moved.permuted(order, shifts)
    return None


def measure(path: Path, n_k: int) -> dict[str, float | int | str]:
    sample = OpenMXReader().read(path.parent, ReadOptions(operators=frozenset())).sample
    h = sample.operator("hamiltonian")
    spin_free = h.map(lambda block: block[:, :1])
    images = [i for q in candidates() if (i := image(spin_free, sample.structure, q)) is not None]
    total = images[0]
    for other in images[1:]:
        total = total + other
    lost = total * (1 / len(images)) - spin_free
    k = np.random.default_rng(0).random((n_k, 3)) * [1, 1, 0]
    overlap = sample.operator("overlap")
    before = eigenvalues(h, overlap, k)
    after = eigenvalues(h + lost.with_spin(h.n_spin).to(torch.promote_types(h.dtype, lost.dtype)), overlap, k)
    window = np.abs(before - sample.fermi_energy_ev) < 2
    return {
        "run": sample.name,
        "n_operations": len(images),
        "spin_free_mean_meV": lost.mean_abs_difference(lost * 0) * MEV_PER_EV,
        "spin_free_max_meV": lost.max_abs_difference(lost * 0) * MEV_PER_EV,
        "bands_mean_meV": float(np.abs(after - before)[window].mean()) * MEV_PER_EV,
        "bands_max_meV": float(np.abs(after - before)[window].max()) * MEV_PER_EV,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, default=DEFAULT, metavar="RUN")
    parser.add_argument("--quick", action="store_true", help="fewer k points")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = [measure(p, 5 if args.quick else 30) for p in scfout_files(args.sources, Path(scratch))]
    for r in results:
        print(
            f"{r['run']}: {r['n_operations']} operations; spin-free H mean {r['spin_free_mean_meV']:.3f}, "
            f"largest {r['spin_free_max_meV']:.1f} meV; bands mean {r['bands_mean_meV']:.2f}, "
            f"largest {r['bands_max_meV']:.1f} meV"
        )
    if args.json:
        args.json.write_text(
            json.dumps({"environment": environment(), "runs": results}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
