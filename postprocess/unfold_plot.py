"""Pictures of unfolded bands: maps of the spectral weight over path and energy."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hamnet.errors import ConfigError

from .kpath import KPath
from .plotting import PALETTE, band_axes, draw_lines, legend_above, separate_labels
from .unfold import UnfoldedBands, energy_grid, spectral_function

__all__ = ["unfolded_figure"]

_INTENSITY = LinearSegmentedColormap.from_list("weight", ["white", "#a6c8e0", PALETTE[0], "#00263f"])
_SIGNED = LinearSegmentedColormap.from_list("signed spin", [PALETTE[0], "white", PALETTE[1]])
"""The ends are those of the spin colours of bands; white is no weight, or weight of both signs."""

_WIDTH_IN, _WIDE_IN, _HEIGHT_IN = 3.4, 6.8, 2.9
_LABEL_PT, _TICK_PT = 8.0, 7.0


def unfolded_figure(
    path: KPath,
    bands: UnfoldedBands,
    *,
    zero_ev: float,
    window_ev: tuple[float, float] = (-6.0, 4.0),
    width_ev: float = 0.04,
    spin_axis: int | None = None,
    by_group: bool = False,
    reference_ev: NDArray[np.float64] | None = None,
    reference_label: str = "reference",
    k_label: str = "",
) -> Figure:
    """The spectral weight A(k, E) = Σ_n W_n(k) g(E − E_n) as a map; beside it spin or groups of orbitals.

    The colour scale ends at the height of one band of weight 1.

    Parameters
    ----------
    path : in the primitive Brillouin zone, the k of `bands`.
    zero_ev : absolute energy of the zero of the axis: E_F.
    window_ev : relative to `zero_ev`.
    width_ev : standard deviation of the Gaussian g.
    spin_axis : second map of Σ_n ⟨σ⟩_n(k) g(E − E_n) along x, y, z (0, 1, 2).
    by_group : second map that mixes the colours of the groups of `bands`.
    reference_ev : (n_k, n_channel, n) absolute energies at the same k, drawn as lines: bands of the primitive cell.
    k_label : what k is, where it is not the plain wave vector.

    Raises :class:`ConfigError` where no state lies in the window.
    """
    grid = energy_grid(window_ev, width_ev)
    relative = bands.energies_ev - zero_ev
    if not ((relative >= window_ev[0]) & (relative <= window_ev[1])).any():
        raise ConfigError(
            f"energy window {window_ev[0]:g} … {window_ev[1]:g} eV without a state",
            expected="a window that meets the bands",
        )
    beside = spin_axis is not None or by_group
    figure = Figure(figsize=(_WIDE_IN if beside else _WIDTH_IN, _HEIGHT_IN), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, 1 + beside, sharey=True))
    top = 1 / (width_ev * np.sqrt(2 * np.pi))
    handles: list[Line2D] = []

    total = spectral_function(bands, bands.weights, grid + zero_ev, width_ev)
    _map(figure, panels[0], path, grid, window_ev, total, _INTENSITY, (0, top), "spectral weight (1/eV)")
    if reference_ev is not None:
        for channel in range(reference_ev.shape[1]):
            draw_lines(
                panels[0], path, reference_ev[:, channel] - zero_ev, window_ev, colour=PALETTE[1], width=0.5, order=3
            )
        handles.append(Line2D([], [], color=PALETTE[1], lw=0.8, label=reference_label))
    if spin_axis is not None:
        if bands.spin is None:
            raise ConfigError("unfolded bands without ⟨σ⟩", expected="a Hamiltonian with spin")
        spin = spectral_function(bands, bands.spin[:, spin_axis], grid + zero_ev, width_ev)
        label = rf"weight × $\langle\sigma_{'xyz'[spin_axis]}\rangle$ (1/eV)"
        _map(figure, panels[1], path, grid, window_ev, spin, _SIGNED, (-top, top), label)
    elif by_group:
        handles += _groups(panels[1], path, bands, grid, zero_ev, window_ev, width_ev, top)
    for axes in panels:
        band_axes(axes, path, window_ev)
        axes.set_xlabel(k_label, fontsize=_LABEL_PT)
    if beside:
        panels[1].set_ylabel("")
    if handles:
        legend_above(figure, handles)
    for axes in panels:
        separate_labels(figure, axes)
    return figure


def _columns(path: KPath, section: slice) -> NDArray[np.float64]:
    """Edges of the columns of a section, halfway between its points."""
    x = path.distance[section]
    if len(x) == 1:
        return np.array([x[0], x[0] + 1.0])
    return np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])


def _map(
    figure: Figure,
    axes: Axes,
    path: KPath,
    grid: NDArray,
    window_ev: tuple[float, float],
    values: NDArray,
    colours: LinearSegmentedColormap,
    limits: tuple[float, float],
    label: str,
) -> None:
    """A map of (n_k, n_e) values with its colour bar."""
    rows = np.linspace(*window_ev, len(grid) + 1)
    image = None
    for section in path.sections:
        image = axes.pcolormesh(
            _columns(path, section),
            rows,
            values[section].T,
            cmap=colours,
            vmin=limits[0],
            vmax=limits[1],
            rasterized=True,
            zorder=-1,  # under the lines at named points and at E_F
        )
    assert image is not None
    both = limits[0] < 0
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=28, extend="both" if both else "max", extendfrac=0.03)
    bar.set_label(label, fontsize=_LABEL_PT)
    bar.outline.set_linewidth(0.5)  # type: ignore[operator]
    bar.ax.tick_params(width=0.5, length=2, labelsize=_TICK_PT)


def _groups(
    axes: Axes,
    path: KPath,
    bands: UnfoldedBands,
    grid: NDArray,
    zero_ev: float,
    window_ev: tuple[float, float],
    width_ev: float,
    top: float,
) -> list[Line2D]:
    """Colours taken from white by each group as its weight says."""
    if bands.groups is None:
        raise ConfigError("unfolded bands without weights of groups", expected="unfold_bands(..., grouping=...)")
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(bands.group_labels))]
    palette = np.array([to_rgb(colour) for colour in colours])
    parts = spectral_function(bands, bands.groups, grid + zero_ev, width_ev)
    total = parts.sum(axis=-1, keepdims=True)
    mixed = (parts / np.maximum(total, 1e-12)) @ palette
    image = 1 - np.clip(total / top, 0, 1) * (1 - mixed)
    rows = np.linspace(*window_ev, len(grid) + 1)
    for section in path.sections:
        axes.pcolormesh(
            _columns(path, section),
            rows,
            np.clip(image[section], 0, 1).swapaxes(0, 1),
            rasterized=True,
            zorder=-1,  # under the lines at named points and at E_F
        )
    return [
        Line2D([], [], color=colour, lw=2, label=group)
        for colour, group in zip(colours, bands.group_labels, strict=True)
    ]
