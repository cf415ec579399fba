"""Errors on states that were never trained on, beside trivial models, for fixed splits of the DFT sets.

Each row is a training set and one or several test sets; the splits stand in ``accuracy_modules/rows.py``, and nothing
in them is drawn. A result is one JSON file in the output folder, written when it is complete. A call that was killed
goes on where it was.

    python benchmarks/accuracy.py --row nibr2_2x2 --minutes 60     one row; --row all: every row
    python benchmarks/accuracy.py --learning-curve --seed 0 --seed 1 --seed 2
    python benchmarks/accuracy.py --ablation                       every variant, or those that are named
    python benchmarks/accuracy.py --table                          what the output folder holds, as markdown
    python benchmarks/accuracy.py --quick                          seconds, on the runs of the example; the default

All but the last want HAMNET_DATA, the folder of the larger DFT sets (``openmx/SET`` and ``siesta/SET``, folders or
``.tar.xz`` archives). Training is set in ``accuracy.toml``. Numbers are means over all complex elements of the four
Pauli blocks of H, in meV, raw. No sample outside the training set has a word in the choice of the weights: the last
ones count. Validation is on a run that is no part of the row where the data have one, else on a copy of a training run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from accuracy_modules.ablated import registered
from accuracy_modules.report import curve_figure, stored_results, tables
from accuracy_modules.rows import ABLATIONS, CURVE, QUICK, QUICK_SETTINGS, ROWS, Job, Part, Row
from reading import ROOT, environment

from hamnet.cli.sources import load_source
from hamnet.errors import ConfigError, HamnetError
from hamnet.models.io import load_model
from hamnet.sample import Sample
from hamnet.store import SampleSet, write_samples
from hamnet.training.callbacks import write_text
from hamnet.training.config import TrainConfig, load_config
from hamnet.training.evaluate import evaluate
from hamnet.training.run import train
from hamnet.training.samples import SampleList
from preprocessing.dataset import build_set

DATA = Path(os.environ.get("HAMNET_DATA", ROOT.parent / "shared" / "data"))
CONFIG = ROOT / "benchmarks" / "accuracy.toml"


# -- sets --------------------------------------------------------------------------------------------------------------


def runs_of(name: str, data: Path, output: Path) -> Path:
    """Folder with the runs of a set of `data`; an archive is unpacked into `output`, whole or not at all."""
    if (data / name).is_dir():
        return data / name
    archive, target = data / f"{name}.tar.xz", output / "runs" / name
    if not archive.is_file():
        raise ConfigError(
            f"no set {name}", expected=f"a folder {name} or an archive {name}.tar.xz",
            remedy="set HAMNET_DATA to the folder of the DFT sets, or give it with --data", path=data,
        )  # fmt: skip
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            (Path(scratch) / target.name).replace(target)
    return target


def names_of(part: Part, data: Path, output: Path) -> list[str]:
    """Names of the runs of one part."""
    folder = runs_of(part.set, data, output)
    return part.chosen(sorted(path.name for path in folder.iterdir() if path.is_dir()))


def places_of(parts: Sequence[Part], data: Path, output: Path) -> list[tuple[str, str]]:
    """(set file, sample) of each run of `parts`; sets that are not there yet are made."""
    places: list[tuple[str, str]] = []
    for part in parts:
        path = output / "sets" / f"{part.set.replace('/', '_')}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        report = build_set([runs_of(part.set, data, output)], path)
        if report.rejected:
            entry = report.rejected[0]
            raise HamnetError(f"{len(report.rejected)} runs rejected: {entry.reason}", path=entry.path)
        places += [(str(path), name) for name in part.chosen(report.names)]
    return places


def drawn(places: list[tuple[str, str]], n: int, seed: int) -> list[tuple[str, str]]:
    """The first n of a random order: smaller sets lie in the larger ones of the same seed."""
    if n > len(places):
        raise ConfigError(f"{n} training runs of {len(places)}", expected="a row with more runs, or smaller numbers")
    order = np.random.default_rng(seed).permutation(len(places))[: n or len(places)]
    return [places[index] for index in sorted(order.tolist())]


def rewritten(
    places: Sequence[tuple[str, str]], path: Path, change: Callable[[Sample], Sample]
) -> list[tuple[str, str]]:
    """Changed samples in a set of their own, named by the set and the run they come from."""

    def read() -> Iterator[Sample]:
        for source, name in places:
            with SampleSet(source) as samples:
                yield replace(change(samples[name]), name=f"{Path(source).stem}/{name}")

    path.parent.mkdir(parents=True, exist_ok=True)
    write_samples(path, read())
    return [(str(path), f"{Path(source).stem}/{name}") for source, name in places]


def equal_sizes(places: Sequence[tuple[str, str]]) -> Callable[[Sample], Sample]:
    """A change of samples: moments of a species, where there is one, get its mean size over `places`."""
    sizes: dict[str, list[float]] = {}
    for structure in SampleList(places).structures():
        if structure.moments is not None:
            for label, size in zip(structure.labels, np.linalg.norm(structure.moments, axis=1), strict=True):
                sizes.setdefault(label, []).append(float(size))

    def change(sample: Sample) -> Sample:
        moments = sample.structure.moments
        if moments is None:
            return sample
        now = np.linalg.norm(moments, axis=1)
        wanted = np.array([mean(sizes[label]) for label in sample.structure.labels])
        factor = np.divide(wanted, now, out=np.zeros_like(now), where=now > 0)
        return replace(sample, structure=sample.structure.with_moments(moments * factor[:, None]))

    return change


def with_spin_orbit(sample: Sample) -> Sample:
    """The sample, said to have spin–orbit coupling, with the complex blocks that it would have."""
    hamiltonian = sample.operator("hamiltonian").to(torch.complex128)
    return replace(sample, hamiltonian=hamiltonian, spin_orbit=True)


# -- one job -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for all jobs of a call."""

    data: Path
    output: Path
    config: Path
    minutes: float
    steps: int
    overrides: tuple[str, ...]
    overwrite: bool


