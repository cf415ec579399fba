"""``hamnet check``: DFT runs against what the code itself printed."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

__all__ = ["add_arguments", "run"]

_NOTE = """Exit code 1 if a run fails a check or cannot be read, 2 if nothing at all could be read.
A dash means that the run has nothing to compare with; a run without anything to compare with is not ok."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{parser.description} {_NOTE}"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or folder of run folders")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import track

    from hamnet.cli.output import print_json
    from preprocessing.checks import check_paths
    from preprocessing.readers import find_runs

    paths = find_runs(args.runs)
    progress = track(
        check_paths(paths, jobs=args.jobs), "checking", len(paths), console=Console(stderr=True), transient=True
    )
    checks = [check for _, check in sorted(progress, key=lambda pair: pair[0])]
    if args.json:
        print_json({"runs": [check.to_dict() for check in checks]})
    else:
        _print(checks)
    if all(check.converged is None for check in checks):
        print("hamnet check: none of these could be read", file=sys.stderr)
        return 2
    return 0 if all(check.ok for check in checks) else 1


def _print(checks: list) -> None:
    from hamnet.cli.output import number, print_table
    from preprocessing.checks import BANDS_LIMIT_MEV, ELECTRONS_LIMIT, HERMITICITY_LIMIT_MEV

    columns = ["run", "code", "verdict", "SCF\n\nconv.", f"bands\nmeV\n≤ {BANDS_LIMIT_MEV:g}*"]
    columns += [f"H − H†\nmeV\n≤ {HERMITICITY_LIMIT_MEV:g}", "min eig S\n\n> 0", "electrons\ne"]
    columns += [f"Δ electr.\ne\n≤ {ELECTRONS_LIMIT:g}", "Δ moments\nμ_B\n≤ digits"]
    common = os.path.commonpath([str(Path(check.path).parent) for check in checks])
    rows = []
    for check in checks:
        scf = "–" if check.converged is None else "yes" if check.converged else "NO"
        verdict = "FAILED" if not check.ok else "ok" if check.reason is None else "ok, in part"
        measured = [number(check.bands_max_dev_meV), number(check.hermiticity_max_meV)]
        measured += [number(check.overlap_min_eigenvalue), number(check.electrons, ".4f")]
        measured += [number(check.electrons_dev, ".1e"), number(check.moments_max_dev_muB, ".1e")]
        rows.append([os.path.relpath(check.path, common), check.code or "–", verdict, scf, *measured])
    print_table(columns, rows, title=f"Runs in {common}", left=4)
    print("* or what the printed digits (or a Hamiltonian stored in single precision) allow")
    notes: dict[str, list[str]] = {}
    for check in checks:
        if check.reason:
            notes.setdefault(check.reason, []).append(os.path.relpath(check.path, common))
    for reason, names in notes.items():
        print(f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}")
    print(f"{sum(check.ok for check in checks)} of {len(checks)} runs ok")
