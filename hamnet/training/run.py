"""A training run from its configuration to the model file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from hamnet import __version__
from hamnet.errors import ConfigError, HamnetError
from hamnet.models.hamiltonian import HamiltonianModel
from hamnet.models.io import TrainedOn, save_model
from hamnet.models.readout import blocks_from_parts

from .callbacks import AtomicCheckpointIO, Checkpoints, History, Reporter, Retreats, write_text
from .config import TrainConfig
from .datamodule import CrystalData, CrystalDataset
from .metrics import ErrorSums
from .module import STATE, TrainingModule, joined
from .plan import EpochPlan
from .preparation import prepare_model
from .processes import Processes, leave_group, object_from_first
from .selection import TrainingData
from .survey import Survey

__all__ = ["TrainResult", "train"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_MAY_CHANGE = {
    "training": {"epochs", "max_minutes", "patience", "threads", "device"},
    "model": {"start"},
    "output": {"dir", "export", "validate_every", "checkpoint_every", "checkpoint_minutes"},
}
"""Keys that a resumed run may have otherwise than the run that it goes on with; samples and start are compared."""


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
    processes = Processes.from_environment()
    say = say if processes.rank == 0 else _say_nothing
    _check_folder(folder, resume=resume, overwrite=overwrite)
    torch.set_num_threads(config.training.threads or max(1, len(os.sched_getaffinity(0)) // processes.local))
    resume = resume and last.exists()
    data = TrainingData.select(config)
    identity = {
        "config": config.to_dict(),
        "train": data.train.checksum(),
        "validation": data.validation.checksum(),
        "start": None if config.model.start is None else _checksum(Path(config.model.start)),
        "processes": processes.world,
    }
    plans = _plans(config, data, processes)
    if resume:
        state = _state_of_same_run(last, identity)
        plans[0].begin(state["epoch"], state["n_parts_done"])
    with _memory_errors(config, lambda: "the first look at the training set"):
        model, limits, facts = prepare_model(config, data, say=say)
    if not resume:
        allow = config.data.contradictions == "allow"
        sizes = model.config.moment_sizes
        data.check_inputs(model.basis, facts["magnetic"], sizes=sizes, allow=allow, say=say)
        data.check_labels(model.basis)
    n_weights = sum(p.numel() for p in model.parameters())
    say(
        f"{len(data.train)} training and {len(data.validation)} validation samples, "
        f"{data.survey.n_atoms} atoms, {data.survey.n_pairs.sum()} pairs; mode {facts['mode']}; "
        f"magnetic: {', '.join(facts['magnetic']) or 'none'} ({facts['magnetic_because']}); {n_weights} weights"
    )
    if processes.world > 1:
        say(f"{processes.world} processes; an epoch has {plans[0].n_steps} steps")
    dtype = _DTYPES[config.training.dtype]
    model = model.to(dtype)
    crystals = CrystalData(
        data.train,
        data.validation,
        config,
        plans=plans,
        basis=model.basis,
        mode=model.config.mode,
        cutoff_ang=model.config.cutoff_ang,
        dtype=dtype,
    )
    module = TrainingModule(model, config, identity=identity, n_steps=plans[0].n_steps)
    trainer = _trainer(config, folder, processes, say=say, progress_bar=progress_bar)
    if processes.rank == 0:
        if not resume:
            for stale in (folder / "checkpoints").glob("*.ckpt"):
                stale.unlink()
            (folder / "history.csv").unlink(missing_ok=True)
        write_text(folder / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
    say(f"{'going on with' if resume else 'training in'} {folder}")
    with leave_group():
        with _memory_errors(config, lambda: _text_of_batch(module)):
            _fit(trainer, module, crystals, last if resume else None, seed=config.training.seed)
        return _finish(config, data, limits, facts, module, crystals, folder, processes)


def _say_nothing(text: str) -> None:
    """What processes other than the first say."""


# -- before ------------------------------------------------------------------------------------------------------------


def _plans(config: TrainConfig, data: TrainingData, processes: Processes) -> tuple[EpochPlan, EpochPlan]:
    """What is computed together, of training and validation samples."""
    t = config.training
    train = data.survey
    validation = data.validation_survey
    for samples, found in ((data.train, train), (data.validation, validation)):
        largest, n_pairs = int(found.n_pairs.argmax()), int(found.n_pairs.max())
        if 0 < t.batch_pairs < n_pairs:
            raise ConfigError(
                f"batch_pairs = {t.batch_pairs}, but sample {samples.name(largest)!r} has {n_pairs} pairs",
                expected=f"at least {n_pairs}: a crystal is never split",
                remedy="set it so high, or leave out the sample by `exclude`",
                place="[training] batch_pairs",
            )

    def plan(found: Survey, **options: Any) -> EpochPlan:
        weights = found.n_elements @ [t.onsite_weight, 1.0]
        size = {"batch_size": t.batch_size, "batch_pairs": t.batch_pairs}
        place = {"process": processes.rank, "processes": processes.world}
        return EpochPlan(found.n_pairs, weights, **size, **place, **options)

    return plan(train, accumulate=t.accumulate, seed=t.seed), plan(validation)


def _checksum(path: Path) -> str | None:
    """SHA-256 of a file; None where it cannot be read, which is told when it is needed."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


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


