"""The Lightning module: loss, running average of the weights, learning rate, validation errors."""

from __future__ import annotations

import time
from typing import Any

import lightning
import torch
from torch import Tensor

from hamnet.errors import ModelError
from hamnet.models.hamiltonian import HamiltonianModel
from hamnet.models.irreps import Mode
from hamnet.models.readout import blocks_from_parts
from hamnet.units import MEV_PER_EV

from .batches import Batch
from .config import TrainConfig
from .losses import LOSSES, part_weights, weighted_mean, without_shift
from .metrics import ErrorSums
from .schedule import Plateau, learning_rate, progress
from .window import projected, window_penalty

__all__ = ["TrainingModule"]

_STATE = "hamnet"


class TrainingModule(lightning.LightningModule):
    """Trains a :class:`HamiltonianModel`.

    Validation sees the running average of the weights; so does the exported model. All that the rest of a run depends
    on – averages, learning-rate state, time spent, random state – is part of the checkpoint.

    Parameters
    ----------
    identity : JSON values that stand in each checkpoint and say which run it belongs to.
    """

    part_weights: Tensor

    def __init__(self, model: HamiltonianModel, config: TrainConfig, *, identity: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.config, self.identity = model, config, identity
        training, optimiser = config.training, config.optimiser
        self.mode: Mode = model.config.mode
        weights = part_weights(self.mode, training.spin_free_weight, training.exchange_weight, training.soc_weight)
        self.register_buffer("part_weights", weights.to(next(model.parameters()).dtype), persistent=False)
        self.average = [p.detach().clone() for p in model.parameters()]
        self.n_averaged = 0
        self.plateau = Plateau(optimiser.plateau_patience, optimiser.plateau_factor)
        self.elapsed_s = 0.0
        self.restored: dict[str, Any] | None = None
        self._clock: float | None = None
        self._errors = ErrorSums()
        self._exchanged = False

    # -- steps -----------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> list[Tensor]:
        """Predicted parts minus targets, eV, for each entry of the network's output."""
        return [parts - target for (_, _, _, parts), target in zip(self.model(batch.graph), batch.targets, strict=True)]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        training = self.config.training
        penalty = LOSSES[training.loss]
        differences = self(batch)
        if training.mu_invariant:
            graph = batch.graph
            crystals = [graph.crystal[atoms] for _, atoms, _ in graph.self_pairs]
            crystals += [graph.crystal[group.row] for group in graph.pairs]
            differences = without_shift(differences, batch.overlaps, batch.weights, crystals, len(graph.cells))
        penalties = [penalty(d * MEV_PER_EV, training.huber_delta_mev) for d in differences]
        # Self pairs come first in the output of the network.
        n_self = len(batch.graph.self_pairs)
        weights = [w * training.onsite_weight if i < n_self else w for i, w in enumerate(batch.weights)]
        loss = weighted_mean(penalties, weights, self.part_weights)
        if batch.windows:
            bands = self._band_penalty(batch, differences) * MEV_PER_EV
            self.log("train_bands", bands, on_step=False, on_epoch=True, batch_size=len(batch.n_pairs))
            loss = loss + training.band_weight * bands
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.n_pairs), prog_bar=True)
        return loss

    def _band_penalty(self, batch: Batch, differences: list[Tensor]) -> Tensor:
        graph = batch.graph
        ends: list[tuple[Tensor, Tensor, Tensor]] = [
            (atoms, atoms, graph.edge_shift.new_zeros(len(atoms), 3)) for _, atoms, _ in graph.self_pairs
        ]
        ends += [(group.row, group.col, group.shift) for group in graph.pairs]
        blocks = [
            (*end, weight, blocks_from_parts(difference, self.mode))
            for end, weight, difference in zip(ends, batch.weights, differences, strict=True)
        ]
        point = torch.randint(len(batch.windows[0].k_frac), ())
        matrices = projected(
            blocks,
            graph,
            self.model.basis,
            [w.k_frac[point] for w in batch.windows],
            [w.vectors[point] for w in batch.windows],
        )
        return window_penalty(matrices, [w.inside[point] for w in batch.windows])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for difference, weight in zip(self(batch), batch.weights, strict=True):
            self._errors.add(blocks_from_parts(difference, self.mode), weight)

    # -- running average -------------------------------------------------------------------------------------------

    def exchange_average(self) -> None:
        """Put the average in the place of the weights, or back."""
        with torch.no_grad():
            for parameter, average in zip(self.model.parameters(), self.average, strict=True):
                kept = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(kept)
        self._exchanged = not self._exchanged

    def on_fit_start(self) -> None:
        self.average = [average.to(self.device) for average in self.average]
        if self.restored is not None:
            torch.set_rng_state(self.restored["rng"].cpu())
        self._clock = time.monotonic()

    def on_validation_epoch_start(self) -> None:
        self._errors = ErrorSums()
        self.exchange_average()

    def on_validation_epoch_end(self) -> None:
        self.exchange_average()
        means = self._errors.means_mev()
        for name, value in means.items():
            if value is not None:
                self.log(f"val_{name}", value, prog_bar=name == "mae_meV")
        if self.trainer.state.fn == "fit":
            assert means["mae_meV"] is not None
            self.plateau.update(means["mae_meV"])

    # -- learning rate ---------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        o = self.config.optimiser
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[o.name]
        return kind(self.model.parameters(), lr=o.lr, betas=o.betas, weight_decay=o.weight_decay)

    @property
    def time_spent_s(self) -> float:
        """Time spent in training, earlier parts of a resumed run included."""
        return self.elapsed_s + (0.0 if self._clock is None else time.monotonic() - self._clock)

    @property
    def done(self) -> float:
        """Progress of the run, 0 … 1."""
        t = self.config.training
        total = t.epochs * int(self.trainer.num_training_batches) if t.epochs else None
        return progress(self.global_step, total, self.time_spent_s, t.max_minutes * 60 or None)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rate = learning_rate(self.config.optimiser, self.global_step, self.done, self.plateau.factor)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.n_averaged += 1
        # Early on the average forgets faster, so that the random start does not linger in it.
        decay = min(self.config.optimiser.ema_decay, self.n_averaged / (self.n_averaged + 10))
        for average, parameter in zip(self.average, self.model.parameters(), strict=True):
            average.lerp_(parameter.detach(), 1 - decay)
        if self.config.training.max_minutes and self.done >= 1:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        loss = self.trainer.callback_metrics.get("train_loss")
        if loss is not None and not bool(torch.isfinite(loss)):
            raise ModelError(
                f"loss {float(loss)} in epoch {self.current_epoch}",
                expected="a finite loss",
                remedy="lower optimiser.lr or set optimiser.gradient_clip, and resume from the last checkpoint",
            )

    # -- state -----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert not self._exchanged
        checkpoint[_STATE] = {
            "identity": self.identity,
            "average": list(self.average),
            "n_averaged": self.n_averaged,
            "plateau": self.plateau.state(),
            "elapsed_s": self.time_spent_s,
            "rng": torch.get_rng_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint[_STATE]
        self.average = [average.clone() for average in state["average"]]
        self.n_averaged, self.elapsed_s = state["n_averaged"], state["elapsed_s"]
        self.plateau.load(state["plateau"])
        self.restored = state
