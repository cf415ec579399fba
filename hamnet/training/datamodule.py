"""Loaders: prepared crystals, kept in memory where they fit, read again where they do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

from hamnet.basis import Basis
from hamnet.models.graph import Graph
from hamnet.models.irreps import Mode

from .batches import Batch, join_batches, map_tensors, prepare
from .config import TrainConfig
from .plan import EpochPlan, Part
from .samples import SampleList
from .window import window_states

__all__ = ["CrystalData", "CrystalDataset"]


class CrystalDataset(Dataset):
    """Samples as the batches that a plan asks for.

    keep_bytes : prepared crystals are kept until they fill this much memory; the others are read each time.
    """

    def __init__(
        self,
        samples: SampleList,
        basis: Basis,
        mode: Mode,
        cutoff_ang: float,
        dtype: torch.dtype,
        *,
        keep_bytes: float,
        window: tuple[float, int] | None = None,
        with_overlap: bool = False,
    ) -> None:
        self.window, self.with_overlap = window, with_overlap
        self.samples, self.basis = samples, basis
        self.mode: Mode = mode
        self.cutoff_ang, self.dtype = cutoff_ang, dtype
        self._room = keep_bytes
        self._kept: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, part: Part) -> Batch:
        joined = join_batches([self.crystal(index) for index in part.indices])
        return replace(joined, share=part.share, fraction=part.fraction)

    def crystal(self, index: int) -> Batch:
        """One sample, kept if there is room."""
        if index in self._kept:
            return self._kept[index]
        hamiltonian = self.samples.operator(index, "hamiltonian", self.basis)
        graph = Graph.build(
            [self.samples.structure(index)], [hamiltonian.pairs], self.basis, self.cutoff_ang, dtype=self.dtype
        )
        overlap, windows = None, ()
        if self.window is not None or self.with_overlap:
            overlap = self.samples.operator(index, "overlap", self.basis)
        if self.window is not None and overlap is not None:
            fermi = self.samples.fermi_energy_ev(index)
            width, n_k = self.window
            states = window_states(hamiltonian, overlap, fermi, width_ev=width, n_k=n_k, dtype=self.dtype)
            windows = (states,)
        batch = prepare(graph, hamiltonian, self.mode, overlap=overlap if self.with_overlap else None, windows=windows)
        if batch.n_bytes <= self._room:
            self._kept[index] = batch
            self._room -= batch.n_bytes
        return batch


class CrystalData(lightning.LightningDataModule):
    """Loaders of the training and validation samples.

    Parameters
    ----------
    basis, mode, cutoff_ang, dtype : of the network. plans : what is computed together, of training and of validation.
    """

    def __init__(
        self,
        train: SampleList,
        validation: SampleList,
        config: TrainConfig,
        *,
        plans: tuple[EpochPlan, EpochPlan],
        basis: Basis,
        mode: Mode,
        cutoff_ang: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.config, self.plans = config, plans
        room = {"auto": config.data.cache_gb * 2**30, "memory": float("inf"), "none": 0.0}[config.data.cache]
        room /= max(1, config.data.workers)  # each worker keeps what it has read
        share = len(train) / (len(train) + len(validation))
        self.train, self.validation = (
            CrystalDataset(samples, basis, mode, cutoff_ang, dtype, keep_bytes=room * part, **wanted)
            for samples, part, wanted in ((train, share, _wanted(config)), (validation, 1 - share, {}))
        )

    def _loader(self, dataset: CrystalDataset, plan: EpochPlan) -> DataLoader:
        workers = self.config.data.workers
        return DataLoader(
            dataset,
            batch_size=None,  # the plan says what is computed together
            sampler=plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            # Forked workers would inherit threads of the parent that hold locks.
            multiprocessing_context="spawn" if workers else None,
            # One of its own, so that the random state of the run does not depend on how often a loader was begun.
            generator=torch.Generator(),
        )

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, self.plans[0])

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.validation, self.plans[1])

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _wanted(config: TrainConfig) -> dict[str, Any]:
    """What the loss needs beside H."""
    t = config.training
    window = (t.band_window_ev, t.band_k_points) if t.band_weight else None
    return {"window": window, "with_overlap": t.mu_invariant}
