"""``hamnet bands`` and ``hamnet dos`` on real runs: numbers, files and errors."""

import json
from dataclasses import replace

import numpy as np
import pytest

from hamnet.cli.main import main
from hamnet.cli.sources import load_sample
from hamnet.store import write_samples
from postprocess.bands import solve_bands
from postprocess.fermi import fermi_level
from preprocessing.readers import read_run


@pytest.fixture
def vector_run(tracked):
    """NiBr2 monolayer with spin–orbit and constrained moment, 30 electrons; Ni 3p lies more than 60 eV down."""
    return tracked("openmx/nibr2_1x1_nc")


@pytest.fixture
def call(capsys):
    """Run the command; (exit code, object on stdout, text on stderr)."""

    def command(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out.startswith("{") else out, err

    return command


def _predicted(sample, shift_ev: float = 0.0):
    """The sample as a prediction would leave it: no level of its own, and an origin of its own."""
    assert sample.hamiltonian is not None
    moved = (
        sample.hamiltonian
        + sample.overlap.with_spin(4).with_pairs(sample.hamiltonian.pairs).to(sample.hamiltonian.dtype) * shift_ev
    )
    return replace(
        sample, name="predicted", hamiltonian=moved, fermi_energy_ev=None, provenance={"predicted": True}, density=None
    )


@pytest.mark.parametrize("run", ["nibr2_1x1_nc", "nibr2_unpolarised", "nibr2_v40_collinear"])
def test_stored_hamiltonian_lies_on_the_eigenvalues_that_openmx_printed(tracked, call, tmp_path, run):
    folder = tracked(f"openmx/{run}")
    code, result, _ = call("bands", folder, "--stored", "--printed", "-o", tmp_path / "b.png", "--json")
    assert code == 0
    assert result["overlay_max_abs_meV"] < 1e-4
    assert result["overlay_states_compared"] > 100
    assert result["fermi_source"] == "run"
    assert result["path_labels"] == ["G", "M", "K", "G"], "as the run named them"
    assert {p.name for p in tmp_path.iterdir()} == {"b.png", "b.npz", "b.csv"}


def test_hamiltonian_without_the_constraint_differs_from_the_printed_bands(vector_run, call, tmp_path):
    _, result, _ = call("bands", vector_run, "--printed", "-o", tmp_path / "b.png", "--json")
    assert 2e-3 < result["overlay_max_abs_meV"] < 500


def test_siesta_bands_are_the_printed_ones_to_their_digits(tracked, call, tmp_path):
    _, result, _ = call("bands", tracked("siesta/fept_soc_step"), "--printed", "-o", tmp_path / "b.pdf", "--json")
    assert result["overlay_max_abs_meV"] < 0.06  # four decimals of an eV
    assert result["gap_eV"] == 0
    assert result["path_labels"] == ["G", "X", "M", "A", "Z"], "as the run named them"


def test_counting_on_siestas_own_mesh_gives_siestas_fermi_level(tracked):
    run = read_run(tracked("siesta/fept_soc_step"))
    mesh = next(reference for reference in run.references if reference.source.endswith("EIG"))
    bands = solve_bands(run.stored_hamiltonian, run.sample.overlap, mesh.k_frac)
    level = fermi_level(bands, run.sample.n_electrons, temperature_k=300)
    assert level.chemical_potential_ev == pytest.approx(run.sample.fermi_energy_ev, abs=1e-6)


def test_predicted_hamiltonian_gets_its_level_by_counting_whatever_its_origin(vector_run, call, tmp_path):
    sample = load_sample(vector_run)
    gaps, levels = [], []
    for shift in (0.0, 1.5):
        write_samples(tmp_path / "set.h5", [_predicted(sample, shift)])
        code, result, _ = call(
            "bands", tmp_path / "set.h5", "-o", tmp_path / "b.svg", "--mesh", 6, 6, 1, "--points", 20, "--json"
        )
        assert code == 0
        assert result["fermi_source"] == "counted"
        assert result["gap_from"] == "mesh"
        gaps.append(result["gap_eV"])
        levels.append(result["fermi_energy_eV"])
    assert 0.3 < gaps[0] == pytest.approx(gaps[1], abs=1e-9)
    assert levels[1] - levels[0] == pytest.approx(1.5, abs=1e-9)


def test_overlay_is_drawn_unshifted_and_its_difference_reported(vector_run, call, tmp_path):
    write_samples(tmp_path / "set.h5", [_predicted(load_sample(vector_run), 0.02)])
    _, result, _ = call(
        *("bands", tmp_path / "set.h5", "--overlay", vector_run, "-o", tmp_path / "b.png"),
        *("--mesh", 4, 4, 1, "--points", 20, "--color", "species", "--json"),
    )
    assert result["overlay_mean_abs_meV"] == pytest.approx(20, abs=1e-5)
    assert result["overlay_max_abs_meV"] == pytest.approx(20, abs=1e-5)
    assert result["overlay_mean_shift_meV"] == pytest.approx(20, abs=1e-5)


@pytest.mark.parametrize("method", ["tetrahedron", "gaussian"])
def test_density_of_states_counts_the_electrons_of_the_run(vector_run, call, tmp_path, method):
    code, result, _ = call(
        *("dos", vector_run, "--mesh", 6, 6, 1, "--project", "species", "--method", method, "--width", 0.02),
        *("--window", -120, 120, "--json", "-o", tmp_path / "d.png"),
    )
    assert code == 0
    assert result["n_electrons"] == 30
    assert result["states_below_fermi"] == pytest.approx(30, abs=1e-9)
    assert result["dos_integral"] == pytest.approx(result["n_states"], abs=1e-8)
    assert result["n_states"] == 58
    assert result["dos_at_fermi_per_eV"] == 0
    assert result["vbm_eV"] < result["fermi_energy_eV"] < result["cbm_eV"]
    with np.load(tmp_path / "d.npz") as data:
        assert data["projections"].tolist() == ["Ni", "Br"]
        assert np.allclose(data["projected_states_per_eV"].sum(axis=0), data["total_states_per_eV"], atol=1e-8)


def test_projection_on_the_moment_shows_the_spin_of_the_empty_bands(vector_run, call, tmp_path):
    sample = load_sample(vector_run)
    assert sample.structure.moments is not None
    axis = int(np.argmax(np.abs(sample.structure.moments[0])))
    sign = np.sign(sample.structure.moments[0, axis])
    call(
        *("dos", vector_run, "--mesh", 5, 5, 1, "--project", f"spin-{'xyz'[axis]}", "--window", 0, 1.5, "--json"),
        *("-o", tmp_path / "d.pdf", "--overlay", vector_run),
    )
    with np.load(tmp_path / "d.npz") as data:
        up, down = data["projected_states_per_eV"].sum(axis=(1, 2))
    assert sign * (down - up) > 0  # Ni e_g ↓ is empty


def test_slab_in_a_code_without_slabs_gets_a_path_and_a_mesh_in_its_plane(vector_run, call, tmp_path):
    _, result, _ = call("bands", vector_run, "-o", tmp_path / "b.png", "--points", 10, "--json")
    assert result["path_labels"] == ["G", "M", "K", "G"]
    _, result, _ = call("dos", vector_run, "-o", tmp_path / "d.png", "--density", 2, "--json")
    assert result["mesh"][2] == 1 < result["mesh"][0]


def test_path_from_a_file_is_that_on_the_command_line(vector_run, call, tmp_path):
    text = tmp_path / "path.txt"
    text.write_text("# a path with a jump\nG=0,0,0  M  # half way\n|\nK G\n")
    _, first, _ = call("bands", vector_run, "--path-file", text, "-o", tmp_path / "b.png", "--points", 12, "--json")
    _, second, _ = call("bands", vector_run, "--path", "GM|KG", "-o", tmp_path / "b.png", "--points", 12, "--json")
    assert first == second
    assert first["path_labels"] == ["G", "M|K", "G"]


def test_report_for_people_tells_level_gap_and_files(vector_run, call, tmp_path):
    code, out, err = call("dos", vector_run, "-o", tmp_path / "d.png", "--mesh", 4, 4, 1)
    assert code == 0
    assert "30 states below E_F, 30 electrons" in out
    assert str(tmp_path / "d.csv") in out
    assert err == ""


@pytest.mark.parametrize(
    ("words", "tells"),
    [
        (("bands", "{run}", "--path", "GZQ"), "points of this lattice"),
        (("bands", "{run}", "--path-file", "{tmp}/none.txt"), "none.txt"),
        (("bands", "{run}", "--color", "none", "--window", "8000", "9000"), "window"),
        (("bands", "{run}", "--points", "1"), "2 or more"),
        (("bands", "{run}", "--electrons", "500"), "between 0 and 58"),
        (("bands", "{tmp}/none.h5"), "none.h5"),
        (("bands", "{tmp}/none"), "sample set (.h5) or a DFT run folder"),
        (("bands", "{set}"), "Choose with --sample"),
        (("bands", "{set}", "--sample", "predictes"), "e.g. predicted"),
        (("bands", "{set}", "--sample", "empty"), "has no Hamiltonian"),
        (("bands", "{set}", "--sample", "predicted", "--own"), "with --path"),
        (("bands", "{set}", "--sample", "predicted", "--stored"), "sets hold one Hamiltonian"),
        (("bands", "{run}", "--overlay", "{flat}"), "same cell, basis and spin kind"),
        (("bands", "{flat}", "--color", "spin-z"), "with spin"),
        (("dos", "{run}", "--mesh", "0", "4", "1"), "1 or larger"),
        (("dos", "{run}", "--density", "-1"), "positive"),
        (("dos", "{run}", "--mesh", "2", "2", "1", "--method", "gaussian", "--width", "0"), "positive width"),
        (("dos", "{run}", "-o", "{tmp}/d.jpg2"), "ends with one of"),
        (("dos", "{run}", "-o", "{tmp}/none/d.png"), "folder"),
    ],
)
def test_wrong_use_says_what_was_expected(vector_run, tracked, call, tmp_path, words, tells):
    sample = load_sample(vector_run)
    write_samples(tmp_path / "set.h5", [_predicted(sample), replace(sample, name="empty", hamiltonian=None)])
    places = {"run": vector_run, "tmp": tmp_path, "set": tmp_path / "set.h5"}
    places["flat"] = tracked("openmx/nibr2_unpolarised")
    words = [word.format(**places) for word in words]
    if "-o" not in words:
        words += ["-o", str(tmp_path / "figure.png")]
    code, out, err = call(*words)
    assert code == 2
    assert tells in err
    assert not out
    assert not (tmp_path / "figure.png").exists()