def _state_of_same_run(checkpoint: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Our part of a checkpoint, which only the run that it belongs to may go on with, up to what cannot change its
    course."""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)[STATE]
        stored = state["identity"]
        before = {"start": None, "processes": 1, **stored}
        state = {key: state[key] for key in ("epoch", "n_parts_done")}
    except Exception as error:
        raise ConfigError(
            f"no checkpoint of this hamnet, or a damaged one ({error})",
            expected="a file written by `hamnet train`",
            remedy="begin anew with --overwrite",
            path=checkpoint,
        ) from error
    anew = "begin anew with --overwrite or in another folder"
    for key, what in (("train", "the train samples are"), ("validation", "the validation samples are")):
        if before[key] != identity[key]:
            raise ConfigError(
                f"{what} not those of the run to be resumed", expected="the same samples", remedy=anew, path=checkpoint
            )
    if before["start"] != identity["start"]:
        raise ConfigError(
            "[model] start is not that of the run to be resumed",
            expected="the same model file",
            remedy=anew,
            path=checkpoint,
        )
    if before["processes"] != identity["processes"]:
        raise ConfigError(
            f"{identity['processes']} processes",
            expected=f"{before['processes']}, as in the run to be resumed",
            remedy=f"start {before['processes']} with torchrun, or {anew}",
            path=checkpoint,
        )
    for section, now in identity["config"].items():
        then = before["config"].get(section, {})
        for key in sorted(set(now) | set(then)):
            if now.get(key) != then.get(key) and section != "data" and key not in _MAY_CHANGE.get(section, set()):
                raise ConfigError(
                    f"{section}.{key} = {now.get(key)!r}",
                    expected=f"{then.get(key)!r}, as in the run to be resumed",
                    remedy=f"{anew} to change it",
                    path=checkpoint,
                )
    return state


# -- training ----------------------------------------------------------------------------------------------------------


def _trainer(
    config: TrainConfig, folder: Path, processes: Processes, *, say: Callable[[str], None], progress_bar: bool
) -> lightning.Trainer:
    t = config.training
    follow: Callback = RichProgressBar(refresh_rate=5) if progress_bar else Reporter(say)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if t.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but there is no GPU", expected="device = 'auto' or 'cpu'")
    return lightning.Trainer(
        accelerator={"auto": "gpu" if torch.cuda.is_available() else "cpu", "cpu": "cpu", "cuda": "gpu"}[t.device],
        devices=processes.local,
        num_nodes=processes.world // processes.local,
        # A batch of some species leaves the readouts of all others without a gradient.
        strategy=DDPStrategy(find_unused_parameters=True, broadcast_buffers=False) if processes.world > 1 else "auto",
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
            Retreats(say),
            Checkpoints(
                folder / "checkpoints",
                every_n_epochs=config.output.checkpoint_every,
                minutes=config.output.checkpoint_minutes,
            ),
        ],
        # Nothing but torchrun makes several processes, whatever the batch system.
        plugins=[AtomicCheckpointIO(), TorchElasticEnvironment() if processes.world > 1 else LightningEnvironment()],
        accumulate_grad_batches=t.accumulate,
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _fit(
    trainer: lightning.Trainer, module: TrainingModule, crystals: CrystalData, checkpoint: Path | None, *, seed: int
) -> None:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Small sets need no worker processes, and short epochs no lower logging interval.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*The number of training batches.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*")
        warnings.filterwarnings("ignore", message=".*Grad strides do not match bucket view strides.*")
        # What is logged has been joined already.
        warnings.filterwarnings("ignore", message=".*It is recommended to use `self.log.*sync_dist=True.*")
        # The plan of an epoch takes care of that.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
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


@contextmanager
def _memory_errors(config: TrainConfig, what: Callable[[], str]) -> Iterator[None]:
    """Say what did not fit into memory, and what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
            word in str(error) for word in ("DefaultCPUAllocator", "out of memory", "Cannot allocate memory")
        )
        if not full:
            raise
        t = config.training
        limit = f"batch_pairs = {t.batch_pairs}" if t.batch_pairs else f"batch_size = {t.batch_size}"
        raise HamnetError(
            f"not enough memory for {what()} ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            expected="batches that fit into memory",
            remedy=f"limit them to fewer pairs by training.batch_pairs (now {limit}); training.accumulate gains "
            "back the size of a step. Where one crystal alone is too large, make the network smaller ([model] "
            "channels, hidden, pair_channels) or leave the crystal out. Begin anew with --overwrite",
        ) from error


