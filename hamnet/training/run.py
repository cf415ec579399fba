"""A training run from its configuration to the model file."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from hamnet import __version__
from hamnet.basis import Basis
from hamnet.errors import ConfigError, HamnetError
from hamnet.models.hamiltonian import HamiltonianModel
from hamnet.models.io import TrainedOn, build_model, save_model
from hamnet.models.readout import blocks_from_parts
from hamnet.sample import Sample

from .callbacks import AtomicCheckpointIO, History, Reporter, checkpoints, write_text
from .config import TrainConfig
from .datamodule import CrystalData, CrystalDataset
from .metrics import ErrorSums
from .module import TrainingModule
from .samples import SampleList, select, split
from .statistics import calibrate, fit_readout, fit_weights, mean_neighbours, moment_scales
from .survey import Survey, choose_magnetic, choose_mode, survey

__all__ = ["TrainResult", "train"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_LEAST_SCALE_EV = 1e-8
_MOST_FIRST_SAMPLES, _MOST_FIRST_PAIRS = 32, 10_000
_MAY_CHANGE = {
    "training": {"epochs", "max_minutes", "threads", "device"},
    "data": {"cache", "cache_gb", "workers", "test"},
    "output": {"dir", "export", "validate_every", "checkpoint_every"},
}
"""Keys that a resumed run may have otherwise than the run that it goes on with."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run ended with; :meth:`to_dict` is what ``hamnet train --json`` prints."""

    model_path: str
    values: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"model": self.model_path, **self.values}


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress_bar: bool = False,
) -> TrainResult:
    """Train as `config` says; the model file is ``model.safetensors`` in the output folder.

    Parameters
    ----------
    resume : go on from the last checkpoint in the output folder, if there is one.
    overwrite : begin anew in a folder that holds a run.
    say : receives lines for people. progress_bar : show a live bar instead of lines while training.

    Raises :class:`ConfigError` where configuration, data and an earlier run in the folder do not fit.
    """
    folder = Path(config.output.dir)
    last = folder / "checkpoints" / "last.ckpt"
    _check_folder(folder, resume=resume, overwrite=overwrite)
    torch.set_num_threads(config.training.threads or len(os.sched_getaffinity(0)))
    resume = resume and last.exists()
    data = _Data.select(config)
    identity = {"config": config.to_dict(), "train": data.train.checksum(), "validation": data.validation.checksum()}
    if resume:
        _check_same_run(last, identity)
    model, facts = _prepare_model(config, data)
    n_weights = sum(p.numel() for p in model.parameters())
    say(
        f"{len(data.train)} training and {len(data.validation)} validation samples, "
        f"{data.survey.n_atoms} atoms, {data.survey.n_pairs} pairs; mode {facts['mode']}; "
        f"magnetic: {', '.join(facts['magnetic']) or 'none'} ({facts['magnetic_because']}); {n_weights} weights"
    )
    dtype = _DTYPES[config.training.dtype]
    model = model.to(dtype)
    crystals = CrystalData(
        data.train,
        data.validation,
        config,
        basis=model.basis,
        mode=model.config.mode,
        cutoff_ang=model.config.cutoff_ang,
        dtype=dtype,
    )
    module = TrainingModule(model, config, identity=identity)
    trainer = _trainer(config, folder, say=say, progress_bar=progress_bar)
    if not resume:
        for stale in (folder / "checkpoints").glob("*.ckpt"):
            stale.unlink()
        (folder / "history.csv").unlink(missing_ok=True)
    write_text(folder / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
    say(f"{'going on with' if resume else 'training in'} {folder}")
    _fit(trainer, module, crystals, last if resume else None)
    return _finish(config, data, facts, module, crystals, folder)


# -- before ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Data:
    train: SampleList
    validation: SampleList
    test: SampleList
    survey: Survey

    @staticmethod
    def select(config: TrainConfig) -> _Data:
        d, seed = config.data, config.training.seed
        train = select(d.train, seed=seed, key="train")
        if d.validation:
            validation = select(d.validation, seed=seed, key="validation")
        else:
            train, validation = split(train, d.validation_fraction, seed=seed)
        test = select(d.test, seed=seed, key="test") if d.test else SampleList(())
        for key, others in (("validation", validation), ("test", test)):
            both = sorted(set(train.places) & set(others.places))
            if both:
                raise ConfigError(
                    f"sample {both[0][1]!r} is in train and in {key}",
                    expected="samples of which the model has not seen the answer",
                    remedy=f"take such samples ({len(both)} in all) out of one of the two with `exclude`",
                    path=both[0][0],
                )
        facts = survey(train)
        for key, others in (("validation", validation), ("test", test)):
            if len(others):
                _check_alike(facts, survey(others), key, others)
        return _Data(train, validation, test, facts)


def _check_alike(train: Survey, other: Survey, key: str, samples: SampleList) -> None:
    strange = [label for label in other.basis.labels if label not in train.basis.labels]
    if strange:
        raise ConfigError(
            f"species {', '.join(strange)} in [data] {key}",
            expected=f"species of the training set: {', '.join(train.basis.labels)}",
            path=samples.places[0][0],
        )
    train.basis.merged(other.basis)
    for what in ("spin", "spin_orbit"):
        a, b = getattr(train.trained_on, what), getattr(other.trained_on, what)
        if a != b:
            raise ConfigError(f"[data] {key} has {what} = {b}", expected=f"{a}, as in train", path=samples.places[0][0])
    a, b = train.trained_on.constraint, other.trained_on.constraint
    if a != b and "keep" in (a, b):
        raise ConfigError(
            f"[data] {key} has constraint choice {b!r}",
            expected=f"{a!r}, as in train",
            remedy="read the runs again with the same --constraint",
            path=samples.places[0][0],
        )


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite", expected="one of them")
    used = (folder / "model.safetensors").exists() or any((folder / "checkpoints").glob("*.ckpt"))
    if used and not resume and not overwrite:
        raise ConfigError(
            "the output folder holds a run already",
            expected="a new folder",
            remedy="go on with it by --resume, replace it by --overwrite, or set output.dir to another folder",
            path=folder,
        )


def _check_same_run(checkpoint: Path, identity: dict[str, Any]) -> None:
    """A checkpoint may be resumed only by the run that it belongs to, up to keys that cannot change its course."""
    try:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True)["hamnet"]["identity"]
    except Exception as error:
        raise ConfigError(
            f"no checkpoint of hamnet, or a damaged one ({error})",
            expected="a file written by `hamnet train`",
            remedy="begin anew with --overwrite",
            path=checkpoint,
        ) from error
    for key in ("train", "validation"):
        if stored[key] != identity[key]:
            raise ConfigError(
                f"the {key} samples are not those of the run to be resumed",
                expected="the same samples",
                remedy="begin anew with --overwrite or in another folder",
                path=checkpoint,
            )
    for section, now in identity["config"].items():
        before = stored["config"].get(section, {})
        for key in sorted(set(now) | set(before)):
            if now.get(key) != before.get(key) and section != "data" and key not in _MAY_CHANGE.get(section, set()):
                raise ConfigError(
                    f"{section}.{key} = {now.get(key)!r}",
                    expected=f"{before.get(key)!r}, as in the run to be resumed",
                    remedy="begin anew with --overwrite or in another folder to change it",
                    path=checkpoint,
                )


