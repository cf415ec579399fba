"""Cost of predicting large structures: time per atom, memory and size of the file from 100 to 10,000 atoms.

NiBr2 with random moments on supercells of one DFT run, whose overlap is tiled; the shipped model. Each size is computed
in a process of its own, after a small crystal that warms it up, and the best of some rounds counts: the whole of
``predict_to_file``, from the structure to the finished file. Target: time per atom flat within 20 %. Processor time
(cpu) stands beside: on a machine with other work wall time tells of that work.

    python benchmarks/inference_scaling.py [--sizes N ...] [--rounds N] [--workers N] [--device cpu|cuda] [--quick]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from reading import environment

from hamnet.models.io import load_model
from hamnet.predict import Report, predict_to_file
from hamnet.sample import Sample
from hamnet.structure import Structure
from hamnet.supercell import tile_structure
from preprocessing.readers import find_runs, read_run

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples/nibr2/model/model.safetensors"
RUNS = ROOT / "examples/nibr2/nibr2_2x1.tar.xz"
SIZES = (100, 300, 1000, 3000, 10000)
TARGET = 0.20


def supercell(run: Sample, n_atoms: int) -> Structure:
    """A nearly square supercell of about so many atoms; Ni moments of the run's size in random directions."""
    s = run.structure
    cells = n_atoms / len(s)
    long, short = np.linalg.norm(s.cell[0]), np.linalg.norm(s.cell[1])
    n = max(1, round(np.sqrt(cells * short / long)))
    tiled = tile_structure(s, np.diag([n, max(1, round(cells / n)), 1]))
    assert tiled.moments is not None
    size = np.linalg.norm(tiled.moments, axis=1) * (tiled.numbers == 28)
    directions = np.random.default_rng(0).normal(size=(len(tiled), 3))
    return tiled.with_moments(size[:, None] * directions / np.linalg.norm(directions, axis=1)[:, None])


def measure(n_atoms: int, rounds: int, workers: int, device: str, model: Path) -> dict[str, object]:
    """The best of some rounds, in this process."""
    loaded = load_model(model, device=device)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(RUNS) as tar:
            tar.extractall(folder, filter="data")
        run = read_run(find_runs([Path(folder)])[0]).sample
        structure = supercell(run, n_atoms)
        pool = nullcontext() if workers == 1 else ProcessPoolExecutor(workers, mp_context=get_context("spawn"))

        def predict(structure: Structure) -> tuple[float, float, Report]:
            started, cpu = time.perf_counter(), time.process_time()
            report = predict_to_file(
                loaded, structure, Path(folder) / "h.h5", source=run, executor=executor, workers=workers
            )
            return time.perf_counter() - started, time.process_time() - cpu, report

        with pool as executor:
            predict(supercell(run, 48))
            results = [predict(structure) for _ in range(rounds)]
    seconds, _, report = min(results, key=lambda result: result[0])
    cpu = min(result[1] for result in results)
    n = report.forecast.n_atoms
    return {
        "atoms": n,
        "pairs": report.forecast.n_pairs,
        "device": device,
        "workers": workers,
        "seconds": seconds,
        "ms_per_atom": 1e3 * seconds / n,
        "cpu_ms_per_atom": 1e3 * cpu / n,  # of this process: meaningful for one worker on a processor
        "ms_per_atom_by_step": {step: 1e3 * part / n for step, part in report.seconds.items()},
        "forecast_seconds": report.forecast.seconds,
        "memory_peak_GB": report.memory_gb,
        "memory_forecast_GB": report.forecast.memory_gb,
        "file_MB": report.file_bytes / 1e6,
    }


def _best(results: list[dict]) -> dict:
    """The quickest one, with the least processor time of all."""
    best = min(results, key=lambda row: row["seconds"])
    return {**best, "cpu_ms_per_atom": min(row["cpu_ms_per_atom"] for row in results)}


def _print(rows: list[dict]) -> None:
    head = ("device", "atoms", "pairs", "s", "ms/atom", "cpu", "structure", "features", "blocks", "file", "GB", "MB")
    print("  ".join(f"{word:>9s}" for word in head))
    for row in rows:
        numbers = [row["seconds"], row["ms_per_atom"], row["cpu_ms_per_atom"], *row["ms_per_atom_by_step"].values()]
        numbers += [row["memory_peak_GB"], row["file_MB"]]
        words = [row["device"], str(row["atoms"]), str(row["pairs"]), *(f"{x:.3g}" for x in numbers)]
        print("  ".join(f"{word:>9s}" for word in words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of atoms (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cpu, and cuda as well where there is one")
    parser.add_argument("--model", type=Path, default=MODEL, help="model file for NiBr2 (the shipped one)")
    parser.add_argument("--quick", action="store_true", help="sizes up to 1000 atoms, one round")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--one", type=int, metavar="ROUNDS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.sizes[0], args.one, args.workers, args.device, args.model)))
        return
    sizes = [n for n in args.sizes if n <= 1000 or not args.quick] or args.sizes[:1]
    devices = [args.device] if args.device else ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows: list[dict] = []
    for device in devices:
        # Size after size, round after round: other work on the machine then meets all of them.
        results: dict[int, list[dict]] = {n: [] for n in sizes}
        rounds = 1 if args.quick else args.rounds
        for number in range(1, rounds + 1):
            for n in sizes:
                command = [sys.executable, __file__, "--one", str(max(1, min(5, 1000 // n))), "--sizes", str(n)]
                command += ["--device", device, "--workers", str(args.workers), "--model", str(args.model)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results[n].append(json.loads(done.stdout))
                text = f"round {number} of {rounds}, {device}: {results[n][-1]['atoms']} atoms in"
                print(f"{text} {results[n][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
        rows += [_best(found) for found in results.values()]
        _print([row for row in rows if row["device"] == device])
        for key, clock in (("ms_per_atom", "wall"), ("cpu_ms_per_atom", "processor")):
            times = [row[key] for row in rows if row["device"] == device]
            spread = max(times) / min(times) - 1
            verdict = "met" if spread <= TARGET else "NOT met"
            text = f"{device}, {clock} time: slowest atom {100 * spread:.0f} % above the fastest"
            print(f"{text}, target {100 * TARGET:.0f} %: {verdict}")
    if args.json:
        report = {"environment": environment(), "target": TARGET, "rows": rows}
        temporary = args.json.with_name(args.json.name + ".part")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(args.json)


if __name__ == "__main__":
    main()
