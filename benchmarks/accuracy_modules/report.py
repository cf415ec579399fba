"""Results of benchmarks/accuracy.py as markdown tables and a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from hamnet.errors import ConfigError

from .rows import ABLATIONS, QUICK, ROWS

__all__ = ["curve_figure", "grouped", "spread", "stored_results", "tables"]


def stored_results(output: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((output / "results").glob("*.json"))]


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the rows beside their targets, the learning curve, the ablations."""
    order = {row.name: place for place, row in enumerate((*ROWS, QUICK))}
    results = sorted(results, key=lambda r: (order.get(r["row"], len(order)), r["n_train"], r["seed"]))
    rows = [r for r in results if r["kind"] == "row"]
    parts = [_row_table(rows)] if rows else []
    curve = [r for r in results if r["kind"] == "curve"]
    ablations = [r for r in results if r["kind"] == "ablation"]
    for title, found, key in (("Learning curve", curve, "n_train"), ("Ablations", ablations, "label")):
        for name in dict.fromkeys(r["row"] for r in found):
            parts.append(f"## {title}: {name}\n\n" + _group_table([r for r in found if r["row"] == name], key))
    return "\n\n".join(parts) if parts else "no results"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _beside_target(value: float | None, target: float | None) -> str:
    return _number(value) + ("" if target is None else f" (≤ {target:g})")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row_table(results: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "train → test", "test set", "MAE (target)", "spin-free / exchange / spin–orbit", "RMSE, on-site",
        "bands mean (target)", "bands max (target)", "bands aligned", "zero magnetism", "mean block",
        "linear in moments", "minutes", "steps", "seed",
    ]  # fmt: skip
    rows = []
    for result in results:
        targets = result["targets_meV"]
        for test in result["tests"]:
            e = test["errors"]
            rows.append([
                f"{result['title']} ({result['n_train']} runs)",
                f"{test['set']} ({e['n_samples']})",
                _beside_target(e["mae_meV"], targets["mae"]),
                " / ".join(_number(e[f"mae_{part}_meV"]) for part in ("spin_free", "exchange", "soc")),
                f"{_number(e['rmse_meV'])}, {_number(e['onsite']['rmse_meV'])}",
                _beside_target(e["bands_mean_meV"], targets["bands_mean"]),
                _beside_target(e["bands_max_meV"], targets["bands_max"]),
                _number(e["bands_mean_meV_aligned"]),
                *(_trivial(e["baselines"][key]) for key in ("zero_magnetism", "mean_block", "linear_in_moments")),
                f"{result['training']['elapsed_s'] / 60:.3g}",
                str(result["training"]["steps"]),
                str(result["seed"]),
            ])  # fmt: skip
    note = (
        "meV; bands aligned: mean, less the mean shift of a run's states; trivial models: MAE; mean error of bands. "
        "Definitions: docs/json.md, hamnet evaluate."
    )
    return f"{_markdown(head, rows)}\n\n{note}"


def _trivial(errors: Mapping[str, Any] | None) -> str:
    return "cannot" if errors is None else f"{_number(errors['mae_meV'])}; {_number(errors['bands_mean_meV'])}"


def spread(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Mean and standard deviation (nan for one value); None where there is no number."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    return mean(numbers), stdev(numbers) if len(numbers) > 1 else float("nan")


def _with_bar(values: Sequence[float | None]) -> str:
    found = spread(values)
    if found is None:
        return "–"
    bar = np.format_float_positional(found[1], precision=1, fractional=False, trim="-")
    return _number(found[0]) + ("" if np.isnan(found[1]) else f" ± {bar}")


def grouped(results: Sequence[Mapping[str, Any]], key: str) -> dict[Any, list[Mapping[str, Any]]]:
    """Errors on the first test set, with steps and weights of the training, by `key`, all seeds together."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for result in results:
        training = {name: result["training"][name] for name in ("steps", "n_weights")}
        groups.setdefault(result[key], []).append({**result["tests"][0]["errors"], **training})
    return groups


def _group_table(results: Sequence[Mapping[str, Any]], key: str) -> str:
    columns = {
        "MAE": "mae_meV", "spin-free": "mae_spin_free_meV", "exchange": "mae_exchange_meV",
        "spin–orbit": "mae_soc_meV", "RMSE": "rmse_meV", "bands mean": "bands_mean_meV", "bands max": "bands_max_meV",
        "bands aligned": "bands_mean_meV_aligned",
    }  # fmt: skip
    groups = grouped(results, key)
    keys = [label for label in ABLATIONS if label in groups] if key == "label" else sorted(groups)
    rows = [
        [
            str(k),
            *(_with_bar([e[column] for e in groups[k]]) for column in columns.values()),
            *("–".join(str(n) for n in sorted({e[name] for e in groups[k]})) for name in ("steps", "n_weights")),
            str(len(groups[k])),
        ]
        for k in keys
    ]
    head = ["training runs" if key == "n_train" else "variant", *columns, "steps", "weights", "seeds"]
    note = "meV; ± standard deviation over the seeds, which draw the runs and the weights."
    return f"{_markdown(head, rows)}\n\n{note}"


def curve_figure(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """MAE and band errors over the number of training runs, bars: standard deviation over the seeds."""
    from matplotlib.figure import Figure

    from postprocess.plotting import PALETTE, save_figure

    groups = grouped([r for r in results if r["kind"] == "curve"], "n_train")
    if not groups:
        raise ConfigError("no points of a learning curve", expected="results of --learning-curve")
    figure = Figure(figsize=(3.4, 2.6), layout="constrained")
    axes = figure.add_subplot()
    sizes = sorted(groups)
    keys = {"mae_meV": "MAE of H", "rmse_meV": "RMSE of H", "bands_mean_meV": "bands, mean"}
    for colour, (key, label) in zip(PALETTE, keys.items(), strict=False):
        points = [(n, *found) for n in sizes if (found := spread([e[key] for e in groups[n]])) is not None]
        x, y, bars = np.array(points).T
        axes.errorbar(x, y, np.nan_to_num(bars), color=colour, lw=1.0, marker="o", ms=3, capsize=2, label=label)
    axes.set(xscale="log", yscale="log", xlabel="training runs", ylabel="error (meV)")
    axes.set_xticks(sizes, [str(n) for n in sizes], minor=False)
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=7)
    save_figure(figure, path)
