"""Expected errors of blocks against true ones: is a committee as wrong as it says?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from .plotting import PALETTE

__all__ = ["binned_errors", "calibration_figure"]

_TITLES = ("spin-free", "exchange", "spin–orbit")
_LABEL_PT, _TICK_PT = 8.0, 7.0
_MEV_PER_EV = 1e3
_LEAST_MEV = 1e-4
_BINS_PER_DECADE = 4
_LEAST_BLOCKS = 5


def binned_errors(
    expected: NDArray[np.float64], true: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(expected (b,), true (b,), range of the true ones (2, b)) in bins of the expected error, four in a decade.

    Root mean squares, and the 16th and 84th percentile. Bins with fewer than 5 blocks are left out.
    """
    number = np.floor(np.log10(expected) * _BINS_PER_DECADE).astype(int)
    rows = []
    for key in np.unique(number):
        here = number == key
        if here.sum() >= _LEAST_BLOCKS:
            low, high = np.percentile(true[here], [16, 84])
            rows.append((np.sqrt((expected[here] ** 2).mean()), np.sqrt((true[here] ** 2).mean()), low, high))
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return columns[0], columns[1], columns[2:]


def calibration_figure(expected_ev: ArrayLike, true_ev: ArrayLike, onsite: ArrayLike) -> Figure:
    """One panel for each part of H: all blocks as dots, their root mean squares in bins, the line where both agree.

    expected_ev, true_ev : (n, 3) root mean square errors of blocks by part (:data:`hamnet.calibration.PARTS`), NaN for
    parts that H has not. onsite : (n,) whether a block is one of an atom with itself.
    """
    expected, true = (_MEV_PER_EV * np.asarray(a, dtype=np.float64) for a in (expected_ev, true_ev))
    onsite = np.asarray(onsite, dtype=bool)
    parts = [part for part in range(len(_TITLES)) if np.isfinite(expected[:, part]).any()]
    figure = Figure(figsize=(0.6 + 2.15 * len(parts), 2.5), layout="constrained")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, part in zip(panels, parts, strict=True):
        _panel(axes, expected[:, part], true[:, part], onsite)
        axes.set_title(_TITLES[part], fontsize=_LABEL_PT)
        axes.set_xlabel("expected error (meV)", fontsize=_LABEL_PT)
    panels[0].set_ylabel("true error (meV)", fontsize=_LABEL_PT)
    panels[0].legend(fontsize=_TICK_PT, frameon=False, loc="upper left", handletextpad=0.3)
    return figure


def _panel(axes: Axes, expected: NDArray, true: NDArray, onsite: NDArray) -> None:
    known = (expected > _LEAST_MEV) & (true > _LEAST_MEV)
    ends = np.array([_LEAST_MEV, 1.0])
    if known.any():
        both = np.concatenate([expected[known], true[known]])
        ends = np.array([both.min() / 1.5, both.max() * 1.5])
    axes.fill_between(ends, ends / 2, ends * 2, color="0.92", lw=0, zorder=0)
    axes.plot(ends, ends, color="black", lw=0.8, zorder=1)
    kinds = (("on-site", onsite, PALETTE[1], "s"), ("off-site", ~onsite, PALETTE[0], "o"))
    for label, chosen, colour, marker in kinds:
        x, y = expected[known & chosen], true[known & chosen]
        if not len(x):
            continue
        axes.scatter(x, y, s=1.5, color=colour, alpha=0.15, lw=0, zorder=2, rasterized=True)
        middle, rms, ranges = binned_errors(x, y)
        bars = np.maximum(np.stack([rms - ranges[0], ranges[1] - rms]), 0)
        axes.errorbar(
            middle, rms, bars, fmt=marker, ms=3.5, color=colour, mec="white", mew=0.4, lw=0.8, zorder=3, label=label
        )
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axes.tick_params(labelsize=_TICK_PT)
