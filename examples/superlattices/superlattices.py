"""Magnetic superlattices of more than 1,000 atoms: a spiral, a pair of domain walls and a skyrmion in NiBr2.

The shipped model (examples/nibr2/model) predicts their Hamiltonians; the overlap is that of a 2×1 OpenMX run, tiled.
Of each come the Fermi level by counting, the bands unfolded to the primitive cell with the spin beside them, of the
spiral the density of states, and of the skyrmion the states at the valence-band top, certified.

    python examples/superlattices/superlattices.py [spiral walls skyrmion] [--output out/superlattices] [--cells 20]

Everything goes through the ``hamnet`` command, printed as it is called. A call that was killed goes on where it was:
what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
NIBR2 = HERE.parent / "nibr2"
RUN = "runs/nibr2_2x1/r00"
TEXTURES = ("spiral", "walls", "skyrmion")
# Sizes for --cells 20: long thin cells factorise fast, square ones do not. All of a path that folds to K = Γ is one k.
LENGTH_PER_CELL = 8.4
PERIOD = 28


@dataclass
class Stage:
    """One command: what it took, and its JSON object."""

    texture: str
    verb: str
    seconds: float
    cpu_seconds: float
    memory_gb: float
    result: dict = field(repr=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("textures", nargs="*", default=list(TEXTURES), help="which of spiral, walls, skyrmion (all)")
    parser.add_argument("--output", type=Path, default=Path("out/superlattices"), help="folder (%(default)s)")
    text = "the skyrmion's supercell has N × N formula units, the others 2 × 8.4 N; even (%(default)s: 1,200 atoms)"
    parser.add_argument("--cells", type=int, default=20, metavar="N", help=text)
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    args = parser.parse_args()
    for name in args.textures:
        if name not in TEXTURES:
            parser.error(f"texture {name!r}, expected some of {', '.join(TEXTURES)}")
    if args.cells < 4 or args.cells % 2:
        parser.error(f"--cells {args.cells}, expected an even number, 4 or more")
    folder: Path = args.output
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "runs" / "nibr2_2x1").exists():
        with tarfile.open(NIBR2 / "nibr2_2x1.tar.xz") as tar:
            tar.extractall(folder / "runs", filter="data")
    work = Work(folder, args.workers)
    hint = work.hamnet("tile", "fermi", RUN)["run_fermi_energy_eV"]
    for name in args.textures:
        {"spiral": spiral, "walls": walls, "skyrmion": skyrmion}[name](work, args.cells, hint)
    write(folder / "report.md", report(work.stages))
    print(f"\n{report(work.stages)}\nReport and figures: {folder}")
    return 0


def spiral(work: Work, cells: int, hint: float) -> None:
    """A cycloid along b₂ with a period of 28 cells."""
    long = PERIOD * max(1, round(LENGTH_PER_CELL * cells / PERIOD))
    words = ("spiral", RUN, "--supercell", "1", str(long), "1", "--q", "0", f"1/{PERIOD}", "0", "--axis", "cycloid")
    level = work.predicted("spiral", words, hint)
    steps = long // 4 + 1  # every second multiple of 1/long: all at K = Γ
    work.unfolded("spiral", (2, long), level, "G=0,0,0 M=0,1/2,0", steps, (-0.45, 0.5), "spin-x")
    options = ("--mesh", "1", "1", "1", "--window", "-0.45", "0.5", "--width", "0.01", "--project", "species")
    work.hamnet("spiral", "dos", "spiral.h5", *options, "--fermi", str(level), "-o", "spiral_dos.png")


def walls(work: Work, cells: int, hint: float) -> None:
    """Domains along ±z with two Néel walls between them."""
    long = PERIOD * max(1, round(LENGTH_PER_CELL * cells / PERIOD))
    words = ("walls", RUN, "--supercell", "1", str(long), "1", "--along", "b", "--type", "neel", "--width", "10")
    level = work.predicted("walls", words, hint)
    work.unfolded("walls", (2, long), level, "G=0,0,0 M=0,1/2,0", long // 4 + 1, (-0.45, 0.5), "species")


def skyrmion(work: Work, cells: int, hint: float) -> None:
    """One skyrmion in each of N × N formula units."""
    radius = str(16 * cells / 20)
    words = ("skyrmions", RUN, "--supercell", str(cells // 2), str(cells), "1", "--radius", radius, "--width", "7")
    level = work.predicted("skyrmion", words, hint)
    top = work.stages[-1].result["vbm_eV"]
    options = ("--fermi", str(top - 0.005), "--nearest", "32", "-o", "skyrmion_states.h5")
    work.hamnet("skyrmion", "solve", "skyrmion.h5", *options)
    # The window is narrow, for each 0.1 eV of so many atoms holds hundreds of states; so is the path about Γ.
    window = (round(top - level - 0.14, 3), round(top - level + 0.01, 3))
    path = "A=0,-1/4,0 G=0,0,0 B=0,1/4,0"
    work.unfolded("skyrmion", (cells, cells), level, path, 2 * (cells // 4) + 1, window, "spin-z")


@dataclass
class Work:
    """The folder, and what was done in it."""

    folder: Path
    workers: int
    stages: list[Stage] = field(default_factory=list)

    def predicted(self, name: str, texture: tuple[str, ...], hint: float) -> float:
        """Texture, Hamiltonian and Fermi level (eV) of a superlattice."""
        model = os.path.relpath(NIBR2 / "model" / "model.safetensors", self.folder)
        self.hamnet(name, "texture", *texture, "--model", model, "-o", f"{name}.xyz")
        self.hamnet(name, "predict", model, f"{name}.xyz", "--overlap", RUN, "-o", f"{name}.h5")
        options = ("--mesh", "1", "1", "1", "--hint", str(hint), "--partial", f"{name}_counts")
        return self.hamnet(name, "fermi", f"{name}.h5", *options)["fermi_energy_eV"]

    def unfolded(
        self, name: str, size: tuple[int, int], level: float, path: str, points: int, window: tuple, color: str
    ) -> None:
        """Bands in the zone of the primitive cell; the path's points all fold to K = Γ."""
        matrix = [str(x) for x in (size[0], 0, 0, 0, size[1], 0, 0, 0, 1)]
        options = ("--path", path, "--points", str(points), "--window", *map(str, window), "--color", color)
        words = ("--matrix", *matrix, *options, "--fermi", str(level), "-o", f"{name}_unfolded.png")
        self.hamnet(name, "unfold", f"{name}.h5", *words)

    def hamnet(self, texture: str, verb: str, *words: str) -> dict:
        """Call the command in the folder, or read what an earlier call of the same words found."""
        words = (*words, "--json", *(("--workers", str(self.workers)) if verb in PARALLEL else ()))
        stored = self.folder / "stages" / f"{len(self.stages):02d}_{texture}_{verb}.json"
        stored.parent.mkdir(exist_ok=True)
        print(f"$ hamnet {verb} {shlex.join(words)}", flush=True)
        if stored.exists() and (found := json.loads(stored.read_text())).pop("words") == list(words):
            self.stages.append(Stage(**found))
            return self.stages[-1].result
        started = time.monotonic()
        command = [sys.executable, "-m", "hamnet.cli.main", verb, *words]
        with subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"hamnet {verb} ended with exit code {process.returncode}")
        seconds, cpu = time.monotonic() - started, usage.ru_utime + usage.ru_stime
        stage = Stage(texture, verb, seconds, cpu, usage.ru_maxrss / 2**20, json.loads(output))
        self.stages.append(stage)
        write(stored, json.dumps({"words": list(words), **vars(stage)}, indent=1))
        return stage.result


