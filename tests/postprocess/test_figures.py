"""Figures and the tables beside them."""

import csv
import itertools
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from hamnet.errors import ConfigError
from postprocess.bands import solve_bands
from postprocess.dos import density_of_states, spin_weights
from postprocess.files import replacing
from postprocess.grouping import group_orbitals
from postprocess.kmesh import k_mesh
from postprocess.kpath import k_path
from postprocess.plotting import PALETTE, band_figure, dos_figure, save_figure
from postprocess.tables import write_bands, write_dos
from tight_binding import honeycomb, operator, structure_of

SLAB = (True, True, False)


@pytest.fixture(scope="module")
def bands():
    structure, h, s = honeycomb(-1.0, 0.3)
    path = k_path(structure, "GM|KG", n_points=30, periodic=SLAB)
    grouping = group_orbitals(h.basis, h.pairs.species, "species")
    return path, solve_bands(h.with_spin(4), s, path.k_frac, spin=True, grouping=grouping)


@pytest.fixture(scope="module")
def dos():
    structure, h, s = honeycomb(-1.0, 0.3)
    mesh = k_mesh((6, 6, 1))
    states = solve_bands(h, s, mesh.k_frac, grouping=group_orbitals(h.basis, h.pairs.species, "species"))
    return density_of_states(states, mesh, structure.reciprocal_cell, window_ev=(-4, 4), n_points=100)


def _band_figures(bands):
    path, states = bands
    common = {"zero_ev": 0.1, "window_ev": (-4.0, 4.0)}
    yield band_figure(path, states, **common)
    yield band_figure(path, states, spin_axis=2, **common)
    yield band_figure(path, states, by_group=True, **common)
    yield band_figure(
        path, states, spin_axis=0, label="a predicted Hamiltonian", reference_ev=states.energies_ev + 0.05, **common
    )


def _texts(figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]


def test_all_text_lies_inside_the_figure_and_is_large_enough(bands, dos):
    for figure in (*_band_figures(bands), dos_figure(dos, zero_ev=0.1), dos_figure(dos, zero_ev=0.0, reference=dos)):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frame = figure.bbox.padded(1)
        for text in _texts(figure):
            assert text.get_fontsize() >= 7
            box = text.get_window_extent()
            if box.width > 0 and not _is_hidden_tick(text, figure):
                assert frame.contains(*box.min), text.get_text()
                assert frame.contains(*box.max), text.get_text()
        assert figure.get_size_inches()[0] == pytest.approx(3.4)


