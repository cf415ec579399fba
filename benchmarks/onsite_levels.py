"""On which moments the on-site levels of magnetic atoms depend: those around the atom, or those of the whole cell.

For each shell of each magnetic species the mean on-site energy (spin-free, trace over m) is fitted, over all atoms of
all given runs, to a constant, to the local sum n_i = Σ_j e_i · e_j over nearest magnetic neighbours, to its mean over
the magnetic atoms of the cell, and to both. In cells with two magnetic sublattices the two are the same number in every
run: what such cells cannot tell apart, no training set made of them teaches.

With --carried-to, fits to the local sum, to it and its square, and to it and Σ_j (e_i · e_j)² are held against other
runs: whether levels go with a function of the molecular field or with a sum of functions of bonds.

    python benchmarks/onsite_levels.py [RUN or ARCHIVE.tar.xz …] [--carried-to RUN …] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from reading import ROOT, environment, scfout_files

from hamnet.neighbours import pairs_within
from hamnet.sample import Sample
from hamnet.units import MEV_PER_EV
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.protocol import ReadOptions

EXAMPLE = ROOT / "examples" / "nibr2" / "nibr2_2x1.tar.xz"
_MAGNETIC_MU_B = 0.5
# Distances within this of the shortest one between magnetic atoms belong to the same shell of neighbours.
_SAME_SHELL_ANG = 0.3


def local_sums(sample: Sample) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Magnetic atoms (n,), Σ_j e_i · e_j and Σ_j (e_i · e_j)² over their nearest magnetic neighbours (n,)."""
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
    cosines = np.einsum("nx,nx->n", direction[row[kept]], direction[col[kept]])
    sums, squares = np.zeros(len(size)), np.zeros(len(size))
    np.add.at(sums, row[kept], cosines)
    np.add.at(squares, row[kept], cosines**2)
    return magnetic, sums[magnetic], squares[magnetic]


def shell_levels(sample: Sample, atom: int) -> NDArray[np.float64]:
    """(n_shells,) mean on-site energies in eV."""
    h = sample.hamiltonian
    assert h is not None
    diagonal = h.block(atom, atom, (0, 0, 0))[0].real.diagonal().numpy()
    return np.array([diagonal[shell].mean() for shell in h.basis[int(h.pairs.species[atom])].shell_slices()])


@dataclass(frozen=True, slots=True)
class Levels:
    """Magnetic atoms of several runs: label, sums around each, their mean over its cell, and its levels by shell."""

    labels: NDArray[np.str_]
    local: NDArray[np.float64]
    squares: NDArray[np.float64]
    mean: NDArray[np.float64]
    levels: list[NDArray[np.float64]]

    def of(self, species: str) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
        """Terms (n,) and levels (n, n_shells) of one species."""
        here = self.labels == species
        terms = {name: getattr(self, name)[here] for name in ("local", "squares", "mean")}
        levels = np.stack([levels for levels, kept in zip(self.levels, here, strict=True) if kept])
        return terms | {"field": terms["local"] ** 2}, levels


def read_levels(sources: list[Path]) -> Levels:
    local, squares, mean, levels, labels = [], [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for path in scfout_files(sources, Path(scratch)):
            sample = OpenMXReader().read(path.parent, ReadOptions(operators=frozenset())).sample
            atoms, sums, of_squares = local_sums(sample)
            local += sums.tolist()
            squares += of_squares.tolist()
            mean += len(sums) * [sums.mean()]
            levels += [shell_levels(sample, atom) for atom in atoms.tolist()]
            labels += [sample.structure.labels[atom] for atom in atoms.tolist()]
    return Levels(np.array(labels), np.array(local), np.array(squares), np.array(mean), levels)


def design(terms: list[NDArray[np.float64]], n: int) -> NDArray[np.float64]:
    return np.stack([np.ones(n), *terms], axis=1)


def fitted(levels: NDArray[np.float64], terms: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Constant and coefficients of the terms, meV."""
    return np.linalg.lstsq(design(terms, len(levels)), levels * MEV_PER_EV, rcond=None)[0]


def rest(
    levels: NDArray[np.float64], terms: list[NDArray[np.float64]], coefficients: NDArray[np.float64]
) -> tuple[float, float]:
    """Root mean square and mean, meV, of what a fit is above the levels."""
    difference = design(terms, len(levels)) @ coefficients - levels * MEV_PER_EV
    return float(np.sqrt(np.mean(difference**2))), float(difference.mean())


_FITS = {"constant": (), "local": ("local",), "mean": ("mean",), "local and mean": ("local", "mean")}
_CARRIED = {"local": ("local",), "local and its square": ("local", "field"), "and squares": ("local", "squares")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "sources", nargs="*", type=Path, metavar="RUN", help=f"runs in which the sums differ ({EXAMPLE.name})"
    )
    parser.add_argument("--carried-to", nargs="+", type=Path, metavar="RUN", help="runs that the fits are held against")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    args = parser.parse_args()
    found = read_levels(args.sources or [EXAMPLE])
    other = read_levels(args.carried_to) if args.carried_to else None
    results = []
    for species in sorted(set(found.labels.tolist())):
        terms, table = found.of(species)
        there = None if other is None else other.of(species)
        for shell, values in enumerate(table.T):
            for name, kinds in (_FITS if there is None else _CARRIED).items():
                chosen = [terms[kind] for kind in kinds]
                coefficients = fitted(values, chosen)
                entry = {"species": species, "shell": shell, "terms": name, "slopes_meV": coefficients[1:].tolist()}
                entry["rms_meV"] = rest(values, chosen, coefficients)[0]
                text = f"{species} shell {shell}, {len(values)} atoms, {name:20s} rms {entry['rms_meV']:7.3f} meV"
                if there is not None:
                    rms, mean = rest(there[1][:, shell], [there[0][kind] for kind in kinds], coefficients)
                    entry |= {"carried_rms_meV": rms, "carried_mean_meV": mean}
                    text += f"; carried to {len(there[1])} others rms {rms:7.3f}, mean {mean:7.3f} meV"
                slopes = ", ".join(f"{slope:.2f}" for slope in entry["slopes_meV"])
                print(f"{text}  slopes [{slopes}] meV")
                results.append(entry)
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "fits": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
