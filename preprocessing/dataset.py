"""Many DFT runs into one sample set: in parallel, with reasons for what is left out, and to be taken up after a kill.

Each run becomes a part, a set of one sample in ``<output>.parts``, named by a hash of the run's path, of the sizes and
times of its files, and of the options. When all parts are there, the set is put together and the parts are deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hamnet import __version__
from hamnet.basis import Basis, SpeciesBasis
from hamnet.errors import BasisError, StoreError
from hamnet.sample import Sample
from hamnet.store import FORMAT_VERSION, SampleSet, SampleWriter, may_be_replaced, write_samples

from .checks import describe_error, non_finite
from .pool import completed
from .readers import find_runs, read_run
from .readers.protocol import ReadOptions, Run

__all__ = ["Rejected", "SetReport", "build_set"]

OPERATORS = ("density", "position", "momentum")
"""Operators that a set may hold besides H and S."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A run that is not in the set, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class SetReport:
    """What became of the runs.

    Attributes
    ----------
    output : the set; written only if there is a good run.
    names : samples of the set, in its order.
    rejected : runs that are not in it.
    reused : samples that an earlier, interrupted call had finished.
    unchanged : the set was there already, made from the same runs with the same options; nothing was done.
    """

    output: Path
    names: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    reused: int = 0
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class _Task:
    path: Path
    name: str
    options: ReadOptions
    part: Path
    n_bytes: int


