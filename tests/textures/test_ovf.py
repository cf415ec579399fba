"""OVF files, and fields between their nodes."""

from __future__ import annotations

import numpy as np
import pytest

from hamnet.errors import ReaderError
from hamnet.structure import Structure
from hamnet.textures.ovf import (
    VectorField,
    index_by_fraction,
    index_by_length,
    index_by_site,
    read_ovf,
    sample_field,
)

HEADER = """# OOMMF OVF 2.0
#
# Segment count: 1
#
# Begin: Segment
# Begin: Header
# Title: m
# meshtype: rectangular
# meshunit: {unit}
# xmin: 0
# ymin: 0
# zmin: 0
# xmax: 3e-9
# ymax: 1e-9
# zmax: 2e-9
# valuedim: 3
# valuelabels: m_x m_y m_z
# valueunits: 1 1 1
## a comment with a colon: nothing
# Desc: Total simulation time:  0  s
# xbase: 5e-10 ## first node
# ybase: 2.5e-10
# zbase: 1e-9
# xnodes: 3
# ynodes: 2
# znodes: 1
# xstepsize: 1e-9
# ystepsize: 5e-10
# zstepsize: 2e-9
# End: Header
# Begin: Data {form}
"""
VALUES = np.random.default_rng(7).normal(size=(3, 2, 1, 3))


def _ovf(form: str, *, order: str = "<", unit: str = "m", check: float | None = None) -> bytes:
    """An OVF 2.0 file as the specification says, x running fastest."""
    values = VALUES.transpose(2, 1, 0, 3).reshape(-1, 3)
    head = HEADER.format(unit=unit, form=form).encode()
    tail = f"\n# End: Data {form}\n# End: Segment\n".encode()
    if form == "Text":
        return head + "\n".join(" ".join(f"{v:.17g}" for v in row) for row in values).encode() + tail
    if form == "CSV":
        return head + ",\n".join(", ".join(f"{v:.17g}" for v in row) for row in values).encode() + tail
    size = int(form[-1])
    known = {4: 1234567.0, 8: 123456789012345.0}[size] if check is None else check
    return head + np.concatenate([[known], values.ravel()]).astype(f"{order}f{size}").tobytes() + tail


@pytest.mark.parametrize(
    ("form", "order", "tolerance"),
    [("Text", "<", 0), ("CSV", "<", 0), ("Binary 4", "<", 1e-6), ("Binary 8", "<", 0), ("Binary 8", ">", 0)],
)
def test_ovf_files_of_all_forms_give_the_field_that_was_written(tmp_path, form, order, tolerance):
    path = tmp_path / "m.ovf"
    path.write_bytes(_ovf(form, order=order))
    field = read_ovf(path)
    np.testing.assert_allclose(field.values, VALUES, rtol=0, atol=tolerance)
    np.testing.assert_allclose(field.base_ang, [5, 2.5, 10])
    np.testing.assert_allclose(field.step_ang, [10, 5, 20])
    assert field.title == "m"


def test_check_value_of_the_specification_is_the_one_in_the_file():
    assert np.float32(1234567.0).tobytes()[::-1].hex() == "4996b438"
    assert np.float64(123456789012345.0).tobytes()[::-1].hex() == "42dc12218377de40"


