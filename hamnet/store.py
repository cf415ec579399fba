"""Sample sets on disk: many samples of different sizes and bases in one HDF5 file.

A set is written to a temporary file and renamed when it is complete, so whatever stood under its name stays whole
until then. Pairs and operators lie in the file once for each different content and are named by its hash: samples of
one geometry share their pairs, their overlap and their position operator. ``docs/file_format.md`` describes the layout.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from .basis import Basis
from .blocks import BlockOperator, Pairs
from .errors import HamnetError, StoreError
from .sample import Sample
from .store_format import (
    FORMAT,
    FORMAT_VERSION,
    NUMBERS,
    OPERATORS,
    PAIR_ARRAYS,
    SAMPLE_ARRAYS,
    STRUCTURE_ARRAYS,
)
from .store_writer import BlockStream, SampleWriter, write_samples
from .structure import Structure

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "OPERATORS",
    "BlockStream",
    "SampleSet",
    "SampleWriter",
    "may_be_replaced",
    "write_samples",
]

_CACHED = 8


class SampleSet:
    """A set on disk, read sample by sample when asked.

    All samples share one `basis`, the merged one of the file; `names` and `notes` are those of the set. The object can
    be sent to other processes and used in forked ones: each opens the file for itself.

    >>> with SampleSet("set.h5") as samples:  # doctest: +SKIP
    ...     print(len(samples), samples.names[0], samples[0].hamiltonian)

    Raises :class:`StoreError` where the file is missing, damaged, not a sample set or of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open()
        with self._reading("the list of samples"):
            self.names: tuple[str, ...] = tuple(name.decode() for name in self.file["names"][()])
            self.basis = Basis.from_dict(json.loads(self.file["basis"][()]))
            self.notes: dict[str, Any] = json.loads(self.file["notes"][()])
        self._index = {name: number for number, name in enumerate(self.names)}

    def _open(self) -> None:
        self._file, self._process = _open_set(self.path), os.getpid()
        self._cache: OrderedDict[tuple[str, str], Any] = OrderedDict()

    @property
    def file(self) -> Any:
        """The open HDF5 file."""
        if self._process != os.getpid():
            self._open()  # a forked process must not share the parent's handle
        return self._file

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self):
        return (type(self), (self.path,))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def index(self, key: int | str) -> int:
        """Place of a sample given by place (negative: from the end) or name."""
        if isinstance(key, str):
            if key not in self._index:
                raise StoreError(f"no sample {key!r}", expected=f"one of {_some(self.names)}", path=self.path)
            return self._index[key]
        if not -len(self) <= key < len(self):
            raise IndexError(f"sample {key} of {len(self)}")  # the sequence protocol wants this type
        return int(key) % len(self)

    def group(self, key: int | str) -> Any:
        """HDF5 group of a sample."""
        with self._reading(str(key)):
            return self.file[f"samples/{self.index(key):06d}"]

    def __getitem__(self, key: int | str) -> Sample:
        """One sample, with all that is stored of it; operators in double precision, whatever the file holds."""
        index = self.index(key)
        group, name = self.group(index), self.names[index]
        with self._reading(name):
            triples = {
                kind: tuple(self._operator(group, f"{kind}_{axis}") for axis in "xyz")
                if f"{kind}_x" in group.attrs
                else None
                for kind in ("position", "momentum")
            }
            spin_orbit = group.attrs.get("spin_orbit")
            return Sample(
                name=name,
                structure=self.structure(index),
                basis=self.basis,
                overlap=self._shared("overlap", group.attrs["overlap"], lambda: self._operator(group, "overlap"))
                if "overlap" in group.attrs
                else None,
                hamiltonian=self._operator(group, "hamiltonian") if "hamiltonian" in group.attrs else None,
                density=self._operator(group, "density") if "density" in group.attrs else None,
                **triples,  # type: ignore[arg-type]
                **{key: group[key][()] if key in group else None for key in SAMPLE_ARRAYS},
                **{key: float(group.attrs[key]) if key in group.attrs else None for key in NUMBERS[:-1]},
                spin_orbit=None if spin_orbit is None else bool(spin_orbit),
                provenance=self.provenance(index),
            )

    def structure(self, key: int | str) -> Structure:
        """Structure of a sample, without its blocks."""
        group = self.group(key)
        with self._reading(self.names[self.index(key)]):
            arrays = {name: group[name][()] for name in STRUCTURE_ARRAYS if name in group}
            return Structure(labels=tuple(label.decode() for label in group["labels"][()]), **arrays)

    def provenance(self, key: int | str) -> dict[str, Any]:
        """Where a sample comes from, without its blocks."""
        group = self.group(key)
        with self._reading(self.names[self.index(key)]):
            return json.loads(group["provenance"][()])

    def basis_of(self, key: int | str) -> Basis:
        """The species of one sample."""
        group = self.group(key)
        with self._reading(self.names[self.index(key)]):
            return self.basis.restricted(json.loads(self.file["pairs"][group.attrs["pairs"]].attrs["labels"]))

    def pairs(self, key: int | str) -> Pairs:
        """Pairs of a sample, without its blocks."""
        group = self.group(key)
        with self._reading(self.names[self.index(key)]):
            return self._pairs(group.attrs["pairs"])

    def blocks(
        self, key: int | str, operator: str, row_species: str, col_species: str, pairs: slice = slice(None)
    ) -> NDArray:
        """(n, n_spin, n_row, n_col) of some pairs of one species pair: no other part of the file is read.

        `operator` is a name of :data:`OPERATORS`, species are labels, `pairs` counts inside the group. Their
        dtype is that of the file.
        """
        group = self.group(key)
        name = self.names[self.index(key)]
        if operator not in group.attrs:
            stored = [kind for kind in OPERATORS if kind in group.attrs]
            raise StoreError(f"{name} has no {operator!r}", expected=f"one of {_some(stored)}", path=self.path)
        with self._reading(name):
            kinds = []
            for dataset in self.file[f"{operator}/{group.attrs[operator]}"].values():
                kinds.append((dataset.attrs["row_species"], dataset.attrs["col_species"]))
                if kinds[-1] == (row_species, col_species):
                    return dataset[pairs]
        listed = _some([f"{row}–{col}" for row, col in kinds])
        raise StoreError(
            f"{name} has no pairs {row_species}–{col_species}", expected=f"one of {listed}", path=self.path
        )

    def _pairs(self, reference: str) -> Pairs:
        return self._shared("pairs", reference, lambda: self._read_pairs(reference))

    def _read_pairs(self, reference: str) -> Pairs:
        group = self.file["pairs"][reference]
        arrays = {name: group[name][()] for name in PAIR_ARRAYS}
        place = np.array([self.basis.labels.index(label) for label in json.loads(group.attrs["labels"])])
        # The merged basis is sorted like the sample's own: the canonical order is the same.
        pairs, order = Pairs.build(place[arrays["species"]], arrays["row"], arrays["col"], arrays["shift"])
        if not np.array_equal(order, np.arange(len(order))):
            raise ValueError("pairs are not in canonical order")
        return pairs

    def _operator(self, group: Any, kind: str) -> BlockOperator:
        stored = self.file[kind][group.attrs[kind]]
        pairs = self._pairs(stored.attrs["pairs"])
        blocks = tuple(_wide(torch.from_numpy(stored[str(number)][()])) for number in range(len(pairs.groups)))
        return BlockOperator(self.basis, pairs, blocks)

    def _shared(self, kind: str, reference: str, read: Callable[[], Any]) -> Any:
        """What samples of one geometry share is read once while they follow each other."""
        key = (kind, reference)
        if key not in self._cache:
            self._cache[key] = read()
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    @contextmanager
    def _reading(self, place: str) -> Iterator[None]:
        try:
            yield
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            if not self._file:
                raise StoreError("the set was closed", expected="an open set", path=self.path) from error
            raise StoreError(
                f"damaged ({error})", expected="a complete sample set", remedy=_REMAKE, path=self.path, place=place
            ) from error
        except HamnetError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"damaged ({error.found})", expected=error.expected, path=self.path, place=place
            ) from error


