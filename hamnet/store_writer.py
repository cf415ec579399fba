"""Writing a sample set: whole or not at all. See :mod:`hamnet.store`."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from . import __version__
from .basis import Basis
from .blocks import SPIN_COMPONENTS, BlockOperator, Group, Pairs
from .errors import StoreError
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
    TEXTS,
    FieldSpec,
)
from .structure import Structure

if TYPE_CHECKING:
    from .store import SampleSet

__all__ = ["BlockStream", "SampleWriter", "disk_errors", "write_samples"]

_CHUNK_BYTES = 2**18
_PORTION_BYTES = 2**22
"""Blocks of a stream that are in memory at once."""
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class BlockStream:
    """An operator that is written portion by portion and never in memory as a whole.

    n_spin : Pauli components. dtype : of the blocks.
    read : ``read(group, pairs)`` gives (n, n_spin, n_row, n_col); `pairs` is a slice, counted inside the group.
    compressed : False for numbers of a network, which hardly shrink.
    """

    n_spin: int
    dtype: np.dtype
    read: Callable[[int, slice], NDArray]
    compressed: bool = True


class SampleWriter:
    """Writes a set sample by sample; the file appears under its name when the ``with`` block ends without an error.

    Parameters
    ----------
    path : the file to make or to replace.
    scratch : folder for the unfinished file, on the same file system; default: the folder of `path`.

    Attributes
    ----------
    notes : what to keep about the set as a whole; JSON values.

    Raises
    ------
    StoreError : nothing can be written there, the disk is full, or a name occurs twice.
    BasisError : a species label has another basis than in an earlier sample.
    """

    def __init__(self, path: str | Path, *, scratch: str | Path | None = None) -> None:
        self.path = Path(path)
        self.notes: dict[str, Any] = {}
        self._names: dict[str, None] = {}  # a set that keeps its order
        self._basis = Basis(())
        folder = self.path.parent if scratch is None else Path(scratch)
        with disk_errors(self.path):
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
            with disk_errors(self.path):
                if kind is None:
                    self._finish()
        finally:
            self._file.close()
            self._disk.close()
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        _write_text(self._file, "names", list(self._names))
        _write_text(self._file, "basis", json.dumps(self._basis.to_dict()))
        _write_text(self._file, "notes", _json(self.notes, "notes"))
        self._file.close()
        self._disk.check()
        os.fsync(self._disk.fileno())
        mask = os.umask(0)
        os.umask(mask)
        self._temporary.chmod(0o666 & ~mask)  # mkstemp makes private files
        self._temporary.replace(self.path)

    def add(self, sample: Sample) -> None:
        """Append one sample."""
        pairs = sample.pairs
        arrays = {name: getattr(sample, name) for name in SAMPLE_ARRAYS}
        numbers = {name: getattr(sample, name) for name in NUMBERS}
        with self._sample(sample.name, sample.structure, sample.basis, pairs, sample.provenance, numbers) as group:
            _write_arrays(group, arrays)
            first = "hamiltonian" if sample.overlap is None else "overlap"
            for kind, operator in _operators_of(sample):
                if operator.pairs is not pairs and not operator.pairs.equals(pairs):
                    raise StoreError(
                        f"{sample.name}: {kind} has {len(operator.pairs)} pairs, {first} {len(pairs)}",
                        expected="all operators of a sample on the same pairs",
                        remedy="bring them to one set with BlockOperator.with_pairs",
                        path=self.path,
                    )
                group.attrs[kind] = self._write_operator(kind, operator, group.attrs["pairs"])

    def add_streams(
        self,
        name: str,
        structure: Structure,
        basis: Basis,
        pairs: Pairs,
        streams: Mapping[str, BlockStream],
        *,
        provenance: dict[str, Any],
        numbers: Mapping[str, float | bool | None],
    ) -> None:
        """Append one sample whose operators (`streams`, by name) do not fit into memory.

        `numbers` are those of :data:`hamnet.store_format.NUMBERS` that are known. The file is that of :meth:`add`.
        """
        with self._sample(name, structure, basis, pairs, provenance, numbers) as group:
            for kind, stream in streams.items():
                group.attrs[kind] = self._write_stream(kind, stream, pairs, basis, group.attrs["pairs"])

    @contextmanager
    def _sample(
        self,
        name: str,
        structure: Structure,
        basis: Basis,
        pairs: Pairs,
        provenance: dict[str, Any],
        numbers: Mapping[str, float | bool | None],
    ) -> Iterator[Any]:
        """The group of a new sample with all but its operators; it counts when the ``with`` block ends well."""
        self._check_name(name)
        merged = self._basis.merged(basis.restricted(basis.labels[s] for s in set(pairs.species.tolist())))
        with disk_errors(self.path):
            group = self._file["samples"].create_group(f"{len(self._names):06d}")
            group.attrs["name"] = name
            _write_text(group, "labels", list(structure.labels))
            _write_arrays(group, {key: getattr(structure, key) for key in STRUCTURE_ARRAYS})
            group.attrs.update({key: value for key, value in numbers.items() if value is not None})
            _write_text(group, "provenance", _json(provenance, f"{name}: provenance"))
            group.attrs["pairs"] = self._write_pairs(pairs, basis)
            yield group
            self._disk.check()
        self._basis = merged
        self._names[name] = None

    def copy(self, source: SampleSet, key: int | str) -> None:
        """Append a sample of another set as it stands there, without unpacking its arrays."""
        index = source.index(key)
        self._check_name(source.names[index])
        merged = self._basis.merged(source.basis_of(index))
        theirs = source.group(index)
        with disk_errors(self.path):
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
            group = self._operator_group(kind, reference, pairs, operator.n_spin)
            for number, (block, pair_group) in enumerate(zip(blocks, operator.pairs.groups, strict=True)):
                dataset = _write_array(group, str(number), block)
                _describe_blocks(dataset, kind, pair_group, operator.basis)
        return reference

    def _write_stream(self, kind: str, stream: BlockStream, pairs: Pairs, basis: Basis, reference: str) -> str:
        # Its name, the hash of its content, is known at the end; it is that of the same operator in memory.
        group = self._operator_group(kind, "unfinished", reference, stream.n_spin)
        digest = hashlib.sha256(reference.encode())
        for number, pair_group in enumerate(pairs.groups):
            n_row, n_col = (basis[s].n_orbitals for s in (pair_group.row_species, pair_group.col_species))
            shape = (pair_group.pairs.stop - pair_group.pairs.start, stream.n_spin, n_row, n_col)
            dataset = _create_array(group, str(number), shape, stream.dtype, compressed=stream.compressed)
            _describe_blocks(dataset, kind, pair_group, basis)
            digest.update(_array_head(stream.dtype, shape))
            # Whole chunks: one that is written twice is packed twice.
            row_bytes = stream.dtype.itemsize * int(np.prod(shape[1:]))
            rows = dataset.chunks[0] * max(1, _PORTION_BYTES // (dataset.chunks[0] * row_bytes))
            for start in range(0, shape[0], rows):
                here = slice(start, min(start + rows, shape[0]))
                values = np.ascontiguousarray(stream.read(number, here), dtype=stream.dtype)
                dataset[here] = values
                digest.update(values.data)
                self._disk.check()
        name = digest.hexdigest()[:32]
        if name in self._file[kind]:
            del self._file[kind]["unfinished"]
        else:
            self._file[kind].move("unfinished", name)
        return name

    def _operator_group(self, kind: str, name: str, pairs: str, n_spin: int) -> Any:
        group = self._file[kind].create_group(name)
        group.attrs.update({"pairs": pairs, "components": " ".join(SPIN_COMPONENTS[n_spin])})
        return group


def write_samples(path: str | Path, samples: Iterable[Sample]) -> None:
    """Write a set, one sample in memory at a time. See :class:`SampleWriter` for what it raises."""
    with SampleWriter(path) as writer:
        for sample in samples:
            writer.add(sample)


def _operators_of(sample: Sample) -> Iterator[tuple[str, BlockOperator]]:
    for kind in ("overlap", "hamiltonian", "density", "position", "momentum"):
        value = getattr(sample, kind)
        if isinstance(value, BlockOperator):
            yield kind, value
        elif value is not None:
            yield from zip((f"{kind}_x", f"{kind}_y", f"{kind}_z"), value, strict=True)


def _json(values: dict[str, Any], what: str) -> str:
    try:
        return json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{what}: {error}", expected="values that JSON can hold") from error


def _content_hash(parts: Iterable[str | NDArray]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(_array_head(part.dtype, part.shape))
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:32]


def _array_head(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    return f"{dtype.str}{shape}".encode()


def _describe(dataset: h5py.Dataset, spec: FieldSpec) -> None:
    dataset.attrs.update({"axes": spec.axes, "unit": spec.unit})


def _describe_blocks(dataset: h5py.Dataset, kind: str, group: Group, basis: Basis) -> None:
    _describe(dataset, FieldSpec(BLOCK_AXES, OPERATORS[kind]))
    dataset.attrs["row_species"] = basis[group.row_species].label
    dataset.attrs["col_species"] = basis[group.col_species].label


def _write_arrays(group: Any, arrays: Mapping[str, NDArray | None]) -> None:
    """The arrays that a sample has."""
    for name, values in arrays.items():
        if values is not None:
            _describe(group.create_dataset(name, data=np.asarray(values)), ARRAYS[name])


def _write_text(group: Any, name: str, text: str | list[str]) -> None:
    _describe(group.create_dataset(name, data=text, dtype=h5py.string_dtype()), TEXTS[name])


def _write_array(group: Any, name: str, array: NDArray) -> Any:
    dataset = _create_array(group, name, array.shape, array.dtype)
    if array.size:
        dataset[...] = array
    return dataset


def _create_array(group: Any, name: str, shape: tuple[int, ...], dtype: np.dtype, *, compressed: bool = True) -> Any:
    """Chunked along the first axis so that a range of pairs is read alone; checksummed, so that damage is seen."""
    if 0 in shape:
        return group.create_dataset(name, shape=shape, dtype=dtype)
    rows = max(1, _CHUNK_BYTES // (dtype.itemsize * int(np.prod(shape[1:]))))
    packing = {"shuffle": True, "compression": "gzip", "compression_opts": 1} if compressed else {}
    chunks = (min(rows, shape[0]), *shape[1:])
    return group.create_dataset(name, shape=shape, dtype=dtype, chunks=chunks, fletcher32=True, **packing)


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
def disk_errors(path: Path, *, kept: str = "what stood here before is untouched") -> Iterator[None]:
    """Errors of the system while `path` is written, as :class:`StoreError`; `kept` says what they leave whole."""
    try:
        yield
    except OSError as error:
        full = error.errno in _DISK_FULL
        raise StoreError(
            f"no space left on the disk ({error.strerror})" if full else f"cannot be written ({error})",
            expected="" if full else "a folder that exists and may be written to",
            remedy=("free some space or write elsewhere, then run the same command again; " if full else "") + kept,
            path=path,
        ) from error
