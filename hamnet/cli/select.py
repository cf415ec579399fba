"""``hamnet select``: which structures to compute next. Keys of ``--json``: docs/json.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hamnet.structure import Structure

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("committee", type=Path, metavar="COMMITTEE", help="file of `hamnet committee`")
    parser.add_argument(
        "structures",
        type=Path,
        nargs="+",
        metavar="STRUCTURES",
        help="structure files that ASE reads (all structures in them), sample sets (.h5), DFT run folders or folders "
        "of these; nothing but structure and moments is looked at",
    )
    parser.add_argument("-n", "--number", type=int, required=True, metavar="N", help="how many to choose")
    parser.add_argument("-o", "--output", type=Path, metavar="LIST.txt", help="write the chosen ones, one on a line")
    parser.add_argument("--device", default="cpu", help="where the networks compute: cpu or cuda (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    import sys

    from rich.console import Console
    from rich.progress import track

    from hamnet.active_learning import greedy_selection, structure_kernel
    from hamnet.cli.output import print_json
    from hamnet.errors import ConfigError
    from hamnet.predict.committee import load_committee
    from hamnet.predict.uncertainty import estimate_structure
    from hamnet.units import MEV_PER_EV
    from postprocess.files import replacing

    committee = load_committee(args.committee, device=args.device)
    if len(committee.members) < 2:
        raise ConfigError(
            "one model, which has no spread",
            expected="a committee of several models",
            remedy="train some more with other seeds and join them with `hamnet committee`",
            path=args.committee,
        )
    pool = list(_pool(args.structures))
    follow = track(pool, "estimating", console=Console(stderr=True), transient=True)
    estimates = [estimate_structure(committee, structure) for _, structure in follow]
    for (name, _), estimate in zip(pool, estimates, strict=True):
        for warning in estimate.warnings:
            print(f"warning: {name}: {warning}", file=sys.stderr)
    chosen = greedy_selection(
        [e.rms_ev for e in estimates], structure_kernel([e.descriptor for e in estimates]), args.number
    )
    ranks = {index: (rank, left) for rank, (index, left) in enumerate(chosen, 1)}
    calibrated = committee.calibration is not None
    result = {
        "committee": str(args.committee),
        "calibrated": calibrated,
        "n_structures": len(pool),
        "chosen": [pool[index][0] for index, _ in chosen],
        "structures": [
            {
                "name": name,
                "n_atoms": len(structure),
                "expected_rmse_meV": estimate.rms_ev * MEV_PER_EV,
                "worst_atom_rmse_meV": estimate.worst_atom_ev * MEV_PER_EV,
                "worst_atom": estimate.worst_atom,
                "rank": ranks[index][0] if index in ranks else None,
                "unexplained_rmse_meV": ranks[index][1] * MEV_PER_EV if index in ranks else None,
                "warnings": list(estimate.warnings),
            }
            for index, ((name, structure), estimate) in enumerate(zip(pool, estimates, strict=True))
        ],
    }
    if args.output is not None:
        with replacing(args.output) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in result["chosen"]), encoding="utf-8")
    if args.json:
        print_json(result)
    else:
        _print(result)
    return 0


def _pool(paths: list[Path]) -> Iterator[tuple[str, Structure]]:
    """(name, structure): ``PATH`` of a run or of a file with one, else ``PATH:SAMPLE`` or ``PATH:NUMBER`` from 0."""
    from hamnet.cli.sources import load_sample, sample_places
    from hamnet.cli.structures import read_structures
    from hamnet.store import SampleSet

    for path in paths:
        if path.suffix.lower() in (".h5", ".hdf5") and path.is_file():
            with SampleSet(path) as samples:
                yield from ((f"{path}:{name}", samples.structure(name)) for name in samples.names)
        elif path.is_dir():
            runs = sample_places([path])
            for run, _ in runs:
                yield str(path if len(runs) == 1 else run), load_sample(run).structure
        else:
            found = read_structures(path)
            for number, structure in enumerate(found):
                yield str(path) if len(found) == 1 else f"{path}:{number}", structure


def _print(result: dict[str, Any]) -> None:
    from hamnet.cli.output import number, print_table

    by_rank = sorted((s for s in result["structures"] if s["rank"]), key=lambda s: s["rank"])
    rest = sorted((s for s in result["structures"] if not s["rank"]), key=lambda s: -s["expected_rmse_meV"])
    rows = [
        [
            s["name"],
            str(s["rank"] or "–"),
            str(s["n_atoms"]),
            number(s["expected_rmse_meV"]),
            number(s["unexplained_rmse_meV"]),
            f"{number(s['worst_atom_rmse_meV'])} ({s['worst_atom']})",
        ]
        for s in (*by_rank, *rest)
    ]
    print_table(
        ["structure", "choice", "atoms", "error", "not yet covered", "worst atom"],
        rows,
        title=f"{'Expected root mean square errors' if result['calibrated'] else 'Spread of the models'}, meV",
    )