def test_long_names_and_crowded_paths_do_not_run_into_each_other():
    structure, h, s = honeycomb(-1.0, 0.3)
    path = k_path(structure, "GMKG M|KM G|MK MK", n_points=300, periodic=SLAB)
    states = solve_bands(h, s, path.k_frac)
    figure = band_figure(
        path,
        states,
        zero_ev=0.0,
        label="a_rather_long_name/of_a_sample_of_a_set/r0001",
        reference_ev=states.energies_ev,
        reference_label="another_rather_long_name/of_its_run/r0002",
    )
    FigureCanvasAgg(figure).draw()
    labels = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(labels) == 10
    lines = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert all(figure.bbox.contains(*corner) for box in lines for corner in (box.min, box.max))
    # A label on the second line has an empty first one, which lies above its own text.
    rows = [label.get_text().count("\n") for label in figure.axes[0].get_xticklabels()]
    for row in (0, 1):
        boxes = [box for box, own in zip(labels, rows, strict=True) if own == row]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def _is_hidden_tick(text, figure) -> bool:
    """Matplotlib keeps labels of ticks outside the limits and does not draw them."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            shown = {id(tick.label1) for tick in axis._update_ticks()} | {
                id(tick.label2) for tick in axis._update_ticks()
            }
            own = {id(t.label1) for t in axis.get_major_ticks()} | {id(t.label2) for t in axis.get_major_ticks()}
            if id(text) in own and id(text) not in shown:
                return True
    return False


def test_axes_name_quantities_units_and_high_symmetry_points(bands, dos):
    axes = band_figure(*bands, zero_ev=0.0).axes[0]
    assert axes.get_ylabel() == r"$E - E_\mathrm{F}$ (eV)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Γ", "M|K", "Γ"]
    coloured = band_figure(*bands, zero_ev=0.0, spin_axis=1)
    assert coloured.axes[1].get_ylabel() == r"$\langle\sigma_y\rangle$"
    density = dos_figure(dos, zero_ev=0.0).axes[0]
    assert density.get_xlabel() == r"$E - E_\mathrm{F}$ (eV)"
    assert density.get_ylabel() == "DOS (states/eV per cell)"


def test_no_line_crosses_a_jump_of_the_path(bands):
    path, states = bands
    place = path.ticks[1]
    for figure in _band_figures(bands):
        for collection in figure.axes[0].collections:
            for segment in collection.get_segments():
                left, right = segment[:, 0].min(), segment[:, 0].max()
                assert right <= place + 1e-9 or left >= place - 1e-9
    k = path.sections[1].start
    assert abs(states.energies_ev[k] - states.energies_ev[k - 1]).max() > 0.1  # a line would be seen


def test_palette_is_told_apart_in_grey():
    grey = sorted(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour in PALETTE[:3])
    assert len(set(PALETTE)) == len(PALETTE)
    assert np.diff(grey).min() > 0.005


def test_figures_leave_no_trace_in_matplotlib(bands, tmp_path):
    before = dict(mpl.rcParams)
    pyplot = "matplotlib.pyplot" in sys.modules
    for figure in _band_figures(bands):
        save_figure(figure, tmp_path / "bands.pdf")
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_same_numbers_give_the_same_file(bands, tmp_path, suffix):
    for name in "ab":
        save_figure(band_figure(*bands, zero_ev=0.0, spin_axis=2), tmp_path / f"{name}{suffix}")
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
    assert first == second
    assert len(first) > 5000
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


def test_unknown_suffix_or_folder_is_refused(bands, tmp_path):
    figure = band_figure(*bands, zero_ev=0.0)
    with pytest.raises(ConfigError, match=r"\.png, \.pdf, \.svg"):
        save_figure(figure, tmp_path / "bands.xyz")
    with pytest.raises(ConfigError, match="folder"):
        save_figure(figure, tmp_path / "none" / "bands.png")


def test_window_without_bands_is_refused(bands):
    with pytest.raises(ConfigError, match="meets the bands"):
        band_figure(*bands, zero_ev=0.0, window_ev=(50.0, 60.0))
    with pytest.raises(ConfigError, match="meets the bands"):
        band_figure(*bands, zero_ev=0.0, window_ev=(4.0, -6.0))


def test_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("old")

    def write() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_tables_of_bands_hold_every_number_with_its_unit(bands, tmp_path):
    path, states = bands
    archive, text = write_bands(tmp_path / "bands.png", states, path, zero_ev=0.1, window_ev=(0.0, 4.0))
    with np.load(archive) as data:
        assert np.array_equal(data["energies_eV"], states.energies_ev)
        assert np.array_equal(data["distance_per_ang"], path.distance)
        assert np.array_equal(data["spin_xyz"], states.spin)
        assert data["weight_groups"].tolist() == ["A", "B"]
    with text.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(path)  # two bands reach into the window
    row = rows[len(path) + 3]
    assert float(row["energy_eV"]) == pytest.approx(states.energies_ev[3, 0, int(row["band"])], abs=1e-8)
    assert float(row["energy_minus_zero_eV"]) == pytest.approx(float(row["energy_eV"]) - 0.1, abs=2e-8)
    assert float(row["weight_A"]) + float(row["weight_B"]) == pytest.approx(1, abs=2e-6)
    assert float(row["distance_per_ang"]) == pytest.approx(path.distance[3])


def test_tables_of_a_density_integrate_like_the_density(dos, tmp_path):
    archive, text = write_dos(tmp_path / "dos.pdf", dos, zero_ev=0.5)
    table = np.genfromtxt(text, delimiter=",", names=True)
    assert table.dtype.names[:2] == ("energy_eV", "energy_minus_zero_eV")
    assert table["total_states_per_eV"].sum() * dos.step_ev == pytest.approx(4, rel=1e-6)
    assert np.allclose(table["A_states_per_eV"], dos.projected[0, 0], atol=1e-6)
    with np.load(archive) as data:
        assert np.array_equal(data["integrated_states"], dos.integrated)


def test_spin_down_points_down(tmp_path):
    structure = structure_of(np.diag([1.0, 1.0, 8.0]))
    h = operator(structure, {(0, 0, (0, 0, 0)): np.array([0.0, -0.7]).reshape(2, 1, 1)})
    identity = operator(structure, {(0, 0, (0, 0, 0)): 1.0})
    mesh = k_mesh((2, 1, 1))
    spinor = solve_bands(h.with_spin(4), identity, mesh.k_frac, spin=True)
    shares, labels = spin_weights(spinor, (0, 0, 1))
    for states, extra in ((solve_bands(h, identity, mesh.k_frac), {}), (spinor, {"weights": shares, "labels": labels})):
        density = density_of_states(states, mesh, np.eye(3), window_ev=(-2, 2), n_points=80, method="gaussian", **extra)
        curves = [line.get_ydata() for line in dos_figure(density, zero_ev=0.0).axes[0].lines[:2]]
        x = density.energies_ev
        assert x[np.argmax(curves[0])] == pytest.approx(-0.7, abs=0.06)
        assert curves[0].min() >= -1e-9
        assert x[np.argmin(curves[1])] == pytest.approx(0.7, abs=0.06)
        assert curves[1].max() <= 1e-9
