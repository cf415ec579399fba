"""Readers of DFT codes, and which of them a folder is for.

A new code is one module with a class of the shape of :class:`preprocessing.readers.protocol.Reader` and one line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from hamnet.errors import ReaderError

from .compressed import files_ending
from .protocol import Reader, ReadOptions, Run

__all__ = ["CODES", "find_runs", "read_run", "reader_of", "readers"]

CODES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "preprocessing.readers.openmx:OpenMXReader": ("OpenMX", "*.scfout"),
        "preprocessing.readers.siesta:SiestaReader": ("SIESTA", "*.HSX"),
    }
)
"""Reader class → name of the code, and the file that a run must have."""

_TRACES = (".scfout", ".std", ".dat", ".HSX", ".fdf", ".out")
"""Files that betray a run, also one that failed."""

_SOUGHT = " or ".join(f"a run of {name} ({pattern})" for name, pattern in CODES.values())


@cache
def readers() -> tuple[Reader, ...]:
    """One reader of each code, imported when first asked for."""
    return tuple(getattr(import_module(module), name)() for module, name in (c.split(":") for c in CODES))


def reader_of(path: str | Path) -> Reader:
    """The reader for a run folder (or main output file).

    Raises :class:`ReaderError` where there is nothing, nothing known, or output of two codes.
    """
    path = Path(path)
    if not path.exists():
        raise ReaderError("no such file or folder", expected=_SOUGHT, path=path)
    found = [reader for reader in readers() if reader.recognises(path)]
    if len(found) > 1:
        raise ReaderError(
            f"output of {' and '.join(reader.code for reader in found)}",
            expected="one run in a folder",
            remedy="put each run into a folder of its own",
            path=path,
        )
    if not found:
        empty = path.is_dir() and not any(path.iterdir())
        raise ReaderError(
            "an empty folder" if empty else "no output of a known DFT code",
            expected=_SOUGHT,
            remedy="" if empty else "keep the files that the code wrote together, and check that the run finished",
            path=path,
        )
    return found[0]


def read_run(path: str | Path, options: ReadOptions | None = None) -> Run:
    """Read one run of whichever code wrote it."""
    return reader_of(path).read(Path(path), options or ReadOptions())


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Run folders at or below the given ones, sorted, each once.

    A folder counts as a run if it holds input or output of a code, whether or not it can be read; folders inside a run
    are left alone. A path below which there is no run is returned itself, so that reading it tells what is wrong.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        below = list(_runs_below(path)) if path.is_dir() else []
        for run in below or [path]:
            found.setdefault(run.resolve(), run.absolute())
    return sorted(found.values(), key=lambda run: run.parts)


def _runs_below(folder: Path) -> Iterator[Path]:
    if any(files_ending(folder, ending) for ending in _TRACES):
        yield folder
        return
    try:
        entries = list(folder.iterdir())
    except PermissionError:
        yield folder
        return
    inside = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not entries:
        yield folder  # a run that never started
    for entry in inside:
        yield from _runs_below(entry)
