"""Error bars of levels against their true errors: docs/error_bars.md, section "Measured".

For states within 2 eV of the DFT Fermi energy, and for those farther away, the root mean square of
E(predicted) − E(DFT) stands beside that of the standard deviations which `postprocess.solvers.error_bars` tells, from
three sources: the true errors of the run's own blocks, the errors by distance of the run named next (of the last one:
the first), and one number, the root mean square error of the elements of that run.

    python benchmarks/error_bars.py [MODEL RUN RUN …] [--k 4] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from band_errors import MODEL, run_folders
from numpy.typing import NDArray
from reading import environment

from hamnet.blocks import BlockOperator
from hamnet.calibration import rms_by_part
from hamnet.cli.sources import load_source
from hamnet.eigen import eigenvalues
from hamnet.models.io import load_model
from hamnet.predict import predict_operator
from hamnet.sample import Sample
from hamnet.training.evaluate import compare, evaluation_mesh
from hamnet.units import MEV_PER_EV
from postprocess.solvers.error_bars import bond_errors, level_errors, read_pair_errors
from postprocess.solvers.pencil import SparsePencil
from postprocess.solvers.states import States

# eV from the DFT Fermi energy.
WINDOWS = ((-2.0, 2.0), (-20.0, -2.0), (2.0, 10.0), (10.0, 30.0))
SOURCES = ("own blocks", "by distance", "one number")


def sources(
    sample: Sample, predicted: BlockOperator, other: tuple[Sample, BlockOperator], scratch: Path
) -> dict[str, float | NDArray[np.float64]]:
    """Errors of H in eV, from what is known of them."""
    h = sample.operator("hamiltonian")
    own = np.concatenate([rms_by_part(p - t) for p, t in zip(predicted.blocks, h.blocks, strict=True)])
    table = compare(other[1], other[0], bands=False).to_dict()
    (scratch / "other.json").write_text(json.dumps(table))
    by_distance, _ = read_pair_errors(scratch / "other.json", sample.structure, predicted.pairs)
    return {"own blocks": own, "by distance": by_distance, "one number": table["rmse_spinor_meV"] / MEV_PER_EV}


def levels(
    sample: Sample,
    predicted: BlockOperator,
    errors: dict[str, float | NDArray[np.float64]],
    k_frac: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Of all states of all k: DFT energy from its Fermi energy in eV, softness, true error and told ones in meV."""
    overlap = sample.operator("overlap").with_pairs(predicted.pairs)
    pencil = SparsePencil(predicted, overlap)
    bonds = {key: bond_errors(sample.structure, predicted.pairs, e, predicted.n_spin) for key, e in errors.items()}
    assert sample.fermi_energy_ev is not None
    found: dict[str, list[NDArray[np.float64]]] = {key: [] for key in ("energy", "softness", "true", *bonds)}
    for k in k_frac:
        energies, c = scipy.linalg.eigh(*pencil.at(k).dense())
        softness = (np.abs(c) ** 2).sum(axis=0)
        window = (float(energies[0]) - 1, float(energies[-1]) + 1)
        states = States(k, 0, *window, 0, energies, softness, 0.0, 0, 0, vectors=c)
        dft = eigenvalues(sample.operator("hamiltonian"), overlap, k[None])[0, 0]
        found["energy"].append(dft - sample.fermi_energy_ev)
        found["softness"].append(softness)
        found["true"].append((energies - dft) * MEV_PER_EV)
        for key, value in bonds.items():
            found[key].append(level_errors(states, pencil, value) * MEV_PER_EV)
    return {key: np.concatenate(parts) for key, parts in found.items()}


def row(name: str, window: tuple[float, float], values: dict[str, NDArray[np.float64]]) -> dict[str, Any] | None:
    """Root mean squares over the states of a window; aligned: less the mean shift of the states there."""
    here = (values["energy"] > window[0]) & (values["energy"] < window[1])
    if not here.any():
        return None
    true = values["true"][here]
    aligned = true - true.mean()
    return {
        "run": name,
        "window_eV": window,
        "n_states": int(here.sum()),
        "softness": float(np.median(values["softness"][here])),
        "raw_meV": float(np.sqrt((true**2).mean())),
        "aligned_meV": float(np.sqrt((aligned**2).mean())),
        **{f"{key}_meV": float(np.sqrt((values[key][here] ** 2).mean())) for key in SOURCES},
        "within_two": {key: float((np.abs(aligned) < 2 * values[key][here]).mean()) for key in SOURCES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=MODEL, help="model file (the shipped one)")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="two folders or more (2×2 of the example)")
    parser.add_argument("--k", type=int, default=4, help="largest number of k points (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    args = parser.parse_args()
    if len(args.runs) == 1:
        parser.error("one run; expected two or more: the errors of one are told from those of another")
    loaded = load_model(args.model)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        found = []
        for path in run_folders(args.runs, Path(scratch), ("spiral", "tetra")):
            sample = load_source(path).sample.with_basis(loaded.model.basis)
            h = sample.operator("hamiltonian")
            found.append((sample, predict_operator(loaded, sample.structure, h.pairs).to(h.dtype)))
        for (sample, predicted), other in zip(found, [*found[1:], found[0]], strict=True):
            k_frac = evaluation_mesh(sample.structure)
            k_frac = k_frac[:: -(-len(k_frac) // args.k)]
            values = levels(sample, predicted, sources(sample, predicted, other, Path(scratch)), k_frac)
            results += [line for window in WINDOWS if (line := row(sample.name, window, values)) is not None]
    print("root mean squares in meV; in brackets told/aligned; share of states within two bars")
    print("| run | eV from E_F | κ | raw | aligned | " + " | ".join(SOURCES) + " |")
    print("|" + " --- |" * (5 + len(SOURCES)))
    for line in results:
        told = [
            f"{line[f'{key}_meV']:.2f} ({line[f'{key}_meV'] / line['aligned_meV']:.1f}, {line['within_two'][key]:.0%})"
            for key in SOURCES
        ]
        low, high = line["window_eV"]
        true = f"{line['softness']:.1f} | {line['raw_meV']:.2f} | {line['aligned_meV']:.2f}"
        print(f"| {line['run']} | {low:g} … {high:g} | {true} | {' | '.join(told)} |")
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "levels": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
