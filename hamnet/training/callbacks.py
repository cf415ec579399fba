"""Checkpoints that survive a killed job, and the record of a run."""

from __future__ import annotations

import csv
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

__all__ = ["AtomicCheckpointIO", "Checkpoints", "History", "Reporter", "Retreats", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    _write(path, lambda file: file.write(text.encode()))


def _write(path: Path, fill: Callable[[Any], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear under their name when they are complete: a killed job leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        _write(Path(path), lambda file: torch.save(checkpoint, file))


class Checkpoints(Checkpoint):
    """``last.ckpt``: at the end of every n-th epoch and of the run, and inside an epoch when `minutes` have passed.

    Inside an epoch it is written between two steps, so that a resumed run goes on with the next one; at SIGTERM too,
    where it comes between two steps.
    """

    def __init__(self, folder: Path, *, every_n_epochs: int, minutes: float) -> None:
        self.path = folder / "last.ckpt"
        self.every_n_epochs, self.minutes = every_n_epochs, minutes
        self._last_s = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._last_s = pl_module.elapsed_s

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if self._overdue(pl_module):
            pl_module.mean_loss()  # nothing that is not finite may replace the last checkpoint
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        number = trainer.current_epoch + 1
        at_end = trainer.should_stop or number == trainer.max_epochs
        if at_end or not number % self.every_n_epochs or self._overdue(pl_module):
            self._save(trainer, pl_module)

    def _overdue(self, pl_module: Any) -> bool:
        return bool(self.minutes) and pl_module.now_s - self._last_s >= 60 * self.minutes

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        # Lightning raises this after a batch or an epoch. It may reach one of several processes only, and all must
        # write together; and neither waiting gradients nor half a validation can be taken up again.
        if isinstance(exception, SIGTERMException) and trainer.world_size == 1 and pl_module.between_steps:
            self._save(trainer, pl_module)

    def _save(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self.path)
        self._last_s = pl_module.now_s


class History(Callback):
    """``history.csv``: one line for each epoch. A resumed run drops the lines after its checkpoint and goes on."""

    FIELDS: tuple[str, ...] = (
        "epoch",
        "step",
        "elapsed_s",
        "learning_rate",
        "train_loss",
        "val_mae_meV",
        "val_mae_spin_free_meV",
        "val_mae_exchange_meV",
        "val_mae_soc_meV",
        "val_mae_spinor_meV",
    )

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"] or 0) < trainer.current_epoch]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "elapsed_s": f"{pl_module.time_spent_s:.3f}",
            "learning_rate": repr(trainer.optimizers[0].param_groups[0]["lr"]),
        }
        validated = not (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) or trainer.should_stop
        for name in self.FIELDS[4:]:
            if name in metrics and (validated or name == "train_loss"):
                row[name] = repr(float(metrics[name]))
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.FIELDS, lineterminator="\n").writerow(row)


def _remaining(module: Any) -> str:
    """How much longer, guessed from the part that is done."""
    if not 0 < module.done < 1:
        return ""
    return f", about {module.time_spent_s * (1 / module.done - 1) / 60:.1f} min left"


class Retreats(Callback):
    """Goes back to the best weights so far, and says so, where the loss has grown beyond all bounds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        loss, retreat = float(trainer.callback_metrics["train_loss"]), pl_module.retreat
        if retreat.end(loss):
            pl_module.go_back()
            rate = pl_module.config.optimiser.lr * retreat.factor
            self.say(
                f"warning: the loss has grown to {loss:.3g} from {retreat.first:.3g} at the start: steps were too "
                f"long. Training goes back to where it was {retreat.smallest:.3g}, with optimiser.lr = {rate:.3g}"
            )


class Reporter(Callback):
    """Lines for a log file: at most one in `interval_s` seconds."""

    def __init__(self, write: Callable[[str], None], interval_s: float = 15.0) -> None:
        self.write, self.interval_s = write, interval_s
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        first = trainer.current_epoch == 0  # says how long it will take
        if time.monotonic() - self._last < self.interval_s and pl_module.done < 1 and not first:
            return
        self._last = time.monotonic()
        metrics = trainer.callback_metrics
        validation = f", validation {float(metrics['val_mae_meV']):.4f} meV" if "val_mae_meV" in metrics else ""
        self.write(
            f"epoch {trainer.current_epoch + 1}, {pl_module.time_spent_s:.0f} s ({pl_module.done:.0%}): "
            f"loss {float(metrics['train_loss']):.4f}{validation}{_remaining(pl_module)}"
        )
