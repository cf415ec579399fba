"""Which crystals are computed together, in which step and by which process: fixed by seed and epoch alone."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

__all__ = ["EpochPlan", "Part", "epoch_parts", "packed", "sliced"]

_CLASSES = 20
"""Sizes are rounded up to this part of the limit, so that crystals of nearly one size can change places."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a process computes at once.

    indices : samples. fraction : share of the epoch's matrix elements that is theirs; 0 for a repetition that only
        keeps a process busy while the others compute the rest of an epoch.
    share : weight of their mean loss among the parts of the step, 1 on average: the gradient of a step is that of the
        mean over all its elements, however they are split.
    """

    indices: tuple[int, ...]
    fraction: float
    share: float = 1.0


def sliced(order: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """`size` at a time, in order."""
    return [tuple(order[start : start + size]) for start in range(0, len(order), size)]


def packed(order: Sequence[int], sizes: NDArray, limit: int) -> list[tuple[int, ...]]:
    """Batches of at most `limit` in total size, as equal as can be.

    The largest go first, each into the batch that is emptiest (Graham's rule). Their number depends on the multiset of
    `sizes` alone, not on `order`, which decides who of equal size goes where: all epochs have as many steps.
    """
    classes = np.ceil(np.asarray(sizes) * _CLASSES / limit).astype(int)
    if classes.max() > _CLASSES:
        raise ValueError(f"an entry of size {np.max(sizes)} in batches of {limit}")
    by_size = sorted(order, key=lambda index: -classes[index])  # stable: equal classes stay in order
    for n_batches in range(math.ceil(classes.sum() / _CLASSES), len(order) + 1):
        heap = [(0, place) for place in range(n_batches)]
        batches: list[list[int]] = [[] for _ in range(n_batches)]
        for index in by_size:
            filled, place = heapq.heappop(heap)
            if filled + classes[index] > _CLASSES:
                break
            batches[place].append(index)
            heapq.heappush(heap, (filled + int(classes[index]), place))
        else:
            return [tuple(batch) for batch in batches]
    raise AssertionError("one batch for each entry always fits")


def epoch_parts(
    batches: Sequence[tuple[int, ...]], weights: NDArray, *, processes: int, accumulate: int
) -> list[list[Part]]:
    """The parts of each process, in order, from the batches of one epoch.

    A step takes ``processes · accumulate`` batches that follow each other. All processes have as many parts, as
    gradients are averaged over them; where batches run out, a process repeats one with weight 0.

    weights : of each sample, the number of its matrix elements as the loss counts them.
    """
    total = float(weights.sum())
    result: list[list[Part]] = [[] for _ in range(processes)]
    for step in sliced(range(len(batches)), processes * accumulate):
        of_step = sum(float(weights[list(batches[number])].sum()) for number in step)
        for start in range(0, len(step), processes):
            here = step[start : start + processes]
            for process, parts in enumerate(result):
                counts = process < len(here)
                batch = batches[here[process] if counts else step[0]]
                weight = float(weights[list(batch)].sum()) if counts else 0.0
                parts.append(Part(batch, weight / total, weight * processes * accumulate / of_step))
    return result


class EpochPlan(Sampler):
    """The :class:`Part` of each turn of one process.

    A new order in each epoch; ``begin`` takes it up inside an epoch.

    Parameters
    ----------
    sizes : (n,) stored pairs of each sample. weights : (n,) as in :func:`epoch_parts`.
    batch_size, batch_pairs : samples, or (if not 0) pairs, in a batch.
    seed : of the order; None leaves the samples in theirs.
    """

    def __init__(
        self,
        sizes: NDArray,
        weights: NDArray,
        *,
        batch_size: int = 1,
        batch_pairs: int = 0,
        accumulate: int = 1,
        seed: int | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.sizes, self.weights = sizes, weights
        self.batch_size, self.batch_pairs, self.accumulate = batch_size, batch_pairs, accumulate
        self.seed, self.process, self.processes = seed, process, processes
        self._epoch = self._first = 0
        self._n_parts = len(self._parts())

    def begin(self, epoch: int, part: int = 0) -> None:
        """Go on before part number `part` of `epoch`."""
        self._epoch, self._first = epoch, part

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self._epoch:
            self.begin(epoch)

    @property
    def n_steps(self) -> int:
        """Steps in an epoch."""
        return math.ceil(self._n_parts / self.accumulate)

    def __len__(self) -> int:
        return self._n_parts

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts()[self._first :])

    def _parts(self) -> list[Part]:
        order = list(range(len(self.sizes)))
        generator = torch.Generator()
        if self.seed is not None:
            generator.manual_seed(self.seed * 1_000_003 + self._epoch)
            order = torch.randperm(len(order), generator=generator).tolist()
        if self.batch_pairs:
            batches = packed(order, self.sizes, self.batch_pairs)
            if self.seed is not None:
                batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        else:
            batches = sliced(order, self.batch_size)
        return epoch_parts(batches, self.weights, processes=self.processes, accumulate=self.accumulate)[self.process]
