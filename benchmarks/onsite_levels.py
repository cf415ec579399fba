"""On which moments the on-site levels of magnetic atoms depend: those around the atom, or those of the whole cell.

For each shell of each magnetic species the mean on-site energy (spin-free, trace over m) is fitted, over all atoms of
all given runs, to a constant, to the local sum n_i = Σ_j e_i · e_j over nearest magnetic neighbours, to its mean over
the magnetic atoms of the cell, to both, and to powers of the local sum. In cells with two magnetic sublattices local
sum and mean are the same number in every run: what such cells cannot tell apart, no training set made of them teaches.
"directions" are the quadratic forms e_i e_i, e_i Σ_j e_j and Σ_j e_j e_j, by which levels know the lattice: spin–orbit
coupling, and the grid of the DFT code. "left out" is the root mean square for runs that the fit has not seen, one at a
time.

With --carried-to, fits are held against other runs: to the local sum, to it and its square, and to it and
Σ_j (e_i · e_j)², whether levels go with a function of the molecular field or with a sum of functions of bonds.

With --model nothing is fitted: the levels that a model predicts are held against those of the runs, atom by atom.

    python benchmarks/onsite_levels.py [RUN or ARCHIVE.tar.xz …] [--carried-to RUN … | --model MODEL] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reading import ROOT, environment, scfout_files

from hamnet.cli.sources import load_source
from hamnet.models.io import load_model
from hamnet.neighbours import pairs_within
from hamnet.predict import predict_operator
from hamnet.sample import Sample
from hamnet.units import MEV_PER_EV
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.protocol import ReadOptions

EXAMPLE = ROOT / "examples" / "nibr2" / "nibr2_2x1.tar.xz"
_MAGNETIC_MU_B = 0.5
# Distances within this of the shortest one between magnetic atoms belong to the same shell of neighbours.
_SAME_SHELL_ANG = 0.3


def surroundings(sample: Sample) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Magnetic atoms (n,), their e_i with Σ_j e_j (n, 2, 3), and Σ_j e_j e_j (n, 3, 3), over nearest neighbours."""
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
    around = direction[col[kept]]
    field, squares = np.zeros((len(size), 3)), np.zeros((len(size), 3, 3))
    np.add.at(field, row[kept], around)
    np.add.at(squares, row[kept], around[:, :, None] * around[:, None, :])
    return magnetic, np.stack([direction, field], axis=1)[magnetic], squares[magnetic]


def forms(own: NDArray[np.float64], field: NDArray[np.float64], squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 15) components of the three symmetric tensors, less their traces."""
    mixed = own[:, :, None] * field[:, None, :]
    tensors = np.stack([own[:, :, None] * own[:, None, :], (mixed + mixed.transpose(0, 2, 1)) / 2, squares], axis=1)
    tensors = tensors - np.trace(tensors, axis1=2, axis2=3)[..., None, None] / 3 * np.eye(3)
    x, y = np.triu_indices(3)
    return tensors[:, :, x[:-1], y[:-1]].reshape(len(own), -1)


def shell_levels(sample: Sample, atom: int) -> NDArray[np.float64]:
    """(n_shells,) mean on-site energies in eV."""
    h = sample.hamiltonian
    assert h is not None
    diagonal = h.block(atom, atom, (0, 0, 0))[0].real.diagonal().numpy()
    return np.array([diagonal[shell].mean() for shell in h.basis[int(h.pairs.species[atom])].shell_slices()])


@dataclass(frozen=True, slots=True)
class Levels:
    """Magnetic atoms of several runs: label, run, terms (n, …) around each by name, and its levels by shell."""

    labels: NDArray[np.str_]
    run: NDArray[np.int64]
    terms: dict[str, NDArray[np.float64]]
    levels: list[NDArray[np.float64]]

    def of(self, species: str) -> Levels:
        here = self.labels == species
        terms = {name: values[here] for name, values in self.terms.items()}
        levels = [levels for levels, kept in zip(self.levels, here, strict=True) if kept]
        return Levels(self.labels[here], self.run[here], terms, levels)

    def design(self, names: Sequence[str]) -> NDArray[np.float64]:
        return np.column_stack([np.ones(len(self.run)), *(self.terms[name] for name in names)])


def read_levels(sources: list[Path]) -> Levels:
    terms: dict[str, list[NDArray[np.float64]]] = {}
    levels, labels, runs = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for run, path in enumerate(scfout_files(sources, Path(scratch))):
            sample = OpenMXReader().read(path.parent, ReadOptions(operators=frozenset())).sample
            atoms, vectors, squares = surroundings(sample)
            own, field = vectors[:, 0], vectors[:, 1]
            local = np.einsum("nx,nx->n", own, field)
            here = {
                "local": local, "square": local**2, "cube": local**3, "mean": np.full(len(local), local.mean()),
                "squares": np.einsum("nx,nxy,ny->n", own, squares, own), "directions": forms(own, field, squares),
            }  # fmt: skip
            for name, values in here.items():
                terms.setdefault(name, []).append(values)
            levels += [shell_levels(sample, atom) for atom in atoms.tolist()]
            labels += [sample.structure.labels[atom] for atom in atoms.tolist()]
            runs += len(atoms) * [run]
    joined = {name: np.concatenate(values) for name, values in terms.items()}
    return Levels(np.array(labels), np.array(runs), joined, levels)


def predicted_errors(model: Path, sources: list[Path]) -> list[dict[str, Any]]:
    """(n_shells,) meV of each magnetic atom of each run: what the model is above the level."""
    loaded, found = load_model(model), []
    with tempfile.TemporaryDirectory() as scratch:
        for path in scfout_files(sources, Path(scratch)):
            sample = load_source(path.parent).sample.with_basis(loaded.model.basis)
            h = sample.operator("hamiltonian")
            difference = predict_operator(loaded, sample.structure, h.pairs).to(h.dtype) - h
            for atom in surroundings(sample)[0].tolist():
                errors = (shell_levels(replace(sample, hamiltonian=difference), atom) * MEV_PER_EV).tolist()
                found.append({"run": path.parent.name, "atom": atom, "errors_meV": errors})
    return found


def fitted(design: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Constant and coefficients of the terms, meV; the smallest where the runs do not decide."""
    return np.linalg.lstsq(design, levels * MEV_PER_EV, rcond=1e-10)[0]


