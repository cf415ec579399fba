"""``hamnet unfold`` on tiled and real supercells: numbers, files, figures and errors."""

import csv
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from hamnet.cli.main import main
from hamnet.cli.sources import load_sample
from hamnet.store import write_samples
from postprocess.bands import solve_bands
from postprocess.kpath import k_path
from postprocess.unfold import UnfoldedBands
from postprocess.unfold_plot import unfolded_figure

ROOT3 = np.array([[1, -1, 0], [1, 2, 0], [0, 0, 1]])
GENERIC = "A=0.11,0.23,0 B=0.41,0.13,0"


@pytest.fixture(scope="module")
def primitive(tracked):
    return tracked("openmx/nibr2_1x1_nc")


@pytest.fixture(scope="module")
def tiled(primitive, tile_sample, tmp_path_factory):
    """A set with the run on a √3×√3 cell, and a copy of it with an atom out of place."""
    large = tile_sample(load_sample(primitive), ROOT3, name="tiled")
    positions = large.structure.positions.copy()
    positions[4] += [0.0, 0.0, 1.2]
    strayed = replace(large, name="strayed", structure=replace(large.structure, positions=positions))
    path = tmp_path_factory.mktemp("unfold") / "set.h5"
    write_samples(path, [large, strayed])
    return path


@pytest.fixture(scope="module")
def spiral(tmp_path_factory):
    """DFT's own 2×2 cell with moments along x, y, −x, −y."""
    folder = tmp_path_factory.mktemp("nibr2")
    with tarfile.open(Path(__file__).resolve().parents[2] / "examples" / "nibr2" / "nibr2_2x2.tar.xz") as tar:
        tar.extractall(folder, [m for m in tar.getmembers() if m.name.startswith("nibr2_2x2/spiral")], filter="data")
    return folder / "nibr2_2x2" / "spiral"


