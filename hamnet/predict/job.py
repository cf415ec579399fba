"""Predictions that are larger than memory: tile by tile into a file, on one process or many, resumed after a kill."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamnet import __version__
from hamnet.errors import StoreError
from hamnet.models.hamiltonian import HamiltonianModel
from hamnet.models.io import LoadedModel
from hamnet.sample import Sample
from hamnet.store import BlockStream, SampleWriter, may_be_replaced
from hamnet.store_writer import disk_errors
from hamnet.structure import Structure

from .forecast import (
    LARGEST,
    Forecast,
    Memory,
    Tile,
    Trial,
    directions,
    fitting_tile,
    memory_bytes,
    peak_bytes,
    run_trial,
)
from .partial import create_rows, finish_rows, finished_rows, load_array, partial_folder, save_array
from .prediction import Plan, make_plan
from .stages import Stage, compute_rows
from .tiles import Crystal, HalfPairs
from .workers import ModelFile, spread, workers_hold

__all__ = ["Report", "check_output", "predict_to_file"]

_TASK_S = 2.0
"""A task of a worker takes about so long: what a kill costs, and how often the progress moves."""

_WRITE_BYTES_PER_S = 3e8
"""A guess for the time of the last step, a small part of all."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a prediction was and took.

    seconds : by step: ``structure`` (pairs, overlap, checks), ``features``, ``blocks``, ``file``.
    memory_gb : peak of this process, without its workers.
    """

    forecast: Forecast
    n_electrons: float | None
    has_overlap: bool
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]
    memory_gb: float
    file_bytes: int


def predict_to_file(
    loaded: LoadedModel,
    structure: Structure,
    path: str | Path,
    *,
    source: Sample | None = None,
    name: str | None = None,
    memory_gb: float = 4.0,
    executor: Executor | None = None,
    workers: int = 1,
    tile: Tile | None = None,
    on_forecast: Callable[[Forecast], None] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Predict the Hamiltonian of `structure` and write a sample set with it; its blocks are never all in memory.

    Unfinished work lies in the folder ``PATH.partial``. A call that was killed goes on from there when it is repeated,
    with any tiles, memory and workers; a call with another model, structure, overlap or name is refused.

    Parameters
    ----------
    path : the set to write; a set that stands there is replaced at the end.
    source : where pairs and overlap come from, see :func:`hamnet.predict.make_plan`.
    name : of the sample; default: the stem of `path`.
    memory_gb : limit for all processes together, in units of 2³⁰ bytes. The list of pairs is held in memory.
    executor : any of the kind of ``concurrent.futures`` whose workers see the same files; default: this process.
    workers : how many processes the executor has; they share memory and cores.
    tile : largest tiles; default: those that are fast on the device.
    on_forecast : called once, before the work. on_progress : called with (step, rows finished, rows in all).

    Raises
    ------
    StructureError, ModelError : see :func:`hamnet.predict.make_plan`.
    StoreError : a path that cannot be written or holds something else, a full disk, another unfinished prediction.
    HamnetError : too little memory, or a lost worker; what is finished is kept.
    """
    path = Path(path)
    seconds: dict[str, float] = dict.fromkeys(("structure", "features", "blocks", "file"), 0.0)
    name = path.stem if name is None else name
    folder = path.with_name(f"{path.name}.partial")
    check_output(path)
    with _timed(seconds, "structure"):
        plan = make_plan(loaded, structure, source)
        half = HalfPairs.of(plan.pairs)
        crystal = Crystal.of(plan.structure, half, loaded.model.config.cutoff_ang)
        memory = Memory(memory_bytes(), *workers_hold(executor, workers, loaded, folder))
        largest = tile or LARGEST[loaded.model.edge_species.device.type]
        tile = fitting_tile(loaded.model, crystal, memory, memory_gb, largest)
        trial = run_trial(loaded.model, crystal, half, tile)
        stages = _stages(half, loaded.model, trial, tile)
    with (
        disk_errors(folder, kept=f"what is finished is kept in {folder}"),
        partial_folder(folder, _identity(loaded, plan, crystal, name)),
    ):
        for stage in stages:
            create_rows(folder, stage.name, (stage.n_rows, *stage.shape), stage.dtype)
        if executor is not None:
            for key in Crystal.names():
                save_array(folder, key, getattr(crystal, key))
        forecast = _forecast(folder, plan, stages, trial, tile, memory.total(loaded.model, crystal, tile), workers)
        _check_disk(folder, forecast)
        if on_forecast is not None:
            on_forecast(forecast)
        _compute(folder, stages, loaded, crystal, executor, workers, seconds, on_progress)
        with _timed(seconds, "file"):
            _write(folder, path, name, plan, half, stages, trial, loaded, on_progress)
        shutil.rmtree(folder)
    return Report(
        forecast,
        plan.n_electrons,
        plan.overlap is not None,
        plan.warnings,
        seconds,
        peak_bytes() / 2**30,
        path.stat().st_size,
    )


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] += time.perf_counter() - started


