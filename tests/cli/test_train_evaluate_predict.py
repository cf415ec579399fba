"""The road of a user: DFT runs → set → model → errors → prediction → bands, through the command line alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from hamnet.cli.main import main
from hamnet.store import SampleSet

CONFIG = """
[data]
train = { path = "fept.h5", exclude = "*2x1x1*" }
validation = { path = "fept.h5", names = "*2x1x1*" }
[model]
cutoff_ang = 4.0
n_layers = 1
l_max = 2
channels = 4
hidden = 4
pair_channels = 4
product_channels = 2
n_radial = 4
[training]
epochs = 4
batch_size = 2
threads = 1
"""
MAGNETIC = ("fept_soc_sym_base", "fept_soc_sym_rot", "fept_soc_2x1x1_c01")


@pytest.fixture(scope="module")
def folder(tracked: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set and a model, made by `hamnet preprocess` and `hamnet train`."""
    folder = tmp_path_factory.mktemp("road")
    small = tracked("siesta/small")
    assert (
        main(["preprocess", *(str(small / name) for name in MAGNETIC), "-o", str(folder / "fept.h5"), "--jobs=1"]) == 0
    )
    (folder / "train.toml").write_text(CONFIG, encoding="utf-8")
    assert main(["train", str(folder / "train.toml")]) == 0
    return folder


