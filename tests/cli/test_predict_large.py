"""``hamnet predict`` on many workers, with little memory, and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from hamnet.cli.main import main
from hamnet.models.hamiltonian import ModelConfig
from hamnet.models.io import TrainedOn, build_model, save_model
from hamnet.store import SampleSet
from hamnet.supercell import tile_structure
from large_crystals import scattered
from small_models import BASIS, crystal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model, a crystal of 36 atoms and one of 375."""
    folder = tmp_path_factory.mktemp("large")
    config = ModelConfig(
        l_max=2, channels=2, hidden=2, pair_channels=3, product_channels=2, n_radial=4, cutoff_ang=3.2
    )  # fmt: skip
    known = TrainedOn(
        "vector", True, "openmx", None, {f"{a}-{b}": (0.5, 9) for a in BASIS.labels for b in BASIS.labels}
    )
    scale = tuple(1.2 if label == "Ni" else 0.0 for label in BASIS.labels)
    model = build_model("edge-frame", config, BASIS, scale, seed=3)
    save_model(folder / "model.safetensors", model, name="edge-frame", trained_on=known, provenance={})
    for name, matrix in (("small", [2, 3, 2]), ("large", [5, 5, 5])):
        structure = scattered(tile_structure(crystal(), np.diag(matrix)))
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=True)
        atoms.set_array("moments", structure.moments)
        write(folder / f"{name}.xyz", atoms, format="extxyz")
    return folder


@pytest.fixture
def hamnet(folder, monkeypatch, capsys):
    """``hamnet("small.xyz", "--workers", "2")``: (exit code, stdout, stderr) of a prediction in that folder."""
    monkeypatch.chdir(folder)

    def call(*words: str) -> tuple[int, str, str]:
        code = main(["predict", "model.safetensors", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_two_workers_write_what_one_process_writes(hamnet, folder):
    assert hamnet("small.xyz", "-o", "one.h5")[0] == 0
    code, out, err = hamnet("small.xyz", "-o", "two.h5", "--workers", "2", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["n_atoms"] == 36
    assert result["seconds"] == pytest.approx(sum(result["seconds_by_step"].values()))
    assert "36 atoms" in err
    assert "GB of memory" in err
    with SampleSet(folder / "one.h5") as one, SampleSet(folder / "two.h5") as two:
        assert one[0].operator("hamiltonian").max_abs_difference(two[0].operator("hamiltonian")) < 1e-12


def test_the_forecast_and_where_the_time_went_are_told(hamnet):
    code, out, err = hamnet("small.xyz", "-o", "told.h5")
    assert code == 0
    assert all(word in out for word in ("structure", "features", "blocks", "file", "at most"))
    assert "pairs: about" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--memory-gb", "0.01"), "expected at least"),
        (("--workers", "0"), "--workers 0; expected at least 1"),
        (("--dask", "nowhere"), "no Dask scheduler at nowhere"),
        (("--device", "gpu"), "device 'gpu'; expected cpu or cuda"),
    ],
)
def test_limits_that_cannot_be_kept_end_with_exit_code_2(hamnet, folder, words, message):
    code, _, err = hamnet("small.xyz", "-o", "refused.h5", *words)
    assert code == 2
    assert message in err
    assert not (folder / "refused.h5").exists()


def children(process: int) -> set[int]:
    return {int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()}


def alive(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    try:
        return "\nState:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the processes")
def test_a_killed_command_leaves_no_workers_and_the_same_command_goes_on(hamnet, folder):
    words = ["large.xyz", "-o", "killed.h5", "--workers", "2"]
    command = [sys.executable, "-m", "hamnet.cli.main", "predict", "model.safetensors", *words]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    flags = folder / "killed.h5.partial" / "features_0.done"
    while not (flags.exists() and b"\1" in flags.read_bytes()):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.05)
    workers = children(process.pid)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(alive(worker) for worker in workers):
        time.sleep(0.05)
    assert not (folder / "killed.h5").exists()
    code, out, err = hamnet("large.xyz", "-o", "killed.h5", "--json")
    assert code == 0
    assert json.loads(out)["resumed_fraction"] > 0
    assert "found finished" in err
    assert not (folder / "killed.h5.partial").exists()
