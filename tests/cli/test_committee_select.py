"""How far to trust a prediction, through the command line: committees, ``predict --verify`` and ``select``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
n_two_centre = 2
[training]
epochs = 2
threads = 1
"""
RUNS = ("fept_soc_sym_base", "fept_soc_sym_rot", "fept_soc_2x1x1_c01")
MODELS = ("run0/model.safetensors", "run1/model.safetensors")
BASE = "small/fept_soc_sym_base"


@pytest.fixture(scope="module")
def folder(tracked: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, two models of different seeds, and their committee."""
    folder = tmp_path_factory.mktemp("committee")
    small = tracked("siesta/small")
    (folder / "small").symlink_to(small)
    runs = [str(small / name) for name in RUNS]
    assert main(["preprocess", *runs, "-o", str(folder / "fept.h5"), "--jobs=1"]) == 0
    (folder / "train.toml").write_text(CONFIG, encoding="utf-8")
    for seed in ("0", "1"):
        words = ["train", str(folder / "train.toml"), "--seed", seed, "--set", f"output.dir={folder / f'run{seed}'}"]
        assert main(words) == 0
    models = [str(folder / model) for model in MODELS]
    # Samples of the training set are no fair judges, but good enough for what is looked at here.
    words = ["committee", *models, "--on", str(folder / "fept.h5"), "-o", str(folder / "committee.json")]
    assert main(words) == 0
    return folder


@pytest.fixture
def hamnet(folder: Path, monkeypatch, capsys):
    """``hamnet("verb", …)`` in that folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)

    def call(*words) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_committee_measures_errors_and_draws_them(hamnet, folder: Path):
    words = ("--on", "fept.h5", "--no-moments", "-o", "other.json", "--figure", "calibration.png")
    code, out, _ = hamnet("committee", *MODELS, *words)
    assert code == 0
    assert "within a factor 2" in out
    assert (folder / "calibration.png").stat().st_size > 10_000
    content = json.loads((folder / "other.json").read_text(encoding="utf-8"))
    assert [entry["file"] for entry in content["members"]] == list(MODELS)
    assert content["normal_moments"] == {}
    assert {row["pair"] for row in content["factors"]} == {
        "Fe_fept_SOC-Fe_fept_SOC", "Fe_fept_SOC-Pt_fept_SOC", "Pt_fept_SOC-Pt_fept_SOC"
    }  # fmt: skip