PARALLEL = {"predict", "fermi", "solve", "dos", "unfold"}


def write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def report(stages: list[Stage]) -> str:
    """Wall time, processor time and memory of each stage, and what was found, as markdown."""
    from postprocess.bands import DenseCost

    lines = ["| superlattice | stage | wall, s | CPU, s | memory, GB | |", "|---|---|---|---|---|---|"]
    for stage in stages:
        numbers = f"{stage.seconds:.0f} | {stage.cpu_seconds:.0f} | {stage.memory_gb:.1f}"
        lines.append(f"| {stage.texture} | {stage.verb} | {numbers} | {found(stage)} |")
    total = sum(stage.seconds for stage in stages)
    lines += ["", f"All together {total / 60:.1f} minutes.", ""]
    sizes = [stage.result["dimension"] for stage in stages if stage.verb == "solve"]
    if sizes:
        cost = DenseCost(1, 1, sizes[0], 9 * 16e-9 * sizes[0] ** 2)
        lines.append(
            f"One SCF step of a DFT code diagonalises a matrix of this dimension whole ({cost}), and does much more."
        )
    return "\n".join(lines) + "\n"


def found(stage: Stage) -> str:
    result = stage.result
    if stage.verb == "texture":
        charge = result.get("topological_charge")
        return f"{result['n_atoms']} atoms" + (f", charge {charge}" if charge else "")
    if stage.verb == "fermi":
        return f"E_F {result['fermi_energy_eV']:.4f} eV, gap {result['gap_eV']:.4f} eV"
    if stage.verb == "solve":
        count, residual = result["n_states"], result["residual_max_eV"]
        return f"{count} states, certified; residual {residual:.0e} eV, {result['n_factorisations']} factorisations"
    if stage.verb == "unfold":
        return f"{result['n_weights']} weights at {result['n_k']} k, {result['n_supercell_k']} K"
    if stage.verb == "dos":
        return f"{result['dos_integral']:.0f} states in the window"
    return ""


if __name__ == "__main__":
    sys.exit(main())