def build_set(
    paths: Iterable[str | Path],
    output: str | Path,
    options: ReadOptions | None = None,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> SetReport:
    """Read the runs at or below `paths` and write them as one set.

    Parameters
    ----------
    paths : run folders, or folders of run folders. A sample is named by its path from the common parent of all runs.
    output : the HDF5 file; one that is there is replaced when the new one is complete.
    options : as for the readers. Default: only H and S are stored.
    jobs : processes; each holds one run in memory.
    progress : called with (what is being done, runs done, runs in all).

    A run is rejected, and the others go on, if it cannot be read, is not converged, holds numbers that are not finite,
    comes from another code than most, has another basis for a species than most, or is the same calculation as an
    earlier one.

    Raises
    ------
    StoreError : `output` is something else than a sample set, cannot be written, or is being written by another call.
    HamnetError : a worker was killed.
    """
    output, options = Path(output), options or ReadOptions(operators=frozenset())
    tell = progress or (lambda *_: None)
    if not may_be_replaced(output):
        raise StoreError(
            "a file that is not a sample set",
            expected="a new name, or a set to replace",
            remedy="remove it first or choose another name",
            path=output,
        )
    parts = output.with_name(output.name + ".parts")
    tasks = _tasks(find_runs(paths), options, parts)
    report = _existing(output, tasks)
    if report is not None:
        shutil.rmtree(parts, ignore_errors=True)  # left by a kill between the last two steps
        return report
    with _only_writer(parts, output):
        waiting = [task for task in tasks if not _finished(task.part)]
        size = f"{len(tasks)} runs, {sum(task.n_bytes for task in tasks) / 1e6:.0f} MB of files"
        tell(size, len(tasks) - len(waiting), len(tasks))
        refused: dict[str, str] = {}
        for done, (index, reason) in enumerate(completed(_make_part, waiting, jobs), 1):
            if reason is not None:
                refused[waiting[index].name] = reason
            tell(size, len(tasks) - len(waiting) + done, len(tasks))
        names, rejected = _merge(tasks, refused, output, parts)
        if names:
            shutil.rmtree(parts)
    return SetReport(output, names, rejected, reused=len(tasks) - len(waiting))


def _tasks(runs: list[Path], options: ReadOptions, parts: Path) -> list[_Task]:
    parent = os.path.commonpath([run.parent for run in runs])
    tasks = []
    for run in runs:
        files = sorted(f for f in (run.iterdir() if run.is_dir() else [run]) if f.is_file())
        stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        name = run.relative_to(parent).as_posix()
        choices = [options.constraint, options.moments, sorted(options.operators)]
        identity = json.dumps([str(run), name, stats, choices, __version__, FORMAT_VERSION])
        part = parts / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.h5"
        tasks.append(_Task(run, name, options, part, sum(size for _, size, _ in stats)))
    return tasks


def _made_from(tasks: list[_Task]) -> dict[str, str]:
    return {task.name: task.part.stem for task in tasks}


def _existing(output: Path, tasks: list[_Task]) -> SetReport | None:
    """The report of a set that was made from the same runs with the same options."""
    if not _finished(output):
        return None
    with SampleSet(output) as old:
        if old.notes.get("made_from") != _made_from(tasks):
            return None
        rejected = tuple(Rejected(**entry) for entry in old.notes["rejected"])
        return SetReport(output, old.names, rejected, unchanged=True)


def _finished(path: Path) -> bool:
    try:
        SampleSet(path).close()
    except StoreError:
        return False
    return True


@contextmanager
def _only_writer(parts: Path, output: Path) -> Iterator[None]:
    """The folder of parts, locked: two calls for one output would delete each other's parts."""
    try:
        parts.mkdir(exist_ok=True)
        handle = (parts / "lock").open("w")
    except OSError as error:
        raise StoreError(
            f"cannot be written ({error.strerror})", expected="a folder that exists and may be written to", path=output
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                "another call is writing this set",
                expected="one at a time",
                remedy="wait for it or choose another name",
                path=output,
            ) from error
        yield


def _make_part(task: _Task) -> str | None:
    """Read one run and store it; the reason if it is refused."""
    try:
        run = read_run(task.path, task.options)
        reason = _refusal(run)
    except Exception as error:  # noqa: BLE001 – whatever is wrong with one run must not cost the others
        return describe_error(error)
    if reason is None:
        write_samples(task.part, [_chosen(run.sample, task)])
    return reason


def _chosen(sample: Sample, task: _Task) -> Sample:
    left_out = {kind: None for kind in OPERATORS if kind not in task.options.operators}
    return replace(sample, name=task.name, **left_out)


def _refusal(run: Run) -> str | None:
    if not run.converged:
        return f"not converged: {run.convergence}"
    sample = run.sample
    others = {f"{kind}_{axis}": operator for kind in ("position", "momentum") for axis, operator in _axes(sample, kind)}
    return non_finite(overlap=sample.overlap, hamiltonian=sample.hamiltonian, density=sample.density, **others)


def _axes(sample: Sample, kind: str):
    return zip("xyz", getattr(sample, kind) or (None, None, None), strict=True)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What decides whether a readable run fits the others."""

    code: str
    checksum: str
    basis: Basis


def _facts(part: Path) -> _Facts:
    with SampleSet(part) as single:
        provenance = single.provenance(0)
        return _Facts(provenance["code"], json.dumps(provenance["checksum"], sort_keys=True), single.basis)


def _misfits(facts: dict[str, _Facts]) -> dict[str, str]:
    """Reasons for the runs that do not fit the others: another code or basis than most, or the same calculation."""
    code = Counter(f.code for f in facts.values()).most_common(1)[0][0]
    usual: dict[str, SpeciesBasis] = {}
    counted = Counter(s for f in facts.values() if f.code == code for s in f.basis.species)
    for species, _ in counted.most_common():
        usual.setdefault(species.label, species)
    reasons: dict[str, str] = {}
    first: dict[str, str] = {}
    for name, fact in facts.items():
        if fact.code != code:
            reasons[name] = f"{fact.code} run in a set of {code} runs; make one set for each code"
            continue
        try:
            Basis(tuple(usual[label] for label in fact.basis.labels)).merged(fact.basis)
        except BasisError as error:
            reasons[name] = describe_error(error)
            continue
        if first.setdefault(fact.checksum, name) != name:
            reasons[name] = f"the same calculation as {first[fact.checksum]}"
    return reasons


def _merge(
    tasks: list[_Task], refused: dict[str, str], output: Path, parts: Path
) -> tuple[tuple[str, ...], tuple[Rejected, ...]]:
    """Put the parts together in the order of the runs; nothing is written if there is no good one."""
    facts = {task.name: _facts(task.part) for task in tasks if task.name not in refused}
    reasons = {**refused, **(_misfits(facts) if facts else {})}
    rejected = tuple(Rejected(str(task.path), reasons[task.name]) for task in tasks if task.name in reasons)
    good = [task for task in tasks if task.name not in reasons]
    if good:
        with SampleWriter(output, scratch=parts) as writer:
            for task in good:
                with SampleSet(task.part) as part:
                    writer.copy(part, 0)
            writer.notes = {
                "made_from": _made_from(tasks),
                "rejected": [{"path": entry.path, "reason": entry.reason} for entry in rejected],
            }
    return tuple(task.name for task in good), rejected
