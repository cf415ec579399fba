"""The main job on real DFT output: from OpenMX runs of NiBr2 to predicted bands and DOS of states never trained on.

Ten OpenMX runs of a 2×1 cell with random moments are the training set. The spiral and the tetrahedral state of the 2×2
cell are predicted from their structure and overlap alone; their Hamiltonians serve for comparison only. A spiral over
eight cells, which no DFT run has seen, takes its overlap from a 2×1 run.

    python examples/nibr2/demo.py [--output out/demo] [--minutes 6.5]

Everything goes through the ``hamnet`` command, printed as it is called; this script only strings the calls together and
writes the report.
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
STATES = {"spiral": "in-plane spiral", "tetra": "tetrahedral state"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/demo"), help="folder for everything (%(default)s)")
    parser.add_argument("--minutes", type=float, default=6.5, help="training time (%(default)s)")
    args = parser.parse_args()
    started = time.monotonic()
    folder: Path = args.output
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("nibr2_2x1", "nibr2_2x2"):
        unpack(HERE / f"{name}.tar.xz", folder / "runs")
    shutil.copyfile(HERE / "demo.toml", folder / "demo.toml")

    checks = hamnet(folder, "check", "runs", "--json")
    hamnet(folder, "preprocess", "runs/nibr2_2x1", "-o", "nibr2_2x1.h5")
    hamnet(folder, "train", "demo.toml", "--overwrite", "--set", f"training.max_minutes={args.minutes}")
    model = "training/model.safetensors"
    runs = [f"runs/nibr2_2x2/{state}" for state in STATES]
    errors = hamnet(folder, "evaluate", model, *runs, "--json")
    figures = {}
    for state in STATES:
        run, predicted = f"runs/nibr2_2x2/{state}", f"{state}.h5"
        hamnet(folder, "predict", model, run, "--overlap", run, "-o", predicted)
        bands = hamnet(
            folder, "bands", predicted, "--overlay", run, "--window", "-3", "3", "-o", f"{state}_bands.png", "--json"
        )
        dos = hamnet(
            folder, "dos", predicted, "--overlay", run, "--window", "-6", "4", "--mesh", "6", "6", "1",
            "-o", f"{state}_dos.png", "--json",
        )  # fmt: skip
        figures[state] = {"bands": bands, "dos": dos}
    write_spiral(folder / "nibr2_2x1.h5", folder / "long_spiral.xyz")
    hamnet(folder, "predict", model, "long_spiral.xyz", "--overlap", "runs/nibr2_2x1/r00", "-o", "long_spiral.h5")
    path = ("--path", "X=1/2,0,0 G=0,0,0 Y=0,1/2,0", "--points", "60", "--mesh", "2", "8", "1")
    options = (*path, "--window", "-1.5", "1.5", "-o", "long_spiral_bands.png", "--json")
    figures["long_spiral"] = {"bands": hamnet(folder, "bands", "long_spiral.h5", *options)}
    training_curve(folder / "training", folder / "training_curve.png")
    error_by_distance(errors, folder / "error_by_distance.png")
    seconds = time.monotonic() - started
    report = {"seconds": seconds, "checks": checks, "errors": errors, "figures": figures}
    write(folder / "report.json", json.dumps(report, indent=1))
    write(folder / "report.html", page(report))
    print(f"\n{summary(errors)}\n\nReport: {folder / 'report.html'} ({seconds / 60:.1f} minutes)")
    return 0


def unpack(archive: Path, folder: Path) -> None:
    """Unpack once: the archive's folder appears whole or not at all."""
    target = folder / archive.name.removesuffix(".tar.xz")
    if target.exists():
        return
    part = folder / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(part, filter="data")
    (part / target.name).replace(target)
    part.rmdir()


def hamnet(folder: Path, *words: str) -> dict:
    """Call the ``hamnet`` command in `folder`; its JSON object, if it was asked for one."""
    print(f"$ hamnet {shlex.join(words)}", flush=True)
    as_json = "--json" in words
    command = [sys.executable, "-m", "hamnet.cli.main", *words]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE if as_json else None, text=True, check=False)
    if done.returncode:
        sys.exit(f"hamnet {words[0]} ended with exit code {done.returncode}")
    return json.loads(done.stdout) if as_json else {}


def write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_spiral(samples: Path, structure_path: Path) -> None:
    """Eight cells of the training crystal in a row, the Ni moments turning once in the x–z plane."""
    import numpy as np
    from ase import Atoms
    from ase.io import write as write_atoms

    from hamnet.store import SampleSet
    from hamnet.supercell import tile_structure

    with SampleSet(samples) as stored:
        small = stored.structure(0)
    crystal = tile_structure(small, np.diag([4, 1, 1]))
    size = np.linalg.norm(small.moments[small.numbers == 28], axis=1).mean()
    angle = 2 * np.pi * crystal.fractional_positions[:, 0]
    direction = np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], axis=1)
    atoms = Atoms(numbers=crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=crystal.pbc)
    atoms.set_array("moments", size * direction * (crystal.numbers == 28)[:, None])
    write_atoms(structure_path, atoms, format="extxyz")