def run_job(job: Job, setting: Setting) -> dict[str, Any]:
    """The result of a job: read, if it is there, else made."""
    places = {"train": drawn(places_of(job.row.train, setting.data, setting.output), job.n_train, job.seed)}
    places["validation"] = places_of(job.row.validation, setting.data, setting.output)
    tests = {part.set: names_of(part, setting.data, setting.output) for part in job.row.test}
    wanted = {
        "config": tomllib.loads(setting.config.read_text(encoding="utf-8")),
        "overrides": [*_variant_overrides(job, setting), *setting.overrides],
        "steps" if setting.steps else "minutes": setting.steps or setting.minutes,
        "seed": job.seed,
        **{key: _names(chosen) for key, chosen in places.items()},
        "test": tests,
    }
    result_path, folder = setting.output / "results" / f"{job.name}.json", setting.output / "training" / job.name
    known = [path for path in (result_path, folder / "settings.json") if path.exists()]
    if known and not setting.overwrite:
        stored = json.loads(known[0].read_text(encoding="utf-8"))
        stored = stored.get("settings", stored)
        if stored != wanted:
            different = ", ".join(key for key in wanted if stored.get(key) != wanted[key])
            raise ConfigError(
                f"made with other settings ({different})", expected="the settings of this call",
                remedy="give another --output, or --overwrite to replace it", path=known[0],
            )  # fmt: skip
        if known[0] == result_path:
            _say(f"{job.name}: done already")
            return json.loads(result_path.read_text(encoding="utf-8"))
    start = None
    if job.row.start is not None:
        first = Job(next(row for row in ROWS if row.name == job.row.start), job.seed)
        run_job(first, setting)
        start = setting.output / "training" / first.name / "model.safetensors"
    if not places["validation"]:
        copy = setting.output / "sets" / f"{job.name}.copy.h5"
        places["validation"] = rewritten(places["train"][:1], copy, lambda sample: sample)
    change = equal_sizes(places["train"]) if job.variant.equal_moments else None
    change = with_spin_orbit if job.variant.tied_spin else change
    if change is not None:
        changed = setting.output / "sets" / f"{job.name}.changed"
        places = {key: rewritten(chosen, changed / f"{key}.h5", change) for key, chosen in places.items()}
    if setting.overwrite or not (folder / "result.json").exists():
        write_text(folder / "settings.json", json.dumps(wanted, indent=1) + "\n")
        config = _config(job, setting, places, folder, start)
        train(config, resume=not setting.overwrite, overwrite=setting.overwrite, say=lambda t: _say(f"{job.name}: {t}"))
    result = {
        "name": job.name,
        "row": job.row.name,
        "title": job.row.title,
        "kind": job.kind,
        "label": job.label,
        "targets_meV": {
            "mae": job.row.mae_mev, "bands_mean": job.row.bands_mean_mev, "bands_max": job.row.bands_max_mev
        },
        "n_train": len(places["train"]),
        "seed": job.seed,
        "training": json.loads((folder / "result.json").read_text(encoding="utf-8")),
        "tests": _evaluations(job, setting, SampleList(places["train"]), folder / "model.safetensors", change),
        "settings": wanted,
        "environment": environment(),
    }  # fmt: skip
    write_text(result_path, json.dumps(result, indent=1) + "\n")
    return result


