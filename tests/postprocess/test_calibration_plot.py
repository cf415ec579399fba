"""The figure of expected against true errors shows the numbers that it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from postprocess.calibration_plot import binned_errors, calibration_figure
from postprocess.plotting import save_figure


def _errors(factor: float = 1.0, *, n: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    expected = 10 ** rng.uniform(-6, -3, (n, 3))
    return expected, factor * expected * np.exp(0.3 * rng.normal(size=(n, 3))), rng.random(n) < 0.2


def test_bins_hold_root_mean_squares_and_the_spread_of_the_true_errors():
    expected, true, _ = _errors()
    middle, rms, (low, high) = binned_errors(expected[:, 0], true[:, 0])
    assert len(middle) == 12  # three decades, four bins in each
    assert rms / middle == pytest.approx(np.exp(0.3**2), rel=0.15)
    assert (low < rms).all()
    assert high / low == pytest.approx(10**0.25 * np.exp(0.3), rel=0.4)


def test_bins_with_few_blocks_are_left_out():
    middle, _, _ = binned_errors(np.array([1.0, 1.1, 1.2, 1.0, 1.3, 50.0]), np.ones(6))
    assert middle == pytest.approx([np.sqrt(np.mean(np.array([1.0, 1.1, 1.2, 1.0, 1.3]) ** 2))])
    assert len(binned_errors(np.array([1.0]), np.array([1.0]))[0]) == 0


def test_points_of_a_good_calibration_lie_on_the_line_and_of_a_bad_one_beside_it():
    for factor in (1.0, 10.0):
        axes = calibration_figure(*_errors(factor)).axes[1]
        drawn = [bars.lines[0] for bars in axes.containers]
        assert len(drawn) == 2
        for line in drawn:
            x, y = line.get_data()
            assert np.log10(np.asarray(y) / np.asarray(x)) == pytest.approx(np.log10(factor), abs=0.15)
        assert axes.get_xlim() == axes.get_ylim()


def test_parts_that_the_hamiltonian_has_not_get_no_panel(tmp_path: Path):
    expected, true, onsite = _errors()
    expected[:, 1:] = true[:, 1:] = np.nan
    figure = calibration_figure(expected, true, onsite)
    assert [axes.get_title() for axes in figure.axes] == ["spin-free"]
    assert save_figure(figure, tmp_path / "c.pdf").stat().st_size > 1000


def test_errors_of_zero_are_not_drawn_on_logarithmic_axes(tmp_path: Path):
    expected, true, onsite = _errors()
    true[:, 2] = 0.0
    axes = calibration_figure(expected, true, onsite).axes[2]
    assert not axes.containers
    save_figure(axes.figure, tmp_path / "c.png")  # type: ignore[arg-type]
