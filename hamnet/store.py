"""Sample sets on disk: many samples of different sizes and bases in one HDF5 file.

A set is written to a temporary file and renamed when it is complete, so whatever stood under its name stays whole
until then. Pairs and operators lie in the file once for each different content and are named by its hash: samples of
one geometry share their pairs, their overlap and their position operator. ``docs/file_format.md`` describes the layout.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from . import __version__
from .basis import Basis
from .blocks import SPIN_COMPONENTS, BlockOperator, Pairs
from .errors import HamnetError, StoreError
from .sample import Sample
from .store_format import (
    ARRAYS,
    BLOCK_AXES,
    CONVENTIONS,
    FORMAT,
    FORMAT_VERSION,
    NUMBERS,
    OPERATORS,
    PAIR_ARRAYS,
    SAMPLE_ARRAYS,
    STRUCTURE_ARRAYS,
    FieldSpec,
)
from .structure import Structure

__all__ = ["FORMAT", "FORMAT_VERSION", "OPERATORS", "SampleSet", "SampleWriter", "write_samples"]

_CHUNK_BYTES = 2**18
_CACHED = 8
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


# -- writing -----------------------------------------------------------------------------------------------------------


class SampleWriter:
    """Writes a set sample by sample; the file appears under its name when the ``with`` block ends without an error.

    Parameters
    ----------
    path : the file to make or to replace.
    scratch : folder for the unfinished file, on the same file system; default: the folder of `path`.

    Raises
    ------
    StoreError : nothing can be written there, the disk is full, or a name occurs twice.
    BasisError : a species label has another basis than in an earlier sample.
    """

    def __init__(self, path: str | Path, *, scratch: str | Path | None = None) -> None:
        self.path = Path(path)
        self._names: dict[str, None] = {}  # a set that keeps its order
        self._basis = Basis(())
        folder = self.path.parent if scratch is None else Path(scratch)
        with _disk_errors(self.path):
            if self.path.is_dir():
                raise StoreError("a folder", expected="the name of a file to write", path=self.path)
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".tmp", dir=folder)
            self._temporary = Path(name)
            self._disk = _Disk(handle, "rb+")
            self._file: Any = h5py.File(self._disk, "w")  # h5py's own types tell nothing of what a name holds
            self._file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, "code_version": __version__})
            self._file.attrs.update(CONVENTIONS)
            for group in ("samples", "pairs", *OPERATORS):
                self._file.create_group(group)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            with _disk_errors(self.path):
                if kind is None:
                    self._finish()
        finally:
            self._file.close()
            self._disk.close()
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        text = h5py.string_dtype()
        self._file.create_dataset("names", data=list(self._names), dtype=text)
        self._file.create_dataset("basis", data=json.dumps(self._basis.to_dict()), dtype=text)
        self._file.close()
        self._disk.check()
        os.fsync(self._disk.fileno())
        mask = os.umask(0)
        os.umask(mask)
        self._temporary.chmod(0o666 & ~mask)  # mkstemp makes private files
        self._temporary.replace(self.path)

    def add(self, sample: Sample) -> None:
        """Append one sample."""
        self._check_name(sample.name)
        merged = self._basis.merged(_used(sample))
        with _disk_errors(self.path):
            group = self._file["samples"].create_group(f"{len(self._names):06d}")
            group.attrs["name"] = sample.name
            structure = sample.structure
            group.create_dataset("labels", data=list(structure.labels), dtype=h5py.string_dtype())
            for name, spec in ARRAYS.items():
                values = getattr(structure if name in STRUCTURE_ARRAYS else sample, name)
                if values is not None:
                    _describe(group.create_dataset(name, data=np.asarray(values)), spec)
            for name in NUMBERS:
                if getattr(sample, name) is not None:
                    group.attrs[name] = getattr(sample, name)
            group.create_dataset("provenance", data=_json(sample), dtype=h5py.string_dtype())
            pairs = sample.overlap.pairs
            group.attrs["pairs"] = self._write_pairs(pairs, sample.basis)
            for kind, operator in _operators_of(sample):
                if operator.pairs is not pairs and not operator.pairs.equals(pairs):
                    raise StoreError(
                        f"{sample.name}: {kind} has {len(operator.pairs)} pairs, overlap {len(pairs)}",
                        expected="all operators of a sample on the same pairs",
                        remedy="bring them to one set with BlockOperator.with_pairs",
                        path=self.path,
                    )
                group.attrs[kind] = self._write_operator(kind, operator, group.attrs["pairs"])
            self._disk.check()
        self._basis = merged
        self._names[sample.name] = None

    def copy(self, source: SampleSet, key: int | str) -> None:
        """Append a sample of another set as it stands there, without unpacking its arrays."""
        index = source.index(key)
        self._check_name(source.names[index])
        merged = self._basis.merged(source.basis_of(index))
        theirs = source.group(index)
        with _disk_errors(self.path):
            for kind in ("pairs", *OPERATORS):
                reference = theirs.attrs.get(kind)
                if reference is not None and reference not in self._file[kind]:
                    source.file.copy(f"{kind}/{reference}", self._file[kind])
            source.file.copy(theirs, self._file["samples"], name=f"{len(self._names):06d}")
            self._disk.check()
        self._basis = merged
        self._names[source.names[index]] = None

    def _check_name(self, name: str) -> None:
        if name in self._names:
            raise StoreError(
                f"two samples are named {name!r}", expected="one name for each", remedy="rename one", path=self.path
            )

    def _write_pairs(self, pairs: Pairs, basis: Basis) -> str:
        # Only the species that occur: the same pairs then hash alike whatever else the basis holds.
        used, species = np.unique(pairs.species, return_inverse=True)
        labels = json.dumps([basis.labels[s] for s in used])
        arrays = {"species": species.ravel(), "row": pairs.row, "col": pairs.col, "shift": pairs.shift}
        arrays = {name: array.astype(np.int32) for name, array in arrays.items()}
        reference = _content_hash([labels, *arrays.values()])
        if reference not in self._file["pairs"]:
            group = self._file["pairs"].create_group(reference)
            group.attrs["labels"] = labels
            for name, spec in PAIR_ARRAYS.items():
                _describe(_write_array(group, name, arrays[name]), spec)
        return reference

    def _write_operator(self, kind: str, operator: BlockOperator, pairs: str) -> str:
        blocks = [block.detach().cpu().resolve_conj().resolve_neg().numpy() for block in operator.blocks]
        reference = _content_hash([pairs, *blocks])
        if reference not in self._file[kind]:
            group = self._file[kind].create_group(reference)
            group.attrs.update({"pairs": pairs, "components": " ".join(SPIN_COMPONENTS[operator.n_spin])})
            for number, (block, pair_group) in enumerate(zip(blocks, operator.pairs.groups, strict=True)):
                dataset = _write_array(group, str(number), block)
                _describe(dataset, FieldSpec(BLOCK_AXES, OPERATORS[kind]))
                dataset.attrs["row_species"] = operator.basis[pair_group.row_species].label
                dataset.attrs["col_species"] = operator.basis[pair_group.col_species].label
        return reference


def write_samples(path: str | Path, samples: Iterable[Sample]) -> None:
    """Write a set, one sample in memory at a time. See :class:`SampleWriter` for what it raises."""
    with SampleWriter(path) as writer:
        for sample in samples:
            writer.add(sample)


def _used(sample: Sample) -> Basis:
    return sample.basis.restricted(sample.basis.labels[s] for s in set(sample.overlap.pairs.species.tolist()))


def _operators_of(sample: Sample) -> Iterator[tuple[str, BlockOperator]]:
    for kind in ("overlap", "hamiltonian", "density", "position", "momentum"):
        value = getattr(sample, kind)
        if isinstance(value, BlockOperator):
            yield kind, value
        elif value is not None:
            yield from zip((f"{kind}_x", f"{kind}_y", f"{kind}_z"), value, strict=True)


def _json(sample: Sample) -> str:
    try:
        return json.dumps(sample.provenance, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{sample.name}: provenance: {error}", expected="values that JSON can hold") from error


def _content_hash(parts: Iterable[str | NDArray]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:32]


def _describe(dataset: h5py.Dataset, spec: FieldSpec) -> None:
    dataset.attrs.update({"axes": spec.axes, "unit": spec.unit})


def _write_array(group: Any, name: str, array: NDArray) -> h5py.Dataset:
    """Chunked along the first axis so that a range of pairs is read alone; checksummed, so that damage is seen."""
    if array.size == 0:
        return group.create_dataset(name, data=array)
    rows = max(1, _CHUNK_BYTES * len(array) // array.nbytes)
    return group.create_dataset(
        name,
        data=array,
        chunks=(min(rows, len(array)), *array.shape[1:]),
        shuffle=True,
        compression="gzip",
        compression_opts=1,
        fletcher32=True,
    )


class _Disk(io.FileIO):
    """The file under HDF5, which forgets that a write failed, or crashes: this keeps the error for :meth:`check`."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data)
        try:
            while view and self.failure is None:
                view = view[super().write(view) :]
        except OSError as error:
            self.failure = error
        return len(data)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            if self.failure is None:
                return super().truncate(size)
        except OSError as error:
            self.failure = error
        return size or 0

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in _DISK_FULL
        raise StoreError(
            f"no space left on the disk ({error.strerror})" if full else f"cannot be written ({error})",
            expected="" if full else "a folder that exists and may be written to",
            remedy=("free some space or write elsewhere, then run the same command again; " if full else "")
            + "what stood here before is untouched",
            path=path,
        ) from error


# -- reading -----------------------------------------------------------------------------------------------------------


class SampleSet:
    """A set on disk, read sample by sample when asked.

    All samples share one `basis`, the merged one of the file. The object can be sent to other processes and used in
    forked ones: each opens the file for itself.

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
        """One sample, with all that is stored of it."""
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
                overlap=self._shared("overlap", group.attrs["overlap"], lambda: self._operator(group, "overlap")),
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

        `operator` is a name of :data:`OPERATORS`, species are labels, `pairs` counts inside the group.
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
        blocks = tuple(torch.from_numpy(stored[str(number)][()]) for number in range(len(pairs.groups)))
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


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
