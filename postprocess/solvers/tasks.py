"""Counts and windows at many k: independent tasks, on one process or many, on the disk as soon as they are done."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hamnet.errors import HamnetError, SolverError, StoreError

from ..files import replacing
from .backends import analyse
from .factor import Analysis
from .overlap import OverlapCheck
from .pencil import SparsePencil
from .states import Keep, States, describe
from .window import count_below, nearest_window, solve_window

__all__ = ["CountTask", "NearestTask", "Runner", "Shard", "WindowTask"]

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class CountTask:
    """How many states of one k and channel lie below an energy."""

    k_frac: Triple
    channel: int
    energy_ev: float

    def run(self, pencil: SparsePencil, analysis: Analysis, keep: Keep) -> int:
        return count_below(analysis, pencil.at(self.k_frac, self.channel), self.energy_ev)


@dataclass(frozen=True, slots=True)
class WindowTask:
    """All states of one k and channel between two energies."""

    k_frac: Triple
    channel: int
    low_ev: float
    high_ev: float

    def run(self, pencil: SparsePencil, analysis: Analysis, keep: Keep) -> States:
        at = pencil.at(self.k_frac, self.channel)
        return describe(at, solve_window(analysis, at, self.low_ev, self.high_ev), keep)


@dataclass(frozen=True, slots=True)
class NearestTask:
    """At least `count` states of one k and channel next to an energy."""

    k_frac: Triple
    channel: int
    energy_ev: float
    count: int

    def run(self, pencil: SparsePencil, analysis: Analysis, keep: Keep) -> States:
        at = pencil.at(self.k_frac, self.channel)
        return describe(at, nearest_window(analysis, at, self.energy_ev, self.count), keep)


Result = int | NDArray | States


class Task(Protocol):
    """A frozen dataclass of numbers that says what to do, and does it where the matrices are."""

    @property
    def k_frac(self) -> Triple: ...

    def run(self, pencil: SparsePencil, analysis: Analysis, keep: Keep) -> Result: ...


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of the tasks that this process does: those with number % of == index."""

    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise SolverError(f"shard {self.index} of {self.of}", expected="a number from 0 to one less than all")


