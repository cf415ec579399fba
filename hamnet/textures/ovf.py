"""Vector fields of micromagnetic codes: OVF 2.0 files (OOMMF, mumax3, Spirit) on regular meshes.

The format is that of the OOMMF User's Guide, release 2.0, section "The OVF 2.0 format". Read are text, binary 4 and
binary 8 (the check value decides about the byte order), and the ``csv`` data of Spirit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamnet.errors import ReaderError
from hamnet.structure import Structure, frozen

__all__ = [
    "VectorField",
    "index_by_fraction",
    "index_by_length",
    "index_by_site",
    "read_ovf",
    "sample_field",
]

_CHECK = {4: 1234567.0, 8: 123456789012345.0}
_UNITS_ANG = {"m": 1e10, "mm": 1e7, "um": 1e4, "µm": 1e4, "nm": 10.0, "a": 1.0, "å": 1.0, "ang": 1.0, "angstrom": 1.0}


@dataclass(frozen=True, slots=True, eq=False)
class VectorField:
    """Vectors on a regular mesh.

    Attributes
    ----------
    values : (nx, ny, nz, 3), as in the file.
    base_ang, step_ang : (3,) place of the first node and distance of nodes in Å; None where the file's unit of length
        is none that is known. title : of the segment.
    """

    values: NDArray[np.float64]
    base_ang: NDArray[np.float64] | None
    step_ang: NDArray[np.float64] | None
    title: str

    @property
    def nodes(self) -> NDArray[np.int64]:
        """(3,) along x, y, z."""
        return np.array(self.values.shape[:3])


def read_ovf(path: str | Path, segment: int | None = None) -> VectorField:
    """A segment (counted from 1) of an OVF 2.0 file; without a number the only one.

    Raises :class:`ReaderError` for a file of another format, irregular meshes, values that are not vectors, damage.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReaderError(f"cannot be read ({error.strerror})", expected="an OVF 2.0 file", path=path) from error
    first = data.split(b"\n", 1)[0].decode("latin-1").strip()
    if first.replace(" ", "").lower() not in ("#oommfovf2.0", "#oommfovf2"):
        raise ReaderError(
            f"a file that begins {first[:40]!r}",
            expected="'# OOMMF OVF 2.0'",
            remedy="write the field as OVF 2.0 (mumax3: OutputFormat = OVF2_BINARY; OOMMF: avf2ovf -format b4)",
            path=path,
        )
    fields, place = [], 0
    while (header_end := _find(data, b"end: header", place)) is not None:
        start = _find(data, b"begin: header", place)
        if start is None:
            raise ReaderError("a header that does not begin", expected="'# Begin: Header'", path=path)
        field, place = _segment(data, _header(data[start[1] : header_end[0]]), header_end[1], path, len(fields) + 1)
        fields.append(field)
    if not fields or not 1 <= (segment or 1) <= len(fields) or (segment is None and len(fields) > 1):
        chosen = "" if segment is None else f", none with the number {segment}"
        raise ReaderError(
            f"{len(fields)} segments{chosen}",
            expected=f"the number of one, 1 … {len(fields)}" if fields else "one with a header",
            path=path,
        )
    return fields[(segment or 1) - 1]


def _find(data: bytes, label: bytes, place: int) -> tuple[int, int] | None:
    """(start of the line, start of the next one) of the next header line ``# label``, case and spaces ignored."""
    wanted = label.replace(b" ", b"")
    while (start := data.find(b"#", place)) >= 0:
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        line = data[start + 1 : min(end, start + 200)]
        if line.replace(b" ", b"").replace(b"\t", b"").strip().lower().startswith(wanted):
            return start, end + 1
        place = end + 1
    return None


def _header(block: bytes) -> dict[str, str]:
    """Label → value; case and blanks of labels do not count, ``##`` begins a comment."""
    result = {}
    for line in block.decode("utf-8", errors="replace").splitlines():
        text = line.strip()
        if text.startswith("#") and not text.startswith("##") and ":" in text:
            label, _, value = text[1:].partition("##")[0].partition(":")
            result.setdefault("".join(label.split()).lower(), value.strip())
    return result


