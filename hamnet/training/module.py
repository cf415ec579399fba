"""The Lightning module: loss, running average of the weights, learning rate, validation errors."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hamnet.errors import ModelError
from hamnet.models.hamiltonian import HamiltonianModel
from hamnet.models.irreps import Mode
from hamnet.models.readout import blocks_from_parts
from hamnet.units import MEV_PER_EV

from .batches import Batch
from .config import TrainConfig
from .losses import LOSSES, part_weights, weighted_mean, without_shift
from .metrics import PARTS, ErrorSums
from .processes import from_first, gathered, send_from_first, summed
from .retreat import Retreat
from .schedule import Plateau, learning_rate, progress
from .soap import SOAP
from .window import projected, window_penalty

__all__ = ["Best", "TrainingModule", "joined"]

STATE = "hamnet"
"""Key of the part of a checkpoint that is ours."""


@dataclass(slots=True)
class Best:
    """The best validation so far: its error, its weights, and how many validations have passed since."""

    mae_mev: float = float("inf")
    weights: list[Tensor] = field(default_factory=list)
    since: int = 0

    def update(self, mae_mev: float, weights: list[Tensor]) -> None:
        if mae_mev < self.mae_mev:
            self.mae_mev, self.weights, self.since = mae_mev, [w.detach().clone() for w in weights], 0
        else:
            self.since += 1


def joined(errors: ErrorSums) -> ErrorSums:
    """Sums over the samples of all processes."""
    rows = [
        (float(errors.sums.get(part, 0.0)), float(errors.squares.get(part, 0.0)), errors.counts.get(part, 0.0))
        for part in PARTS
    ]
    totals = iter(summed([value for row in rows for value in row]))
    result = ErrorSums()
    for part, total, square, count in zip(PARTS, totals, totals, totals, strict=False):
        if count:
            result.sums[part], result.squares[part] = torch.tensor(total).double(), torch.tensor(square).double()
            result.counts[part] = count
    return result


class TrainingModule(lightning.LightningModule):
    """Trains a :class:`HamiltonianModel`.

    Validation sees the running average of the weights; so does the exported model. All that the rest of a run depends
    on – averages, learning-rate state, time spent, random state – is part of the checkpoint.

    Parameters
    ----------
    identity : JSON values that stand in each checkpoint and say which run it belongs to.
    n_steps : steps in an epoch.
    """

    part_weights: Tensor
    loss_sum: Tensor

    def __init__(self, model: HamiltonianModel, config: TrainConfig, *, identity: dict[str, Any], n_steps: int) -> None:
        super().__init__()
        self.model, self.config, self.identity, self.n_steps = model, config, identity, n_steps
        training, optimiser = config.training, config.optimiser
        self.mode: Mode = model.config.mode
        weights = part_weights(self.mode, training.spin_free_weight, training.exchange_weight, training.soc_weight)
        self.register_buffer("part_weights", weights.to(next(model.parameters()).dtype), persistent=False)
        self.register_buffer("loss_sum", torch.zeros((), dtype=torch.float64), persistent=False)
        self.average = [p.detach().clone() for p in model.parameters()]
        self.n_averaged = 0
        self.plateau = Plateau(optimiser.plateau_patience, optimiser.plateau_factor)
        self.best = Best()
        self.retreat = Retreat()
        self.batch: Batch | None = None
        self.n_parts_done, self.fraction_done = 0, 0.0
        self.elapsed_s = 0.0
        self.now_s = 0.0
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
            loss = loss + training.band_weight * self._band_penalty(batch, differences) * MEV_PER_EV
        self.loss_sum += loss.detach() * batch.fraction
        self.fraction_done += batch.fraction
        return loss * batch.share

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
        self.batch = batch
        differences = self(batch)
        if batch.fraction == 0:  # a repetition, see Part
            return
        for difference, weight in zip(differences, batch.weights, strict=True):
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
        self.best.weights = [weight.to(self.device) for weight in self.best.weights]
        self.retreat.to(self.device)
        send_from_first(self.model.buffers())
        if self.restored is None:
            self.average = [p.detach().clone() for p in self.model.parameters()]  # those of the first process
        else:
            torch.set_rng_state(self.restored["rng"].cpu())
            self.loss_sum.fill_(self.restored["loss_sums"][self.global_rank])
            self.fraction_done = self.restored["fractions"][self.global_rank]
        self._clock = time.monotonic()
        self._stop_if_no_progress()

    def _stop_if_no_progress(self) -> None:
        if self.config.training.patience and self.best.since >= self.config.training.patience:
            self.trainer.should_stop = True

    def on_validation_epoch_start(self) -> None:
        self._errors = ErrorSums()
        self.exchange_average()

    def on_validation_epoch_end(self) -> None:
        self.exchange_average()
        means = joined(self._errors).means_mev()
        for name, value in means.items():
            if value is not None:
                self.log(f"val_{name}", value, prog_bar=name == "mae_meV", batch_size=1)
        if self.trainer.state.fn == "fit":
            error = means["mae_meV"]
            assert error is not None
            self.plateau.update(error)
            self.best.update(error, self.average)
            self._stop_if_no_progress()

    # -- learning rate ---------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        o = self.config.optimiser
        if o.name == "soap":
            return SOAP(self.model.parameters(), lr=o.lr, betas=o.betas, weight_decay=o.weight_decay)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[o.name]
        return kind(self.model.parameters(), lr=o.lr, betas=o.betas, weight_decay=o.weight_decay, fused=True)

    @property
    def time_spent_s(self) -> float:
        """Time spent in training, earlier parts of a resumed run included."""
        return self.elapsed_s + (0.0 if self._clock is None else time.monotonic() - self._clock)

    @property
    def done(self) -> float:
        """Progress of the run, 0 … 1."""
        t = self.config.training
        total = t.epochs * self.n_steps if t.epochs else None
        return progress(self.global_step, total, self.now_s, t.max_minutes * 60 or None)

    def on_train_epoch_start(self) -> None:
        self.loss_sum.zero_()
        self.fraction_done, self.n_parts_done = 0.0, 0
        self.retreat.start(self.model.parameters())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.batch, self.n_parts_done = batch, batch_idx + 1
        # One clock for all processes: they must agree on the learning rate and on when to stop.
        (self.now_s,) = from_first([self.time_spent_s])
        step = self.global_step - self.retreat.step
        rate = learning_rate(self.config.optimiser, step, self.done, self.plateau.factor)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate * self.retreat.factor

    def optimizer_step(self, *args: Any, **keywords: Any) -> None:
        super().optimizer_step(*args, **keywords)
        self.n_averaged += 1
        # Early on the average forgets faster, so that the random start does not linger in it.
        decay = min(self.config.optimiser.ema_decay, self.n_averaged / (self.n_averaged + 10))
        get_ema_multi_avg_fn(decay)(self.average, [p.detach() for p in self.model.parameters()], None)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.config.training.max_minutes and self.done >= 1:
            self.trainer.should_stop = True
        if self.trainer.is_last_batch or self.trainer.should_stop:
            self.log("train_loss", self.mean_loss(), on_step=False, on_epoch=True, prog_bar=True, batch_size=1)

    @torch.no_grad()
    def go_back(self) -> None:
        """Take up the best weights so far, with shorter steps; optimiser and running average begin anew."""
        self.retreat.begin(self.global_step)
        for parameter, average, kept in zip(self.model.parameters(), self.average, self.retreat.weights, strict=True):
            parameter.copy_(kept)
            average.copy_(kept)
        self.n_averaged = 0
        self.trainer.strategy.setup_optimizers(self.trainer)

    @property
    def between_steps(self) -> bool:
        """Whether neither a gradient nor a validation is half done."""
        at_step = self.n_parts_done % self.config.training.accumulate == 0 or self.trainer.is_last_batch
        return at_step and not self._exchanged

    def mean_loss(self) -> float:
        """Mean over what is done of the epoch, by all processes. Raises :class:`ModelError` where it is not finite."""
        total, fraction = summed([float(self.loss_sum), self.fraction_done])
        if not total < float("inf"):
            raise ModelError(
                f"loss {total} in epoch {self.current_epoch}",
                expected="a finite loss",
                remedy="lower optimiser.lr or set optimiser.gradient_clip, and resume from the last checkpoint",
            )
        return total / fraction

    # -- state -----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert not self._exchanged
        at_end = self.trainer.is_last_batch or self.trainer.should_stop
        checkpoint[STATE] = {
            "identity": self.identity,
            "average": list(self.average),
            "n_averaged": self.n_averaged,
            "best": {"mae_mev": self.best.mae_mev, "weights": self.best.weights, "since": self.best.since},
            "plateau": self.plateau.state(),
            "retreat": self.retreat.state(),
            "epoch": self.trainer.fit_loop.epoch_progress.current.processed,  # pyright: ignore[reportAttributeAccessIssue]
            "n_parts_done": 0 if at_end else self.n_parts_done,
            "loss_sums": gathered(float(self.loss_sum)),
            "fractions": gathered(self.fraction_done),
            "elapsed_s": self.time_spent_s,
            "rng": torch.get_rng_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint[STATE]
        self.average = [average.clone() for average in state["average"]]
        self.best = Best(**state["best"])
        self.n_averaged, self.elapsed_s = state["n_averaged"], state["elapsed_s"]
        self.plateau.load(state["plateau"])
        self.retreat = Retreat(**state["retreat"])
        self.restored = state