_REMAKE = "make it again with `hamnet preprocess`, or take an undamaged copy"


def may_be_replaced(path: Path) -> bool:
    """Whether a file is a sample set (of any version, even if damaged), or empty, or not there."""
    if not path.exists():
        return True
    try:
        with h5py.File(path, "r", locking=False) as file:
            return file.attrs.get("format") == FORMAT
    except OSError:
        return path.is_file() and (path.stat().st_size == 0 or h5py.is_hdf5(path))


def _open_set(path: Path) -> Any:
    if path.is_dir():
        raise StoreError(
            "a folder", expected="a sample set (HDF5 file)", remedy="make one with `hamnet preprocess`", path=path
        )
    if not path.exists():
        raise StoreError("no such file", expected="a sample set", remedy="make one with `hamnet preprocess`", path=path)
    if not os.access(path, os.R_OK):
        raise StoreError("may not be read", expected="a sample set", remedy="check its permissions", path=path)
    try:
        # A set is never changed once it has its name, so no lock is needed (and some file systems have none).
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        if h5py.is_hdf5(path):
            raise StoreError(
                f"a damaged HDF5 file ({error})", expected="a complete sample set", remedy=_REMAKE, path=path
            ) from error
        raise StoreError(
            "not an HDF5 file", expected="a sample set", remedy="make one with `hamnet preprocess`", path=path
        ) from error
    found: Any = file.attrs.get("format")
    version: Any = file.attrs.get("format_version")
    if found != FORMAT or not isinstance(version, np.integer):
        file.close()
        raise StoreError(
            "an HDF5 file of something else" if found is None else f"format {found!r}",
            expected=f"format {FORMAT!r}",
            remedy="make a sample set with `hamnet preprocess`",
            path=path,
        )
    if version != FORMAT_VERSION:
        file.close()
        newer = version > FORMAT_VERSION
        raise StoreError(
            f"sample set of format version {version}",
            expected=f"format version {FORMAT_VERSION}",
            remedy="it was written by a newer hamnet: update this one" if newer else _REMAKE,
            path=path,
        )
    return file


def _wide(block: torch.Tensor) -> torch.Tensor:
    """In double precision, in which all that follows is computed."""
    return block.to(torch.complex128 if block.is_complex() else torch.float64)


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
