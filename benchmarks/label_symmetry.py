"""How far DFT Hamiltonians miss the symmetry of their own crystal.

The real-space grid of a DFT code has a lower symmetry than the crystal, and so has its H. The spin-free part of H is
averaged over the operations of the crystal's point group; what is lost is what no exactly equivariant function of
species, positions and moments can predict. For each run: the mean and largest change of a matrix element, and of the
band energies within 2 eV of the Fermi level.

The default runs are NiBr2 monolayers of three releases; their group is found among the 48 operations of a cubic and
the 24 of a hexagonal lattice. Spin–orbit coupling makes H_0 a little anisotropic about the moment, so this is an upper
bound. For each atom with a d shell stands the l = 4, m = ±4 part of its d block, which a three-fold axis along z
forbids, as size and angle of cos 4(φ − φ0), and where the atom lies between the points of the grid.

    python benchmarks/label_symmetry.py [RUN or ARCHIVE.tar.xz ...] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from reading import ROOT, environment, scfout_files

from hamnet.blocks import BlockOperator
from hamnet.eigen import eigenvalues
from hamnet.errors import StructureError
from hamnet.models.irreps import clebsch_gordan
from hamnet.structure import Structure
from hamnet.symmetry import match_atoms, rotate
from hamnet.units import MEV_PER_EV
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.protocol import ReadOptions

DEFAULT = tuple(ROOT / f"tests/data/openmx/nibr2_{name}.tar.xz" for name in ("1x1_nc", "v38_nc", "v40_nc"))


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


def forbidden(h: BlockOperator, structure: Structure) -> list[dict[str, float | list[float] | str]]:
    """The l = 4, m = ±4 part of each d block on an atom, spin-free, and the atom's offset from the grid."""
    coupling = clebsch_gordan(2, 2, 4)
    result: list[dict[str, float | list[float] | str]] = []
    for atom, species in enumerate(h.pairs.species):
        basis = h.basis[int(species)]
        shells = [s for s, degree in zip(basis.shell_slices(), basis.degrees, strict=True) if degree == 2]
        if not shells:
            continue
        block = h.block(atom, atom, (0, 0, 0))[0].real[shells[0], shells[0]]
        sine, cosine = torch.einsum("abm,ab->m", coupling, block)[[0, 8]].tolist()
        entry = {"atom": f"{basis.label} {atom}", "size_meV": math.hypot(sine, cosine) * MEV_PER_EV}
        result.append(entry | {"angle_deg": math.degrees(math.atan2(sine, cosine)) / 4})
        if structure.grid_axes is not None:
            # OpenMX centres its grid on the mean of all positions.
            origin = structure.positions.mean(axis=0) - structure.cell.sum(axis=0) / 2
            origin = origin + structure.grid_axes.sum(axis=0) / 2
            steps = (structure.positions[atom] - origin) @ np.linalg.inv(structure.grid_axes)
            result[-1]["offset_steps"] = np.round(steps % 1, 3).tolist()
    return result


def measure(path: Path, n_k: int) -> dict:
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
        "run": f"{path.parent.name} ({sample.provenance['version']})",
        "n_operations": len(images),
        "spin_free_mean_meV": lost.mean_abs_difference(lost * 0) * MEV_PER_EV,
        "spin_free_max_meV": lost.max_abs_difference(lost * 0) * MEV_PER_EV,
        "bands_mean_meV": float(np.abs(after - before)[window].mean()) * MEV_PER_EV,
        "bands_max_meV": float(np.abs(after - before)[window].max()) * MEV_PER_EV,
        "d_blocks": forbidden(h, sample.structure),
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
        for d in r["d_blocks"]:
            print(
                f"    {d['atom']}: forbidden {d['size_meV']:.1f} meV at {d['angle_deg']:.1f} degrees, "
                f"{d.get('offset_steps')} steps from a grid point"
            )
    if args.json:
        args.json.write_text(
            json.dumps({"environment": environment(), "runs": results}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