@pytest.fixture
def hamnet(folder: Path, monkeypatch, capsys):
    """``hamnet("verb", …)`` in that folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)

    def call(*words: str) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


MODEL = "run/model.safetensors"


def test_training_tells_its_errors_as_json(hamnet, folder):
    code, out, err = hamnet("train", "train.toml", "--resume", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["model"] == str(folder / MODEL)
    assert result["epochs"] == 4
    assert set(result["errors"]) == {"train", "validation"}
    assert result["errors"]["validation"]["mae_meV"] > 0
    assert "magnetic: Fe_fept_SOC, Pt_fept_SOC (prescribed moments" in err


def test_evaluation_of_a_set_has_the_documented_keys(hamnet):
    code, out, _ = hamnet("evaluate", MODEL, "fept.h5", "--samples", "*base", "--json")
    result = json.loads(out)
    assert code == 0
    keys = {"mae_meV", "mae_spin_free_meV", "mae_exchange_meV", "mae_soc_meV", "mae_spinor_meV"}
    keys |= {f"{key}_mu_aligned" for key in keys}
    keys |= {"bands_mean_meV", "bands_max_meV", "bands_mean_meV_aligned", "bands_max_meV_aligned"}
    keys |= {
        "mae_by_distance",
        "mae_by_species_pair",
        "baselines",
        "samples",
        "n_samples",
        "warnings",
        "bands_n_states",
    }
    assert keys <= set(result)
    assert result["n_samples"] == 1
    assert all(result[key] > 0 for key in keys if key.startswith(("mae_meV", "bands")))


def test_evaluation_of_a_run_is_that_of_its_sample(hamnet, tracked):
    run = tracked("siesta/small") / "fept_soc_sym_base"
    results = [json.loads(hamnet("evaluate", MODEL, *source, "--no-bands", "--json")[1]) for source in (
        (run,), ("fept.h5", "--samples", "*base")
    )]  # fmt: skip
    assert results[0]["mae_meV"] == pytest.approx(results[1]["mae_meV"], rel=1e-6)


def test_the_limit_of_the_error_decides_the_exit_code(hamnet):
    arguments = ("evaluate", MODEL, "fept.h5", "--no-bands", "--max-mae")
    assert hamnet(*arguments, "1e6")[0] == 0
    code, out, err = hamnet(*arguments, "0.001")
    assert code == 1
    assert "is more than --max-mae 0.001" in err
    assert "no magnetism at all" in out


def test_trivial_models_are_fitted_to_the_training_samples_of_the_set_and_stand_beside_the_model(hamnet):
    """The set also holds the validation run, a doubled cell: it is no training sample, and beyond the linear fit."""
    code, out, err = hamnet("evaluate", MODEL, "fept.h5", "--train", "fept.h5", "--json")
    result = json.loads(out)
    assert (code, "--train" in err) == (0, False)
    samples = {sample.pop("name"): sample for sample in result["samples"]}
    large = samples.pop("fept_soc_2x1x1_c01")
    assert large["baselines"]["mean_block"]["mae_meV"] > 0
    assert large["baselines"]["mean_block"]["bands_mean_meV"] > 0
    assert large["baselines_missing_because"] == {"linear_in_moments": "not a cell of the training set"}
    # The other two are the training set, turned against each other: each has its cell for itself.
    for sample in samples.values():
        assert sample["baselines"]["mean_block"]["mae_meV"] < 1e-6
        assert sample["baselines"]["linear_in_moments"]["bands_max_meV"] < 1e-3
    assert result["baselines"]["linear_in_moments"] is None
    assert 0 < result["baselines"]["mean_block"]["mae_meV"] < large["baselines"]["mean_block"]["mae_meV"]
    code, out, _ = hamnet("evaluate", MODEL, "fept.h5", "--train", "fept.h5", "--no-bands")
    assert code == 0
    assert "mean of each block" in out
    assert "linear in moments: cannot (" in out


def test_a_set_without_samples_of_the_training_set_is_refused_and_a_part_of_it_is_warned_of(hamnet, tracked):
    small = tracked("siesta/small")
    assert hamnet("preprocess", small / "fept_soc_2x1x1_c01", "-o", "other.h5", "--jobs=1")[0] == 0
    code, _, err = hamnet("evaluate", MODEL, "fept.h5", "--train", "other.h5")
    assert code == 2
    assert "no sample that the model was trained on; expected names like fept_soc_sym_base" in err
    runs = (small / "fept_soc_sym_base", small / "fept_soc_2x1x1_c01")
    assert hamnet("preprocess", *runs, "-o", "part.h5", "--jobs=1")[0] == 0
    code, _, err = hamnet("evaluate", MODEL, "fept.h5", "--train", "part.h5", "--no-bands")
    assert code == 0
    assert "hold 1 of the 2 samples" in err


def test_the_figure_of_the_errors_is_written_and_a_wrong_name_is_refused_before_any_work(hamnet, folder):
    assert hamnet("evaluate", MODEL, "fept.h5", "--no-bands", "--plot", "errors.png")[0] == 0
    assert (folder / "errors.png").stat().st_size > 0
    code, _, err = hamnet("evaluate", MODEL, "nowhere.h5", "--plot", "errors.txt")
    assert code == 2
    assert "ends with one of .png" in err


def test_a_prediction_with_an_overlap_has_bands(hamnet, tracked, folder):
    run = tracked("siesta/small") / "fept_soc_2x1x1_c01"
    code, out, _ = hamnet("predict", MODEL, run, "-o", "predicted.h5", "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["n_atoms"], result["n_electrons"], result["has_overlap"]) == (4, 36, True)
    code, out, _ = hamnet("bands", "predicted.h5", "--points", "6", "--mesh", "2", "2", "2", "-o", "b.png", "--json")
    assert code == 0
    assert json.loads(out)["n_electrons"] == 36
    assert (folder / "b.png").stat().st_size > 0


def test_a_structure_file_with_moments_gives_the_prediction_of_the_run(hamnet, tracked, folder):
    run = tracked("siesta/small") / "fept_soc_2x1x1_c01"
    assert hamnet("predict", MODEL, run, "-o", "run.h5")[0] == 0
    with SampleSet(folder / "run.h5") as stored:
        expected = stored[0]
    s = expected.structure
    atoms = Atoms(numbers=s.numbers, positions=s.positions, cell=s.cell, pbc=True)
    np.save(folder / "moments.npy", s.moments)
    np.savetxt(folder / "moments.txt", s.moments)
    write(folder / "bare.cif", atoms)
    write(folder / "bare.xyz", atoms, format="extxyz")
    atoms.set_initial_magnetic_moments(s.moments)
    write(folder / "magnetic.xyz", atoms, format="extxyz")
    for number, arguments in enumerate(
        (("magnetic.xyz",), ("bare.xyz", "--moments", "moments.npy"), ("bare.xyz", "--moments", "moments.txt"))
    ):
        code, out, _ = hamnet("predict", MODEL, *arguments, "-o", f"{number}.h5")
        assert code == 0
        assert "No overlap was given: bands and densities of states need one" in out
        with SampleSet(folder / f"{number}.h5") as stored:
            found = stored[0]
        assert found.overlap is None
        # Text files round positions to 1e-8 Å.
        assert found.hamiltonian.max_abs_difference(expected.hamiltonian) < 1e-4
    code, _, err = hamnet("bands", "0.h5", "-o", "b.png")
    assert (code, "has no overlap" in err) == (2, True)
    assert hamnet("predict", MODEL, "magnetic.xyz", "--overlap", run, "-o", "both.h5")[0] == 0
    with SampleSet(folder / "both.h5") as stored:
        assert stored[0].overlap is not None


def test_bad_moments_are_refused(hamnet, tracked, folder):
    run = tracked("siesta/small") / "fept_soc_sym_base"
    np.save(folder / "three.npy", np.ones((3, 3)))
    np.save(folder / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.save(folder / "nan.npy", np.full((2, 3), np.nan))
    (folder / "words.txt").write_text("up down\n", encoding="utf-8")
    for name, message in (
        ("three.npy", "moments of shape (3, 3); expected (2, 3)"),
        ("objects.npy", "cannot be read as moments"),
        ("nan.npy", "moments that are not finite"),
        ("words.txt", "cannot be read as moments"),
        ("nowhere.npy", "cannot be read as moments"),
    ):
        code, _, err = hamnet("predict", MODEL, run, "--moments", name, "-o", "bad.h5")
        assert code == 2
        assert name in err
        assert message in err
    assert not (folder / "bad.h5").exists()


def test_bad_structures_are_refused(hamnet, folder):
    (folder / "words.xyz").write_text("no structure", encoding="utf-8")
    molecule = Atoms("Fe", positions=[[0, 0, 0]])
    write(folder / "molecule.xyz", molecule, format="extxyz")
    close = Atoms("FePt", positions=[[0, 0, 0], [0, 0, 0.1]], cell=[3, 3, 3], pbc=True)
    close.set_initial_magnetic_moments(np.ones((2, 3)))
    write(folder / "close.xyz", close, format="extxyz")
    for name, message in (
        ("words.xyz", "cannot be read as a structure"),
        ("molecule.xyz", "a cell of rank 0; expected three lattice vectors"),
        ("nowhere.xyz", "no such file"),
        ("close.xyz", "0.100 Å apart"),
    ):
        code, _, err = hamnet("predict", MODEL, name, "-o", "bad.h5")
        assert code == 2
        assert message in err


def test_a_model_refuses_runs_that_it_was_not_trained_for(hamnet, tracked):
    small = tracked("siesta/small")
    for verb, rest in (("evaluate", ()), ("predict", ("-o", "bad.h5"))):
        code, _, err = hamnet(verb, MODEL, small / "si_none_c00", *rest)
        assert code == 2
        assert "Si.pbe" in err
        code, _, err = hamnet(verb, "fept.h5", small / "fept_soc_sym_base", *rest)
        assert code == 2
        assert "not a model file" in err


def test_wrong_configurations_end_with_exit_code_2(hamnet, folder):
    code, _, err = hamnet("train", "train.toml", "--set", "training.epoch=3")
    assert code == 2
    assert "Did you mean 'epochs'?" in err
    code, _, err = hamnet("train", "train.toml")
    assert code == 2
    assert "holds a run already" in err
    (folder / "latin.toml").write_bytes(b"\xff\xfe")
    assert hamnet("train", "latin.toml")[0] == 2


PAGE = Path(__file__).parents[2] / "docs" / "json.md"


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict", "preprocess"])
def test_the_page_on_json_names_the_keys_of_a_verb_and_no_others(hamnet, tracked, verb):
    run = tracked("siesta/small") / "fept_soc_sym_base"
    call = {
        "train": ("train.toml", "--resume"),
        "evaluate": (MODEL, "fept.h5", "--samples", "*base"),
        "predict": (MODEL, run, "-o", "page.h5"),
        "preprocess": (run, "-o", "page_set.h5"),
    }[verb]
    result = json.loads(hamnet(verb, *call, "--json")[1])
    section = PAGE.read_text(encoding="utf-8").split(f"## hamnet {verb}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert documented == set(result)
    if verb == "evaluate":
        assert set(result["samples"][0]) == (set(result) | {"name", "mu_shift_meV"}) - {
            "model", "model_sha256", "error_map", "n_samples", "warnings", "samples"
        }  # fmt: skip
