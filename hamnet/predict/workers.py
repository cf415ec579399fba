"""Stages of a prediction by the workers of an executor: their model, their tasks, their losses and their memory."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from hamnet.errors import HamnetError, ModelError
from hamnet.models.hamiltonian import HamiltonianModel
from hamnet.models.io import LoadedModel, load_model

from .forecast import memory_bytes
from .partial import load_array
from .stages import Stage, compute_rows
from .tiles import Crystal

__all__ = ["ModelFile", "spread", "workers_hold"]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The model as a worker finds it."""

    path: str
    checksum: str
    dtype: torch.dtype
    device: str

    @classmethod
    def of(cls, loaded: LoadedModel) -> ModelFile:
        here = loaded.model.edge_species
        return cls(loaded.path, loaded.checksum, here.dtype, str(here.device))


def spread(
    executor: Executor,
    ahead: int,
    tasks: Sequence[tuple[int, int]],
    folder: Path,
    stage: Stage,
    file: ModelFile,
    threads: int,
) -> Iterator[tuple[int, int]]:
    """Tasks (start, stop) of a stage as the workers finish them, in any order; `ahead` of them wait at once."""
    waiting: dict[Future, tuple[int, int]] = {}
    left = iter(tasks)
    with _worker_errors(folder):
        try:
            while True:
                for task in left:
                    waiting[executor.submit(_work, folder, stage, file, threads, *task)] = task
                    if len(waiting) >= ahead:
                        break
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    task = waiting.pop(future)
                    future.result()
                    yield task
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _worker_errors(folder: Path) -> Iterator[None]:
    """A lost worker is told as such."""
    try:
        yield
    except Exception as error:
        # An error of the user or of the disk is told as what it is; connections that break carry no number.
        if isinstance(error, HamnetError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise HamnetError(
            f"a worker was lost ({type(error).__name__}: {error})",
            expected="workers that live as long as the work",
            remedy=f"give them more memory or take fewer, and run the same command again: what is finished is kept in "
            f"{folder}",
        ) from error


def workers_hold(executor: Executor | None, workers: int, loaded: LoadedModel, folder: Path) -> tuple[int, int]:
    """(bytes in each worker before it computes, number of workers): asked of one, who holds other things than we do."""
    if executor is None:
        return 0, 0
    with _worker_errors(folder):
        return executor.submit(_worker_bytes, ModelFile.of(loaded)).result(), workers


def _worker_bytes(file: ModelFile) -> int:
    """What a worker process holds once the model is read."""
    _worker_model(file)
    return memory_bytes()


def _work(folder: Path, stage: Stage, file: ModelFile, threads: int, start: int, stop: int) -> None:
    """A task in a worker process."""
    if not folder.is_dir():
        raise HamnetError(
            f"a worker on {platform.node()} does not see {folder}",
            expected="a file system that all workers share",
            remedy="write the output there",
        )
    torch.set_num_threads(threads)
    crystal = Crystal(**{name: load_array(folder, name) for name in Crystal.names()})
    compute_rows(folder, stage, _worker_model(file), crystal, start, stop)


@lru_cache(maxsize=1)
def _worker_model(file: ModelFile) -> HamiltonianModel:
    loaded = load_model(file.path, dtype=file.dtype, device=file.device)
    if loaded.checksum != file.checksum:
        raise ModelError("another model than at the start", expected=f"SHA-256 {file.checksum}", path=file.path)
    return loaded.model
