"""Learning rate as a function of progress."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import OptimiserConfig

__all__ = ["Plateau", "learning_rate", "progress"]


def progress(step: int, total_steps: int | None, elapsed_s: float, limit_s: float | None) -> float:
    """How much of the run is done, 0 … 1: by steps or by the clock, whichever is further."""
    by_steps = step / total_steps if total_steps else 0.0
    by_clock = elapsed_s / limit_s if limit_s else 0.0
    return min(1.0, max(by_steps, by_clock))


def learning_rate(config: OptimiserConfig, step: int, done: float, plateau_factor: float = 1.0) -> float:
    """Rate of step number `step` (from 0) at progress `done`."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    shape = 1.0
    if config.schedule == "cosine":
        shape = config.final_fraction + (1 - config.final_fraction) * (1 + math.cos(math.pi * done)) / 2
    elif config.schedule == "plateau":
        shape = max(plateau_factor, config.final_fraction)
    return config.lr * warm * shape


@dataclass(slots=True)
class Plateau:
    """Multiplies `factor` by `decay` when `patience` + 1 values in a row are no better than the best one."""

    patience: int
    decay: float
    best: float = math.inf
    bad: int = 0
    factor: float = 1.0

    def update(self, value: float) -> None:
        if value < self.best:
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.bad > self.patience:
            self.factor, self.bad = self.factor * self.decay, 0

    def state(self) -> dict[str, float]:
        return {"best": self.best, "bad": self.bad, "factor": self.factor}

    def load(self, state: dict[str, float]) -> None:
        self.best, self.bad, self.factor = state["best"], int(state["bad"]), state["factor"]
