"""The numbers of a figure, as NumPy archive and as text: every name holds its unit."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .bands import Bands
from .dos import DensityOfStates
from .files import replacing
from .kpath import KPath
from .unfold import UnfoldedBands, energy_grid, spectral_function

__all__ = ["write_bands", "write_dos", "write_unfolded"]

_LEAST_WEIGHT = 1e-3


def write_bands(
    path: str | Path, bands: Bands, k_path: KPath, *, zero_ev: float, window_ev: tuple[float, float] | None = None
) -> tuple[Path, Path]:
    """``.npz`` with all states and ``.csv`` with one row for each k and band that touches the window.

    `zero_ev` is the level that the figure calls zero, `window_ev` is relative to it. Returns both paths: those of the
    figure `path` with other suffixes.
    """
    archive, text = Path(path).with_suffix(".npz"), Path(path).with_suffix(".csv")
    arrays = {
        "k_frac": bands.k_frac,
        "distance_per_ang": k_path.distance,
        "tick_distance_per_ang": k_path.ticks,
        "tick_labels": np.array(k_path.labels),
        "energies_eV": bands.energies_ev,
        "zero_eV": np.array(zero_ev),
    }
    characters = _characters(bands)
    if bands.spin is not None:
        arrays["spin_xyz"] = bands.spin
    if bands.weights is not None:
        arrays |= {"weights": bands.weights, "weight_groups": np.array(bands.groups)}
    _save(archive, arrays)
    low, high = window_ev or (-np.inf, np.inf)
    relative = bands.energies_ev - zero_ev
    # Whole bands, so that lines do not end at the frame.
    shown = (relative.max(axis=0) >= low) & (relative.min(axis=0) <= high)  # (n_channel, n)
    header = ["distance_per_ang", "k1", "k2", "k3", "channel", "band", "energy_eV", "energy_minus_zero_eV"]
    rows = (
        [
            f"{k_path.distance[k]:.8g}",
            *(f"{x:.10g}" for x in bands.k_frac[k]),
            channel,
            band,
            *(f"{x:.8f}" for x in (bands.energies_ev[k, channel, band], relative[k, channel, band])),
            *(f"{values[k, channel, band]:.6f}" for values in characters.values()),
        ]
        for channel, band in np.argwhere(shown).tolist()
        for k in range(len(bands.k_frac))
    )
    _write_csv(text, [*header, *characters], rows)
    return archive, text


def _characters(bands: Bands) -> dict[str, NDArray]:
    columns: dict[str, NDArray] = {}
    if bands.spin is not None:
        columns |= {f"spin_{axis}": bands.spin[..., a] for a, axis in enumerate("xyz")}
    if bands.weights is not None:
        columns |= {f"weight_{_column(g)}": bands.weights[..., n] for n, g in enumerate(bands.groups)}
    return columns


def write_dos(path: str | Path, dos: DensityOfStates, *, zero_ev: float) -> tuple[Path, Path]:
    """``.npz`` and ``.csv`` of a density of states, on its grid."""
    archive, text = Path(path).with_suffix(".npz"), Path(path).with_suffix(".csv")
    arrays = {
        "energies_eV": dos.energies_ev,
        "zero_eV": np.array(zero_ev),
        "total_states_per_eV": dos.total,
        "integrated_states": dos.integrated,
        "projected_states_per_eV": dos.projected,
        "projections": np.array(dos.labels, dtype=str),
    }
    _save(archive, arrays)
    ends = [""] if len(dos.total) == 1 else ["_up", "_down"]
    columns = {"energy_eV": dos.energies_ev, "energy_minus_zero_eV": dos.energies_ev - zero_ev}
    columns |= {f"total{end}_states_per_eV": dos.total[c] for c, end in enumerate(ends)}
    columns |= {f"integrated{end}_states": dos.integrated[c] for c, end in enumerate(ends)}
    for label, values in zip(dos.labels, dos.projected, strict=True):
        columns |= {f"{_column(label)}{end}_states_per_eV": values[c] for c, end in enumerate(ends)}
    rows = np.column_stack(list(columns.values()))
    _write_csv(text, list(columns), ([f"{x:.8g}" for x in row] for row in rows.tolist()))
    return archive, text


def write_unfolded(
    path: str | Path,
    bands: UnfoldedBands,
    k_path: KPath,
    *,
    zero_ev: float,
    window_ev: tuple[float, float],
    width_ev: float,
) -> tuple[Path, Path]:
    """``.npz`` with all states of `bands` and the map of the figure, ``.csv`` with the states in the window.

    `zero_ev` is the level that the figure calls zero, `window_ev` is relative to it, `width_ev` that of the map. States
    with a weight below 0.001 are left out of the text.
    """
    archive, text = Path(path).with_suffix(".npz"), Path(path).with_suffix(".csv")
    grid = energy_grid(window_ev, width_ev) + zero_ev
    arrays = {
        "k_frac": bands.k_frac,
        "distance_per_ang": k_path.distance,
        "tick_distance_per_ang": k_path.ticks,
        "tick_labels": np.array(k_path.labels),
        "zero_eV": np.array(zero_ev),
        "k_index": bands.k_index,
        "channel": bands.channel,
        "energies_eV": bands.energies_ev,
        "weights": bands.weights,
        "map_energies_eV": grid,
        "map_weight_per_eV": spectral_function(bands, bands.weights, grid, width_ev),
    }
    columns = {"weight": bands.weights}
    if bands.spin is not None:
        arrays |= {"spin_xyz": bands.spin, "map_spin_xyz_per_eV": spectral_function(bands, bands.spin, grid, width_ev)}
        columns |= {f"spin_{axis}": bands.spin[:, a] for a, axis in enumerate("xyz")}
    if bands.groups is not None:
        arrays |= {"weights_by_group": bands.groups, "groups": np.array(bands.group_labels)}
        columns |= {f"weight_{_column(g)}": bands.groups[:, n] for n, g in enumerate(bands.group_labels)}
    _save(archive, arrays)
    relative = bands.energies_ev - zero_ev
    shown = (relative >= window_ev[0]) & (relative <= window_ev[1]) & (bands.weights >= _LEAST_WEIGHT)
    order = np.lexsort((bands.energies_ev, bands.channel, bands.k_index))
    header = ["distance_per_ang", "k1", "k2", "k3", "channel", "energy_eV", "energy_minus_zero_eV"]
    rows = (
        [
            f"{k_path.distance[k]:.8g}",
            *(f"{x:.10g}" for x in bands.k_frac[k]),
            bands.channel[state],
            f"{bands.energies_ev[state]:.8f}",
            f"{relative[state]:.8f}",
            *(f"{values[state]:.6f}" for values in columns.values()),
        ]
        for state, k in zip(order[shown[order]], bands.k_index[order][shown[order]], strict=True)
    )
    _write_csv(text, [*header, *columns], rows)
    return archive, text


def _column(label: str) -> str:
    return label.replace("↑", "up").replace("↓", "down").replace(" ", "_")


def _save(path: Path, arrays: dict[str, NDArray]) -> None:
    with replacing(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
