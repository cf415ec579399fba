"""``hamnet predict``: the Hamiltonian of a structure, written as a sample set. Keys of ``--json``: docs/json.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from hamnet.predict import Forecast, Report

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="model file")
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
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes on this machine (%(default)s)")
    parser.add_argument("--dask", metavar="ADDRESS", help="compute on the workers of this Dask scheduler instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from hamnet.cli.output import print_json
    from hamnet.cli.structures import load_structure
    from hamnet.models.io import load_model
    from hamnet.predict import predict_to_file

    loaded = load_model(args.model, device=args.device)
    structure, source = load_structure(
        args.structure,
        sample=args.sample,
        moments=args.moments,
        overlap=args.overlap,
        overlap_sample=args.overlap_sample,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    bars: dict[str, TaskID] = {}

    def advance(step: str, finished: int, total: int) -> None:
        bars[step] = bars[step] if step in bars else progress.add_task(step, total=total)
        progress.update(bars[step], completed=finished)

    with _executor(args.workers, args.dask) as (executor, workers), progress:
        report = predict_to_file(
            loaded,
            structure,
            args.output,
            source=source,
            memory_gb=args.memory_gb,
            executor=executor,
            workers=workers,
            on_forecast=lambda forecast: progress.console.print(
                _announcement(forecast), highlight=False, soft_wrap=True
            ),
            on_progress=advance,
        )
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        print_json({"output": str(args.output), "model_sha256": loaded.checksum, **_result(report)})
    else:
        _print(args.output, report)
    return 0


@contextmanager
def _executor(workers: int, dask: str | None) -> Iterator[tuple[Executor | None, int]]:
    """The executor and how many workers it has; None and 1 where this process computes."""
    from hamnet.errors import ConfigError

    if workers < 1:
        raise ConfigError(f"--workers {workers}", expected="at least 1")
    if dask is not None:
        try:
            from distributed import Client
        except ImportError as error:
            raise ConfigError(
                "--dask without Dask", expected="the package distributed", remedy="pip install 'hamnet[dask]'"
            ) from error
        try:
            client = Client(dask, timeout="10s")
        except (OSError, ValueError) as error:
            raise ConfigError(f"no Dask scheduler at {dask} ({error})", expected="the address of one") from error
        with client:
            count = len(client.scheduler_info(n_workers=-1)["workers"])
            if not count:
                raise ConfigError(f"the Dask scheduler at {dask} has no workers", expected="at least one")
            yield client.get_executor(), count
    elif workers > 1:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        # Not forked: torch's threads do not survive that.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent) as pool:
            yield pool, workers
    else:
        yield None, 1


def _follow_parent() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when that is killed."""
    import os
    import signal
    from multiprocessing import parent_process
    from threading import Thread

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _announcement(forecast: Forecast) -> str:
    text = f"{forecast.n_atoms} atoms, {forecast.n_pairs} pairs: about {_duration(forecast.seconds)}, "
    text += f"{forecast.memory_gb:.2g} GB of memory, {forecast.disk_gb:.2g} GB of disk"
    return text + (f"; {forecast.finished:.0%} found finished" if forecast.finished else "")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _result(report: Report) -> dict:
    forecast = report.forecast
    return {
        "n_atoms": forecast.n_atoms,
        "n_pairs": forecast.n_pairs,
        "memory_estimate_GB": forecast.memory_gb,
        "seconds_estimate": forecast.seconds,
        "disk_estimate_GB": forecast.disk_gb,
        "resumed_fraction": forecast.finished,
        "seconds": sum(report.seconds.values()),
        "seconds_by_step": dict(report.seconds),
        "memory_peak_GB": report.memory_gb,
        "file_bytes": report.file_bytes,
        "n_electrons": report.n_electrons,
        "has_overlap": report.has_overlap,
        "warnings": list(report.warnings),
    }


def _print(output: Path, report: Report) -> None:
    print(f"{output}: Hamiltonian of {report.forecast.n_atoms} atoms, {report.file_bytes / 1e6:.3g} MB")
    steps = ", ".join(f"{step} {_duration(seconds)}" for step, seconds in report.seconds.items())
    print(f"{_duration(sum(report.seconds.values()))}: {steps}; at most {report.memory_gb:.2g} GB of memory")
    if not report.has_overlap:
        print("No overlap was given: bands and densities of states need one (--overlap).")