def training_curve(training: Path, figure_path: Path) -> None:
    """Mean error of the validation sample, split by what it means, against training time."""
    with (training / "history.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["val_mae_meV"]]
    minutes = [float(row["elapsed_s"]) / 60 for row in rows]
    figure, axes = new_axes()
    for key, label, colour in PARTS:
        axes.semilogy(minutes, [float(row[f"val_{key}_meV"]) for row in rows], color=colour, label=label)
    axes.set_xlabel("training time (minutes)")
    axes.set_ylabel("validation MAE (meV)")
    finish(figure, axes, figure_path)


def error_by_distance(errors: dict, figure_path: Path) -> None:
    """Mean error on the unseen states against the distance of the two atoms."""
    bins = [entry for entry in errors["mae_by_distance"] if entry["n_pairs"]]
    middle = [(entry["from_ang"] + entry["to_ang"]) / 2 for entry in bins]
    figure, axes = new_axes()
    for key, label, colour in PARTS:
        axes.semilogy(middle, [entry[f"{key}_meV"] for entry in bins], "o-", ms=4, color=colour, label=label)
    axes.set_xlabel("distance of the atoms (Å); 0: on-site")
    axes.set_ylabel("MAE (meV)")
    finish(figure, axes, figure_path)


PARTS = (
    ("mae", r"all of $H$", "#000000"),
    ("mae_spin_free", r"spin-free, $H_0$", "#0072B2"),
    ("mae_exchange", r"exchange, Re $H_{xyz}$", "#D55E00"),
    ("mae_soc", r"spin–orbit, Im $H_{xyz}$", "#009E73"),
)


def new_axes():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 2.6), layout="constrained", dpi=300)
    axes = figure.subplots()
    axes.tick_params(which="both", direction="in", top=True, right=True, labelsize=8)
    return figure, axes


def finish(figure, axes, path: Path) -> None:
    from postprocess.plotting import save_figure

    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_fontsize(9)
    figure.legend(loc="outside upper center", ncols=2, fontsize=7, frameon=False)
    save_figure(figure, path)


def rows_of(errors: dict) -> list[tuple[str, ...]]:
    """Name, MAE with its parts, and band errors, of each state, of all, and of the trivial baselines."""
    keys = ("mae_meV", "mae_spin_free_meV", "mae_exchange_meV", "mae_soc_meV", "bands_mean_meV", "bands_max_meV")
    entries = [(sample["name"], sample) for sample in errors["samples"]]
    entries += [("all", errors), *((f"baseline: {name}", e) for name, e in errors["baselines"].items() if e)]

    def number(entry: dict, key: str) -> str:
        return f"{entry[key]:.3g}" if entry.get(key) is not None else "–"

    return [(name.replace("_", " "), *(number(entry, key) for key in keys)) for name, entry in entries]


COLUMNS = ("state", "MAE", "spin-free", "exchange", "spin–orbit", "bands mean", "bands max")


def summary(errors: dict) -> str:
    rows = [COLUMNS, *rows_of(errors)]
    widths = [max(len(row[c]) for row in rows) for c in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "Errors in meV on states never trained on; bands within ±2 eV of E_F\n\n" + "\n".join(lines)


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}img{max-width:48%;height:auto}figure{margin:1rem 0}"""


def page(report: dict) -> str:
    """The report as one HTML page beside its figures."""
    errors = report["errors"]
    checks = report["checks"]["runs"]
    bands = [run["bands_max_dev_meV"] for run in checks if run["bands_max_dev_meV"] is not None]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows_of(errors))
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>NiBr2 with hamnet</title><style>{STYLE}</style>",
        "<h1>NiBr<sub>2</sub>: Hamiltonians of magnetic states never trained on</h1>",
        f"<p>{len(checks)} OpenMX runs, {sum(run['ok'] for run in checks)} of them as their code printed them"
        f" (largest deviation of an eigenvalue {max(bands):.1e} meV). Trained on 2×1 cells with two random moments,"
        " tested on 2×2 cells. Errors in meV, raw; bands within ±2 eV of the Fermi level.</p>",
        f"<table><tr>{head}</tr>{body}</table>",
        "<p>Baseline <i>zero magnetism</i>: the exact spin-free part and nothing else.</p>",
    ]
    for state, title in STATES.items():
        numbers = report["figures"][state]
        gap = f"gap {numbers['dos']['gap_eV']:.3f} eV" if numbers["dos"].get("gap_eV") is not None else "no gap"
        parts.append(
            f"<h2>{html.escape(title.capitalize())}</h2>"
            f"<p>E_F by counting {numbers['dos']['n_electrons']:.0f} electrons:"
            f" {numbers['dos']['fermi_energy_eV']:.4f} eV, {gap}.</p>"
            f"<figure><img src={state}_bands.png alt='bands'>"
            f" <img src={state}_dos.png alt='density of states'></figure>"
        )
    numbers = report["figures"]["long_spiral"]["bands"]
    parts.append(
        "<h2>Spiral over eight cells</h2>"
        "<p>Never computed: moments that turn once in the x–z plane over eight cells; the overlap is that of a 2×1 run,"
        f" tiled. E_F {numbers['fermi_energy_eV']:.4f} eV by counting {numbers['n_electrons']:.0f} electrons.</p>"
        "<figure><img src=long_spiral_bands.png alt='bands'></figure>"
    )
    parts.append(
        "<h2>Training</h2><figure><img src=training_curve.png alt='training curve'>"
        " <img src=error_by_distance.png alt='error by distance'></figure>"
    )
    parts.append(f"<p>All of this took {report['seconds'] / 60:.1f} minutes. Numbers: report.json.</p></html>")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