def test_one_segment_of_several_is_chosen_by_its_number(tmp_path):
    path, data = tmp_path / "chain.ovf", _ovf("Binary 8")
    first, rest = data.split(b"# Begin: Segment", 1)
    path.write_bytes(first + b"# Begin: Segment" + rest + b"# Begin: Segment" + rest.replace(b"Title: m", b"Title: n"))
    assert [read_ovf(path, number).title for number in (1, 2)] == ["m", "n"]
    with pytest.raises(ReaderError, match="2 segments; expected the number of one"):
        read_ovf(path)
    with pytest.raises(ReaderError, match="none with the number 3"):
        read_ovf(path, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.replace(b"OVF 2.0", b"OVF 1.0"), "expected '# OOMMF OVF 2.0'"),
        (lambda d: d.replace(b"rectangular", b"irregular"), "meshtype irregular; expected rectangular"),
        (lambda d: d.replace(b"valuedim: 3", b"valuedim: 1"), "values of dimension 1; expected 3"),
        (lambda d: d.replace(b"# xnodes: 3\n", b""), "no xnodes in the header"),
        (lambda d: d.replace(b"xnodes: 3", b"xnodes: three"), "xnodes: 'three' in the header"),
        (lambda d: d.replace(b"xnodes: 3", b"xnodes: 0"), "at least one along each axis"),
        (lambda d: d[:-120], "bytes of data; expected 152"),
        (lambda d: d.replace(b"Data Binary 8\n", b"Data Binary 6\n", 1), "expected text, binary 4 or binary 8"),
        (lambda d: d.split(b"# Begin: Data")[0], "a header without data"),
        (lambda d: b"# OOMMF OVF 2.0\n", "0 segments"),
        (lambda d: _ovf("Binary 8", check=1.0), "a wrong check value"),
        (lambda d: _ovf("Text").replace(b"\n# End: Data", b" 1\n# End: Data"), "19 numbers of data; expected 18"),
        (lambda d: _ovf("Text").replace(b"\n# End: Data", b"x\n# End: Data"), "could not convert"),
    ],
)  # fmt: skip
def test_damaged_or_other_field_files_are_refused(tmp_path, change, message):
    path = tmp_path / "m.ovf"
    path.write_bytes(change(_ovf("Binary 8")))
    with pytest.raises(ReaderError) as error:
        read_ovf(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def _field(values: np.ndarray, step: float = 10.0) -> VectorField:
    return VectorField(values, np.full(3, step / 2), np.full(3, step), "")


def test_field_is_linear_between_nodes_exact_on_them_and_repeats():
    values = np.random.default_rng(8).normal(size=(4, 3, 2, 3))
    field = _field(values)
    nodes = np.array(list(np.ndindex(4, 3, 2)))
    for shift in ([0, 0, 0], [4, -3, 2]):
        np.testing.assert_allclose(sample_field(field, nodes + shift), values.reshape(-1, 3), atol=1e-12)
        np.testing.assert_array_equal(sample_field(field, nodes + shift + 0.4, nearest=True), values.reshape(-1, 3))
    middle = sample_field(field, [[3.25, 1, 0]])
    np.testing.assert_allclose(middle, [0.75 * values[3, 1, 0] + 0.25 * values[0, 1, 0]], atol=1e-12)


def test_stretched_field_covers_the_supercell_from_edge_to_edge_and_true_lengths_stay():
    field = _field(np.random.default_rng(9).normal(size=(4, 6, 1, 3)))
    np.testing.assert_allclose(index_by_fraction(field, [[0.125, 0.5, 0.9]]), [[0, 2.5, 0.4]])
    cell = np.diag([40.0, 120.0, 15.0])
    crystal = Structure(cell, [[0, 0, 0]], [28], ("Ni",))  # type: ignore[arg-type]
    np.testing.assert_allclose(index_by_length(field, [[5, 25, 5]], crystal), [[0, 2, 0]])
    longer = Structure(np.diag([48.0, 120.0, 15.0]), [[0, 0, 0]], [28], ("Ni",))  # type: ignore[arg-type]
    with pytest.raises(ReaderError, match=r"40 × 60 × 10 Å on a supercell with the vector \[48\.0"):
        index_by_length(field, [[5, 25, 5]], longer)
    with pytest.raises(ReaderError, match="known unit of length"):
        index_by_length(VectorField(field.values, None, None, ""), [[5, 25, 5]], crystal)


def test_nodes_of_spirit_are_atoms_sites_of_a_cell_first():
    cells = np.array(list(np.ndindex(3, 2, 1))).repeat(2, axis=0)
    sites = np.tile([0, 1], 6)
    field = _field(np.arange(36.0).reshape(6, 2, 1, 3, order="F"))
    index = index_by_site(field, cells, sites, (3, 2, 1))
    np.testing.assert_array_equal(index[:4], [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    with pytest.raises(ReaderError, match="expected 4 × 3 × 1: 2 magnetic atoms in each of 2 × 3 × 1 cells"):
        index_by_site(field, cells, sites, (2, 3, 1))
