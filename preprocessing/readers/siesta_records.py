"""Fortran unformatted sequential records, as gfortran and ifort write them (32-bit markers, little-endian)."""

from __future__ import annotations

from mmap import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import ReaderError

__all__ = ["Records"]


class Records:
    """A cursor over the records of one file. Sizes are checked against the file before anything is allocated.

    Raises :class:`ReaderError` with the byte offset for whatever is not a record of the size asked for.
    """

    def __init__(self, data: bytes | mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def fail(self, found: str, expected: str) -> ReaderError:
        """The error for a fault at the present place."""
        return ReaderError(
            found,
            expected=expected,
            remedy="the file is damaged or truncated: copy it again, or run SIESTA again",
            path=self._path,
            place=f"byte {self._at}",
        )

    def _marker(self, at: int) -> int:
        return int.from_bytes(self._data[at : at + 4], "little", signed=True)

    def peek_size(self) -> int:
        """Bytes in the next record."""
        size = self._marker(self._at)
        if self._at + 8 > len(self._data):
            raise self.fail(f"the file ends after {len(self._data)} bytes", "another record")
        if size < 0 or self._at + 8 + size > len(self._data):
            swapped = int.from_bytes(self._data[self._at : self._at + 4], "big", signed=True)
            if self._at == 0 and 0 <= swapped <= len(self._data) - 8:
                raise self.fail("big-endian records", "a file of a little-endian machine")
            raise self.fail(f"a record of {size} bytes in a file of {len(self._data)}", "a record that fits")
        return size

    def read(self, dtype: str | np.dtype, count: int, what: str) -> NDArray:
        """The next record as `count` items of `dtype`."""
        dtype = np.dtype(dtype)
        size = self.peek_size()
        if size != count * dtype.itemsize:
            raise self.fail(f"a record of {size} bytes", f"{count * dtype.itemsize} bytes with {what}")
        if self._marker(self._at + 4 + size) != size:
            raise self.fail("a record whose two length markers differ", f"{what}")
        values = np.frombuffer(self._data, dtype, count, self._at + 4)
        self._at += 8 + size
        return values

    def skip(self) -> None:
        """Pass over the next record, whatever it holds."""
        self._at += 8 + self.peek_size()

    def rows(self, dtype: str | np.dtype, counts: NDArray, what: str) -> NDArray:
        """Consecutive records, one per row of a sparse matrix, joined: (sum of counts,).

        Parameters
        ----------
        counts : (n_rows,) items in each record.
        """
        dtype = np.dtype(dtype)
        words = counts.astype(np.int64) * (dtype.itemsize // 4)
        total = int((words + 2).sum())
        if self._at + 4 * total > len(self._data):
            left = len(self._data) - self._at
            raise self.fail(f"{left} bytes left", f"{4 * total} bytes with {what}: {len(counts)} rows")
        everything = np.frombuffer(self._data, "<i4", total, self._at)
        ends = np.cumsum(words + 2)
        starts = ends - words - 2
        if not ((everything[starts] == 4 * words).all() and (everything[ends - 1] == 4 * words).all()):
            wrong = int(np.argmax((everything[starts] != 4 * words) | (everything[ends - 1] != 4 * words)))
            self._at += 4 * int(starts[wrong])
            raise self.fail(f"row {wrong} of {what} of another length", f"{4 * words[wrong]} bytes")
        inside = np.ones(total, dtype=bool)
        inside[starts] = inside[ends - 1] = False
        self._at += 4 * total
        return everything[inside].view(dtype)
