"""Figures of bands and densities of states, ready for a one-column print.

Figures are made by matplotlib's object interface: nothing global is touched, and no display is needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hamnet.errors import ConfigError

from .bands import Bands
from .dos import DensityOfStates
from .files import replacing
from .kpath import KPath

__all__ = [
    "PALETTE",
    "SUFFIXES",
    "band_axes",
    "band_figure",
    "check_output",
    "dos_figure",
    "draw_lines",
    "legend_above",
    "save_figure",
    "separate_labels",
]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Okabe and Ito's colours, told apart by colour-blind readers; black is kept for references."""

SPIN_COLOURS = LinearSegmentedColormap.from_list("spin", [PALETTE[0], "#9a9a9a", PALETTE[1]])
"""Blue for −1, vermilion for +1; grey and not white between, so that unpolarised states are seen."""

UP_DOWN = (PALETTE[1], PALETTE[0])
"""Of ↑ and ↓, as the ends of the spin colours."""

SUFFIXES = (".png", ".pdf", ".svg")
_SPIN_LABELS = ("↑", "↓")
_WIDTH_IN = 3.4
_LABEL_PT, _TICK_PT = 8.0, 7.0
_WIDTH_PT = 0.9
_ZERO_LABEL = r"$E - E_\mathrm{F}$ (eV)"
_GREEK = {"G": "Γ", "Gamma": "Γ", "Sigma": "Σ", "Delta": "Δ", "Lambda": "Λ"}


def band_figure(
    path: KPath,
    bands: Bands,
    *,
    zero_ev: float,
    window_ev: tuple[float, float] = (-6.0, 4.0),
    spin_axis: int | None = None,
    by_group: bool = False,
    label: str | None = None,
    reference_ev: NDArray[np.float64] | None = None,
    reference_label: str = "reference",
) -> Figure:
    """Bands along a path.

    Parameters
    ----------
    zero_ev : absolute energy of the zero of the axis: E_F. It is taken from the reference too.
    window_ev : relative to `zero_ev`.
    spin_axis : colour by ⟨σ⟩ along x, y, z (0, 1, 2).
    by_group : colour by the Mulliken weights of `bands`: the mean of the groups' colours.
    reference_ev : (n_k, n_channel, n) absolute energies at the same k, drawn in black behind the bands.
    """
    if not _shown(bands.energies_ev.reshape(len(path), -1) - zero_ev, window_ev).any():
        known = bands.energies_ev[np.isfinite(bands.energies_ev)] - zero_ev
        low, high = (known.min(), known.max()) if known.size else (np.nan, np.nan)
        raise ConfigError(
            f"energy window {window_ev[0]:g} … {window_ev[1]:g} eV without a band",
            expected=f"a window, lower end first, that meets the bands from {low:.2f} to {high:.2f} eV",
        )
    figure = Figure(figsize=(_WIDTH_IN, 2.9), layout="constrained")
    axes = figure.add_subplot()
    handles: list[Line2D] = []
    if reference_ev is not None:
        # Wider than the bands in front of it: where both agree, a black rim stays.
        for channel in range(reference_ev.shape[1]):
            draw_lines(axes, path, reference_ev[:, channel] - zero_ev, window_ev, colour="black", width=1.5, order=1)
        handles.append(Line2D([], [], color="black", lw=1.5, label=reference_label))
    if spin_axis is not None:
        _colour_by_spin(figure, axes, path, bands, spin_axis, zero_ev, window_ev)
        if handles:
            handles.append(Line2D([], [], color=PALETTE[1], lw=0.9, label=label or "bands"))
    elif by_group:
        handles.extend(_colour_by_group(axes, path, bands, zero_ev, window_ev))
    else:
        handles.extend(_plain(axes, path, bands, zero_ev, window_ev, label if handles else None))
    band_axes(axes, path, window_ev)
    if handles:
        legend_above(figure, handles)
    separate_labels(figure, axes)
    return figure