def _text_of_batch(module: TrainingModule) -> str:
    if module.batch is None:
        return "the first batch"
    n = module.batch.n_pairs
    return f"a batch of {len(n)} crystal{'s' if len(n) > 1 else ''} with {sum(n)} pairs"


# -- after -------------------------------------------------------------------------------------------------------------


def _finish(
    config: TrainConfig,
    data: TrainingData,
    limits: TrainedOn,
    facts: dict[str, Any],
    module: TrainingModule,
    crystals: CrystalData,
    folder: Path,
    processes: Processes,
) -> TrainResult:
    """Export the weights, with the errors that they reach. All processes share the work; the first one writes."""
    module.exchange_average()
    model = module.model.to("cpu").eval()
    validation, exported = _errors(model, crystals.validation, processes), "last"
    if config.output.export == "best" and module.best.weights:
        kept = [p.detach().clone() for p in model.parameters()]
        _overwrite(model, module.best.weights)
        of_best = _errors(model, crystals.validation, processes)
        if (of_best["mae_meV"] or 0.0) <= (validation["mae_meV"] or 0.0):
            validation, exported = of_best, "best"
        else:
            _overwrite(model, kept)
    errors = {"train": _errors(model, crystals.train, processes), "validation": validation}
    if len(data.test):
        test = CrystalDataset(
            data.test, model.basis, model.config.mode, model.config.cutoff_ang, crystals.train.dtype, keep_bytes=0
        )
        errors["test"] = _errors(model, test, processes)
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
        "processes": processes.world,
        "samples": {
            key: {"names": [name for _, name in samples.places], "sha256": samples.checksum()}
            for key, samples in (("train", data.train), ("validation", data.validation), ("test", data.test))
        },
        "hamnet": __version__,
        "torch": torch.__version__,
    }
    result = None
    if processes.rank == 0:
        checksum = save_model(path, model, name=config.model.name, trained_on=limits, provenance=provenance)
        result = TrainResult(str(path), {"sha256": checksum, **values})
        write_text(folder / "result.json", json.dumps(result.to_dict(), indent=2) + "\n")
    return object_from_first(result)


@torch.no_grad()
def _overwrite(model: HamiltonianModel, weights: list[torch.Tensor]) -> None:
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.copy_(weight)


def _without_folders(entry: dict[str, Any]) -> dict[str, Any]:
    """File names instead of paths: a model file does not tell how its maker's folders are called."""
    for key in ("train", "validation", "test"):
        for selection in entry["data"][key]:
            selection["path"] = Path(selection["path"]).name
    entry["output"]["dir"] = Path(entry["output"]["dir"]).name
    if "start" in entry["model"]:
        entry["model"]["start"] = Path(entry["model"]["start"]).name
    return entry


@torch.no_grad()
def _errors(model: HamiltonianModel, dataset: CrystalDataset, processes: Processes) -> dict[str, float | None]:
    sums = ErrorSums()
    for index in range(processes.rank, len(dataset), processes.world):
        batch = dataset.crystal(index)
        for (_, _, _, parts), target, weight in zip(model(batch.graph), batch.targets, batch.weights, strict=True):
            sums.add(blocks_from_parts(parts - target, model.config.mode), weight)
    return joined(sums).means_mev()
