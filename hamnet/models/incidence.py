"""Sums of rows of a table, and their adjoint: features of the ends of an edge, messages that an atom receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = ["Incidence"]


@dataclass(frozen=True, slots=True)
class Incidence:
    """Which rows of a table belong to which item.

    Attributes
    ----------
    index : (n_items, k) rows of each item.
    order, start : items of each row – those of row r are ``order[start[r]:start[r + 1]]``; (n_items k,), (n_rows,).
    """

    index: Tensor
    order: Tensor
    start: Tensor

    @classmethod
    def of(cls, index: Tensor, n_rows: int) -> Self:
        row, place = torch.sort(index.flatten(), stable=True)
        return cls(
            index,
            torch.div(place, index.shape[1], rounding_mode="floor"),
            torch.searchsorted(row, torch.arange(n_rows, device=index.device)),
        )

    def gathered(self, table: Tensor) -> Tensor:
        """(n_items, width): for each item the sum of its rows of `table` (n_rows, width)."""
        return _Gather.apply(table, self)  # type: ignore[return-value]

    def scattered(self, items: Tensor) -> Tensor:
        """(n_rows, width): for each row the sum of its items (n_items, width)."""
        return _Scatter.apply(items, self)  # type: ignore[return-value]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, incidence: Incidence) -> Tensor:
        ctx.incidence = incidence
        return embedding_bag(incidence.index, table, mode="sum")

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(gradients[0], ctx.incidence), None  # type: ignore[return-value]


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, items: Tensor, incidence: Incidence) -> Tensor:
        ctx.incidence = incidence
        return embedding_bag(incidence.order, items, incidence.start, mode="sum")

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(gradients[0], ctx.incidence), None  # type: ignore[return-value]