class Runner:
    """Does tasks for one pencil.

    Parameters
    ----------
    backend : of :func:`.backends.analyse`.
    keep : what is kept of vectors.
    folder : where results are written as soon as they are there; a later runner for the same pencil finds them. None:
        nothing is written.
    executor : any of the kind of ``concurrent.futures`` whose workers see the same files; default: this process.
    workers : how many processes the executor has; they share the cores.
    """

    def __init__(
        self,
        pencil: SparsePencil,
        *,
        backend: str = "auto",
        keep: Keep | None = None,
        folder: Path | None = None,
        executor: Executor | None = None,
        workers: int = 1,
    ) -> None:
        self.pencil, self.keep, self.folder = pencil, keep or Keep(), folder
        self.analysis = analyse(pencil, backend)
        self._overlap = OverlapCheck(pencil, backend)
        self._backend, self._executor, self._workers = backend, executor, workers
        if folder is not None:
            _claim(folder, _identity(pencil, self.keep))

    def run(
        self,
        tasks: Sequence[Task],
        *,
        shard: Shard | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Any]:
        """Results of the tasks, in their order; with a shard those of its tasks only.

        on_progress : called with (finished, all). Raises :class:`SolverError` for a lost worker; finished results are
        kept where there is a folder.
        """
        if shard is not None:
            tasks = [task for number, task in enumerate(tasks) if number % shard.of == shard.index]
        results: dict[Task, Result] = {}
        for task in dict.fromkeys(tasks):
            stored = None if self.folder is None else _stored(self.folder, task)
            if stored is not None:
                results[task] = stored
        done = sum(task in results for task in tasks)
        if on_progress is not None:
            on_progress(done, len(tasks))
        missing = [task for task in dict.fromkeys(tasks) if task not in results]
        for task, result in self._in_turn(missing) if self._executor is None else self._spread(missing):
            results[task] = result
            done += 1
            if on_progress is not None:
                on_progress(done, len(tasks))
        return [results[task] for task in tasks]

    def _in_turn(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Result]]:
        for task in tasks:
            self._overlap.require_positive(task.k_frac)
            result = task.run(self.pencil, self.analysis, self.keep)
            if self.folder is not None:
                _store(self.folder, task, result)
            yield task, result

    def _spread(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Result]]:
        assert self._executor is not None
        if not tasks:
            return
        threads = max(1, (os.cpu_count() or 1) // self._workers)
        with _shared(self.pencil, self.keep, self.folder) as place:
            waiting: dict[Future, Task] = {}
            left = iter(tasks)
            try:
                while True:
                    for task in left:
                        job = self._executor.submit(_work, str(place), self._backend, threads, task)
                        waiting[job] = task
                        if len(waiting) >= 2 * self._workers:
                            break
                    if not waiting:
                        return
                    for job in wait(waiting, return_when=FIRST_COMPLETED).done:
                        task = waiting.pop(job)
                        result = job.result()
                        if self.folder is not None:
                            _store(self.folder, task, result)
                        yield task, result
            except HamnetError:
                raise
            except (BrokenExecutor, ConnectionError, TimeoutError) as error:
                kept = "" if self.folder is None else f"; what is finished is kept in {self.folder}"
                raise SolverError(
                    f"a worker was lost ({type(error).__name__}: {error}){kept}",
                    expected="workers that live until the end",
                    remedy="repeat the command, with fewer workers if memory was short",
                ) from error
            finally:
                for job in waiting:
                    job.cancel()


# -- workers -----------------------------------------------------------------------------------------------------------


@contextmanager
def _shared(pencil: SparsePencil, keep: Keep, folder: Path | None) -> Iterator[Path]:
    """A folder with the pencil, in which workers find it."""
    with tempfile.TemporaryDirectory(prefix="pencil-", dir=folder) as scratch:
        place = Path(scratch)
        pencil.save(place)
        np.save(place / "membership.npy", np.zeros((0, 0)) if keep.membership is None else keep.membership)
        (place / "keep.json").write_text(json.dumps({"spin": keep.spin, "vectors": keep.vectors}), encoding="utf-8")
        yield place


def _work(place: str, backend: str, threads: int, task: Task) -> Result:
    torch.set_num_threads(threads)
    pencil, analysis, keep, overlap = _worker(place, backend)
    overlap.require_positive(task.k_frac)
    return task.run(pencil, analysis, keep)


@lru_cache(maxsize=1)
def _worker(place: str, backend: str) -> tuple[SparsePencil, Analysis, Keep, OverlapCheck]:
    """What a worker needs for all its tasks."""
    folder = Path(place)
    pencil = SparsePencil.load(folder)
    membership = np.load(folder / "membership.npy")
    flags = json.loads((folder / "keep.json").read_text(encoding="utf-8"))
    keep = Keep(membership=membership if membership.size else None, **flags)
    return pencil, analyse(pencil, backend), keep, OverlapCheck(pencil, backend)


# -- results on the disk -----------------------------------------------------------------------------------------------


def _identity(pencil: SparsePencil, keep: Keep) -> dict[str, Any]:
    digest = hashlib.sha256()
    for array in pencil.arrays():
        digest.update(np.ascontiguousarray(array).data)
    if keep.membership is not None:
        digest.update(np.ascontiguousarray(keep.membership).data)
    return {"matrices": digest.hexdigest(), "spin": keep.spin, "vectors": keep.vectors}


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make the folder, or check that it is of the same matrices."""
    path = folder / "identity.json"
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise StoreError(
                "not the folder of an unfinished solution", expected="nothing, or what an earlier call left here",
                remedy="move it away, or give another folder", path=folder,
            )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(identity), encoding="utf-8")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    other = [key for key in identity if found.get(key) != identity[key]]
    if other:
        raise StoreError(
            f"results of another call ({', '.join(other)})", expected="those of the same H, S and kinds of results",
            remedy="delete this folder, or give another one", path=folder,
        )  # fmt: skip


def _file(folder: Path, task: Task) -> Path:
    text = json.dumps([type(task).__name__, asdict(task)], sort_keys=True)  # type: ignore[call-overload]
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def _store(folder: Path, task: Task, result: Result) -> None:
    if isinstance(result, States):
        arrays = _arrays(result)
    else:
        arrays = {"count" if isinstance(result, int) else "array": result}
    with replacing(_file(folder, task)) as temporary:
        np.savez(temporary, allow_pickle=False, **arrays)


def _arrays(states: States) -> dict[str, Any]:
    values = {field.name: getattr(states, field.name) for field in fields(states)}
    return {name: value for name, value in values.items() if value is not None}


def _stored(folder: Path, task: Task) -> Result | None:
    path = _file(folder, task)
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as stored:
        if "count" in stored:
            return int(stored["count"])
        if "array" in stored:
            return stored["array"]
        values: dict[str, NDArray] = {name: stored[name] for name in stored.files}
    plain: dict[str, Any] = {name: value.item() if value.ndim == 0 else value for name, value in values.items()}
    return States(**plain)
