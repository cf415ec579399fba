"""``hamnet predict``: the Hamiltonian of a structure, written as a sample set. Keys of ``--json``: docs/json.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .executors import add_executor_arguments, executor_of

if TYPE_CHECKING:
    from hamnet.predict import Forecast, Report
    from hamnet.predict.committee import Committee
    from hamnet.predict.committee_job import CommitteeReport

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="model file, or file of `hamnet committee`: mean H and expected errors",
    )
    parser.add_argument(
        "structure", type=Path, help="structure file that ASE reads, DFT run folder, or sample set (.h5)"
    )
    parser.add_argument("--sample", metavar="NAME", help="sample of the set STRUCTURE")
    parser.add_argument(
        "--moments", type=Path, metavar="FILE", help="moments (n, 3) in μ_B: .npy, or text with 3 columns"
    )
    parser.add_argument(
        "--overlap",
        type=Path,
        metavar="RUN|SET",
        help="source of the overlap: this crystal, or a cell that it is made of, with any moments (STRUCTURE itself)",
    )
    parser.add_argument("--overlap-sample", metavar="NAME", help="sample of the set --overlap")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="SET.h5",
        help="the set to write; unfinished work lies in SET.h5.partial, and the same command goes on with it",
    )
    parser.add_argument("--device", default="cpu", help="where the network computes: cpu or cuda (%(default)s)")
    parser.add_argument(
        "--memory-gb", type=float, default=4.0, metavar="GB", help="limit for all processes together (%(default)s)"
    )
    add_executor_arguments(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="diagonalise the predicted H and compare its moments with those given; exit code 1 if they contradict",
    )
    parser.add_argument(
        "--mesh", type=int, nargs=3, metavar=("N1", "N2", "N3"), help="k points for --verify (4 per 1/Å of each vector)"
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="demand expected errors: without a calibrated committee as MODEL nothing is predicted",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from hamnet.cli.output import print_json
    from hamnet.cli.structures import load_structure
    from hamnet.cli.verification import print_verification, verify_prediction
    from hamnet.errors import ConfigError
    from hamnet.predict import predict_to_file
    from hamnet.predict.committee import load_committee
    from hamnet.predict.committee_job import predict_committee_to_file, write_uncertainty

    if args.mesh is not None and not args.verify:
        raise ConfigError("--mesh without --verify", expected="both")
    committee = load_committee(args.model, device=args.device)
    if args.uncertainty and committee.calibration is None:
        raise ConfigError(
            f"--uncertainty with {args.model}, {_kind(committee)}",
            expected="a committee calibrated on samples that no member was trained on",
            remedy="train the model from two seeds or more, then `hamnet committee MODELS --on SET -o committee.json`",
        )
    structure, source = load_structure(
        args.structure,
        sample=args.sample,
        moments=args.moments,
        overlap=args.overlap,
        overlap_sample=args.overlap_sample,
    )
    if args.verify and (source is None or source.overlap is None):
        raise ConfigError("--verify without an overlap", expected="--overlap RUN, or a run or set as STRUCTURE")
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    bars: dict[str, TaskID] = {}

    def advance(step: str, finished: int, total: int) -> None:
        bars[step] = bars[step] if step in bars else progress.add_task(step, total=total)
        progress.update(bars[step], completed=finished)

    def announce(forecast: Forecast) -> None:
        progress.console.print(_announcement(forecast), highlight=False, soft_wrap=True)

    with executor_of(args) as (executor, workers), progress:
        settings = {"source": source, "memory_gb": args.memory_gb, "executor": executor, "workers": workers}
        settings |= {"on_forecast": announce, "on_progress": advance}
        if len(committee.members) == 1:
            report = predict_to_file(committee.first, structure, args.output, **settings)
            result = {"model_sha256": committee.first.checksum, **_result(report, [report]), **_uncertainty(None, None)}
            result |= {"n_atoms": report.forecast.n_atoms, "n_pairs": report.forecast.n_pairs}
        else:
            joined = predict_committee_to_file(
                committee, structure, args.output, on_member=lambda number: bars.clear(), **settings
            )
            errors = write_uncertainty(args.output.with_name(f"{args.output.stem}_uncertainty.npz"), joined)
            result = {"model_sha256": None, **_result(joined, joined.members), **_uncertainty(joined, errors)}
            result |= {"n_atoms": joined.n_atoms, "n_pairs": joined.n_pairs}
    result = {"output": str(args.output), "n_members": len(committee.members), **result, "verification": None}
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if args.verify:
        result["verification"] = verify_prediction(args.output, committee, args.mesh)
    if args.json:
        print_json(result)
    else:
        _print(result)
        if args.verify:
            print_verification(result["verification"])
    return 1 if args.verify and result["verification"]["unusual_atoms"] else 0


def _kind(committee: Committee) -> str:
    n = len(committee.members)
    return "one model, which has no spread" if n == 1 else f"a committee of {n} models without calibration"


def _announcement(forecast: Forecast) -> str:
    text = f"{forecast.n_atoms} atoms, {forecast.n_pairs} pairs: about {_duration(forecast.seconds)}, "
    text += f"{forecast.memory_gb:.2g} GB of memory, {forecast.disk_gb:.2g} GB of disk"
    return text + (f"; {forecast.finished:.0%} found finished" if forecast.finished else "")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _result(whole: Report | CommitteeReport, parts: Sequence[Report]) -> dict[str, Any]:
    """The set that was written, and what it took: one part, or one for each member that this call computed."""
    steps = {step: sum(part.seconds[step] for part in parts) for step in (parts[0].seconds if parts else ())}
    return {
        "memory_estimate_GB": max((part.forecast.memory_gb for part in parts), default=None),
        "seconds_estimate": sum(part.forecast.seconds for part in parts),
        "disk_estimate_GB": sum(part.forecast.disk_gb for part in parts),
        "resumed_fraction": sum(part.forecast.finished for part in parts) / len(parts) if parts else 1.0,
        "seconds": sum(steps.values()),
        "seconds_by_step": steps,
        "memory_peak_GB": max((part.memory_gb for part in parts), default=None),
        "file_bytes": whole.file_bytes,
        "n_electrons": whole.n_electrons,
        "has_overlap": whole.has_overlap,
        "warnings": list(whole.warnings),
    }


def _uncertainty(report: CommitteeReport | None, path: Path | None) -> dict[str, Any]:
    """Spread and expected error of a committee; null for one model."""
    from hamnet.units import MEV_PER_EV

    values: dict[str, Any] = {"uncertainty": None, "spread_rmse_meV": None, "expected_rmse_meV": None}
    if report is None:
        return values
    values["uncertainty"] = str(path)
    values["spread_rmse_meV"] = report.rms_ev(report.spread_ev) * MEV_PER_EV
    if report.expected_ev is not None:
        values["expected_rmse_meV"] = report.rms_ev(report.expected_ev) * MEV_PER_EV
    return values


def _print(result: dict[str, Any]) -> None:
    print(f"{result['output']}: Hamiltonian of {result['n_atoms']} atoms, {result['file_bytes'] / 1e6:.3g} MB")
    if result["seconds_by_step"]:
        steps = ", ".join(f"{step} {_duration(seconds)}" for step, seconds in result["seconds_by_step"].items())
        print(f"{_duration(result['seconds'])}: {steps}; at most {result['memory_peak_GB']:.2g} GB of memory")
    if result["n_members"] > 1:
        expected = result["expected_rmse_meV"]
        error = "not calibrated" if expected is None else f"expected error {expected:.3g} meV"
        print(
            f"mean of {result['n_members']} models, spread {result['spread_rmse_meV']:.3g} meV (root mean square), "
            f"{error}; by pair in {result['uncertainty']}"
        )
    if not result["has_overlap"]:
        print("No overlap was given: bands and densities of states need one (--overlap).")
