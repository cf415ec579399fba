"""Where the error of a model sits: a figure from the numbers of ``hamnet evaluate --json``.

All panels show root mean squares, since the errors of bands follow them and not the means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from .plotting import PALETTE

__all__ = ["error_figure"]

_PARTS = {"spin_free": "spin-free", "exchange": "exchange", "soc": "spin–orbit"}
_COLOURS = dict(zip(_PARTS, PALETTE[:3], strict=True))
_SHELLS = "spdfghi"
_LABEL_PT, _TICK_PT = 8.0, 7.0
_LEAST_MEV = 1e-6
"""Errors below are rounding and would only stretch the logarithmic axes."""


def error_figure(result: Mapping[str, Any]) -> Figure:
    """RMSE by distance, by angle between moments, by irrep L, and by shell pair, on-site and between atoms.

    result : what ``hamnet evaluate --json`` prints (``docs/json.md``).
    """
    angles, shells = result["error_map"]["by_angle"], result["error_map"]["by_shell_pair"]
    figure = Figure(figsize=(7.0, 5.6), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.0, 1.25))[:, 0]
    panels = above.subplots(1, 3 if angles else 2, squeeze=False)[0]
    _by_distance(panels[0], result["mae_by_distance"])
    if angles:
        _by_angle(panels[1], angles)
    _by_degree(panels[-1], shells)
    _share_scale(panels)
    handles = [Line2D([], [], color=_COLOURS[part], lw=1.2, label=label) for part, label in _PARTS.items()]
    handles.append(Line2D([], [], color="0.4", lw=0.9, ls=(0, (1, 1.5)), label="|H| itself"))
    above.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=_TICK_PT, frameon=False)
    _shell_maps(below, shells, int(result["error_map"]["n_components"]))
    return figure


def _values(entries: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64] | None:
    """The numbers under `key`, nan below the least that is drawn; None where the Hamiltonian has no such part."""
    numbers = [entry[key] for entry in entries]
    if not numbers or any(number is None for number in numbers):
        return None
    array = np.array(numbers, dtype=np.float64)
    return np.where(array > _LEAST_MEV, array, np.nan)


def _by_distance(axes: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    """On-site blocks at zero, apart from the line of the others."""
    own = [entry for entry in bins if entry["to_ang"] == 0]
    bonds = [entry for entry in bins if entry["to_ang"] > 0]
    centres = [(entry["from_ang"] + entry["to_ang"]) / 2 for entry in bonds]
    styles: dict[str, dict[str, Any]] = {
        f"rmse_{part}_meV": {"color": colour, "lw": 1.0, "marker": "o", "ms": 2.5} for part, colour in _COLOURS.items()
    }
    styles["rms_h_meV"] = {"color": "0.4", "lw": 0.9, "ls": (0, (1, 1.5))}
    for key, style in styles.items():
        for x, entries in ((centres, bonds), ([0.0], own)):
            values = _values(entries, key)
            if values is not None:
                axes.plot(x, values, **(style if entries is bonds else {**style, "marker": "D", "ms": 3.5, "ls": ""}))
    axes.set_xlabel("distance of the atoms (Å)", fontsize=_LABEL_PT)
    axes.set_ylabel("RMSE of H (meV)", fontsize=_LABEL_PT)


def _by_angle(axes: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    centres = [(entry["from_deg"] + entry["to_deg"]) / 2 for entry in bins]
    for part in _PARTS:
        values = _values(bins, f"rmse_{part}_meV")
        if values is not None:
            axes.plot(centres, values, color=_COLOURS[part], lw=1.0, marker="o", ms=2.5)
    axes.set_xlim(0, 180)
    axes.set_xticks([0, 45, 90, 135, 180])
    axes.set_xlabel("angle between moments (°)", fontsize=_LABEL_PT)


def _by_degree(axes: Axes, shells: Sequence[Mapping[str, Any]]) -> None:
    """Irreps of all shell pairs together; on-site with diamonds."""
    highest = max(max(entry["degrees"]) for entry in shells)
    styles: dict[bool, dict[str, Any]] = {
        False: {"marker": "o", "ms": 2.5, "lw": 1.0},
        True: {"marker": "D", "ms": 3.5, "lw": 1.0, "ls": (0, (3, 2))},
    }
    for part in _PARTS:
        key = f"rmse_{part}_meV"
        if shells[0][key] is None:
            continue
        for onsite, style in styles.items():
            square, count = np.zeros(highest + 1), np.zeros(highest + 1)
            for entry in shells:
                if entry["onsite"] == onsite:
                    degrees = np.array(entry["degrees"])
                    weight = entry["n_pairs"] * (2 * degrees + 1)
                    square[degrees] += weight * np.array(entry[key]) ** 2
                    count[degrees] += weight
            rms = np.sqrt(square / np.where(count > 0, count, np.nan))
            axes.plot(np.where(rms > _LEAST_MEV, rms, np.nan), color=_COLOURS[part], **style)
    axes.set_xticks(range(highest + 1))
    axes.set_xlabel("irrep L of the shell pair", fontsize=_LABEL_PT)
    for onsite, label in ((False, "between atoms"), (True, "on-site")):
        axes.plot([], [], color="0.2", label=label, **styles[onsite])
    axes.legend(fontsize=_TICK_PT, frameon=False, loc="best")


def _share_scale(panels: Sequence[Axes]) -> None:
    """One logarithmic scale for the errors, so that panels can be compared by eye."""
    lines = [np.asarray(line.get_ydata(), dtype=np.float64) for axes in panels for line in axes.get_lines()]
    drawn = np.concatenate([line[np.isfinite(line)] for line in lines])
    low, high = (drawn.min() / 2, drawn.max() * 2) if len(drawn) else (0.1, 10.0)
    for number, axes in enumerate(panels):
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(LogLocator(numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.tick_params(labelsize=_TICK_PT, width=0.5, length=2.5, direction="in", right=True)
        if number:
            axes.tick_params(labelleft=False)
        for spine in axes.spines.values():
            spine.set_linewidth(0.6)


def _shell_maps(figure: Any, shells: Sequence[Mapping[str, Any]], n_components: int) -> None:
    """Two matrices over all shells of all species: on-site blocks, and blocks between atoms."""
    names = sorted({name for entry in shells for name in (entry["row"], entry["col"])}, key=_shell_order)
    place = {name: number for number, name in enumerate(names)}
    maps = np.full((2, len(names), len(names)), np.nan)
    for entry in shells:
        a, b = place[entry["row"]], place[entry["col"]]
        maps[0 if entry["onsite"] else 1, [a, b], [b, a]] = _whole(entry, n_components)
    drawn = maps[np.isfinite(maps) & (maps > _LEAST_MEV)]
    low, high = (float(drawn.min()), float(drawn.max())) if len(drawn) else (0.1, 1.0)
    norm = LogNorm(max(low, high * 1e-3), max(high, low * 1.01), clip=True)
    panels = figure.subplots(1, 2)
    image = None
    borders = [n - 0.5 for n in range(1, len(names)) if _species(names[n]) != _species(names[n - 1])]
    for axes, values, title in zip(panels, maps, ("on-site", "between atoms"), strict=True):
        image = axes.imshow(values, norm=norm, cmap="viridis", interpolation="nearest")
        axes.set_title(title, fontsize=_LABEL_PT)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=_TICK_PT)
        axes.set_yticks(range(len(names)), names, fontsize=_TICK_PT)
        axes.tick_params(length=0)
        for border in borders:
            axes.axhline(border, color="black", lw=0.6)
            axes.axvline(border, color="black", lw=0.6)
    bar = figure.colorbar(image, ax=list(panels), pad=0.02, aspect=28)
    bar.set_label("RMSE of all Pauli parts (meV)", fontsize=_LABEL_PT)
    bar.ax.tick_params(labelsize=_TICK_PT, width=0.5, length=2)


def _whole(entry: Mapping[str, Any], n_components: int) -> float:
    """RMSE of a shell block over all its orbitals and Pauli components."""
    width = 2 * np.array(entry["degrees"]) + 1
    square = np.array(entry["rmse_spin_free_meV"]) ** 2
    for part in ("exchange", "soc"):
        if entry[f"rmse_{part}_meV"] is not None:
            square = square + (n_components - 1) * np.array(entry[f"rmse_{part}_meV"]) ** 2
    return float(np.sqrt((width * square).sum() / width.sum() / n_components))


def _species(name: str) -> str:
    return name.rsplit(" ", 1)[0]


def _shell_order(name: str) -> tuple[str, int, int]:
    shell = name.rsplit(" ", 1)[1]
    return _species(name), _SHELLS.index(shell[0]), int(shell[1:])
