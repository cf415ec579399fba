"""Cost of reading OpenMX runs, against ``numpy.fromfile`` of the same bytes in the same process.

Two situations: a *set*, whose samples are all kept, as preprocessing and training do – memory is new for both sides –
and one *single* run, read again and again into the same warm memory, where a raw copy runs at the speed of the cache.
The best of some alternating rounds counts. Target for a set, all operators on: at most 5 times ``fromfile``.

A third, *tiled*, is the largest run repeated to a supercell: the same H as a file of hundreds of MB, where only the
rate counts.

    python benchmarks/reading.py [RUN or ARCHIVE.tar.xz ...] [--tile N] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from preprocessing.readers.compressed import files_ending, read_buffer
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.openmx_input import InputText
from preprocessing.readers.openmx_scfout import parse_scfout
from preprocessing.readers.protocol import ReadOptions

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = (ROOT / "examples/nibr2/nibr2_2x1.tar.xz", ROOT / "examples/nibr2/nibr2_2x2.tar.xz")
TARGET = 5.0
ALL, NONE = ReadOptions(), ReadOptions(operators=frozenset())
READER = OpenMXReader()
TASKS: dict[str, Callable[[Path], object]] = {
    "fromfile": lambda path: np.fromfile(path, np.uint8),
    "sha256": lambda path: sha256(read_buffer(path)).digest(),
    "arrays": lambda path: parse_scfout(read_buffer(path), path),
    "h_and_s": lambda path: READER.read(path, NONE),
    "all_operators": lambda path: READER.read(path, ALL),
}
"""`arrays` is the binary file alone; the last two are whole runs: checksum, operators, printed files, bands."""


def scfout_files(sources: Sequence[Path], into: Path) -> list[Path]:
    """Binary files of run folders, folders of runs and archives."""
    found: list[Path] = []
    for source in sources:
        folder = source
        if source.name.endswith(".tar.xz"):
            folder = into / source.name.removesuffix(".tar.xz")
            with tarfile.open(source) as tar:
                tar.extractall(into, filter="data")
        inside = files_ending(folder, ".scfout") or [
            p for run in folder.iterdir() for p in files_ending(run, ".scfout")
        ]
        found += sorted(inside) if source.is_dir() or folder != source else [source]
    if not found:
        sys.exit(f"no .scfout files in {', '.join(map(str, sources))}")
    return found


def tiled(path: Path, n: int, into: Path) -> Path:
    """The run as a file of its n × n supercell (in the plane of the first two vectors), without text and tail."""
    raw = parse_scfout(read_buffer(path), path)
    cells = np.array([[i, j, 0] for i in range(n) for j in range(n)])
    size = np.array([n, n, 1])
    target = cells[:, None] + raw.shift  # (n_cells, n_pairs, 3) cell of the column atom, in old vectors
    shift, rest = np.divmod(target, size)
    col = raw.n_atoms * (rest @ [n, 1, 0]) + raw.col
    reach = int(np.abs(shift).max())
    grid = np.array(
        [
            (i, j, k)
            for i in range(-reach, reach + 1)
            for j in range(-reach, reach + 1)
            for k in range(-reach, reach + 1)
        ]
    )
    grid = grid[np.argsort(np.abs(grid).sum(axis=1), kind="stable")]  # the home cell first
    place = np.empty((2 * reach + 1,) * 3, int)
    place[tuple((grid + reach).T)] = np.arange(len(grid))
    cell = raw.cell_bohr * size[:, None]
    positions = (raw.positions_bohr + (cells @ raw.cell_bohr)[:, None]).reshape(-1, 3)

    def vectors(values: np.ndarray, kind: str) -> bytes:
        return np.pad(values, ((0, 0), (1, 0))).astype(kind).tobytes()

    neighbours = np.tile(np.bincount(raw.row) - 1, n * n)
    header = [len(positions), 12 + raw.spin_switch, 0, 0, 0, len(grid) - 1, 1]
    pieces = [np.array(header, "<i4").tobytes(), vectors(grid @ cell, "<f8"), vectors(grid, "<i4")]
    for integers in (
        np.tile(raw.n_orbitals, n * n),
        neighbours,
        col.ravel() + 1,
        place[tuple((shift + reach).reshape(-1, 3).T)],
    ):
        pieces.append(integers.astype("<i4").tobytes())
    pieces += [vectors(v, "<f8") for v in (cell, 2 * np.pi * np.linalg.inv(cell).T, positions)]
    with into.open("wb") as file:
        file.writelines(pieces)
        sweeps = (
            raw.hamiltonian,
            raw.hamiltonian_imag,
            raw.overlap[None],
            raw.position,
            raw.momentum,
            raw.density,
            raw.density_imag,
        )
        for row in (row for rows in sweeps if rows is not None for row in rows):
            file.write(np.tile(row, n * n).astype("<f8").tobytes())
        file.write(np.array([raw.solver], "<i4").tobytes())
        numbers = [
            raw.chemical_potential_ha,
            raw.temperature_k,
            *[0.0] * 6,
            raw.n_electrons * n * n,
            raw.total_spin * n * n,
        ]
        file.write(np.array(numbers, "<f8").tobytes())
    old = InputText(raw.text or "", path, "embedded input text")
    atoms = "\n".join(" ".join(row) for row in old.block("Atoms.SpeciesAndCoordinates") * (n * n))
    species = "\n".join(" ".join(row) for row in old.block("Definition.of.Atomic.Species"))
    (into.parent / "tiled.dat").write_text(
        f"System.Name {into.stem}\n<Definition.of.Atomic.Species\n{species}\nDefinition.of.Atomic.Species>\n"
        f"<Atoms.SpeciesAndCoordinates\n{atoms}\nAtoms.SpeciesAndCoordinates>\n"
    )
    return into


def seconds(task: Callable[[Path], object], paths: Sequence[Path]) -> tuple[float, float]:
    """Wall and processor time for all paths, results kept to the end."""
    wall, cpu = time.perf_counter(), time.process_time()
    kept = [task(path) for path in paths]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert len(kept) == len(paths)
    return wall, cpu


def best(paths: Sequence[Path], rounds: int) -> dict[str, dict[str, float]]:
    """Best wall and processor time in ms of each task, in alternating rounds, and their ratios to ``fromfile``."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in TASKS}
    for _ in range(rounds):
        for name, task in TASKS.items():
            times[name].append(seconds(task, paths))
    wall, cpu = ({name: 1e3 * min(t[clock] for t in v) for name, v in times.items()} for clock in (0, 1))
    return {
        name: {
            "wall_ms": wall[name],
            "cpu_ms": cpu[name],
            "wall_over_fromfile": wall[name] / wall["fromfile"],
            "cpu_over_fromfile": cpu[name] / cpu["fromfile"],
        }
        for name in TASKS
    }


