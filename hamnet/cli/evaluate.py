"""``hamnet evaluate``: errors of a model on sample sets and DFT runs. Keys of ``--json``: docs/json.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hamnet.sample import Sample

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
    parser.add_argument("--device", default="cpu", help="where the network computes: cpu or cuda (%(default)s)")
    parser.add_argument("--max-mae", type=float, metavar="MEV", help="exit code 1 if mae_meV is larger than this")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    import sys

    from rich.console import Console
    from rich.progress import track

    from hamnet.cli.output import print_json
    from hamnet.models.io import load_model
    from hamnet.training.evaluate import evaluate

    loaded = load_model(args.model, device=args.device)
    places = _places(args.sources, args.samples)
    samples = track(_samples(places), "evaluating", len(places), console=Console(stderr=True), transient=True)
    result = evaluate(loaded, samples, bands=args.bands).to_dict()
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        print_json({"model": str(args.model), "model_sha256": loaded.checksum, **result})
    else:
        _print(result)
    if args.max_mae is not None and result["mae_meV"] > args.max_mae:
        print(f"hamnet evaluate: {result['mae_meV']:.4g} meV is more than --max-mae {args.max_mae:g}", file=sys.stderr)
        return 1
    return 0


def _places(sources: list[Path], pattern: str) -> list[tuple[Path, str | None]]:
    """(path, name of the sample in a set, or None for a run)."""
    from fnmatch import fnmatchcase

    from hamnet.errors import ConfigError
    from hamnet.store import SampleSet
    from preprocessing.readers import find_runs

    places: list[tuple[Path, str | None]] = []
    for path in sources:
        if not path.is_file() or path.suffix.lower() not in (".h5", ".hdf5"):
            places += [(run, None) for run in find_runs([path])]
            continue
        with SampleSet(path) as samples:
            chosen = [name for name in samples.names if fnmatchcase(name, pattern)]
        if not chosen:
            raise ConfigError(f"no sample fits {pattern!r}", expected="at least one", path=path)
        places += [(path, name) for name in chosen]
    return places


def _samples(places: list[tuple[Path, str | None]]) -> Iterator[tuple[Sample, Any]]:
    """Each sample with its k points: those of the path (or mesh) at which a run's code printed bands, else None."""
    from hamnet.cli.sources import load_source

    for path, name in places:
        source = load_source(path, name)
        # A path says more than a mesh about bands that cross the Fermi level.
        printed = sorted(source.references, key=lambda reference: not len(reference.corners))
        yield source.sample, printed[0].k_frac if printed else None


def _print(result: dict[str, Any]) -> None:
    from hamnet.cli.output import number, print_table

    keys = ("mae_meV", "mae_spin_free_meV", "mae_exchange_meV", "mae_soc_meV", "mae_spinor_meV")
    keys += ("bands_mean_meV", "bands_max_meV", "bands_mean_meV_mu_aligned", "mu_shift_meV")
    heads = [
        "sample",
        "all",
        "spin-free",
        "exchange",
        "spin-orbit",
        "spinor",
        "bands",
        "worst band",
        "bands, μ-aligned",
    ]
    rows = [[s["name"], *(number(s.get(key)) for key in keys)] for s in (*result["samples"], {**result, "name": "all"})]
    baseline = result["baselines"]["zero_magnetism"]
    rows.append(["no magnetism at all", *(number(baseline.get(key)) for key in keys)])
    print_table(heads, rows, title="Mean errors in meV; bands: states within 2 eV of the Fermi energy")
    if result["bands_missing_because"]:
        print(f"no bands: {result['bands_missing_because']}")
