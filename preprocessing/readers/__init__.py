"""Readers of DFT codes, and which of them a folder is for.

A new code is one module with a class of the shape of :class:`preprocessing.readers.protocol.Reader` and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from hamnet.errors import ReaderError

from .protocol import Reader, ReadOptions, Run

__all__ = ["CODES", "find_runs", "read_run", "reader_of", "readers"]

CODES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "preprocessing.readers.openmx:OpenMXReader": ("OpenMX", "*.scfout"),
        "preprocessing.readers.siesta:SiestaReader": ("SIESTA", "*.HSX"),
    }
)
"""Reader class → name of the code, and the file that a run must have."""

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