def environment() -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "machine": platform.platform(),
        "processor": next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "?"),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, default=list(DEFAULT), help="runs, folders of runs, archives")
    parser.add_argument("--tile", type=int, default=0, help="also read an N × N supercell of the largest run")
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 15")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 3 if args.quick else 15
    with tempfile.TemporaryDirectory() as folder:
        paths = scfout_files(args.sources, Path(folder))
        largest = max(paths, key=lambda path: path.stat().st_size)
        cases = {"set": paths, "single": [largest]}
        if args.tile:
            (Path(folder) / "supercell").mkdir()
            cases["tiled"] = [tiled(largest, args.tile, Path(folder) / "supercell" / "tiled.scfout")]
        report = {"environment": environment(), "rounds": rounds, "target": TARGET, "cases": {}}
        for name, members in cases.items():
            size = sum(path.stat().st_size for path in members)
            figures = best(members, 4 * rounds if name == "single" else rounds)
            report["cases"][name] = {"runs": len(members), "megabytes": size / 1e6, "tasks": figures}
            print(f"{name}: {len(members)} runs, {size / 1e6:.1f} MB")
            for task, entry in figures.items():
                print(
                    f"  {task:14s} {entry['wall_ms']:9.2f} ms  {entry['wall_over_fromfile']:6.1f} × fromfile"
                    f"   (processor {entry['cpu_ms']:.2f} ms, {entry['cpu_over_fromfile']:.1f} ×)"
                )
    ratio = report["cases"]["set"]["tasks"]["all_operators"]["wall_over_fromfile"]
    print(f"set, all operators: {ratio:.1f} × fromfile, target {TARGET:g}: {'met' if ratio <= TARGET else 'NOT met'}")
    if args.json:
        temporary = args.json.with_name(args.json.name + ".part")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(args.json)


if __name__ == "__main__":
    main()
