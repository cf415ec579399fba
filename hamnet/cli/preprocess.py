"""``hamnet preprocess``: DFT runs into one sample set."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

__all__ = ["add_arguments", "run"]

_NOTE = """A run that cannot be used is listed with the reason and left out. A call that was interrupted is taken up
by the same command. Exit code 2 if no run was good, 1 with --strict if one was left out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{parser.description} {_NOTE}"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or folder of run folders")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="SET.h5", help="the set to write")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)")
    parser.add_argument(
        "--constraint",
        choices=("subtract", "keep"),
        default="subtract",
        help="penalty that direction-constrained runs carry in H (%(default)s)",
    )
    parser.add_argument(
        "--moments",
        choices=("auto", "density", "initial"),
        default="auto",
        help="input moments: from the density matrix, as prescribed, or as the kind of run asks (%(default)s)",
    )
    parser.add_argument(
        "--operators",
        default="",
        metavar="LIST",
        help="what to store besides H and S, separated by commas: density, position, momentum (nothing)",
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a run was left out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from preprocessing.dataset import build_set
    from preprocessing.readers.protocol import ReadOptions

    options = ReadOptions(args.constraint, args.moments, _operators(args.operators))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("looking for runs", total=None)

        def show(text: str, done: int, total: int) -> None:
            progress.update(bar, description=text, completed=done, total=total)

        report = build_set(args.runs, args.output, options, jobs=args.jobs, progress=show)
    _print(report, as_json=args.json)
    if not report.names:
        return 2
    return 1 if args.strict and report.rejected else 0


def _operators(text: str) -> frozenset:
    from hamnet.errors import ConfigError
    from preprocessing.dataset import OPERATORS

    chosen = frozenset(word.strip() for word in text.split(",") if word.strip())
    if unknown := sorted(chosen - set(OPERATORS)):
        raise ConfigError(f"--operators {', '.join(unknown)}", expected=f"some of {', '.join(OPERATORS)}")
    return chosen


def _print(report, *, as_json: bool) -> None:
    from hamnet.cli.output import print_json, print_table

    size = report.output.stat().st_size if report.names else 0
    if as_json:
        rejected = [{"path": entry.path, "reason": entry.reason} for entry in report.rejected]
        names = list(report.names)
        result = {"output": str(report.output), "size_bytes": size, "samples": len(names), "names": names}
        print_json({**result, "rejected": rejected, "reused": report.reused, "unchanged": report.unchanged})
        return
    if report.rejected:
        rows = [(entry.path, entry.reason) for entry in report.rejected]
        print_table(("rejected run", "reason"), rows, left=2)
    if report.reused:
        print(f"{report.reused} samples were finished by an earlier call")
    if not report.names:
        print(f"no run was good: {report.output} was not written")
    elif report.unchanged:
        print(f"{report.output} holds these runs with these options already: nothing to do")
    else:
        print(f"{report.output}: {len(report.names)} samples, {size / 1e6:.1f} MB")
