"""The records of a ``.scfout`` file, walked in the plainest way, to cut and change files at known places."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Record(NamedTuple):
    """`kind` is i4, f8 or text; `offset` and `size` in bytes."""

    name: str
    kind: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def records(data: bytes) -> list[Record]:
    """All records of a little-endian file, in order; they cover it without a gap."""
    found: list[Record] = []

    def add(name: str, kind: str, count: int) -> np.ndarray:
        offset = found[-1].end if found else 0
        item = {"i4": 4, "f8": 8, "text": 256}[kind]
        found.append(Record(name, kind, offset, item * count))
        return np.frombuffer(data, "<" + kind if kind != "text" else "u1", count if kind != "text" else 0, offset)

    n, code, *_, copies = (int(w) for w in add("header", "i4", 6))
    version, spin = divmod(code, 4)
    order = int(add("order_max", "i4", 1)[0]) if version == 3 else 1
    add("atv", "f8", 4 * (copies + 1))
    add("atv_ijk", "i4", 4 * (copies + 1))
    orbitals = add("Total_NumOrbs", "i4", n)
    neighbours = add("FNAN", "i4", n) + 1
    natn = add("natn", "i4", int(neighbours.sum()))
    add("ncn", "i4", int(neighbours.sum()))
    for name, count in (("tv", 3), ("rtv", 3), ("Gxyz", n)):
        add(name, "f8", 4 * count)
    block = int((orbitals[np.repeat(np.arange(n), neighbours)] * orbitals[natn - 1]).sum())
    sweeps = {"Hks": spin + 1, "iHks": 3 * (spin == 3), "OLP": 1, "OLPpo": 3 * order}
    sweeps |= {"OLPmo": 3 * (version == 3), "DM": spin + 1, "iDM": 2 * (version == 3)}
    for name, count in sweeps.items():
        if count:
            add(name, "f8", count * block)
    add("Solver", "i4", 1)
    add("numbers", "f8", 10)
    if found[-1].end + 4 <= len(data):
        lines = int(add("lines", "i4", 1)[0])
        add("text", "text", lines)
        if found[-1].end < len(data):
            add("HVxc", "f8", (spin + 1) * block)
    assert found[-1].end == len(data)
    return found


def swapped(data: bytes) -> bytes:
    """The file as a machine of the other byte order writes it."""
    pieces = []
    for record in records(data):
        piece = data[record.offset : record.end]
        pieces.append(piece if record.kind == "text" else np.frombuffer(piece, record.kind).byteswap().tobytes())
    return b"".join(pieces)


def without(data: bytes, *names: str) -> bytes:
    """The file without these records."""
    return b"".join(data[r.offset : r.end] for r in records(data) if r.name not in names)


def find(data: bytes, name: str) -> Record:
    return next(r for r in records(data) if r.name == name)


def put(data: bytes, name: str, index: int, value: float) -> bytes:
    """The file with number `index` of a record replaced."""
    record = find(data, name)
    changed = bytearray(data)
    width = int(record.kind[1])
    at = record.offset + width * index
    changed[at : at + width] = np.array(value, "<" + record.kind).tobytes()
    return bytes(changed)


def run_file(folder: Path) -> Path:
    (path,) = folder.glob("*.scfout")
    return path


def with_text(data: bytes, text: str) -> bytes:
    """The file with another input text embedded, each line in a record of 256 bytes."""
    lines = [line.encode() + b"\n\0" for line in text.splitlines()]
    packed = b"".join(line.ljust(256, b"#") for line in lines)
    here = find(data, "lines")
    return data[: here.offset] + np.int32(len(lines)).tobytes() + packed + data[find(data, "text").end :]