def _segment(data: bytes, header: Mapping[str, str], place: int, path: Path, number: int) -> tuple[VectorField, int]:
    """The field behind a header, and the place behind its data."""
    where = f"segment {number}"

    def get(label: str, kind: type) -> float:
        try:
            return kind(header[label])
        except (KeyError, ValueError) as error:
            found = f"{label}: {header[label]!r}" if label in header else f"no {label}"
            raise ReaderError(f"{found} in the header", expected="a number", path=path, place=where) from error

    mesh = header.get("meshtype", "").lower()
    if mesh != "rectangular":
        raise ReaderError(
            f"meshtype {mesh or 'missing'}",
            expected="rectangular: a regular mesh",
            remedy="interpolate the field to a regular mesh first",
            path=path,
            place=where,
        )
    if get("valuedim", int) != 3:
        raise ReaderError(
            f"values of dimension {header['valuedim']}", expected="3: a vector field", path=path, place=where
        )
    nodes = [int(get(f"{axis}nodes", int)) for axis in "xyz"]
    if min(nodes) < 1:
        raise ReaderError(f"{nodes} nodes", expected="at least one along each axis", path=path, place=where)
    begin = _find(data, b"begin: data", place)
    if begin is None:
        raise ReaderError("a header without data", expected="'# Begin: Data'", path=path, place=where)
    words = data[begin[0] : begin[1]].decode("latin-1").lower().partition("data")[2].split()
    values, end = _data(data, begin[1], words, 3 * int(np.prod(nodes)), path, where)
    unit = _UNITS_ANG.get(header.get("meshunit", "").lower())
    base = step = None
    if unit is not None and all(f"{axis}stepsize" in header for axis in "xyz"):
        step = np.array([get(f"{axis}stepsize", float) for axis in "xyz"]) * unit
        if (step <= 0).any():
            step = None
    if step is not None:
        # Without a base the first node is the middle of the first cell.
        corner = np.array([get(f"{axis}min", float) if f"{axis}min" in header else 0.0 for axis in "xyz"])
        given = all(f"{axis}base" in header for axis in "xyz")
        base = (
            np.array([get(f"{axis}base", float) for axis in "xyz"]) * unit if given else corner * unit + step / 2
        )  # fmt: skip
    # x runs fastest in the file.
    values = values.reshape(*nodes[::-1], 3).transpose(2, 1, 0, 3)
    return VectorField(
        frozen(values, np.float64),
        None if base is None else frozen(base, np.float64),
        None if step is None else frozen(step, np.float64),
        header.get("title", ""),
    ), end


def _data(data: bytes, place: int, words: list[str], count: int, path: Path, where: str) -> tuple[NDArray, int]:
    """`count` numbers of a data block that starts at `place`, and the place behind them."""
    if words == ["binary", "4"] or words == ["binary", "8"]:
        size = int(words[1])
        end = place + size * (1 + count)
        if len(data) < end:
            raise ReaderError(
                f"{max(0, len(data) - place)} bytes of data",
                expected=f"{size * (1 + count)}: a check value and {count} numbers",
                remedy="the file is not complete, or was written with Windows line ends",
                path=path,
                place=where,
            )
        for order in "<>":
            numbers = np.frombuffer(data, f"{order}f{size}", 1 + count, place)
            if numbers[0] == _CHECK[size]:
                break
        else:
            raise ReaderError(
                "a wrong check value before the data", expected=f"{_CHECK[size]:.0f}", path=path, place=where
            )
        values = numbers[1:].astype(np.float64)
    elif words in (["text"], ["csv"]):
        closing = _find(data, b"end: data", place)
        end = len(data) if closing is None else closing[0]
        lines = data[place:end].decode("latin-1").replace(",", " ").splitlines()
        try:
            values = np.array([word for line in lines for word in line.partition("#")[0].split()], dtype=np.float64)
        except ValueError as error:
            raise ReaderError(f"{error} in the data", expected="numbers", path=path, place=where) from error
        if len(values) != count:
            raise ReaderError(f"{len(values)} numbers of data", expected=f"{count}", path=path, place=where)
    else:
        raise ReaderError(
            f"data as {' '.join(words) or 'nothing'!r}", expected="text, binary 4 or binary 8", path=path, place=where
        )
    if not np.isfinite(values).all():
        raise ReaderError("values that are not finite", expected="finite numbers", path=path, place=where)
    return values, end