def test_moments_of_one_step_labels_are_far_from_the_prescribed_ones_and_that_is_normal(hamnet):
    """SIESTA's H of a prescribed density has the moments of the next step, a μ_B less on Fe."""
    code, out, _ = hamnet("committee", MODELS[0], "--on", "fept.h5", "--samples", "*base", "-o", "one.json", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["factors"] is None
    assert result["moments"]["labels"]["Fe_fept_SOC"]["size_max_muB"] < -0.7
    assert result["moments"]["predicted"]["Fe_fept_SOC"]["n_atoms"] == 1


def test_committee_that_is_not_calibrated_says_so(hamnet):
    code, out, _ = hamnet("committee", *MODELS, "-o", "bare.json")
    assert code == 0
    assert "Not calibrated" in out
    code, out, _ = hamnet("predict", "bare.json", BASE, "-o", "bare.h5", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["expected_rmse_meV"] is None
    assert result["spread_rmse_meV"] > 0


def test_errors_that_nobody_can_tell_are_refused_before_anything_is_predicted(hamnet, folder: Path):
    assert hamnet("committee", *MODELS, "-o", "bare.json")[0] == 0
    for model, kind in ((MODELS[0], "one model"), ("bare.json", "a committee of 2 models without calibration")):
        code, _, err = hamnet("predict", model, BASE, "--uncertainty", "-o", "none.h5")
        assert code == 2
        assert kind in err
        assert "`hamnet committee MODELS --on SET -o committee.json`" in err
        assert not list(folder.glob("none*"))
    code, out, _ = hamnet("predict", "committee.json", BASE, "--uncertainty", "-o", "h.h5", "--json")
    assert code == 0
    assert json.loads(out)["expected_rmse_meV"] > 0


def test_prediction_of_a_committee_is_the_mean_with_expected_errors_by_pair(hamnet, folder: Path):
    operators = []
    for model in (*MODELS, "committee.json"):
        assert hamnet("predict", model, BASE, "-o", "h.h5")[0] == 0
        with SampleSet(folder / "h.h5") as samples:
            operators.append(samples[0].operator("hamiltonian"))
    mean = (operators[0] + operators[1]).map(lambda block: block / 2)
    assert operators[2].max_abs_difference(mean) < 1e-5  # the files are single precision
    with np.load(folder / "h_uncertainty.npz") as arrays:
        assert len(arrays["row"]) == len(mean.pairs)
        assert (arrays["expected_error_exchange_meV"] > 0).any()
        bonds = arrays["length_ang"] > 0
        assert bonds.sum() == len(mean.pairs) - mean.pairs.n_atoms


def test_verification_passes_possible_moments_and_stops_at_impossible_ones(hamnet, folder: Path):
    mesh = ("--mesh", 3, 3, 2)
    code, out, _ = hamnet("predict", "committee.json", BASE, "-o", "v.h5", "--verify", *mesh, "--json")
    found = json.loads(out)["verification"]
    assert code == 0
    assert found["mesh"] == [3, 3, 2]
    assert found["unusual_atoms"] == []
    assert len(found["atoms"]) == 2
    with SampleSet(folder / "fept.h5") as samples:
        moments = samples.structure("fept_soc_sym_base").moments
    assert moments is not None
    np.savetxt(folder / "absurd.txt", 3 * moments)
    code, out, _ = hamnet("predict", "committee.json", BASE, "--moments", "absurd.txt", "-o", "v.h5", "--verify", *mesh)
    assert code == 1
    assert "the given moment is none that H has" in out


def test_verification_by_a_model_alone_tells_numbers_without_a_verdict(hamnet):
    code, out, _ = hamnet("predict", MODELS[0], BASE, "-o", "v.h5", "--verify", "--mesh", 2, 2, 2)
    assert code == 0
    assert "What is normal is not known" in out


def test_selection_ranks_a_pool_and_writes_the_chosen(hamnet, folder: Path):
    pool = ("fept.h5", BASE)
    code, out, _ = hamnet("select", "committee.json", *pool, "-n", 3, "-o", "next.txt", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["n_structures"] == 4
    assert len(result["chosen"]) == 3
    assert (folder / "next.txt").read_text(encoding="utf-8").splitlines() == result["chosen"]
    by_name = {s["name"]: s for s in result["structures"]}
    # The run is a copy of a sample of the set, and the other sample is the same crystal turned.
    copies = {BASE, "fept.h5:fept_soc_sym_base", "fept.h5:fept_soc_sym_rot"}
    errors = [by_name[name]["expected_rmse_meV"] for name in copies]
    assert errors == pytest.approx([errors[0]] * 3, rel=1e-3)
    assert len(copies & set(result["chosen"][:2])) == 1
    last = by_name[result["chosen"][2]]
    assert last["unexplained_rmse_meV"] < 0.05 * last["expected_rmse_meV"]
    code, out, _ = hamnet("select", "committee.json", *pool, "-n", 1)
    assert code == 0
    assert "not yet covered" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("select", MODELS[0], "fept.h5", "-n", 1), "one model, which has no spread"),
        (("select", "committee.json", "fept.h5", "-n", 9), "9 of 3 structures"),
        (("select", "committee.json", "none.cif", "-n", 1), "no such file"),
        (("committee", *MODELS, "-o", "c.h5"), "a name that ends in .json"),
        (("committee", MODELS[0], MODELS[0], "-o", "c.json"), "the same model twice"),
        (("committee", *MODELS, "--on", "fept.h5", "--samples", "x*", "-o", "c.json"), "no sample fits"),
        (("predict", "committee.json", BASE, "-o", "h.h5", "--mesh", 1, 1, 1), "--mesh without --verify"),
        (("predict", "fept.json", BASE, "-o", "h.h5"), "no such file"),
    ],
)
def test_wrong_use_ends_with_exit_code_2_and_a_reason(hamnet, words, message):
    code, _, err = hamnet(*words)
    assert code == 2
    assert message in err


def test_verification_without_an_overlap_is_refused_before_the_work(hamnet, folder: Path):
    from ase import Atoms
    from ase.io import write

    with SampleSet(folder / "fept.h5") as samples:
        structure = samples.structure("fept_soc_sym_base")
    atoms = Atoms(numbers=structure.numbers, positions=structure.positions, cell=structure.cell, pbc=True)
    atoms.set_array("moments", structure.moments)
    write(folder / "plain.xyz", atoms)
    code, _, err = hamnet("predict", "committee.json", "plain.xyz", "-o", "plain.h5", "--verify")
    assert code == 2
    assert "--verify without an overlap" in err
    assert not (folder / "plain.h5").exists()


PAGE = Path(__file__).parents[2] / "docs" / "json.md"


@pytest.mark.parametrize("verb", ["committee", "select"])
def test_the_page_on_json_names_the_keys_of_a_verb_and_no_others(hamnet, verb):
    call = {
        "committee": (*MODELS, "--on", "fept.h5", "--no-moments", "-o", "page.json"),
        "select": ("committee.json", "fept.h5", "-n", 2),
    }[verb]
    result = json.loads(hamnet(verb, *call, "--json")[1])
    section = PAGE.read_text(encoding="utf-8").split(f"## hamnet {verb}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(result)