def _prepare_model(config: TrainConfig, data: _Data) -> tuple[HamiltonianModel, dict[str, Any]]:
    """The untrained float64 model with its statistics, and the choices made from the data."""
    basis, section = data.survey.basis, config.model
    mode = choose_mode(section.mode, data.survey.trained_on)
    magnetic, because = choose_magnetic(section.magnetic, mode, data.survey)
    measured: dict[str, Any] = {"mode": mode}
    cutoff = section.model_config(**measured).cutoff_ang
    if "mean_neighbours" not in section.settings:
        measured["mean_neighbours"] = mean_neighbours(data.train.structures(), cutoff)
    scales = moment_scales(data.train.structures(), basis, magnetic)
    model_config = section.model_config(**measured)
    model = build_model(section.name, model_config, basis, scales, seed=config.training.seed)
    with torch.no_grad():
        fit_readout(model, (data.train.sample(index, basis) for index in range(len(data.train))))
        if all(structure.grid_axes is None for structure in data.train.structures()):
            # Weights that nothing has trained must not speak when a structure with a grid comes.
            model.grid.weight.zero_()
    _check_something_to_learn(model)
    _begin_well(model, data.train, basis)
    return model, {"mode": mode, "magnetic": list(magnetic), "magnetic_because": because}


def _begin_well(model: HamiltonianModel, samples: SampleList, basis: Basis) -> None:
    """Sizes of the branches and weights of the readout from a part of the training set that surely fits into memory."""
    places = np.unique(np.linspace(0, len(samples) - 1, _MOST_FIRST_SAMPLES).astype(int))
    first: list[Sample] = []
    for index in places.tolist():
        sample = samples.sample(index, basis)
        if first and sum(len(s.pairs) for s in first) + len(sample.pairs) > _MOST_FIRST_PAIRS:
            break
        first.append(sample)
    graph = model.graph([s.structure for s in first], [s.pairs for s in first])
    calibrate(model, graph)
    fit_weights(model, graph, [s.operator("hamiltonian") for s in first])


def _check_something_to_learn(model: HamiltonianModel) -> None:
    readouts = [*model.self_readout, *model.pair_readout.values()]
    if max(float(readout.scale.max()) for readout in readouts) < _LEAST_SCALE_EV:  # type: ignore[operator]
        raise ConfigError(
            "every training Hamiltonian equals the fitted constants: nothing is left to learn",
            expected="Hamiltonians that differ from zero or from sample to sample",
            remedy="check that the labels are what you meant (H, not H minus itself as a baseline)",
        )


# -- training ----------------------------------------------------------------------------------------------------------


