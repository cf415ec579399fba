"""NetCDF files of SIESTA: the classic format of ``.ion.nc`` and the HDF5-based one of the ``.nc`` of a run.

Read by scipy and h5py, because the NetCDF library itself ends the process on some damaged files.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from hamnet.errors import ReaderError

__all__ = ["NetcdfGroup", "open_netcdf"]

_FILL = 1e36  # NetCDF's fill value of doubles is 9.97e36
_MAX_RATIO = 1000  # of expanded to stored bytes: more is damage
_FREE_BYTES = 2**26
_FAULTS = (OSError, RuntimeError, KeyError, IndexError, AttributeError, ValueError, TypeError, OverflowError)


class NetcdfGroup(Protocol):
    """One group: variables, attributes, groups inside."""

    def has(self, name: str) -> bool:
        """Whether there is a variable of this name."""
        ...

    def array(self, name: str) -> NDArray | None:
        """The values of a variable, or None where room was made for them but they were never written."""
        ...

    def attribute(self, name: str) -> Any:
        """A number or text."""
        ...

    @property
    def groups(self) -> dict[str, NetcdfGroup]:
        """Groups inside; empty in classic files."""
        ...


@contextmanager
def open_netcdf(content: bytes, path: Path) -> Iterator[NetcdfGroup]:
    """The root group of a file given as bytes.

    Whatever the libraries raise inside the ``with`` becomes a :class:`ReaderError` that names the file.
    """
    try:
        if content[:3] == b"CDF":
            yield _Classic(scipy.io.netcdf_file(io.BytesIO(content), "r", mmap=False))
        else:
            with h5py.File(io.BytesIO(content), "r") as file:
                yield _Hdf5(file, max(_FREE_BYTES, _MAX_RATIO * len(content)))
    except _FAULTS as error:
        raise ReaderError(
            f"cannot be read: {type(error).__name__}: {error}",
            expected="a NetCDF file as SIESTA writes it",
            remedy="copy the file again from the folder where SIESTA ran",
            path=path,
        ) from error


def _plain(value: Any) -> Any:
    first = np.asarray(value).ravel()[0]
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else first


def _written(values: NDArray) -> NDArray | None:
    return None if np.issubdtype(values.dtype, np.floating) and (np.abs(values) > _FILL).any() else values


class _Classic:
    def __init__(self, file: scipy.io.netcdf_file) -> None:
        self._file = file

    def has(self, name: str) -> bool:
        return name in self._file.variables

    def array(self, name: str) -> NDArray | None:
        # Stored big-endian.
        values = np.asarray(self._file.variables[name][:])
        return _written(values.astype(values.dtype.newbyteorder("=")))

    def attribute(self, name: str) -> Any:
        value = getattr(self._file, name)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else _plain(value)

    @property
    def groups(self) -> dict[str, NetcdfGroup]:
        return {}


class _Hdf5:
    def __init__(self, group: h5py.Group, largest_bytes: int) -> None:
        self._group = group
        self._largest_bytes = largest_bytes

    def has(self, name: str) -> bool:
        return isinstance(self._group.get(name), h5py.Dataset)

    def array(self, name: str) -> NDArray | None:
        dataset = self._group[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "iuf":
            raise ValueError(f"{name} is not an array of numbers")
        if dataset.nbytes > self._largest_bytes:
            raise ValueError(f"{name} would take {dataset.nbytes} bytes")
        return _written(np.asarray(dataset[...]))

    def attribute(self, name: str) -> Any:
        return _plain(self._group.attrs[name])

    @property
    def groups(self) -> dict[str, NetcdfGroup]:
        return {
            name: _Hdf5(item, self._largest_bytes) for name, item in self._group.items() if isinstance(item, h5py.Group)
        }
