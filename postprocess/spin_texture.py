"""Picture of a spin texture: one layer from above, arrows in the plane, colour for the component out of it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Polygon
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from hamnet.errors import ConfigError

from .plotting import PALETTE

__all__ = ["texture_figure"]

_COLOURS = LinearSegmentedColormap.from_list("out of plane", [PALETTE[0], "white", PALETTE[1]])
"""The ends are those of the spin colours of bands."""

_WIDTH_IN, _TALLEST_IN = 3.4, 4.6
_FRAME_IN, _TITLE_IN = (1.1, 0.62), 0.18
_SHORT_BAR_IN = 1.0
_LABEL_PT, _TICK_PT = 8.0, 7.0
_ARROWS_ACROSS = 40
_PIXELS = 900
_FLATTEST = 1 / 3
_MOST_COPIES = 24
_SMALLEST_PART = 0.02


def texture_figure(
    points: ArrayLike,
    moments: ArrayLike,
    vectors: ArrayLike,
    *,
    axes_names: tuple[str, str, str] = ("x", "y", "z"),
    title: str = "",
) -> Figure:
    """The moments of one layer; the supercell is outlined, what is around it are its periodic copies, faded.

    Each place has the colour of the nearest magnetic atom. Arrows show the part in the plane, their length its size;
    of more than about a thousand atoms only some have one.

    Parameters
    ----------
    points : (n, 2) Å. moments : (n, 3) μ_B along the two axes of the plane and its normal.
    vectors : (2, 2) Å, lattice vectors of the supercell in the plane.
    axes_names : of the two axes and the normal.
    """
    points, moments, vectors = (np.asarray(a, dtype=np.float64) for a in (points, moments, vectors))
    largest = float(np.linalg.norm(moments, axis=1).max(initial=0))
    if largest == 0:
        raise ConfigError("a texture without moments", expected="a layer with moments")
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ vectors
    low, high = _view(corners, vectors)
    place, atom = _images(points, vectors, low, high)
    width, height = high - low
    scale = min((_WIDTH_IN - _FRAME_IN[0]) / width, (_TALLEST_IN - _FRAME_IN[1]) / height)
    inner = scale * height
    size = (scale * width + _FRAME_IN[0], inner + _FRAME_IN[1] - (0 if title else _TITLE_IN))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    tree = KDTree(place)
    image = _colour_map(axes, tree, moments[atom, 2], low, high, largest)
    _arrows(axes, tree, place, moments[atom], low, high, largest)
    _outline(axes, corners, low, high)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set_aspect("equal")
    first, second, normal = axes_names
    axes.set_xlabel(f"${first}$ (Å)", fontsize=_LABEL_PT)
    axes.set_ylabel(f"${second}$ (Å)", fontsize=_LABEL_PT)
    axes.locator_params(nbins=6)
    axes.tick_params(width=0.5, length=2.5, labelsize=_TICK_PT)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
    # As high as the picture, whatever its shape.
    bar = figure.colorbar(image, cax=axes.inset_axes((1.03, 0, 0.035, 1)))
    bar.locator = MaxNLocator(3 if inner < _SHORT_BAR_IN else 7, symmetric=True)
    bar.update_ticks()
    bar.set_label(rf"$m_{{{normal}}}$ ($\mu_\mathrm{{B}}$)", fontsize=_LABEL_PT)
    bar.outline.set_linewidth(0.5)  # type: ignore[operator]
    bar.ax.tick_params(width=0.5, length=2, labelsize=_TICK_PT)
    if title:
        axes.set_title(title, fontsize=_LABEL_PT)
    return figure


def _view(corners: NDArray, vectors: NDArray) -> tuple[NDArray, NDArray]:
    """Lower left and upper right corner of what is shown: the cell, and copies of one that is long and narrow."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    margin = 0.04 * (high - low).min()
    width, height = high - low
    if min(width, height) < _FLATTEST * max(width, height):
        short = int(height < width)
        missing = (_FLATTEST * max(width, height) - min(width, height)) / 2
        reach = min(missing, _MOST_COPIES * min(width, height))
        low[short], high[short] = low[short] - reach, high[short] + reach
    return low - margin, high + margin