def _names(places: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{Path(path).stem}/{name}" for path, name in places]


def _variant_overrides(job: Job, setting: Setting) -> list[str]:
    """The settings of a variant, factors worked out from the configuration without it."""
    found = list(job.variant.settings)
    if job.variant.factors:
        needed = ("data.train=x", "data.validation=y", "training.epochs=1")
        base = load_config(setting.config, (*needed, *setting.overrides))
        sizes = base.model.model_config()
        found += [f"model.{key}={max(1, round(factor * getattr(sizes, key)))}" for key, factor in job.variant.factors]
    return found


def _config(
    job: Job, setting: Setting, places: Mapping[str, Sequence[tuple[str, str]]], folder: Path, start: Path | None
) -> TrainConfig:
    """The configuration of the job: the file, what the benchmark decides, the variant, and last the user's settings."""
    overrides = []
    for key, chosen in places.items():
        sets = {path: [name for other, name in chosen if other == path] for path, _ in chosen}
        tables = (f"{{path={json.dumps(path)}, names={json.dumps(names)}}}" for path, names in sets.items())
        overrides.append(f"data.{key}=[{', '.join(tables)}]")
    if setting.steps:
        length = f"training.epochs={-(-setting.steps // len(places['train']))}"
    else:
        length = f"training.max_minutes={setting.minutes}"
    overrides += [f"output.dir={json.dumps(str(folder))}", length]
    if start is not None:
        overrides.append(f"model.start={json.dumps(str(start))}")
    overrides += [*_variant_overrides(job, setting), *setting.overrides]
    config = load_config(setting.config, overrides, seed=job.seed)
    if config.output.export != "last":
        raise ConfigError(
            f"output.export = {config.output.export!r}", expected="'last': validation has no say in a result",
            path=setting.config,
        )  # fmt: skip
    return config


def _evaluations(
    job: Job, setting: Setting, trained: SampleList, model: Path, change: Callable[[Sample], Sample] | None
) -> list[dict[str, Any]]:
    """Errors on each test set, at the k points at which the DFT code printed bands."""
    loaded, results = load_model(model), []
    for part in job.row.test:
        folder, names = runs_of(part.set, setting.data, setting.output), names_of(part, setting.data, setting.output)

        def samples(folder: Path = folder, names: Sequence[str] = names) -> Iterator[tuple[Sample, Any]]:
            for name in names:
                _say(f"{job.name}: evaluating {folder.name}/{name}")
                source = load_source(folder / name)
                printed = sorted(source.references, key=lambda reference: not len(reference.corners))
                sample = replace(source.sample, name=f"{folder.name}/{name}")
                yield change(sample) if change else sample, printed[0].k_frac if printed else None

        errors = evaluate(loaded, samples(), train=trained).to_dict()
        results.append({"set": part.set, "errors": errors})
    return results


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- command line ------------------------------------------------------------------------------------------------------


def jobs_of(args: argparse.Namespace) -> list[Job]:
    by_name = {row.name: row for row in ROWS}
    names = list(by_name) if "all" in args.row else args.row
    for name in names:
        if name not in by_name:
            raise ConfigError(f"--row {name}", expected=f"one of {', '.join(by_name)}, or all")
    for label in args.ablation or ():
        if label not in ABLATIONS:
            raise ConfigError(f"--ablation {label!r}", expected=f"some of {', '.join(map(repr, ABLATIONS))}")
    if args.quick:
        return [Job(QUICK, seed) for seed in args.seed]
    varied = [by_name[name] for name in names or ["nibr2_2x2"]]

    def variants_of(row: Row) -> list[str]:
        fitting = [label for label, variant in ABLATIONS.items() if not variant.rows or row.name in variant.rows]
        for label in args.ablation:
            if label not in fitting:
                raise ConfigError(f"--ablation {label!r} of {row.name}", expected="a row in which it changes something")
        return args.ablation or fitting

    jobs: list[Job] = []
    for seed in args.seed:
        if args.learning_curve is not None:
            sizes = args.learning_curve or CURVE
            jobs += [Job(row, seed, "curve", f"n{n:02d}", n) for row in varied for n in sizes]
        if args.ablation is not None:
            jobs += [
                Job(row, seed, "ablation", label, 0, ABLATIONS[label]) for row in varied for label in variants_of(row)
            ]
        if args.learning_curve is None and args.ablation is None:
            jobs += [Job(by_name[name], seed) for name in names]
    return jobs


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", default=[], metavar="NAME", help=f"{', '.join(r.name for r in ROWS)}")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each result (%(default)s)")
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="crystals seen instead of minutes: comparable on a busy machine",
    )
    parser.add_argument("--seed", type=int, action="append", help="may be repeated (0)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument(
        "--learning-curve", type=int, nargs="*", metavar="RUNS", help=f"training runs {CURVE} of --row (nibr2_2x2)"
    )
    parser.add_argument("--ablation", nargs="*", metavar="VARIANT", help="variants on --row (nibr2_2x2)")
    parser.add_argument("--output", type=Path, help="folder of sets, trainings and results (out/accuracy)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the DFT sets (HAMNET_DATA)")
    parser.add_argument("--config", type=Path, default=CONFIG, help="training configuration (accuracy.toml)")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where there are results of other settings")
    parser.add_argument("--quick", action="store_true", help="seconds, on the runs of the example")
    parser.add_argument("--table", action="store_true", help="only print the results of the output folder")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="figure of the learning curve")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to one file")
    args = parser.parse_args(words)
    args.seed = args.seed or [0]
    if not (args.row or args.learning_curve is not None or args.ablation is not None or args.table):
        args.quick = True
    return args


def main(words: Sequence[str] | None = None) -> int:
    args = parse(words)
    try:
        if args.quick and args.output is None:
            with tempfile.TemporaryDirectory() as scratch:
                return _run(args, Path(scratch))
        return _run(args, (args.output or ROOT / "out" / "accuracy").resolve())
    except HamnetError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace, output: Path) -> int:
    failed: list[str] = []
    if not args.table:
        data = ROOT / "examples" / "nibr2" if args.quick else args.data
        quick = QUICK_SETTINGS if args.quick else ()
        overrides = (*quick, *args.overrides)
        setting = Setting(data.resolve(), output, args.config, args.minutes, args.steps, overrides, args.overwrite)
        with registered():
            for job in jobs_of(args):
                try:
                    run_job(job, setting)
                except HamnetError as error:  # the other results do not depend on it
                    failed.append(f"{job.name}: {error}")
    results = stored_results(output)
    print(tables(results))
    if args.plot:
        curve_figure(results, args.plot)
    if args.json:
        write_text(args.json, json.dumps({"results": results, "failed": failed}, indent=1) + "\n")
    for text in failed:
        _say(f"accuracy: {text}")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