def index_by_fraction(field: VectorField, fractions: ArrayLike) -> NDArray[np.float64]:
    """(n, 3) node indices of points in fractions of a cell over which the mesh is stretched, edge to edge.

    Nodes are the middles of their cells: node i of n stands at the fraction (i + ½)/n.
    """
    return np.asarray(fractions, dtype=np.float64) * field.nodes - 0.5


def index_by_length(field: VectorField, positions: ArrayLike, structure: Structure) -> NDArray[np.float64]:
    """(n, 3) node indices of positions (n, 3) Å, file and structure in one Cartesian frame, in true lengths.

    Raises :class:`ReaderError` without a unit of length, or where the structure does not repeat with the mesh, to half
    a step. Along an axis with one node the field is constant.
    """
    if field.base_ang is None or field.step_ang is None:
        raise ReaderError(
            "a mesh without steps in a known unit of length",
            expected=f"meshunit {', '.join(_UNITS_ANG)} and positive steps",
            remedy="stretch the field over the supercell instead",
        )
    box = field.nodes * field.step_ang
    periods = structure.cell / box
    apart = np.abs(periods - np.rint(periods)) * field.nodes
    wrong = (apart > 0.5) & (field.nodes > 1) & np.asarray(structure.pbc)[:, None]
    if wrong.any():
        row = int(np.argwhere(wrong)[0, 0])
        raise ReaderError(
            f"a mesh of {' × '.join(f'{length:.4g}' for length in box)} Å on a supercell with the vector "
            f"{np.round(structure.cell[row], 3).tolist()} Å",
            expected="lattice vectors that are periods of the mesh, to half a step",
            remedy="choose a supercell of this size, or stretch the field over it",
        )
    return (np.asarray(positions, dtype=np.float64) - field.base_ang) / field.step_ang


def index_by_site(field: VectorField, cells: ArrayLike, site: ArrayLike, size: tuple[int, int, int]) -> NDArray:
    """(n, 3) node indices where each node is an atom, as Spirit writes them: the sites of a cell first, then a, b, c.

    Parameters
    ----------
    cells : (n, 3) cell of each atom. site : (n,) its place among the magnetic atoms of a cell. size : cells along a,
        b, c. Raises :class:`ReaderError` for another number of nodes.
    """
    cells, site = np.asarray(cells), np.asarray(site)
    n_sites = int(site.max()) + 1
    expected = [n_sites * size[0], size[1], size[2]]
    if field.nodes.tolist() != expected:
        raise ReaderError(
            f"{' × '.join(map(str, field.nodes))} nodes",
            expected=f"{' × '.join(map(str, expected))}: {n_sites} magnetic atoms in each of "
            f"{' × '.join(map(str, size))} cells",
        )
    return np.stack([site + n_sites * cells[:, 0], cells[:, 1], cells[:, 2]], axis=1)


def sample_field(field: VectorField, index: ArrayLike, *, nearest: bool = False) -> NDArray[np.float64]:
    """(n, 3) values at fractional node indices (n, 3), the mesh repeated along all axes.

    Trilinear between the eight nodes around each point, or that of the nearest node.
    """
    index, nodes = np.asarray(index, dtype=np.float64), field.nodes
    if nearest:
        i, j, k = (np.rint(index).astype(np.int64) % nodes).T
        return field.values[i, j, k]
    low = np.floor(index).astype(np.int64)
    part = index - low
    result = np.zeros((len(index), 3))
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(corner, part, 1 - part).prod(axis=1)
        i, j, k = ((low + corner) % nodes).T
        result += weight[:, None] * field.values[i, j, k]
    return result