def _plain(
    axes: Axes, path: KPath, bands: Bands, zero_ev: float, window_ev: tuple[float, float], label: str | None
) -> list[Line2D]:
    n_channel = bands.energies_ev.shape[1]
    colours = UP_DOWN if n_channel == 2 else PALETTE
    handles = []
    for channel in range(n_channel):
        style = "solid" if channel == 0 else (0, (3, 1.2))
        name = label if n_channel == 1 else " ".join(filter(None, (label, "↑↓"[channel])))
        relative = bands.energies_ev[:, channel] - zero_ev
        draw_lines(axes, path, relative, window_ev, colour=colours[channel], width=_WIDTH_PT, order=3, style=style)
        if name:
            handles.append(Line2D([], [], color=colours[channel], lw=1.0, ls=style, label=name))
    return handles


def _colour_by_spin(
    figure: Figure,
    axes: Axes,
    path: KPath,
    bands: Bands,
    axis: int,
    zero_ev: float,
    window_ev: tuple[float, float],
) -> None:
    if bands.spin is None:
        raise ConfigError("bands without ⟨σ⟩", expected="solve_bands(..., spin=True)")
    scale = Normalize(-1, 1)
    collection = None
    for channel in range(bands.energies_ev.shape[1]):
        segments, means = _segments(
            path, bands.energies_ev[:, channel] - zero_ev, bands.spin[:, channel, :, axis, None], window_ev
        )
        collection = LineCollection(list(segments), cmap=SPIN_COLOURS, norm=scale, linewidths=_WIDTH_PT, zorder=3)
        collection.set_array(means[:, 0])
        collection.set_capstyle("round")
        axes.add_collection(collection)
    assert collection is not None
    bar = figure.colorbar(collection, ax=axes, ticks=[-1, 0, 1], pad=0.02, aspect=28)
    bar.set_label(rf"$\langle\sigma_{'xyz'[axis]}\rangle$", fontsize=_LABEL_PT)
    bar.ax.set_yticklabels(["−1", "0", "1"], fontsize=_TICK_PT)
    bar.outline.set_linewidth(0.5)  # type: ignore[operator]
    bar.ax.tick_params(width=0.5, length=2)


def _colour_by_group(
    axes: Axes, path: KPath, bands: Bands, zero_ev: float, window_ev: tuple[float, float]
) -> list[Line2D]:
    if bands.weights is None:
        raise ConfigError("bands without weights", expected="solve_bands(..., grouping=...)")
    colours = _colours(len(bands.groups))
    palette = np.array([to_rgb(colour) for colour in colours])
    for channel in range(bands.energies_ev.shape[1]):
        segments, means = _segments(path, bands.energies_ev[:, channel] - zero_ev, bands.weights[:, channel], window_ev)
        shares = np.clip(means, 0, None)
        mixed = (shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)) @ palette
        style = "solid" if channel == 0 else (0, (3, 1.2))
        axes.add_collection(
            LineCollection(
                list(segments), colors=np.clip(mixed, 0, 1), linewidths=_WIDTH_PT, linestyles=style, zorder=3
            )
        )
    return [
        Line2D([], [], color=colour, lw=1.5, label=group) for colour, group in zip(colours, bands.groups, strict=True)
    ]


def _shown(relative: NDArray, window_ev: tuple[float, float]) -> NDArray[np.bool_]:
    """(n,) bands that touch the window."""
    known = np.isfinite(relative).any(axis=0)
    return known & (relative.max(axis=0) >= window_ev[0]) & (relative.min(axis=0) <= window_ev[1])


