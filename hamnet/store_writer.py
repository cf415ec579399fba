"""Writing a sample set: whole or not at all. See :mod:`hamnet.store`."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from . import __version__
from .basis import Basis
from .blocks import SPIN_COMPONENTS, BlockOperator, Pairs
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
    STRUCTURE_ARRAYS,
    TEXTS,
    FieldSpec,
)

if TYPE_CHECKING:
    from .store import SampleSet

__all__ = ["SampleWriter", "write_samples"]

_CHUNK_BYTES = 2**18
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
        self._check_name(sample.name)
        merged = self._basis.merged(_used(sample))
        with _disk_errors(self.path):
            group = self._file["samples"].create_group(f"{len(self._names):06d}")
            group.attrs["name"] = sample.name
            structure = sample.structure
            _write_text(group, "labels", list(structure.labels))
            for name, spec in ARRAYS.items():
                values = getattr(structure if name in STRUCTURE_ARRAYS else sample, name)
                if values is not None:
                    _describe(group.create_dataset(name, data=np.asarray(values)), spec)
            for name in NUMBERS:
                if getattr(sample, name) is not None:
                    group.attrs[name] = getattr(sample, name)
            _write_text(group, "provenance", _json(sample.provenance, f"{sample.name}: provenance"))
            pairs = sample.pairs
            group.attrs["pairs"] = self._write_pairs(pairs, sample.basis)
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
    return sample.basis.restricted(sample.basis.labels[s] for s in set(sample.pairs.species.tolist()))


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
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:32]


def _describe(dataset: h5py.Dataset, spec: FieldSpec) -> None:
    dataset.attrs.update({"axes": spec.axes, "unit": spec.unit})


def _write_text(group: Any, name: str, text: str | list[str]) -> None:
    _describe(group.create_dataset(name, data=text, dtype=h5py.string_dtype()), TEXTS[name])


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
