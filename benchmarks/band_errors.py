"""Whose errors move the bands: shares of on-site and other blocks, by species and by spin-free and magnetic part.

To first order a state is shifted by ⟨ψ|ΔH|ψ⟩ with the states ψ of DFT, a sum over the blocks of ΔH. For states within
2 eV of the DFT Fermi energy the mean of this sum, and of its absolute value, is given for each kind of blocks: what a
model must learn next. The mean of the true |ΔE| stands beside it.

    python benchmarks/band_errors.py [MODEL RUN …] [--k 12] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from reading import ROOT, environment

from hamnet.bloch import bloch_dense
from hamnet.blocks import BlockOperator
from hamnet.cli.sources import load_source
from hamnet.eigen import eigenstates, eigenvalues
from hamnet.models.io import load_model
from hamnet.predict import predict_operator
from hamnet.sample import Sample
from hamnet.training.evaluate import evaluation_mesh
from hamnet.units import MEV_PER_EV

MODEL = ROOT / "examples" / "nibr2" / "model" / "model.safetensors"
EXAMPLE = ROOT / "examples" / "nibr2" / "nibr2_2x2.tar.xz"
_WINDOW_EV = 2.0


def parts(difference: BlockOperator) -> Iterator[tuple[str, BlockOperator]]:
    """ΔH itself, and its blocks of each kind with zeros elsewhere."""
    yield "all", difference
    labels, pairs = difference.basis.labels, difference.pairs
    kinds = {tuple(sorted((labels[group.row_species], labels[group.col_species]))) for group in pairs.groups}
    spin_free = (torch.arange(difference.n_spin) == 0)[:, None, None]
    for kind in sorted(kinds):
        for onsite in (True, False):
            for name, components in (("spin-free", spin_free), ("magnetic", ~spin_free)):
                blocks = []
                for group, block in zip(pairs.groups, difference.blocks, strict=True):
                    here = tuple(sorted((labels[group.row_species], labels[group.col_species]))) == kind
                    kept = torch.as_tensor(here & (pairs.is_self[group.pairs] == onsite))[:, None, None, None]
                    blocks.append(block * (kept & components))
                if any(bool(block.any()) for block in blocks):
                    what = f"{kind[0]} on-site" if onsite else f"{kind[0]}–{kind[1]}"
                    yield f"{what}, {name}", replace(difference, blocks=tuple(blocks))


def shifts(sample: Sample, predicted: BlockOperator, n_k: int) -> dict[str, NDArray[np.float64]]:
    """True shifts in meV of all states in the window, and those to first order, by kind of blocks."""
    h = sample.operator("hamiltonian")
    s = sample.operator("overlap").with_pairs(h.pairs)
    assert sample.fermi_energy_ev is not None
    k_frac = evaluation_mesh(sample.structure)
    k_frac = k_frac[:: -(-len(k_frac) // n_k)]
    portions = list(eigenstates(h, s, k_frac))
    energies = torch.cat([states.energies for states in portions])
    vectors = torch.cat([states.vectors for states in portions])
    inside = (energies - sample.fermi_energy_ev).abs() <= _WINDOW_EV
    found = {"true": (torch.as_tensor(eigenvalues(predicted, s, k_frac)) - energies)[inside]}
    for name, part in parts(predicted - h):
        matrices = bloch_dense(part, k_frac).to(vectors.dtype)
        found[name] = torch.einsum("kcan,kcab,kcbn->kcn", vectors.conj(), matrices, vectors).real[inside]
    return {name: values.numpy() * MEV_PER_EV for name, values in found.items()}


def run_folders(sources: list[Path], into: Path, names: Sequence[str] = ("spiral",)) -> list[Path]:
    """Runs, and those of the example with these names, unpacked, where none is given."""
    if sources:
        return sources
    with tarfile.open(EXAMPLE) as tar:
        tar.extractall(into, filter="data")
    return sorted(path.parent for path in into.rglob("*.scfout") if set(names) & set(path.parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=MODEL, help="model file (the shipped one)")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders (the 2×2 spiral of the example)")
    parser.add_argument("--k", type=int, default=12, help="largest number of k points (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    args = parser.parse_args()
    loaded = load_model(args.model)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for path in run_folders(args.runs, Path(scratch)):
            sample = load_source(path).sample.with_basis(loaded.model.basis)
            h = sample.operator("hamiltonian")
            predicted = predict_operator(loaded, sample.structure, h.pairs).to(h.dtype)
            print(f"{sample.name}: mean |shift| and mean shift of states, meV")
            for name, values in shifts(sample, predicted, args.k).items():
                size, mean = float(np.abs(values).mean()), float(values.mean())
                print(f"  {name:28s} {size:8.3f} {mean:8.3f}")
                results.append({"run": sample.name, "part": name, "mean_size_meV": size, "mean_meV": mean})
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "shifts": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