# -- before the work ---------------------------------------------------------------------------------------------------


def check_output(path: Path) -> None:
    """Whether a set can be written there. Raises :class:`StoreError`."""
    if not path.parent.is_dir():
        raise StoreError("no such folder", expected="a folder to write into", path=path.parent)
    if path.is_dir() or not may_be_replaced(path):
        raise StoreError(
            "a folder" if path.is_dir() else "a file that is no sample set",
            expected="the name of a new file, or of a set that may be replaced",
            remedy="give another --output",
            path=path,
        )


def _identity(loaded: LoadedModel, plan: Plan, crystal: Crystal, name: str) -> dict[str, str]:
    """What two calls must share so that one goes on with the other's work."""

    def digest(*arrays: NDArray) -> str:
        total = hashlib.sha256()
        for array in arrays:
            total.update(f"{array.dtype.str}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()

    s = plan.structure
    return {
        "version of hamnet": __version__,
        "model": loaded.checksum,
        "precision": str(loaded.model.edge_species.dtype),
        "structure": digest(s.cell, s.positions, s.numbers, s.pbc, plan.pairs.species),
        "moments": digest(crystal.moments),
        "grid": digest(crystal.grid),
        "pairs": digest(crystal.row, crystal.col, crystal.shift),
        "overlap": str(plan.provenance.get("overlap")),
        "name": name,
    }


def _stages(half: HalfPairs, model: HamiltonianModel, trial: Trial, tile: Tile) -> tuple[Stage, ...]:
    stages, n_orbitals = [], model.basis.n_orbitals

    def task(n: int, seconds: float) -> int:
        return n * max(1, round(_TASK_S / (n * max(seconds, 1e-9))))

    for layer, ((shape, dtype), seconds) in enumerate(zip(trial.features, trial.atom_s, strict=True)):
        known = f"features_{layer - 1}" if layer else None
        sizes = (tile.n_atoms, task(tile.n_atoms, seconds), seconds)
        stages.append(
            Stage(f"features_{layer}", "features", half.pairs.n_atoms, shape, dtype, *sizes, known, layer=layer)
        )
    for group in half.groups:
        a, b, start, stop = group
        shape = (trial.n_spin, int(n_orbitals[a]), int(n_orbitals[b]))
        seconds = trial.pair_s * directions(a, b)
        sizes = (tile.n_pairs, task(tile.n_pairs, seconds), seconds)
        known = f"features_{len(trial.features) - 1}"
        stages.append(Stage(_blocks_name(a, b), "blocks", stop - start, shape, trial.dtype, *sizes, known, group=group))
    return tuple(stages)


def _blocks_name(row_species: int, col_species: int) -> str:
    return f"blocks_{row_species}_{col_species}"


def _forecast(
    folder: Path, plan: Plan, stages: Sequence[Stage], trial: Trial, tile: Tile, memory: int, workers: int
) -> Forecast:
    all_s = sum(stage.n_rows * stage.seconds for stage in stages)
    left_s = sum(float((~finished_rows(folder, stage.name)).sum()) * stage.seconds for stage in stages)
    size = [stage.n_rows * stage.dtype.itemsize * int(np.prod(stage.shape)) for stage in stages]
    # In the file stand both directions of each pair, and the overlap, here as if it were not packed.
    file = 2 * sum(n for n, stage in zip(size, stages, strict=True) if stage.group) + 56 * len(plan.pairs)
    if plan.overlap is not None:
        file += file * 8 // (trial.dtype.itemsize * trial.n_spin)
    return Forecast(
        n_atoms=len(plan.structure),
        n_pairs=len(plan.pairs),
        tile=tile,
        finished=1 - left_s / all_s,
        seconds=left_s / workers + file / _WRITE_BYTES_PER_S,
        memory_gb=memory / 2**30,
        disk_gb=(sum(size) + file) / 2**30,
    )


def _check_disk(folder: Path, forecast: Forecast) -> None:
    there = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    free = (shutil.disk_usage(folder).free + there) / 2**30
    if forecast.disk_gb > free:
        raise StoreError(
            f"{free:.3g} GB free on this disk",
            expected=f"{forecast.disk_gb:.3g} GB for {forecast.n_pairs} pairs",
            remedy="free some space, or write elsewhere",
            path=folder,
        )


# -- the work ----------------------------------------------------------------------------------------------------------


def _compute(
    folder: Path,
    stages: Sequence[Stage],
    loaded: LoadedModel,
    crystal: Crystal,
    executor: Executor | None,
    workers: int,
    seconds: dict[str, float],
    on_progress: Callable[[str, int, int], None] | None,
) -> None:
    """All tiles that are not finished, stage after stage: each reads what the one before wrote."""
    total = {step: sum(s.n_rows for s in stages if s.step == step) for step in ("features", "blocks")}
    finished = dict.fromkeys(total, 0)
    file = ModelFile.of(loaded)
    threads = max(1, (os.cpu_count() or 1) // workers)
    for stage in stages:
        with _timed(seconds, stage.step):
            there = finished_rows(folder, stage.name)
            tasks = _tasks(there, stage)
            finished[stage.step] += stage.n_rows - sum(stop - start for start, stop in tasks)
            if executor is None:
                done = _in_turn(folder, stage, loaded.model, crystal, tasks)
            else:
                done = spread(executor, 2 * workers, tasks, folder.absolute(), stage, file, threads)
            for start, stop in done:
                finish_rows(folder, stage.name, start, stop)
                finished[stage.step] += stop - start
                if on_progress is not None:
                    on_progress(stage.step, finished[stage.step], total[stage.step])


def _tasks(there: NDArray[np.bool_], stage: Stage) -> list[tuple[int, int]]:
    """(start, stop) of rows to compute. Tiles begin at the same rows in every call, so that sums round alike."""
    starts = np.arange(0, stage.n_rows, stage.tile)
    missing = np.flatnonzero(~np.logical_and.reduceat(there, starts))
    # Tiles that follow each other make a task, up to its size.
    per_task = stage.task // stage.tile
    runs = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1)
    parts = [run[a : a + per_task] for run in runs for a in range(0, len(run), per_task)]
    return [(int(starts[p[0]]), min(int(starts[p[-1]]) + stage.tile, stage.n_rows)) for p in parts if len(p)]


def _in_turn(
    folder: Path, stage: Stage, model: HamiltonianModel, crystal: Crystal, tasks: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    for start, stop in tasks:
        compute_rows(folder, stage, model, crystal, start, stop)
        yield start, stop


# -- after the work ----------------------------------------------------------------------------------------------------


def _write(
    folder: Path,
    path: Path,
    name: str,
    plan: Plan,
    half: HalfPairs,
    stages: Sequence[Stage],
    trial: Trial,
    loaded: LoadedModel,
    on_progress: Callable[[str, int, int], None] | None,
) -> None:
    """The sample set: computed blocks and their adjoints in the order of the pairs, and the overlap."""
    written, n_streams = 0, 1 if plan.overlap is None else 2

    def counted(values: NDArray) -> NDArray:
        nonlocal written
        written += len(values)
        if on_progress is not None:
            on_progress("file", written, n_streams * len(plan.pairs))
        return values

    def hamiltonian(group: int, pairs: slice) -> NDArray:
        return counted(_blocks(folder, half, group, pairs))

    streams = {}
    if plan.overlap is not None:
        overlap = plan.overlap
        streams["overlap"] = BlockStream(
            overlap.origin.n_spin,
            overlap.origin.blocks[0].numpy().dtype,
            lambda group, pairs: counted(overlap.blocks(group, pairs).numpy()),
        )
    streams["hamiltonian"] = BlockStream(trial.n_spin, trial.dtype, hamiltonian, compressed=False)
    for left_by_a_kill in folder.glob(f".{path.name}.*.tmp"):
        left_by_a_kill.unlink()
    with SampleWriter(path, scratch=folder) as writer:
        writer.add_streams(
            name,
            plan.structure,
            loaded.model.basis,
            plan.pairs,
            streams,
            provenance=plan.provenance,
            numbers={"n_electrons": plan.n_electrons, "spin_orbit": loaded.trained_on.spin_orbit},
        )


def _blocks(folder: Path, half: HalfPairs, group: int, pairs: slice) -> NDArray:
    """(n, n_spin, n_row, n_col) of some pairs of a group, each as computed or as the adjoint of what was."""
    here = half.pairs.groups[group]
    a, b = sorted((here.row_species, here.col_species))
    start = next(g.start for g in half.groups if (g.row_species, g.col_species) == (a, b))
    place, turned = half.place[here.pairs][pairs] - start, half.adjoint[here.pairs][pairs]
    values = load_array(folder, _blocks_name(a, b))[place]
    if here.row_species > here.col_species:
        return values.swapaxes(-1, -2).conj()
    if here.row_species == here.col_species:
        values[turned] = values[turned].swapaxes(-1, -2).conj()
    return values
