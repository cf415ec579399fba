"""The folder of an unfinished prediction: arrays that are written row by row, and which rows are there.

Rows are written with plain writes into files of full length (holes until then), by any process that sees the folder. A
row counts as finished only after its data have reached the disk: a kill, and a loss of power, leave what was finished.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import StoreError

__all__ = ["create_rows", "finish_rows", "finished_rows", "load_array", "partial_folder", "save_array", "write_rows"]

_IDENTITY = "identity.json"
_LOCK = "lock"


@contextmanager
def partial_folder(folder: Path, identity: Mapping[str, str]) -> Iterator[None]:
    """Take `folder` for this process, made new or as a killed run of the same `identity` left it.

    It stays when the ``with`` block ends with an error, unless nothing in it is finished.

    Raises :class:`StoreError` where another process is at work in it, or where it holds something else.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / _LOCK).exists() or not any(folder.iterdir()))):
        raise StoreError(
            "not the folder of an unfinished prediction",
            expected="nothing, or what `hamnet predict` left here",
            remedy="move it away, or give another --output",
            path=folder,
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                "another process is at work here",
                expected="one process for one output",
                remedy="wait for it, or give another --output",
                path=folder,
            ) from error
        _check_identity(folder, identity)
        try:
            yield
        except BaseException:
            if not _anything_finished(folder):
                shutil.rmtree(folder)
            raise


def _check_identity(folder: Path, identity: Mapping[str, str]) -> None:
    path = folder / _IDENTITY
    if path.exists() and _anything_finished(folder):
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key in {**identity, **found} if found.get(key) != identity.get(key)]
        if other:
            raise StoreError(
                f"an unfinished prediction with another {', '.join(other)}",
                expected="the command that began it",
                remedy="repeat that command, delete this folder, or give another --output",
                path=folder,
            )
        return
    # New, or killed before anything was finished: nothing in it is of use.
    for inside in folder.iterdir():
        if inside.name != _LOCK:
            inside.unlink()
    temporary = folder / f"{_IDENTITY}.tmp"
    temporary.write_text(json.dumps(dict(identity)), encoding="utf-8")
    temporary.replace(path)


def _anything_finished(folder: Path) -> bool:
    return any(b"\1" in flags.read_bytes() for flags in folder.glob("*.done"))


def save_array(folder: Path, name: str, values: NDArray) -> None:
    """An array that does not change any more."""
    np.save(folder / f"{name}.npy", values)


def load_array(folder: Path, name: str) -> NDArray:
    """An array of the folder; only what is indexed is read into memory."""
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def create_rows(folder: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """An array whose rows are to come, unless it is there already."""
    data, flags = folder / f"{name}.npy", folder / f"{name}.done"
    if flags.exists():
        return
    np.lib.format.open_memmap(data, mode="w+", dtype=dtype, shape=shape)
    temporary = folder / f"{name}.done.tmp"
    temporary.write_bytes(bytes(shape[0]))
    temporary.replace(flags)


def write_rows(folder: Path, name: str, start: int, values: NDArray) -> None:
    """Write rows from `start` on. An error of the system (a full disk) is an OSError."""
    path = folder / f"{name}.npy"
    mapped = np.load(path, mmap_mode="r")
    values = np.ascontiguousarray(values, dtype=mapped.dtype)
    assert values.shape[1:] == mapped.shape[1:]
    assert start + len(values) <= len(mapped)
    # Not through the map: a full disk would end the process without a word.
    with path.open("r+b") as file:
        file.seek(mapped.offset + start * values[:1].nbytes)
        file.write(values.data)


def finish_rows(folder: Path, name: str, start: int, stop: int) -> None:
    """Bring the rows `start` to `stop` to the disk, and say that they are there."""
    for path, place, data in (
        (folder / f"{name}.npy", 0, b""),
        (folder / f"{name}.done", start, b"\1" * (stop - start)),
    ):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def finished_rows(folder: Path, name: str) -> NDArray[np.bool_]:
    """(n,) which rows are there."""
    return np.fromfile(folder / f"{name}.done", dtype=np.bool_)
