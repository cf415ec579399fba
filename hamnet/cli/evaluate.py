"""``hamnet evaluate``: errors of a model on sample sets and DFT runs. Keys of ``--json``: docs/json.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hamnet.models.io import LoadedModel
    from hamnet.sample import Sample
    from hamnet.training.samples import SampleList

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="model file")
    parser.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="SET|RUN",
        help="sample sets (.h5), DFT run folders, or folders of these",
    )
    parser.add_argument("--samples", metavar="PATTERN", default="*", help="samples of sets, as r0* (%(default)s)")
    parser.add_argument(
        "--bands", action=argparse.BooleanOptionalAction, default=True, help="compare bands within 2 eV of E_F"
    )
    parser.add_argument(
        "--train",
        type=Path,
        action="append",
        default=[],
        metavar="SET",
        help="set that the model was trained on (may be repeated): also score trivial models fitted to it",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="figure of where the error sits: name ends with .png, .pdf or .svg"
    )
    parser.add_argument("--device", default="cpu", help="where the network computes: cpu or cuda (%(default)s)")
    parser.add_argument("--max-mae", type=float, metavar="MEV", help="exit code 1 if mae_meV is larger than this")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    import sys

    from rich.console import Console
    from rich.progress import track

    from hamnet.cli.output import print_json
    from hamnet.cli.sources import sample_places
    from hamnet.models.io import load_model
    from hamnet.training.evaluate import evaluate

    if args.plot is not None:
        from postprocess.plotting import check_output

        check_output(args.plot)
    loaded = load_model(args.model, device=args.device)
    train = _training_set(loaded, args.train) if args.train else None
    places = sample_places(args.sources, args.samples)
    samples = track(_samples(places), "evaluating", len(places), console=Console(stderr=True), transient=True)
    result = evaluate(loaded, samples, bands=args.bands, train=train).to_dict()
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if args.plot is not None:
        from postprocess.error_plots import error_figure
        from postprocess.plotting import save_figure

        save_figure(error_figure(result), args.plot)
    if args.json:
        print_json({"model": str(args.model), "model_sha256": loaded.checksum, **result})
    else:
        _print(result, with_training_set=train is not None)
    if args.max_mae is not None and result["mae_meV"] > args.max_mae:
        print(f"hamnet evaluate: {result['mae_meV']:.4g} meV is more than --max-mae {args.max_mae:g}", file=sys.stderr)
        return 1
    return 0


def _training_set(loaded: LoadedModel, paths: list[Path]) -> SampleList:
    """The samples of the sets that the model was trained on, by the names that its file lists."""
    import sys
    from collections import Counter

    from hamnet.errors import ConfigError
    from hamnet.store import SampleSet
    from hamnet.training.samples import SampleList

    listed: list[str] = loaded.provenance["samples"]["train"]["names"]
    places: list[tuple[str, str]] = []
    for path in paths:
        with SampleSet(path) as samples:
            chosen = [name for name in samples.names if name in listed]
        if not chosen:
            raise ConfigError(
                "no sample that the model was trained on",
                expected=f"names like {', '.join(listed[:4])}",
                remedy="give the set that stood in [data] train",
                path=path,
            )
        places += [(str(path), name) for name in chosen]
    if Counter(name for _, name in places) != Counter(listed):
        print(
            f"warning: the sets of --train hold {len(places)} of the {len(listed)} samples that the model was "
            "trained on, or others of the same names; trivial models are fitted to these",
            file=sys.stderr,
        )
    return SampleList(places)


def _samples(places: list[tuple[Path, str | None]]) -> Iterator[tuple[Sample, Any]]:
    """Each sample with its k points: those of the path (or mesh) at which a run's code printed bands, else None."""
    from hamnet.cli.sources import load_source

    for path, name in places:
        source = load_source(path, name)
        # A path says more than a mesh about bands that cross the Fermi level.
        printed = sorted(source.references, key=lambda reference: not len(reference.corners))
        yield source.sample, printed[0].k_frac if printed else None


_COLUMNS = {
    "all": "mae_meV",
    "spin-free": "mae_spin_free_meV",
    "exchange": "mae_exchange_meV",
    "spin-orbit": "mae_soc_meV",
    "spinor": "mae_spinor_meV",
    "RMSE": "rmse_meV",
    "bands": "bands_mean_meV",
    "worst band": "bands_max_meV",
    "bands, aligned": "bands_mean_meV_aligned",
}


def _print(result: dict[str, Any], *, with_training_set: bool) -> None:
    from hamnet.cli.output import number, print_table

    def row(name: str, values: dict[str, Any]) -> list[str]:
        return [name, *(number(values.get(key)) for key in _COLUMNS.values())]

    rows = [row(sample["name"], sample) for sample in result["samples"]]
    rows += [row("all", result), row("– on-site blocks", result["onsite"])]
    names = {"zero_magnetism": "no magnetism at all"}
    if with_training_set:
        names |= {"mean_block": "mean of each block", "linear_in_moments": "linear in moments"}
    rows += [row(name, result["baselines"][key] or {}) for key, name in names.items()]
    title = "Mean errors in meV (RMSE: root mean square); bands: within 2 eV of E_F; aligned: less their mean shift"
    print_table(["sample", *_COLUMNS], rows, title=title)
    for key, reason in result["baselines_missing_because"].items():
        if key in names:
            print(f"{names[key]}: cannot ({reason})")
    if result["overlap_min_eigenvalue"] is not None:
        print(f"smallest eigenvalue of the overlap: {result['overlap_min_eigenvalue']:.3g}")
    if result["bands_missing_because"]:
        print(f"no bands: {result['bands_missing_because']}")
