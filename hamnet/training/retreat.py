"""Back to good weights when steps were too long.

Features are polynomials of each other, never divided by their size. A step that is too long can throw one crystal of a
set far off, while the others are still learned; its gradient then tells nothing, and training does not find back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

__all__ = ["Retreat"]

_GROWTH = 100.0
_SHORTER = 1 / 3


@dataclass(slots=True)
class Retreat:
    """Weights that were good, and how far the rate was lowered.

    first : loss of the first epoch; weights : at the start of the one with the `smallest`; before : of this one.
    factor : of the learning rate. step : at which training last went back; the rate rises anew from there.
    """

    first: float = math.inf
    smallest: float = math.inf
    weights: list[Tensor] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    factor: float = 1.0
    step: int = 0

    def start(self, weights: Iterable[Tensor]) -> None:
        """An epoch begins with these weights."""
        self.before = [weight.detach().clone() for weight in weights]

    def end(self, loss: float) -> bool:
        """An epoch had this loss. Whether it has grown beyond all bounds, a hundred times that of the first."""
        if math.isinf(self.first):
            self.first = loss
        if loss < self.smallest:
            self.smallest, self.weights = loss, self.before
        return loss > _GROWTH * self.first

    def begin(self, step: int) -> None:
        """Go on from `weights` at `step`, with a third of the rate."""
        self.factor, self.step = self.factor * _SHORTER, step

    def to(self, device: torch.device) -> None:
        self.weights = [weight.to(device) for weight in self.weights]
        self.before = [weight.to(device) for weight in self.before]

    def state(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}
