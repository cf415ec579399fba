"""The shipped NiBr2 runs and model do what the card of the model says."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import tarfile
from pathlib import Path

import pytest

from hamnet.cli.main import main
from hamnet.models.io import load_model

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "nibr2"
MODEL = EXAMPLE / "model" / "model.safetensors"


@pytest.fixture(scope="module")
def spiral(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nibr2")
    with tarfile.open(EXAMPLE / "nibr2_2x2.tar.xz") as tar:
        members = [m for m in tar.getmembers() if m.name.startswith("nibr2_2x2/spiral")]
        tar.extractall(folder, members=members, filter="data")
    return folder / "nibr2_2x2" / "spiral"


@pytest.fixture(scope="module")
def found(spiral) -> dict:
    """What ``hamnet evaluate --json`` says of the shipped model on the unseen spiral."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["evaluate", str(MODEL), str(spiral), "--json"]) == 0
    return json.loads(printed.getvalue())


def test_the_table_of_the_demo_shows_what_evaluate_found(found):
    spec = importlib.util.spec_from_file_location("demo", EXAMPLE / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    # Without a training set some trivial models have no errors.
    assert None in found["baselines"].values()
    lines = demo.summary(found).splitlines()
    assert f"{found['mae_meV']:.3g}" in next(line for line in lines if line.startswith("all"))
    assert any(line.startswith("baseline: zero magnetism") for line in lines)


def test_shipped_model_has_the_errors_of_its_card_on_the_unseen_spiral(found):
    card = json.loads((MODEL.parent / "errors.json").read_text(encoding="utf-8"))
    stated = next(sample for sample in card["samples"] if sample["name"] == "nibr2_2x2/spiral")
    assert card["model_sha256"] == found["model_sha256"]
    for key in ("mae_meV", "mae_spin_free_meV", "mae_exchange_meV", "mae_soc_meV", "bands_mean_meV"):
        assert found[key] == pytest.approx(stated[key], rel=0.02), key
    assert found["mae_meV"] < 0.1 < found["baselines"]["zero_magnetism"]["mae_meV"]


def test_shipped_model_was_not_trained_on_what_it_is_tested_on():
    names = load_model(MODEL).provenance["samples"]
    trained = {*names["train"]["names"], *names["validation"]["names"]}
    card = json.loads((MODEL.parent / "errors.json").read_text(encoding="utf-8"))
    tested = {sample["name"] for sample in card["samples"]}
    assert len(trained) > 40
    assert "nibr2_2x2/spiral" in tested
    assert not trained & tested


def test_shipped_model_predicts_a_spiral_that_no_run_has_seen(spiral, tmp_path, capsys):
    """Its bands are insulating, with the electrons of the cell, and the moments may be given as a plain file."""
    import numpy as np

    moments = np.zeros((12, 3))
    moments[[0, 3, 6, 9]] = 1.3 * np.array([[1, 0, 0], [0, 0, 1], [-1, 0, 0], [0, 0, -1]])
    np.savetxt(tmp_path / "moments.txt", moments)
    out = tmp_path / "new.h5"
    words = ["predict", str(MODEL), str(spiral), "--moments", str(tmp_path / "moments.txt"), "-o", str(out)]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["dos", str(out), "--mesh", "3", "3", "1", "-o", str(tmp_path / "d.png"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n_electrons"] == 120
    assert 0.4 < result["gap_eV"] < 0.9