def _images(points: NDArray, vectors: NDArray, low: NDArray, high: NDArray) -> tuple[NDArray, NDArray]:
    """Periodic copies of the atoms in the view and a little around it: (places (m, 2), atoms (m,))."""
    spacing = np.sqrt(abs(np.linalg.det(vectors)) / len(points))
    low, high = low - 3 * spacing, high + 3 * spacing
    inverse = np.linalg.inv(vectors)
    fractions = points @ inverse
    home = (fractions - np.floor(fractions)) @ vectors
    ends = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]]) @ inverse
    ranges = [np.arange(np.floor(a) - 1, np.ceil(b) + 1) for a, b in zip(ends.min(0), ends.max(0), strict=True)]
    shifts = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 2) @ vectors
    places, atoms = [], []
    for shift in shifts:
        moved = home + shift
        inside = np.flatnonzero(((moved >= low) & (moved <= high)).all(axis=1))
        places.append(moved[inside])
        atoms.append(inside)
    return np.concatenate(places), np.concatenate(atoms)


def _colour_map(axes: Axes, tree: KDTree, values: NDArray, low: NDArray, high: NDArray, largest: float):
    step = (high - low).max() / _PIXELS
    nx, ny = np.maximum(np.ceil((high - low) / step).astype(int), 2)
    x, y = (low[i] + (np.arange(n) + 0.5) * (high - low)[i] / n for i, n in ((0, nx), (1, ny)))
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    colours = values[tree.query(grid)[1]].reshape(ny, nx)
    return axes.imshow(
        colours,
        extent=(low[0], high[0], low[1], high[1]),
        origin="lower",
        cmap=_COLOURS,
        vmin=-largest,
        vmax=largest,
        interpolation="nearest",
        aspect="equal",
    )


def _arrows(
    axes: Axes, tree: KDTree, place: NDArray, moments: NDArray, low: NDArray, high: NDArray, largest: float
) -> None:
    spacing = float(np.median(tree.query(place, k=2)[0][:, 1])) if len(place) > 1 else float((high - low).min())
    pitch = (high - low).max() / _ARROWS_ACROSS
    chosen = np.arange(len(place))
    if pitch > 1.2 * spacing:
        # Atoms nearest to the points of a triangular grid.
        rows = np.arange(low[1] + pitch / 2, high[1], pitch * np.sqrt(3) / 2)
        columns = np.arange(low[0], high[0] + pitch, pitch)
        grid = np.stack(np.meshgrid(columns, rows), axis=-1)
        grid[1::2, :, 0] += pitch / 2
        chosen = np.unique(tree.query(grid.reshape(-1, 2))[1])
        spacing = pitch
    inside = ((place[chosen] >= low) & (place[chosen] <= high)).all(axis=1)
    in_plane = moments[chosen, :2]
    chosen = chosen[inside & (np.linalg.norm(in_plane, axis=1) > _SMALLEST_PART * largest)]
    axes.quiver(
        *place[chosen].T,
        *moments[chosen, :2].T,
        angles="xy",
        scale_units="xy",
        scale=largest / (0.85 * spacing),
        units="xy",
        width=0.09 * spacing,
        headwidth=3.6,
        headlength=4.2,
        headaxislength=3.8,
        minlength=0.5,
        pivot="mid",
        color="0.12",
        zorder=4,
    )


def _outline(axes: Axes, corners: NDArray, low: NDArray, high: NDArray) -> None:
    """The supercell, and a veil over what is outside of it."""
    frame = np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
    area = corners[:, 0] @ np.roll(corners[:, 1], -1) - corners[:, 1] @ np.roll(corners[:, 0], -1)
    hole = corners[::-1] if area > 0 else corners  # turned against the frame, so that the inside stays free
    codes = [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY] * 2
    vertices = np.concatenate([frame, frame[:1], hole, hole[:1]])
    axes.add_patch(PathPatch(Path(vertices, codes), facecolor="white", alpha=0.6, lw=0, zorder=5))
    axes.add_patch(Polygon(corners, closed=True, fill=False, ec="black", lw=0.8, zorder=6, joinstyle="miter"))