def draw_lines(
    axes: Axes,
    path: KPath,
    relative: NDArray,
    window_ev: tuple[float, float],
    *,
    colour: str,
    width: float,
    order: int,
    style: str | tuple = "solid",
) -> None:
    """Bands (n_k, n), relative to the zero of energy, that touch the window; no line crosses a jump of the path."""
    for section in path.sections:
        lines = relative[section][:, _shown(relative, window_ev)]
        lines = np.where(np.isfinite(lines), lines, np.nan)  # levels outside a window that was solved for
        points = np.stack([np.broadcast_to(path.distance[section, None], lines.shape), lines], axis=-1)
        axes.add_collection(
            LineCollection(
                list(points.swapaxes(0, 1)),
                colors=colour,
                linewidths=width,
                linestyles=style,
                zorder=order,
                joinstyle="round",
            )
        )


def _segments(
    path: KPath, relative: NDArray, character: NDArray, window_ev: tuple[float, float]
) -> tuple[NDArray, NDArray]:
    """(m, 2, 2) steps of all bands in the window, and (m, c) their character, the mean of both ends."""
    shown = _shown(relative, window_ev)
    steps = np.concatenate([np.arange(s.start, s.stop - 1) for s in path.sections])
    height = np.stack([relative[steps][:, shown], relative[steps + 1][:, shown]], axis=-1)
    across = np.stack([path.distance[steps], path.distance[steps + 1]], axis=-1)
    points = np.stack([np.broadcast_to(across[:, None], height.shape), height], axis=-1)
    mean = (character[steps][:, shown] + character[steps + 1][:, shown]) / 2
    known = np.isfinite(height).all(axis=-1)
    return points[known], mean.reshape(*known.shape, -1)[known]


def band_axes(axes: Axes, path: KPath, window_ev: tuple[float, float]) -> None:
    """Limits, named points with lines at them, the zero of energy, and the frame of a picture of bands."""
    axes.set_xlim(float(path.distance[0]), float(path.distance[-1]) or 1.0)
    axes.set_ylim(*window_ev)
    axes.set_xticks(path.ticks, [_pretty(label) for label in path.labels], fontsize=_LABEL_PT)
    axes.set_ylabel(_ZERO_LABEL, fontsize=_LABEL_PT)
    for place in path.ticks[1:-1]:
        axes.axvline(float(place), color="0.6", lw=0.5, zorder=0)
    axes.axhline(0, color="0.4", lw=0.6, ls=(0, (4, 3)), zorder=0)
    _frame(axes)
    axes.tick_params(axis="x", length=0, labelsize=_LABEL_PT)


def dos_figure(
    dos: DensityOfStates,
    *,
    zero_ev: float,
    label: str = "total",
    reference: DensityOfStates | None = None,
    reference_label: str = "reference",
) -> Figure:
    """Density of states over energy; ↓ of a collinear state, and the second of two spin projections, point down."""
    figure = Figure(figsize=(_WIDTH_IN, 2.3), layout="constrained")
    axes = figure.add_subplot()
    spin = dos.labels == _SPIN_LABELS
    handles: list[Line2D] = []
    if reference is not None:
        for curve in _halves(reference):
            axes.plot(reference.energies_ev - zero_ev, curve, color="black", lw=1.5, zorder=2)
        handles.append(Line2D([], [], color="black", lw=1.5, label=reference_label))
    x = dos.energies_ev - zero_ev
    halves = _halves(dos)
    colours = UP_DOWN if len(halves) == 2 else PALETTE
    if len(dos.labels) and not spin:
        for curve in halves:
            axes.fill_between(x, curve, color="0.88", lw=0, zorder=1)
            axes.plot(x, curve, color="0.45", lw=0.7, zorder=3)
        handles.append(Line2D([], [], color="0.45", lw=0.9, label=label))
        for name, colour, values in zip(dos.labels, _colours(len(dos.labels)), dos.projected, strict=True):
            for sign, curve in zip((1, -1), values, strict=False):
                axes.plot(x, sign * curve, color=colour, lw=_WIDTH_PT, zorder=4)
            handles.append(Line2D([], [], color=colour, lw=1.2, label=name))
    else:
        for curve, colour, arrow in zip(halves, colours, _SPIN_LABELS, strict=False):
            axes.plot(x, curve, color=colour, lw=_WIDTH_PT, zorder=3)
            name = arrow if len(halves) == 2 else label
            if len(halves) == 2 and reference is not None:
                name = f"{label} {arrow}"
            handles.append(Line2D([], [], color=colour, lw=1.2, label=name))
    axes.set_xlim(float(x[0]) - dos.step_ev / 2, float(x[-1]) + dos.step_ev / 2)
    if len(halves) == 2:
        axes.axhline(0, color="0.2", lw=0.5, zorder=5)
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    else:
        axes.set_ylim(0, None)
    axes.set_xlabel(_ZERO_LABEL, fontsize=_LABEL_PT)
    axes.set_ylabel("DOS (states/eV per cell)", fontsize=_LABEL_PT)
    axes.axvline(0, color="0.4", lw=0.6, ls=(0, (4, 3)), zorder=1.5)
    _frame(axes)
    if len(handles) > 1:
        legend_above(figure, handles)
    return figure