def _trainer(config: TrainConfig, folder: Path, *, say: Callable[[str], None], progress_bar: bool) -> lightning.Trainer:
    t = config.training
    follow: Callback = RichProgressBar(refresh_rate=5) if progress_bar else Reporter(say)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if t.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but there is no GPU", expected="device = 'auto' or 'cpu'")
    return lightning.Trainer(
        accelerator={"auto": "gpu" if torch.cuda.is_available() else "cpu", "cpu": "cpu", "cuda": "gpu"}[t.device],
        devices=1,
        default_root_dir=folder,
        max_epochs=t.epochs or -1,
        gradient_clip_val=config.optimiser.gradient_clip or None,
        check_val_every_n_epoch=config.output.validate_every,
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        log_every_n_steps=10,
        callbacks=[
            History(folder / "history.csv"),
            follow,
            *checkpoints(folder / "checkpoints", every_n_epochs=config.output.checkpoint_every),
        ],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _fit(trainer: lightning.Trainer, module: TrainingModule, crystals: CrystalData, checkpoint: Path | None) -> None:
    with warnings.catch_warnings():
        # Small sets need no worker processes, and short epochs no lower logging interval.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*The number of training batches.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        try:
            trainer.fit(module, crystals, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as error:
            # Lightning ends the process at Ctrl-C; the command line says how that went.
            raise KeyboardInterrupt from error
        except OSError as error:
            raise HamnetError(
                f"the run cannot be written ({error})",
                expected="a folder with free space",
                remedy="make room and go on with --resume",
                path=trainer.default_root_dir,
            ) from error


# -- after -------------------------------------------------------------------------------------------------------------


def _finish(
    config: TrainConfig,
    data: _Data,
    facts: dict[str, Any],
    module: TrainingModule,
    crystals: CrystalData,
    folder: Path,
) -> TrainResult:
    """Export the weights, with the errors that they reach."""
    module.exchange_average()
    model = module.model.to("cpu").eval()
    validation = _errors(model, crystals.validation)
    exported = "last"
    best = folder / "checkpoints" / "best.ckpt"
    if config.output.export == "best" and best.exists():
        kept = {key: value.clone() for key, value in model.state_dict().items()}
        state = torch.load(best, map_location="cpu", weights_only=True)
        model.load_state_dict({k.removeprefix("model."): v for k, v in state["state_dict"].items() if "model." in k})
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), state["hamnet"]["average"], strict=True):
                parameter.copy_(average)
        of_best = _errors(model, crystals.validation)
        if (of_best["mae_meV"] or 0.0) <= (validation["mae_meV"] or 0.0):
            validation, exported = of_best, "best"
        else:
            model.load_state_dict(kept)
    errors = {"train": _errors(model, crystals.train), "validation": validation}
    if len(data.test):
        test = CrystalDataset(
            data.test, model.basis, model.config.mode, model.config.cutoff_ang, crystals.train.dtype, keep_bytes=0
        )
        errors["test"] = _errors(model, test)
    magnetic = set(facts["magnetic"])
    limits = data.survey.trained_on
    trained_on = TrainedOn(
        spin=limits.spin,
        spin_orbit=limits.spin_orbit,
        code=limits.code,
        constraint=limits.constraint,
        species_pairs=limits.species_pairs,
        moments_mub={label: sizes for label, sizes in limits.moments_mub.items() if label in magnetic},
    )
    values = {
        "epochs": int(module.current_epoch),
        "steps": int(module.global_step),
        "elapsed_s": round(module.time_spent_s, 3),
        "exported": exported,
        "seed": config.training.seed,
        "n_weights": sum(p.numel() for p in model.parameters()),
        **facts,
        "errors": errors,
    }
    path = folder / "model.safetensors"
    provenance = {
        **values,
        "config": _without_folders(config.to_dict()),
        "samples": {
            key: {"names": [name for _, name in samples.places], "sha256": samples.checksum()}
            for key, samples in (("train", data.train), ("validation", data.validation), ("test", data.test))
        },
        "hamnet": __version__,
        "torch": torch.__version__,
    }
    checksum = save_model(path, model, name=config.model.name, trained_on=trained_on, provenance=provenance)
    result = TrainResult(str(path), {"sha256": checksum, **values})
    write_text(folder / "result.json", json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def _without_folders(entry: dict[str, Any]) -> dict[str, Any]:
    """File names instead of paths: a model file does not tell how its maker's folders are called."""
    for key in ("train", "validation", "test"):
        for selection in entry["data"][key]:
            selection["path"] = Path(selection["path"]).name
    entry["output"]["dir"] = Path(entry["output"]["dir"]).name
    return entry


@torch.no_grad()
def _errors(model: HamiltonianModel, dataset: CrystalDataset) -> dict[str, float | None]:
    sums = ErrorSums()
    for index in range(len(dataset)):
        batch = dataset[index]
        for (_, _, _, parts), target, weight in zip(model(batch.graph), batch.targets, batch.weights, strict=True):
            sums.add(blocks_from_parts(parts - target, model.config.mode), weight)
    return sums.means_mev()
