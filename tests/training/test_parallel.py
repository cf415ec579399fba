"""A step is the mean over its crystals, however they are shared out: among processes, or one after another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hamnet.errors import ConfigError
from hamnet.models.io import load_model
from hamnet.training.processes import leave_group
from hamnet.training.run import train

from .test_run import history

OPTIONS = ("optimiser.name=adam", "training.dtype=float64", "training.epochs=4", "model.magnetic=['Fe', 'Ni']")


@pytest.fixture
def three(tiny, materials_set, tmp_path):
    """Three crystals of two materials and three sizes: the last step is not full, and a process at a time knows
    nothing of the other material."""
    for name in ("materials.h5", "copy.h5"):
        (tmp_path / name).symlink_to(materials_set)
    options = [*OPTIONS, f"data.train='{tmp_path}/materials.h5'", f"data.validation='{tmp_path}/copy.h5'"]

    def config(name: str, *more: str):
        return tiny(*options, f"output.dir={tmp_path / name}", *more)

    return config


def torchrun(folder: Path, n: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    command += ["-m", "hamnet.cli.main", "train", "--json", "config.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def same_course(one: Path, two: Path) -> None:
    """Losses to the single precision in which they are logged, weights to the rounding of the double one."""
    first, second = history(one), history(two)
    assert [(row["epoch"], row["step"]) for row in first] == [(row["epoch"], row["step"]) for row in second]
    for a, b in zip(first, second, strict=True):
        for name in ("train_loss", "val_mae_meV", "val_mae_soc_meV"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-6)
    models = [load_model(path / "model.safetensors").model for path in (one, two)]
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_accumulated_batches_are_one_large_batch(three, tmp_path):
    train(three("whole", "training.batch_size=2"))
    train(three("parts", "training.batch_size=1", "training.accumulate=2"))
    same_course(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_have_the_losses_of_one(three, tmp_path):
    train(three("whole", "training.batch_size=2"))
    config = three("parts", "training.batch_size=1")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    done = torchrun(tmp_path, 2)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one object, from the first process
    assert result["steps"] == 8
    same_course(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(ConfigError, match=r"1 processes; expected 2, as in the run to be resumed.*torchrun"):
        train(config, resume=True)


def test_a_process_group_is_left_by_the_run_that_joined_it_and_by_no_other(tmp_path):
    def join() -> None:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

    with leave_group():
        join()
    assert not dist.is_initialized()
    join()
    try:
        with leave_group():
            pass
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
