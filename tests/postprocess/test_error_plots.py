"""The figure of where the error sits shows the numbers that it was given, for every spin kind, within its frame."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from postprocess.error_plots import error_figure

PARTS = ("spin_free", "exchange", "soc")


def _errors(value: float | None, missing: tuple[str, ...]) -> dict[str, float | None]:
    return {f"rmse_{part}_meV": None if part in missing else value for part in PARTS}


def _result(missing: tuple[str, ...] = (), *, angles: bool = True) -> dict:
    """Errors that grow by 1 meV from entry to entry, with the keys of ``hamnet evaluate --json``."""
    bins = [
        {"from_ang": low, "to_ang": high, "n_pairs": 4, "rms_h_meV": 100.0 / (1 + high), **_errors(1.0 + high, missing)}
        for low, high in ((0.0, 0.0), (2.0, 3.0), (3.0, 4.0))
    ]
    shells = []
    names = {"Br s1": 0, "Br p1": 1, "Ni s1": 0, "Ni d1": 2}
    for onsite in (True, False):
        for a, (row, l_row) in enumerate(names.items()):
            for col, l_col in list(names.items())[a:]:
                if not onsite or row[:2] == col[:2]:
                    degrees = list(range(abs(l_row - l_col), l_row + l_col + 1))
                    values = {
                        f"rmse_{part}_meV": None if part in missing else [10.0 if onsite else 0.1] * len(degrees)
                        for part in PARTS
                    }
                    entry = {"onsite": onsite, "row": row, "col": col, "n_pairs": 2, "degrees": degrees, **values}
                    shells.append(entry)
    turned = [{"from_deg": 15 * n, "to_deg": 15 * n + 15, **_errors(1.0 + n, missing)} for n in range(12)]
    n_components = {0: 4, 1: 2, 2: 1}[len(missing)]
    by_angle = turned if angles else []
    return {
        "mae_by_distance": bins,
        "error_map": {"n_components": n_components, "by_angle": by_angle, "by_shell_pair": shells},
    }


def _curves(axes) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in axes.get_lines()]


@pytest.mark.parametrize(("missing", "angles"), [((), True), (("soc",), False), (("exchange", "soc"), False)])
def test_all_text_lies_inside_the_figure_and_is_large_enough(missing, angles):
    figure = error_figure(_result(missing, angles=angles))
    FigureCanvasAgg(figure).draw()
    axises = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    drawn = {id(label) for axis in axises for tick in axis._update_ticks() for label in (tick.label1, tick.label2)}
    labels = {id(label) for axis in axises for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)}
    texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
    assert len(texts) > 10
    for text in texts:
        if id(text) in labels - drawn:
            continue  # matplotlib keeps labels of ticks beyond the limits and does not draw them
        assert text.get_fontsize() >= 7
        box = text.get_window_extent()
        assert figure.bbox.padded(1).contains(*box.min), text.get_text()
        assert figure.bbox.padded(1).contains(*box.max), text.get_text()


def test_curves_show_the_numbers_and_one_scale_serves_all_panels():
    distance, angle, degree = error_figure(_result()).axes[:3]
    x, y = _curves(distance)[0]
    assert x.tolist() == [2.5, 3.5]
    assert y.tolist() == [4.0, 5.0]
    assert [c[1].tolist() for c in _curves(distance) if c[0].tolist() == [0.0]] == [[1.0]] * 3 + [[100.0]]
    assert _curves(angle)[2][1].tolist() == [1.0 + n for n in range(12)]
    assert _curves(angle)[0][0][-1] == 172.5
    off_site, on_site = _curves(degree)[:2]
    assert off_site[1].tolist() == pytest.approx([0.1] * 5)
    # p ⊗ d would have L = 3, but no block between these two lies on one site.
    assert on_site[1].tolist() == pytest.approx([10.0, 10.0, 10.0, 10.0, 10.0])
    assert len({axes.get_ylim() for axes in (distance, angle, degree)}) == 1


def test_maps_are_symmetric_and_hold_on_site_blocks_of_one_species_only():
    figure = error_figure(_result())
    onsite, between = (np.ma.filled(axes.get_images()[0].get_array(), np.nan) for axes in figure.axes[3:5])
    assert onsite.shape == between.shape == (4, 4)
    assert np.isnan(onsite[:2, 2:]).all()
    assert np.isnan(onsite[2:, :2]).all()
    # Of the four Pauli components one has the spin-free error, three have both others.
    assert onsite[:2, :2].ravel().tolist() == pytest.approx([10.0 * np.sqrt(7 / 4)] * 4)
    assert between.ravel().tolist() == pytest.approx([0.1 * np.sqrt(7 / 4)] * 16)
    assert [t.get_text() for t in figure.axes[3].get_yticklabels()] == ["Br s1", "Br p1", "Ni s1", "Ni d1"]


def test_parts_that_a_hamiltonian_cannot_have_are_not_drawn():
    figure = error_figure(_result(("exchange", "soc"), angles=False))
    assert len(figure.axes) == 2 + 2 + 1  # no panel of angles; the last is the colour bar
    # Errors and sizes, each with its on-site point.
    assert len(_curves(figure.axes[0])) == 4


def test_errors_of_rounding_do_not_stretch_the_scale():
    result = _result()
    for entry in result["mae_by_distance"]:
        entry["rmse_soc_meV"] = 1e-13
    assert error_figure(result).axes[0].get_ylim()[0] > 1e-3