def _halves(dos: DensityOfStates) -> list[NDArray]:
    """Curves of the total: ↓ channels, and ↓ projections of a spinor, turned down."""
    if len(dos.total) == 2:
        return [dos.total[0], -dos.total[1]]
    if dos.labels == _SPIN_LABELS:
        return [dos.projected[0, 0], -dos.projected[1, 0]]
    return [dos.total[0]]


def _colours(n: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(n)]


def _frame(axes: Axes) -> None:
    axes.tick_params(labelsize=_TICK_PT, width=0.5, length=2.5, direction="in", right=True, top=False)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
        spine.set_zorder(10)


def legend_above(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend above the frame, where no curve runs through it, with as many columns as fit."""
    for columns in range(min(len(handles), 4), 0, -1):
        legend = figure.legend(
            handles=list(handles),
            loc="outside upper center",
            ncols=columns,
            fontsize=_TICK_PT,
            frameon=False,
            handlelength=1.6,
            columnspacing=1.2,
            borderpad=0.1,
        )
        if columns == 1 or legend.get_window_extent().width < 0.98 * figure.bbox.width:
            return
        legend.remove()


def separate_labels(figure: Figure, axes: Axes) -> None:
    """Labels of ticks that would touch the one before stand one line lower."""
    figure.draw_without_rendering()
    labels = axes.get_xticklabels()
    texts = [label.get_text() for label in labels]
    ends = [-np.inf, -np.inf]
    for number, label in enumerate(labels):
        box = label.get_window_extent()
        row = 0 if box.x0 > ends[0] + 2 or box.x0 <= ends[1] + 2 else 1
        texts[number] = "\n" * row + texts[number]
        ends[row] = box.x1
    axes.set_xticks(axes.get_xticks(), texts, fontsize=_LABEL_PT)


def _pretty(label: str) -> str:
    """``G|X1`` as Γ|X₁."""

    def one(name: str) -> str:
        match = re.fullmatch(r"([A-Za-z]+?)_?(\d*)", name)
        if not match:
            return name
        letter, index = match.groups()
        letter = _GREEK.get(letter, letter)
        return rf"{letter}$_{{{index}}}$" if index else letter

    return "|".join(one(name) for name in label.split("|"))


def check_output(path: str | Path) -> Path:
    """The path, if a figure can be written there: known suffix, folder exists. For a look before long work.

    Raises :class:`ConfigError`.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"figure {path.name!r}", expected=f"a name that ends with one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError("no such folder", expected="a folder that exists", path=path.parent)
    return path


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG (300 dpi), PDF or SVG, by suffix; fonts of a PDF are embedded as text.

    Raises :class:`ConfigError` for another suffix or a place that cannot be written.
    """
    path = check_output(path)
    # No date inside: the same numbers give the same file.
    metadata = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}[path.suffix.lower()]
    with replacing(path) as temporary, rc_context({"pdf.fonttype": 42, "svg.hashsalt": "hamnet"}):
        figure.savefig(temporary, dpi=300, metadata=metadata)
    return path
