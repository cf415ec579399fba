"""``hamnet solve`` and ``hamnet fermi``, and the sparse side of bands, dos and unfold, on real runs."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hamnet.cli.main import main
from hamnet.cli.sources import load_sample
from hamnet.eigen import eigenstates
from hamnet.store import write_samples
from postprocess.bands import solve_bands
from postprocess.solvers.results import read_states

SPARSE = ("--solver", "multifrontal")


@pytest.fixture(scope="module")
def vector_run(tracked):
    return tracked("openmx/nibr2_1x1_nc")


@pytest.fixture(scope="module")
def supercell(vector_run, tile_sample, tmp_path_factory):
    """A set with the run on 3×3 cells, as a prediction would leave it: without a Fermi level."""
    changes = {"name": "3x3", "fermi_energy_ev": None, "provenance": {"predicted": True}}
    path = tmp_path_factory.mktemp("sparse") / "set.h5"
    write_samples(path, [tile_sample(load_sample(vector_run), np.diag([3, 3, 1]), **changes)])
    return path


@pytest.fixture
def call(capsys):
    def command(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out.startswith("{") else out, err

    return command


@pytest.mark.parametrize("run", ["nibr2_1x1_nc", "nibr2_unpolarised", "nibr2_v40_collinear"])
def test_sparse_bands_lie_on_the_eigenvalues_that_openmx_printed(tracked, call, tmp_path, run):
    folder, figure = tracked(f"openmx/{run}"), tmp_path / "b.png"
    words = ("--stored", "--printed", "--window", "-2", "2", "-o", figure, "--json")
    code, result, err = call("bands", folder, *words, *SPARSE)
    assert code == 0
    assert result["overlay_max_abs_meV"] < 1e-4
    assert result["overlay_states_compared"] > 50
    assert "for a factorisation" in err, "the estimate comes before the work"
    assert {p.name for p in tmp_path.iterdir()} == {"b.png", "b.npz", "b.csv"}, "nothing unfinished is left"


@pytest.mark.parametrize("backend", ["dense", "multifrontal", "superlu"])
def test_the_fermi_level_does_not_depend_on_the_solver(vector_run, supercell, call, backend):
    words = ("--electrons", "30", "--mesh", "3", "3", "1", "--temperature", "0", "--json")
    primitive = call("fermi", vector_run, *words, "--solver", "dense")[1]
    _, found, err = call(
        "fermi", supercell, "--mesh", "1", "1", "1", "--temperature", "0", "--json", "--solver", backend
    )
    for key in ("fermi_energy_eV", "gap_eV", "vbm_eV", "cbm_eV"):
        assert found[key] == pytest.approx(primitive[key], abs=1e-8), "one k of 3×3 cells holds a 3 × 3 mesh"
    assert found["n_electrons"] == 270
    assert backend == "dense" or "electrons below" in err


def test_density_of_states_of_windows_is_that_of_all_states(supercell, call, tmp_path):
    words = ("--mesh", "2", "2", "1", "--method", "gaussian", "--width", "0.03", "--window", "-1", "1", "--json")
    found = {}
    for solver in ("dense", "multifrontal"):
        options = ("--project", "species", "--temperature", "0", "--solver", solver)
        code, result, _ = call("dos", supercell, *words, *options, "-o", tmp_path / f"{solver}.png")
        assert code == 0
        found[solver] = result, np.load(tmp_path / f"{solver}.npz")
    (dense, exact), (sparse, ours) = found["dense"], found["multifrontal"]
    for key in ("fermi_energy_eV", "states_below_fermi", "dos_at_fermi_per_eV", "dos_integral"):
        assert sparse[key] == pytest.approx(dense[key], abs=1e-6)
    for key in ("total_states_per_eV", "integrated_states", "projected_states_per_eV"):
        np.testing.assert_allclose(ours[key], exact[key], atol=1e-6)


def test_density_without_states_is_the_kernel_on_each_level(supercell, call, tmp_path):
    words = ("--mesh", "1", "1", "1", "--method", "quartic", "--width", "0.1", "--window", "-1", "1", "--fermi", "-6")
    code, result, _ = call("dos", supercell, *words, "--project", "species", "-o", tmp_path / "q.png", "--json")
    assert code == 0
    sample, found = load_sample(supercell), np.load(tmp_path / "q.npz")
    levels = solve_bands(sample.hamiltonian, sample.overlap, [[0.0, 0.0, 0.0]]).energies_ev[0, 0]
    x = (found["energies_eV"][:, None] - levels) / 0.1
    np.testing.assert_allclose(
        found["total_states_per_eV"][0], (np.sqrt(2) / np.pi / 0.1 / (1 + x**4)).sum(1), rtol=1e-6
    )
    np.testing.assert_allclose(found["projected_states_per_eV"].sum(0), found["total_states_per_eV"], rtol=1e-6)
    assert found["integrated_states"][0, 0] == (levels < found["energies_eV"][0]).sum()
    assert result["n_factorisations"] > 20


def test_errors_of_h_become_errors_of_levels(supercell, call, tmp_path):
    words = ("--fermi", "-6", "--nearest", "8", "-o", tmp_path / "s.h5", "--json", *SPARSE)
    found = [call("solve", supercell, *words, "--errors", error)[1]["level_error_by_k_meV"][0] for error in (1, 2)]
    assert min(found[0]) > 0
    np.testing.assert_allclose(found[1], 2 * np.array(found[0]))
    assert read_states(tmp_path / "s.h5")[0].vectors is None, "vectors are written only if asked for"
    code, _, err = call("solve", supercell, *words, "--errors", tmp_path / "s.h5")
    assert code == 2
    assert "_uncertainty.npz" in err


def test_tetrahedra_of_a_window_are_refused(supercell, call, tmp_path):
    code, _, err = call("dos", supercell, "--method", "tetrahedron", "-o", tmp_path / "d.png", *SPARSE)
    assert code == 2
    assert "--solver dense" in err


def test_unfolding_of_windows_is_that_of_all_states(vector_run, supercell, call, tmp_path):
    words = ("--primitive", vector_run, "--path", "A=0.1,0.2,0 B=0.3,0.2,0", "--points", "4", "--fermi", "-6")
    found = []
    for solver in ("dense", "multifrontal"):
        options = ("--window", "-0.8", "0.8", "--solver", solver, "-o", tmp_path / f"{solver}.png", "--json")
        assert call("unfold", supercell, *words, *options)[0] == 0
        found.append(np.load(tmp_path / f"{solver}.npz"))
    np.testing.assert_allclose(found[1]["map_weight_per_eV"], found[0]["map_weight_per_eV"], atol=1e-4)


def test_solve_writes_the_states_that_dense_diagonalisation_finds(supercell, call, tmp_path):
    output = tmp_path / "states.h5"
    words = ("--fermi", "-6", "--window", "-0.5", "0.6", "--k", "0.1", "0.2", "0", "--k", "0", "0", "0")
    code, result, _ = call("solve", supercell, *words, "--vectors", "-o", output, "--json", *SPARSE)
    assert code == 0
    sample = load_sample(supercell)
    dense = solve_bands(sample.hamiltonian, sample.overlap, [[0.1, 0.2, 0], [0, 0, 0]]).energies_ev[:, 0]
    for states, levels, number in zip(read_states(output), dense, result["first_level_by_k"], strict=True):
        inside = (levels > states.low_ev) & (levels < states.high_ev)
        np.testing.assert_allclose(states.energies_ev, levels[inside], atol=1e-9)
        assert states.first == number == (levels <= states.low_ev).sum()
        assert states.vectors.shape == (522, inside.sum())
    assert result["n_states"] == sum(result["n_states_by_k"]) > 20
    assert result["residual_max_eV"] < 1e-5


def test_shards_fill_one_folder_and_a_last_call_joins_them(supercell, call, tmp_path):
    words = ("--fermi", "-6", "--nearest", "8", "--mesh", "2", "2", "1", "-o", tmp_path / "s.h5", "--json", *SPARSE)
    partial = ("--partial", tmp_path / "work")
    whole = call("solve", supercell, *words)[1]
    counts = [call("solve", supercell, *words, *partial, "--shard", f"{n}/3")[1]["n_states_by_k"] for n in range(3)]
    assert [len(part) for part in counts] == [2, 1, 1]
    joined = call("solve", supercell, *words, *partial)[1]
    assert joined["n_states_by_k"] == whole["n_states_by_k"]


def test_states_of_slepc_are_counted_like_our_own(supercell, call, tmp_path):
    """The part of SLEPc is played by LAPACK: petsc4py has no wheels."""
    words = ("--fermi", "-6", "--nearest", "12", "--k", "0.1", "0.2", "0", "-o", tmp_path / "s.h5", "--json", *SPARSE)
    code, result, _ = call("solve", supercell, *words, "--export", tmp_path / "slepc")
    assert (code, result["dimension"]) == (0, 522)
    sample = load_sample(supercell)
    states = next(eigenstates(sample.hamiltonian, sample.overlap, [[0.1, 0.2, 0]]))
    chosen = states.vectors[0, 0].numpy()[:, 264:277]
    with (tmp_path / "slepc" / "vectors.petsc").open("wb") as file:
        for vector in chosen.T:
            file.write(np.array([1211214, 522], ">i4").tobytes() + vector.astype(">c16").tobytes())
    code, result, _ = call("solve", supercell, *words, "--from", tmp_path / "slepc")
    assert (code, result["n_states"], result["first_level_by_k"]) == (0, 13, [264])
    assert call("solve", supercell, *words, "--k", "0", "0", "0", "--from", tmp_path / "slepc")[0] == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--nearest", "5"), "no Fermi level of its own"),
        (("--nearest", "5", "--fermi", "-6", "--shard", "0/2"), "--partial DIR"),
        (("--nearest", "5", "--fermi", "-6", "--shard", "2/2", "--partial", "w"), "shard 2 of 2"),
        (("--window", "1", "0", "--fermi", "-6"), "lower end first"),
        (("--nearest", "600", "--fermi", "-6"), "600 states of a matrix of dimension 522"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_remedy(supercell, call, tmp_path, words, text):
    code, _, err = call("solve", supercell, *words, "-o", tmp_path / "s.h5", *SPARSE)
    assert code == 2
    assert text in err
    assert not (tmp_path / "s.h5").exists()


def _solve(supercell, output, *words, mesh="4"):
    command = [sys.executable, "-m", "hamnet.cli.main", "solve", supercell, "--fermi", "-6", "--nearest", "20"]
    return [str(word) for word in (*command, "--mesh", mesh, mesh, "1", "-o", output, *SPARSE, *words)]


def test_a_killed_solution_goes_on_where_it_was(supercell, call, tmp_path):
    output, partial = tmp_path / "s.h5", tmp_path / "s.h5.partial"
    process = subprocess.Popen(_solve(supercell, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    complete = "[!.]*.npz"  # files with a dot are being written
    while len(list(partial.rglob(complete))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in partial.rglob(complete)}
    assert 2 <= len(finished) < 16
    assert not output.exists()
    shutil.copytree(partial, tmp_path / "copy")
    code, result, _ = call(
        "solve", supercell, "--fermi", "-6", "--nearest", "20", "--mesh", "4", "4", "1", "-o", output,
        "--partial", tmp_path / "copy", "--json", *SPARSE,
    )  # fmt: skip
    assert code == 0
    assert result["n_k"] == 16
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("[!.]*.npz")}
    assert all(kept[path.name] == stamp for path, stamp in finished.items()), "finished k are not solved again"


def test_two_mpi_ranks_find_the_same_states(supercell, call, tmp_path):
    pytest.importorskip("mpi4py", reason="needs mpi4py and an MPI library: pip install 'hamnet[mpi]'")
    launcher = shutil.which("mpiexec", path=f"{sys.prefix}/bin") or shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("needs mpiexec: pip install mpich")
    command = _solve(supercell, tmp_path / "mpi.h5", "--mpi", mesh="2")
    command[1:1] = ["-m", "mpi4py.futures"]
    done = subprocess.run([launcher, "-n", "2", *command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    call("solve", supercell, *_solve(supercell, tmp_path / "one.h5", mesh="2")[5:])
    for ours, theirs in zip(read_states(tmp_path / "mpi.h5"), read_states(tmp_path / "one.h5"), strict=True):
        np.testing.assert_allclose(ours.energies_ev, theirs.energies_ev, atol=1e-10)