@pytest.fixture
def call(capsys):
    """Run the command; (exit code, object on stdout, text on stderr)."""

    def command(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out.startswith("{") else out, err

    return command


@pytest.mark.parametrize("cell", ["given", "matrix", "overlay"])
def test_tiled_run_unfolds_to_its_own_bands(tiled, primitive, call, tmp_path, cell):
    words = {
        "given": ["--primitive", primitive],
        "matrix": ["--matrix", *ROOT3.ravel()],
        "overlay": ["--overlay", primitive],
    }[cell]
    code, result, _ = call(
        *("unfold", tiled, "--sample", "tiled", *words, "--path", GENERIC, "--points", 12, "--json"),
        *("-o", tmp_path / "u.png"),
    )
    assert code == 0
    assert (result["primitive_from"], result["n_cells"], result["matrix"]) == (cell, 3, ROOT3.tolist())
    assert result["mean_weight"] == pytest.approx(1, abs=1e-6)
    assert result["displacement_max_ang"] < 1e-9
    assert result["overlap_deviation_max"] < 1e-12
    assert (result["n_k"], result["path_labels"]) == (12, ["A", "B"])
    sample = load_sample(primitive)
    with np.load(tmp_path / "u.npz") as data:
        wanted = solve_bands(sample.hamiltonian, sample.overlap, data["k_frac"], spin=True)
        assert wanted.spin is not None
        for k in range(12):
            own = (data["k_index"] == k) & (data["weights"] > 0.5)
            low, high = data["energies_eV"].min(), data["energies_eV"].max()
            inside = (wanted.energies_ev[k, 0] >= low - 1e-6) & (wanted.energies_ev[k, 0] <= high + 1e-6)
            assert np.allclose(data["energies_eV"][own], wanted.energies_ev[k, 0, inside], atol=1e-8)
            assert np.allclose(data["spin_xyz"][own], wanted.spin[k, 0, inside], atol=1e-6)


def test_cell_is_found_with_moments_left_aside_and_its_path_is_that_of_the_lattice(spiral, call, tmp_path):
    code, result, _ = call("unfold", spiral, "-o", tmp_path / "u.svg", "--points", 8, "--color", "shell", "--json")
    assert code == 0
    assert (result["primitive_from"], result["matrix"]) == ("found", np.diag([2, 2, 1]).tolist())
    assert result["path_labels"] == ["G", "M", "K", "G"], "in the plane of the layer"
    assert result["n_supercell_k"] < result["n_k"], "Γ is there twice"
    assert 0.25 < result["mean_weight"] < 0.6, "four directions of moments mix the four k"
    with np.load(tmp_path / "u.npz") as data:
        assert data["groups"].tolist() == ["Ni s", "Ni p", "Ni d", "Br s", "Br p"]
        assert np.allclose(data["weights_by_group"].sum(axis=1), data["weights"], atol=1e-12)


def test_table_holds_every_state_of_the_window_with_its_weight_and_spin(spiral, call, tmp_path):
    _, result, _ = call(
        *("unfold", spiral, "-o", tmp_path / "u.pdf", "--path", GENERIC, "--points", 5, "--window", -2, 1, "--json"),
    )
    with (tmp_path / "u.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with np.load(tmp_path / "u.npz") as data:
        relative = data["energies_eV"] - data["zero_eV"]
        shown = (relative >= -2) & (relative <= 1) & (data["weights"] >= 1e-3)
        assert len(rows) == shown.sum() > 50
        assert result["n_weights"] >= len(rows)
        assert sum(float(row["weight"]) for row in rows) == pytest.approx(data["weights"][shown].sum(), abs=1e-3)
        assert sum(float(row["spin_x"]) for row in rows) == pytest.approx(data["spin_xyz"][shown, 0].sum(), abs=1e-3)
        step = data["map_energies_eV"][1] - data["map_energies_eV"][0]
        assert result["width_eV"] == pytest.approx(3 / 250)
        # What is in the map is what is in the window, but for tails across its ends.
        total = (data["map_weight_per_eV"].sum() * step, data["weights"][(relative >= -2) & (relative <= 1)].sum())
        assert total[0] == pytest.approx(total[1], rel=0.05)
        assert data["map_spin_xyz_per_eV"].shape == (5, len(data["map_energies_eV"]), 3)
    assert float(rows[0]["energy_minus_zero_eV"]) == pytest.approx(
        float(rows[0]["energy_eV"]) - result["fermi_energy_eV"], abs=1e-7
    )


def test_spiral_option_turns_the_translations(tiled, primitive, call, tmp_path):
    """The tiled cell is a ferromagnet: translations that turn spin are none of its symmetries."""
    words = ("unfold", tiled, "--sample", "tiled", "--primitive", primitive, "--path", GENERIC, "--points", 6, "--json")
    _, plain, _ = call(*words, "-o", tmp_path / "u.png")
    _, turned, _ = call(*words, "-o", tmp_path / "u.png", "--spiral", "1/3", "-2/3", "0", "--axis", 1, 0, 0)
    assert turned["q_frac"] == pytest.approx([1 / 3, -2 / 3, 0])
    assert turned["axis"] == [1, 0, 0]
    assert plain["q_frac"] is None
    assert turned["mean_weight"] < 0.9 < plain["mean_weight"]


def test_report_for_people_tells_cells_and_files(spiral, call, tmp_path):
    code, out, _ = call("unfold", spiral, "-o", tmp_path / "u.png", "--path", GENERIC, "--points", 3)
    assert code == 0
    assert "4 primitive cells (2 2 1), 3 k along A-B from 3 K" in out
    assert str(tmp_path / "u.csv") in out
    assert "mean weight 0." in out


@pytest.mark.parametrize(
    ("words", "tells"),
    [
        (("{spiral}", "--matrix", "3", "3", "1"), "has the matrix 2 2 1"),
        (("{spiral}", "--matrix", "3", "3"), "--matrix with 2 numbers"),
        (("{spiral}", "--primitive", "{wrong}"), "nearest integer matrix, 2 2 1, misses a lattice vector by 0.8 Å"),
        (("{spiral}", "--overlay", "{primitive}", "--primitive", "{spiral}"), "lattice vectors differ"),
        (("{primitive}",), "its cell is primitive"),
        (("{set}", "--sample", "strayed", "--primitive", "{primitive}"), "atom 4 (Br) is 1.0"),
        (("{set}", "--sample", "tiled", "--primitive", "{primitive}", "--spiral", "1/4", "0", "0"), "whole turns"),
        (("{flat}", "--matrix", "1", "1", "1", "--spiral", "0", "0", "0"), "vector Hamiltonian"),
        (("{flat}", "--matrix", "1", "1", "1", "--color", "spin-z"), "with spin"),
        (("{spiral}", "--window", "8000", "9000", "--points", "2"), "without a state"),
        (("{spiral}", "--window", "1", "-1"), "lower end first"),
        (("{spiral}", "--width", "0"), "positive width"),
        (("{spiral}", "--tolerance", "-1"), "positive length"),
        (("{spiral}", "--path", "GZQ"), "points of this lattice"),
    ],
)
def test_wrong_use_says_what_was_expected(spiral, primitive, tiled, tracked, call, tmp_path, words, tells):
    sample = load_sample(primitive)
    wide = replace(sample.structure, cell=sample.structure.cell + np.diag([0.4, 0, 0]))
    write_samples(tmp_path / "wrong.h5", [replace(sample, structure=wide)])
    places = {"spiral": spiral, "primitive": primitive, "set": tiled, "wrong": tmp_path / "wrong.h5"}
    places["flat"] = tracked("openmx/nibr2_unpolarised")
    words = [word.format(**places) for word in words]
    code, out, err = call("unfold", *words, "-o", tmp_path / "figure.png")
    assert code == 2
    assert tells in err
    assert not out
    assert not (tmp_path / "figure.png").exists()


# -- the figure --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfolded(primitive):
    sample = load_sample(primitive)
    path = k_path(sample.structure, "GM|KG", n_points=20, periodic=(True, True, False))
    rng = np.random.default_rng(0)
    n, k_index = 20 * 12, np.repeat(np.arange(20), 12)
    energies, weights = rng.uniform(-5, 3, n), rng.random(n)
    groups = rng.dirichlet([1, 1], n) * weights[:, None]
    spin = rng.uniform(-1, 1, (n, 3)) * weights[:, None] / 2
    bands = UnfoldedBands(path.k_frac, 4, k_index, np.zeros(n), energies, weights, spin, groups, ("Ni", "Br"))
    return path, bands


@pytest.mark.parametrize("beside", [{}, {"spin_axis": 1}, {"by_group": True}])
def test_text_of_the_map_is_inside_and_names_units_and_points(unfolded, beside):
    path, bands = unfolded
    reference = np.broadcast_to([-1.0, 0.5], (len(path), 1, 2))
    figure = unfolded_figure(path, bands, zero_ev=0.0, reference_ev=reference, reference_label="primitive", **beside)
    FigureCanvasAgg(figure).draw()
    assert figure.axes[0].get_ylabel() == r"$E - E_\mathrm{F}$ (eV)"
    labels = {axes.get_ylabel() for axes in figure.axes}
    assert "spectral weight (1/eV)" in labels
    assert (r"weight × $\langle\sigma_y\rangle$ (1/eV)" in labels) == ("spin_axis" in beside)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["Γ", "M|K", "Γ"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["primitive", *(["Ni", "Br"] if "by_group" in beside else [])]
    for text in (*figure.legends[0].get_texts(), *(axes.yaxis.label for axes in figure.axes)):
        assert isinstance(text, Text)
        assert text.get_fontsize() >= 7
        box = text.get_window_extent()
        assert figure.bbox.padded(1).contains(*box.min)
        assert figure.bbox.padded(1).contains(*box.max)


def test_colours_of_the_map_are_the_spectral_weight(unfolded):
    path, _ = unfolded
    n = len(path)
    flat = UnfoldedBands(path.k_frac, 1, np.arange(n), np.zeros(n), np.full(n, 0.5), np.full(n, 0.25))
    figure = unfolded_figure(path, flat, zero_ev=0.0, window_ev=(-1, 1), width_ev=0.05)
    meshes = [c for c in figure.axes[0].collections if c.get_array() is not None]
    assert len(meshes) == 2, "one for each section of the path"
    columns = np.concatenate([np.asarray(mesh.get_array()) for mesh in meshes], axis=1)
    assert columns.shape[1] == n
    top = meshes[0].get_clim()[1]
    assert top == pytest.approx(1 / (0.05 * np.sqrt(2 * np.pi))), "a band of weight 1"
    assert columns.max() == pytest.approx(0.25 * top, rel=0.01)
    assert np.allclose(columns.sum(axis=0) * 2 / len(columns), 0.25)