def rest(
    design: NDArray[np.float64], levels: NDArray[np.float64], coefficients: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) meV: what a fit is above the levels."""
    return design @ coefficients - levels * MEV_PER_EV


def left_out(design: NDArray[np.float64], levels: NDArray[np.float64], run: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) meV: the same for the atoms of each run, of a fit to all other runs."""
    result = np.empty(len(levels))
    for one in np.unique(run):
        here = run == one
        result[here] = rest(design[here], levels[here], fitted(design[~here], levels[~here]))
    return result


def rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))


_FITS = {
    "constant": (),
    "local": ("local",),
    "mean": ("mean",),
    "local and mean": ("local", "mean"),
    "local to the cube": ("local", "square", "cube"),
    "– and directions": ("local", "square", "cube", "directions"),
}
_CARRIED = {
    "local": ("local",),
    "local and its square": ("local", "square"),
    "local and squares": ("local", "squares"),
    "local to the cube": ("local", "square", "cube"),
    "– and directions": ("local", "square", "cube", "directions"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "sources", nargs="*", type=Path, metavar="RUN", help=f"runs in which the sums differ ({EXAMPLE.name})"
    )
    parser.add_argument("--carried-to", nargs="+", type=Path, metavar="RUN", help="runs that the fits are held against")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--model", type=Path, help="compare the levels that this model predicts, and fit nothing")
    args = parser.parse_args()
    if args.model:
        if args.carried_to:
            parser.error("--model and --carried-to; expected one of them")
        errors = predicted_errors(args.model, args.sources or [EXAMPLE])
        for entry in errors:
            shells = ", ".join(f"{value:.2f}" for value in entry["errors_meV"])
            print(f"{entry['run']} atom {entry['atom']}: predicted less DFT, by shell [{shells}] meV")
        if args.json:
            args.json.write_text(json.dumps({"environment": environment(), "errors": errors}, indent=1) + "\n")
        return
    found = read_levels(args.sources or [EXAMPLE])
    other = read_levels(args.carried_to) if args.carried_to else None
    results = []
    for species in sorted(set(found.labels.tolist())):
        here, there = found.of(species), None if other is None else other.of(species)
        for shell, levels in enumerate(np.stack(here.levels).T):
            for name, terms in (_FITS if there is None else _CARRIED).items():
                design = here.design(terms)
                text = f"{species} shell {shell}, {len(levels)} atoms, {name:20s}"
                if 2 * design.shape[1] > len(levels):
                    print(f"{text} too few for {design.shape[1]} terms")
                    continue
                coefficients = fitted(design, levels)
                entry = {"species": species, "shell": shell, "terms": name, "n_terms": design.shape[1]}
                entry["rms_meV"] = rms(rest(design, levels, coefficients))
                text += f" rms {entry['rms_meV']:7.3f}"
                if there is None:
                    entry["left_out_rms_meV"] = rms(left_out(design, levels, here.run))
                    text += f", left out {entry['left_out_rms_meV']:7.3f} meV"
                else:
                    carried = rest(there.design(terms), np.stack(there.levels)[:, shell], coefficients)
                    entry |= {"carried_rms_meV": rms(carried), "carried_mean_meV": float(carried.mean())}
                    text += (
                        f"; carried to {len(carried)} others rms {rms(carried):7.3f}, mean {carried.mean():7.3f} meV"
                    )
                print(text)
                results.append(entry)
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "fits": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
