"""``hamnet committee``: models joined, and how far to trust them. Keys of ``--json``: docs/json.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hamnet.predict.uncertainty import Examination
    from hamnet.sample import Sample

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        type=Path,
        nargs="+",
        metavar="MODEL",
        help="model files trained on the same data from different seeds; of one alone only the moments are examined",
    )
    parser.add_argument(
        "--on",
        type=Path,
        nargs="+",
        default=[],
        metavar="SET|RUN",
        help="samples with known H that no model was trained on: sets, DFT run folders, or folders of these. From them "
        "the spread of the models is scaled to errors (without: bare spread)",
    )
    parser.add_argument("--samples", metavar="PATTERN", default="*", help="samples of sets, as r0* (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json", help="the committee to write")
    parser.add_argument(
        "--figure", type=Path, metavar="FIGURE", help="expected against true errors: .png, .pdf or .svg"
    )
    parser.add_argument(
        "--moments",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute moments back from H, by diagonalisation, to know what is normal for `hamnet predict --verify`",
    )
    parser.add_argument("--device", default="cpu", help="where the networks compute: cpu or cuda (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    import sys

    from hamnet.cli.output import print_json
    from hamnet.errors import ConfigError
    from hamnet.models.io import load_model
    from hamnet.predict.committee import is_committee, join_models, save_committee

    if not is_committee(args.output):
        raise ConfigError(f"--output {args.output}", expected="a name that ends in .json")
    committee = join_models([load_model(path, device=args.device) for path in args.models])
    result: dict[str, Any] = {"output": str(args.output), "members": [str(path) for path in args.models]}
    if args.on:
        examination = _examine(args, committee)
        committee = examination.committee
        result |= examination.to_dict()
        for warning in examination.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if args.figure is not None:
            _draw(args.figure, examination)
    save_committee(args.output, committee, notes={"agreement": result.get("agreement")})
    if args.json:
        print_json(result)
    else:
        _print(result)
    return 0


def _examine(args: argparse.Namespace, committee) -> Examination:
    from rich.console import Console
    from rich.progress import track

    from hamnet.cli.sources import sample_places
    from hamnet.predict.uncertainty import examine

    if args.figure is not None:
        from postprocess.plotting import check_output

        check_output(args.figure)
    places = sample_places(args.on, args.samples)
    samples = _samples(places, moments=args.moments)
    return examine(committee, track(samples, "examining", len(places), console=Console(stderr=True), transient=True))


def _samples(places: list[tuple[Path, str | None]], *, moments: bool) -> Iterator[tuple[Sample, NDArray | None]]:
    from hamnet.cli.sources import load_sample
    from hamnet.cli.spectrum import dense_mesh
    from hamnet.cli.verification import MESH_DENSITY_ANG

    for path, name in places:
        sample = load_sample(path, name)
        yield sample, dense_mesh(sample, MESH_DENSITY_ANG).k_frac if moments else None


def _draw(path: Path, examination: Examination) -> None:
    import numpy as np

    from postprocess.calibration_plot import calibration_figure
    from postprocess.plotting import save_figure

    expected, true = (
        np.concatenate([getattr(s, name) for s in examination.samples]) for name in ("expected_ev", "true_ev")
    )
    onsite = np.concatenate([s.pairs.onsite for s in examination.samples])
    save_figure(calibration_figure(expected, true, onsite), path)


_PARTS = {"spin_free": "spin-free", "exchange": "exchange", "soc": "spin–orbit"}
_WHERE = {"onsite": "on-site", "offsite": "off-site"}


def _print(result: dict[str, Any]) -> None:
    from hamnet.cli.output import number, print_table

    print(f"{result['output']}: {len(result['members'])} models")
    if result.get("agreement"):
        print_table(
            ["blocks", "part", "number", "within a factor 2", "true/expected", "rank correlation"],
            [
                [
                    _WHERE[row["where"]],
                    _PARTS[row["part"]],
                    str(row["n_blocks"]),
                    f"{row['within_factor_2']:.0%}",
                    number(row["true_over_expected"], ".2f"),
                    number(row["rank_correlation"], ".2f"),
                ]
                for row in result["agreement"]
            ],
            title="Expected errors against true ones; each sample with factors fitted to the others",
            left=2,
        )
    moments = result.get("moments") or {}
    rows = [
        [
            {"labels": "DFT", "predicted": "predicted"}[what],
            label,
            str(n["n_atoms"]),
            f"{n['size_min_muB']:.4f} … {n['size_max_muB']:.4f}",
            f"{n['angle_max_deg']:.2f}",
        ]
        for what, species in moments.items()
        for label, n in (species or {}).items()
    ]
    if rows:
        print_table(
            ["H", "species", "atoms", "size, μ_B", "largest angle, °"],
            rows,
            title="Moments computed back from H, against those given",
            left=2,
        )
    elif result.get("moments_missing_because"):
        print(f"No moments: {result['moments_missing_because']}")
    if "agreement" not in result:
        print("Not calibrated (--on): the spread of the models is no error yet.")
