"""``hamnet check`` and ``hamnet preprocess`` as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hamnet.cli.main import main
from hamnet.store import SampleSet


@pytest.fixture
def runs(tmp_path, tracked) -> Path:
    shutil.copytree(tracked("openmx/nibr2_unpolarised"), tmp_path / "runs" / "plain")
    shutil.copytree(tracked("openmx/nibr2_1x1_nc"), tmp_path / "runs" / "soc")
    return tmp_path / "runs"


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_check_prints_one_json_object_with_the_documented_keys(runs, capsys):
    code, out, _ = call(capsys, "check", runs, "--json", "--jobs", "1")
    result = json.loads(out)
    assert code == 0
    assert list(result) == ["runs"]
    assert [Path(run["path"]).name for run in result["runs"]] == ["plain", "soc"]
    for run in result["runs"]:
        assert list(run) == [
            "path",
            "code",
            "ok",
            "reason",
            "bands_max_dev_meV",
            "hermiticity_max_meV",
            "overlap_min_eigenvalue",
            "electrons",
            "electrons_dev",
            "moments_max_dev_muB",
            "converged",
        ]
        assert run["ok"] is True
        assert run["reason"] is None
        assert run["bands_max_dev_meV"] <= 0.01
    assert result["runs"][0]["moments_max_dev_muB"] is None  # unpolarised
    assert result["runs"][1]["moments_max_dev_muB"] <= 1e-5


def test_check_shows_units_limits_and_a_dash_for_what_is_missing(runs, capsys):
    (runs / "soc" / "nibr2.Band").unlink()
    code, out, _ = call(capsys, "check", runs, "--jobs", "1")
    assert code == 0
    for word in ("meV", "≤ 0.01", "≤ 0.001", "μ_B", "≤ 1e-06", "2 of 2 runs ok"):
        assert word in out
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["soc"])
    assert row[1:7] == ["openmx", "ok,", "in", "part", "yes", "–"]
    assert "soc: not compared – H(k): no band energies printed" in out


def test_check_exits_with_1_if_a_run_fails_and_still_reports_the_others(runs, capsys):
    (runs / "soc" / "nibr2.scfout").write_bytes(b"")
    code, out, _ = call(capsys, "check", runs, "--json", "--jobs", "1")
    plain, soc = json.loads(out)["runs"]
    assert code == 1
    assert plain["ok"]
    assert not soc["ok"]
    assert soc["reason"]
    assert soc["converged"] is None


@pytest.mark.parametrize("make", ["missing", "empty", "text"])
def test_check_exits_with_2_if_nothing_can_be_read(tmp_path, capsys, make):
    path = tmp_path / make
    if make == "empty":
        path.mkdir()
    elif make == "text":
        path.write_text("not a run")
    code, out, err = call(capsys, "check", path, "--json")
    assert code == 2
    assert json.loads(out)["runs"][0]["ok"] is False
    assert "none of these could be read" in err


def test_preprocess_writes_a_set_and_reports_it_as_json(runs, tmp_path, capsys):
    (runs / "never_started").mkdir()
    output = tmp_path / "set.h5"
    code, out, _ = call(capsys, "preprocess", runs, "-o", output, "--json", "--jobs", "1")
    result = json.loads(out)
    assert code == 0
    assert list(result) == ["output", "size_bytes", "samples", "names", "rejected", "reused", "unchanged"]
    assert result["samples"] == 2
    assert result["names"] == ["plain", "soc"]
    assert result["size_bytes"] == output.stat().st_size
    assert [Path(entry["path"]).name for entry in result["rejected"]] == ["never_started"]
    assert "an empty folder" in result["rejected"][0]["reason"]
    with SampleSet(output) as samples:
        assert samples.names == ("plain", "soc")


def test_preprocess_lists_the_rejected_and_is_strict_only_on_request(runs, tmp_path, capsys):
    (runs / "never_started").mkdir()
    command = ("preprocess", runs, "-o", tmp_path / "set.h5", "--jobs", "1")
    code, out, _ = call(capsys, *command)
    assert code == 0
    assert "rejected run" in out
    assert "an empty folder" in out
    assert "2 samples" in out
    code, out, _ = call(capsys, *command, "--strict")
    assert code == 1
    assert "nothing to do" in out


def test_preprocess_exits_with_2_if_no_run_is_good(tmp_path, capsys):
    code, out, _ = call(capsys, "preprocess", tmp_path / "missing", "-o", tmp_path / "set.h5")
    assert code == 2
    assert "no such file or folder" in out
    assert "no run was good" in out
    assert not (tmp_path / "set.h5").exists()


def test_preprocess_refuses_to_replace_a_file_of_something_else(runs, tmp_path, capsys):
    output = tmp_path / "notes.txt"
    output.write_text("important")
    code, _, err = call(capsys, "preprocess", runs, "-o", output)
    assert code == 2
    assert "a file that is not a sample set" in err
    assert "Traceback" not in err
    assert output.read_text() == "important"


def test_an_unknown_operator_is_an_error_that_names_the_known_ones(runs, tmp_path, capsys):
    code, _, err = call(capsys, "preprocess", runs, "-o", tmp_path / "set.h5", "--operators", "density,spin")
    assert code == 2
    assert "--operators spin; expected some of density, position, momentum" in err


def test_every_option_of_preprocess_reaches_the_samples(runs, tmp_path, capsys):
    output = tmp_path / "set.h5"
    options = ("--constraint", "keep", "--moments", "density", "--operators", "density,momentum")
    assert call(capsys, "preprocess", runs / "soc", "-o", output, *options)[0] == 0
    with SampleSet(output) as samples:
        assert samples.names == ("soc",)
        assert samples.provenance(0)["choices"] == {"constraint": "keep", "moments": "density"}
        sample = samples[0]
    assert sample.density is not None
    assert sample.momentum is not None
    assert sample.position is None
