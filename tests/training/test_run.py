"""Training runs on real SIESTA output: they learn, are reproducible, and after a kill go on as if never killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hamnet.errors import ConfigError, HamnetError, ModelError
from hamnet.models.io import load_model
from hamnet.predict import predict
from hamnet.store import SampleSet, write_samples
from hamnet.training.callbacks import Checkpoints, History
from hamnet.training.config import load_config
from hamnet.training.evaluate import evaluate
from hamnet.training.module import TrainingModule
from hamnet.training.run import train
from preprocessing.readers import read_run

LOSSES = ("train_loss", "val_mae_meV", "learning_rate")


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def losses(folder: Path) -> list[tuple[str, ...]]:
    return [tuple(row[name] for name in ("epoch", "step", *LOSSES)) for row in history(folder)]


def test_training_reduces_the_error_of_seen_and_unseen_crystals(tiny, tmp_path):
    result = train(tiny("training.epochs=40", "output.validate_every=10")).to_dict()
    rows = history(tmp_path / "run")
    assert [int(row["epoch"]) for row in rows] == list(range(40))
    # The regressed readout begins near the best that two small crystals can teach.
    assert float(rows[-1]["train_loss"]) < 0.8 * float(rows[0]["train_loss"])
    validated = [float(row["val_mae_meV"]) for row in rows if row["val_mae_meV"]]
    assert len(validated) == 4
    assert validated[-1] < 0.9 * validated[0]
    assert result["mode"] == "soc"
    assert result["magnetic"] == ["Fe_fept_SOC", "Pt_fept_SOC"]  # prescribed moments, Pt's as well
    assert result["errors"]["validation"]["mae_meV"] <= validated[-1] * (1 + 1e-5)


def test_same_seed_gives_the_same_weights_and_another_seed_others(tiny, tmp_path):
    states = []
    for number, seed in enumerate((0, 0, 1)):
        train(tiny(f"output.dir={tmp_path / str(number)}", seed=seed))
        states.append(load_model(tmp_path / str(number) / "model.safetensors").model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_a_run_killed_by_sigkill_and_resumed_has_the_losses_of_an_uninterrupted_one(tiny, tmp_path):
    # The schedule with most state: its factor depends on all validations so far.
    options = ("optimiser.schedule=plateau", "optimiser.plateau_patience=1", "training.epochs=12")
    # Checkpoints inside epochs as well.
    options += ("training.batch_size=1", "output.checkpoint_minutes=1e-9")
    train(tiny(*options, f"output.dir={tmp_path / 'whole'}"))
    command = [sys.executable, "-m", "hamnet.cli.main", "train", "train.toml", "--resume"]
    for option in options:
        command += ["--set", option]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    limit = time.monotonic() + 120
    try:
        while not (checkpoint.exists() and len(history(tmp_path / "run")) >= 3):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < limit
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = losses(tmp_path / "run")
    assert 3 <= len(done) < 12, "killed too late to show anything"
    assert not (tmp_path / "run" / "model.safetensors").exists()
    train(tiny(*options), resume=True)
    same_end(tmp_path / "run", tmp_path / "whole")


def train_and_die(config, monkeypatch, n_checkpoints: int) -> Path:
    """Train until so many checkpoints are written; the path of the last one."""
    saved, save = [], Checkpoints._save

    def save_and_die(self, *arguments):
        save(self, *arguments)
        saved.append(self.path)
        if len(saved) == n_checkpoints:
            raise ProcessLookupError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_save", save_and_die)
        with pytest.raises(HamnetError, match="killed"):
            train(config)
    return saved[-1]


@pytest.fixture
def many(tiny, fept_set, tmp_path):
    """Six crystals, one in each step."""
    with SampleSet(fept_set) as samples:
        crystals = [replace(samples[n % 3], name=f"s{n}") for n in range(6)]
    write_samples(tmp_path / "six.h5", crystals)
    options = (f"data.train={{path='{tmp_path}/six.h5'}}", "training.batch_size=1", "training.epochs=4")

    def config(*more: str):
        return tiny(*options, *more)

    return config


def same_end(one: Path, two: Path) -> None:
    assert losses(one) == losses(two)
    first, second = (load_model(folder / "model.safetensors").model for folder in (one, two))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("extra", "n_checkpoints", "n_parts_done"),
    [
        ((), 8, 2),
        (("training.accumulate=2", "optimiser.schedule=plateau"), 5, 4),
        (("data.workers=1", "data.cache=none"), 7, 1),
        (("training.band_weight=0.1", "optimiser.name=adam"), 8, 2),
    ],
)
def test_a_run_that_dies_inside_an_epoch_goes_on_with_the_next_step(
    many, tmp_path, monkeypatch, extra, n_checkpoints, n_parts_done
):
    options = ("training.epochs=3", *extra)
    whole = [option for option in options if not option.startswith("data.")]
    train(many(*whole, f"output.dir={tmp_path / 'whole'}"))
    config = many(*options, "output.checkpoint_minutes=1e-9")
    last = train_and_die(config, monkeypatch, n_checkpoints)
    state = torch.load(last, weights_only=True)["hamnet"]
    assert (state["epoch"], state["n_parts_done"]) == (1, n_parts_done)
    train(config, resume=True)
    same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("where", "hook", "n_calls", "place"),
    [
        ("inside an epoch", (TrainingModule, "on_train_batch_end"), 9, (1, 3)),
        ("at the end of an epoch", (History, "on_train_epoch_end"), 2, (2, 0)),
    ],
)
def test_a_terminated_run_leaves_a_checkpoint_of_its_last_step(
    many, tmp_path, monkeypatch, where, hook, n_calls, place
):
    train(many(f"output.dir={tmp_path / 'whole'}"))
    config = many("output.checkpoint_minutes=0", "output.checkpoint_every=1000")
    with monkeypatch.context() as patch:
        calls, method = [], getattr(*hook)

        def terminate(*arguments):
            calls.append(method(*arguments))
            if len(calls) == n_calls:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(*hook, terminate)
        with pytest.raises(KeyboardInterrupt):  # exit code 130
            train(config)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["hamnet"]
    assert (state["epoch"], state["n_parts_done"]) == place, where
    train(config, resume=True)
    same_end(tmp_path / "run", tmp_path / "whole")


def test_a_run_without_progress_ends_early_and_stays_ended(tiny, tmp_path):
    options = ("optimiser.lr=1e-12", "training.patience=2", "training.epochs=50")
    result = train(tiny(*options)).to_dict()
    assert result["epochs"] < 10
    again = train(tiny(*options), resume=True).to_dict()
    assert (again["steps"], again["errors"]) == (result["steps"], result["errors"])


def test_resuming_a_finished_run_trains_no_further(tiny, tmp_path):
    first = train(tiny()).to_dict()
    again = train(tiny(), resume=True).to_dict()
    assert (again["epochs"], again["steps"]) == (first["epochs"], first["steps"])
    assert again["errors"] == first["errors"]


def test_resuming_with_more_epochs_goes_on(tiny, tmp_path):
    train(tiny())
    result = train(tiny("training.epochs=5"), resume=True).to_dict()
    assert result["epochs"] == 5
    assert [int(row["epoch"]) for row in history(tmp_path / "run")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("change", ["optimiser.lr=0.1", "model.channels=8", "training.seed=7", "training.loss=mse"])
def test_a_run_cannot_be_resumed_as_another_one(tiny, change):
    train(tiny())
    with pytest.raises(ConfigError, match="as in the run to be resumed"):
        train(tiny(change), resume=True)


def test_a_run_cannot_be_resumed_on_other_samples(tiny, tmp_path):
    train(tiny())
    with pytest.raises(ConfigError, match="not those of the run to be resumed"):
        train(tiny(f"data.train={{path='{tmp_path}/fept.h5', names='*base'}}"), resume=True)


def test_a_damaged_checkpoint_is_named(tiny, tmp_path):
    train(tiny())
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"last\.ckpt.*damaged.*--overwrite"):
        train(tiny(), resume=True)


def test_a_folder_with_a_run_is_not_overwritten_unasked(tiny, tmp_path):
    train(tiny())
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"holds a run.*--resume.*--overwrite"):
        train(tiny())
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    train(tiny(seed=3), overwrite=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != before


def test_a_limit_of_minutes_ends_the_run_with_its_schedule_complete(tiny, tmp_path):
    result = train(tiny("training.epochs=0", "training.max_minutes=0.03")).to_dict()
    assert 1.5 < result["elapsed_s"] < 10
    rates = [float(row["learning_rate"]) for row in history(tmp_path / "run")]
    assert rates[-1] < 0.2 * max(rates)


def test_the_folder_of_a_run_holds_what_is_needed_to_repeat_it(tiny, tmp_path):
    train(tiny())
    run = tmp_path / "run"
    assert {"config.json", "history.csv", "model.safetensors", "result.json"} <= {p.name for p in run.iterdir()}
    assert any((run / "tensorboard").iterdir())
    assert not list(run.rglob("*.tmp"))
    assert json.loads((run / "config.json").read_text())["training"]["epochs"] == 3
    train(load_config(run / "config.json", [f"output.dir={tmp_path / 'again'}"]))
    first, again = (load_model(tmp_path / name / "model.safetensors").model for name in ("run", "again"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("extra", [("data.cache=none",), ("data.workers=1", "data.cache=none")])
def test_reading_samples_again_or_ahead_changes_no_loss(tiny, tmp_path, extra):
    train(tiny("training.epochs=1"))
    train(tiny("training.epochs=1", *extra, f"output.dir={tmp_path / 'other'}"))
    assert losses(tmp_path / "other") == losses(tmp_path / "run")


def test_validation_every_few_epochs_validates_the_last_weights_too(tiny, tmp_path):
    result = train(tiny("training.epochs=3", "output.validate_every=2", "output.export=last")).to_dict()
    assert result["exported"] == "last"
    assert result["errors"]["validation"]["mae_meV"] > 0


def test_double_precision_training_gives_a_double_precision_model(tiny, tmp_path):
    train(tiny("training.dtype=float64", "training.epochs=1"))
    assert next(load_model(tmp_path / "run" / "model.safetensors").model.parameters()).dtype == torch.float64


def test_a_loss_that_explodes_stops_the_run_and_leaves_a_good_checkpoint(tiny, tmp_path):
    config = tiny("optimiser.lr=1e30", "optimiser.gradient_clip=0", "training.epochs=50", "optimiser.warmup_steps=0")
    with pytest.raises(ModelError, match=r"loss (nan|inf) in epoch .*Lower optimiser\.lr"):
        train(config)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    if last.exists():
        state = torch.load(last, weights_only=True)["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())


def test_ctrl_c_ends_a_run_that_can_be_resumed(tiny, tmp_path):
    command = [sys.executable, "-m", "hamnet.cli.main", "train", "train.toml", "--set", "training.epochs=2000"]
    tiny()
    # A shell starts what it runs in the background with Ctrl-C ignored, and so would the test inherit it.
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    limit = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    epochs = len(history(tmp_path / "run"))
    result = train(tiny(f"training.epochs={epochs + 2}"), resume=True).to_dict()
    assert result["epochs"] == epochs + 2


@pytest.mark.parametrize(
    ("name", "mode", "missing"),
    [
        ("si_none_c00", "none", {"mae_exchange_meV", "mae_soc_meV"}),
        ("fe_collinear_c00", "collinear", {"mae_soc_meV"}),
        ("fe_bcc_nc_a060", "spin-group", {"mae_soc_meV"}),
    ],
)
def test_every_spin_kind_trains_and_predicts_in_its_own_mode(tiny, tracked, tmp_path, name, mode, missing):
    sample = read_run(tracked("siesta/small") / name).sample
    write_samples(tmp_path / "one.h5", (replace(sample, name=which) for which in ("train", "validation")))
    paths = [f"data.{key}={{path='{tmp_path}/one.h5', names='{key}'}}" for key in ("train", "validation")]
    result = train(tiny(*paths, "training.epochs=2")).to_dict()
    assert result["mode"] == mode
    none = {key for key, value in result["errors"]["train"].items() if value is None}
    assert none == missing | {key.replace("mae", "rmse") for key in missing}
    loaded = load_model(tmp_path / "run" / "model.safetensors")
    predicted = predict(loaded, sample.structure, source=sample).sample
    assert predicted.spin == sample.spin
    assert predicted.hamiltonian.hermiticity_violation() < 1e-5
    found = evaluate(loaded, [(sample, None)]).to_dict()
    assert found["mae_meV"] == pytest.approx(result["errors"]["train"]["mae_meV"], rel=1e-4)
    assert found["bands_mean_meV"] > 0


def test_a_loss_that_grows_beyond_all_bounds_leads_back_to_good_weights_and_shorter_steps(tiny, tmp_path):
    said: list[str] = []
    settings = ("optimiser.lr=3", "optimiser.gradient_clip=0", "optimiser.warmup_steps=20", "output.export=last")
    train(tiny("training.epochs=60", *settings), say=said.append)
    lines = history(tmp_path / "run")
    losses = [float(line["train_loss"]) for line in lines]
    assert max(losses) > 100 * losses[0]
    assert losses[-1] < losses[0]
    told = [line for line in said if "goes back" in line]
    assert told
    assert "optimiser.lr = 1" in told[0]


def test_a_run_that_went_back_and_is_resumed_has_the_losses_of_an_uninterrupted_one(tiny, tmp_path, monkeypatch):
    options = ("optimiser.lr=3", "optimiser.gradient_clip=0", "optimiser.warmup_steps=20", "training.epochs=10")
    train(tiny(*options, f"output.dir={tmp_path / 'whole'}"))
    last = train_and_die(tiny(*options), monkeypatch, 6)
    assert torch.load(last, weights_only=True)["hamnet"]["retreat"]["factor"] < 1
    train(tiny(*options), resume=True)
    same_end(tmp_path / "run", tmp_path / "whole")
