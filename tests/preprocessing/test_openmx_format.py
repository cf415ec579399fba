"""Kinds of ``.scfout`` files: byte orders, versions, with and without text and tail, compressed; orbital order."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

from hamnet.errors import ReaderError
from hamnet.harmonics import solid_harmonics
from hamnet.sample import Sample
from openmx_records import find, put, run_file, swapped, without
from preprocessing.readers.compressed import companion, read_buffer, read_text
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.openmx_blocks import _FILE_PLACE, MAX_DEGREE
from preprocessing.readers.openmx_scfout import parse_scfout
from preprocessing.readers.protocol import ReadOptions

READER = OpenMXReader()
RUNS = ("nibr2_unpolarised", "nibr2_1x1_nc", "nibr2_v38_nc", "nibr2_v40_nc", "nibr2_v40_collinear")
COMPRESS = {
    ".gz": lambda data: gzip.compress(data, 1),
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": lambda data: zstandard.ZstdCompressor(level=1).compress(data),
}


def copy(folder: Path, into: Path) -> Path:
    """A folder of its own; the tracked one is shared."""
    return Path(shutil.copytree(folder, into / folder.name))


def operators(sample: Sample) -> list[torch.Tensor]:
    parts = [sample.overlap, sample.hamiltonian, sample.density, *(sample.position or ()), *(sample.momentum or ())]
    return [block for operator in parts if operator is not None for block in operator.blocks]


def assert_same(a: Sample, b: Sample) -> None:
    assert len(operators(a)) == len(operators(b))
    assert all(torch.equal(x, y) for x, y in zip(operators(a), operators(b), strict=True))
    assert np.array_equal(a.structure.positions, b.structure.positions)
    assert (a.fermi_energy_ev, a.total_energy_ev, a.n_electrons) == (
        b.fermi_energy_ev,
        b.total_energy_ev,
        b.n_electrons,
    )


# -- byte order, versions, text, tail --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_opposite_byte_order_reads_the_same(name, tracked, tmp_path):
    folder = copy(tracked(f"openmx/{name}"), tmp_path)
    before = READER.read(folder, ReadOptions()).sample
    run_file(folder).write_bytes(swapped(run_file(folder).read_bytes()))
    after = READER.read(folder, ReadOptions()).sample
    assert_same(before, after)
    assert (before.provenance["byte_order"], after.provenance["byte_order"]) == ("little", "big")


def as_version_0(data: bytes) -> bytes:
    """An unpolarised file of version 3 as 3.8 would have written it."""
    old = without(data, "order_max", "OLPmo", "iDM", "HVxc")
    return old[:4] + bytes(4) + old[8:]


def test_unpolarised_version_0_is_told_from_its_byte_swapped_twin(tracked):
    # Its code word is 0 in both byte orders: only the sizes tell.
    path = run_file(tracked("openmx/nibr2_unpolarised"))
    data = as_version_0(path.read_bytes())
    for content, order in ((data, "little"), (swapped(data), "big")):
        raw = parse_scfout(content, path)
        assert (raw.version, raw.spin_switch, raw.byte_order) == (0, 0, order)


@pytest.mark.parametrize("name", ["nibr2_1x1_nc", "nibr2_v40_nc", "nibr2_v38_nc"])
def test_file_without_text_takes_species_from_the_output_beside(name, tracked, tmp_path):
    folder = copy(tracked(f"openmx/{name}"), tmp_path)
    before = READER.read(folder, ReadOptions()).sample
    data = run_file(folder).read_bytes()
    run_file(folder).write_bytes(without(data, "lines", "text"))
    after = READER.read(folder, ReadOptions()).sample
    assert_same(before, after)
    assert any("taken from nibr2.out" in w for w in after.provenance["warnings"])


def test_file_without_text_and_output_takes_the_input_file_of_its_name(tracked, tmp_path):
    folder = copy(tracked("openmx/nibr2_1x1_nc"), tmp_path)
    before = READER.read(folder, ReadOptions()).sample
    data = run_file(folder).read_bytes()
    run_file(folder).write_bytes(without(data, "lines", "text", "HVxc"))
    (folder / "nibr2.out").unlink()
    (folder / "other.dat").write_text("System.Name other\n")
    run = READER.read(folder, ReadOptions(operators=frozenset({"position"})))
    assert run.sample.hamiltonian is not None
    assert before.hamiltonian is not None
    assert run.sample.hamiltonian.max_abs_difference(before.hamiltonian) == 0
    assert any("openmx.dat without proof" in w for w in run.sample.provenance["warnings"])
    assert run.sample.total_energy_ev is None
    assert run.printed_moments is None


def test_file_without_any_text_tells_what_to_put_beside_it(tracked, tmp_path):
    data = run_file(tracked("openmx/nibr2_1x1_nc")).read_bytes()
    (tmp_path / "nibr2.scfout").write_bytes(without(data, "lines", "text"))
    with pytest.raises(ReaderError, match=r"Put the run's nibr2\.out or its input file"):
        READER.read(tmp_path, ReadOptions())


def test_rubbish_behind_the_end_of_a_text_record_is_not_read(tracked, tmp_path):
    folder = copy(tracked("openmx/nibr2_unpolarised"), tmp_path)
    data = bytearray(run_file(folder).read_bytes())
    text = find(bytes(data), "text")
    for start in range(text.offset, text.end, 256):
        nul = data.index(0, start, start + 256)
        data[nul + 1 : start + 256] = b"<Definition.of.Atomic.Species\n"[: start + 255 - nul].ljust(start + 255 - nul)
    raw = parse_scfout(bytes(data), run_file(folder))
    assert raw.text == parse_scfout(run_file(folder).read_bytes(), run_file(folder)).text


def test_unused_components_of_four_vectors_may_hold_anything(tracked):
    path = run_file(tracked("openmx/nibr2_unpolarised"))
    data = path.read_bytes()
    before = parse_scfout(data, path)
    for name in ("atv", "tv", "rtv", "Gxyz"):
        data = put(data, name, 4, np.nan)
    data = put(data, "atv_ijk", 4, -310967359)
    after = parse_scfout(data, path)
    assert np.array_equal(before.cell_bohr, after.cell_bohr)
    assert np.array_equal(before.shift, after.shift)


@pytest.mark.parametrize(("code", "version"), [(4, 1), (9, 2), (16, 4), (23, 5)])
def test_other_file_versions_are_refused_with_both_numbers(code, version, tracked):
    path = run_file(tracked("openmx/nibr2_unpolarised"))
    with pytest.raises(ReaderError, match=rf"file version {version}; expected version 3 .* or version 0"):
        parse_scfout(put(path.read_bytes(), "header", 1, code), path)


def test_transport_runs_are_refused(tracked):
    path = run_file(tracked("openmx/nibr2_unpolarised"))
    data = path.read_bytes()
    with pytest.raises(ReaderError, match="NEGF"):
        parse_scfout(put(data, "header", 2, 1), path)
    with pytest.raises(ReaderError, match="NEGF"):
        parse_scfout(put(data, "Solver", 0, 4), path)


def test_momentum_of_a_sign_that_no_release_writes_is_refused(tracked, tmp_path):
    folder = copy(tracked("openmx/nibr2_1x1_nc"), tmp_path)
    data = bytearray(run_file(folder).read_bytes())
    record = find(bytes(data), "OLPmo")
    data[record.offset : record.end] = (-np.frombuffer(data, "<f8", record.size // 8, record.offset)).tobytes()
    run_file(folder).write_bytes(data)
    with pytest.raises(ReaderError, match=r"release 3\.9\.23"):
        READER.read(folder, ReadOptions())
    READER.read(folder, ReadOptions(operators=frozenset({"density"})))


# -- orbital order ---------------------------------------------------------------------------------------------------


def openmx_harmonics(v: np.ndarray) -> list[np.ndarray]:
    """OpenMX's real harmonics with the prefactors of its source, (n, 2l + 1) for l = 0 … 3."""
    x, y, z = (v / np.linalg.norm(v, axis=1, keepdims=True)).T
    one = np.ones_like(x)
    d = 1.09254843059208
    f = {0: 0.373176332590116, 1: 0.457045799464466, 2: 1.44530572132028, 3: 0.590043589926644}
    return [
        np.stack([0.282094791773878 * one], 1),
        0.48860251190292 * np.stack([x, y, z], 1),
        np.stack(
            [0.31539156525252 * (3 * z**2 - 1), 0.54627421529604 * (x**2 - y**2), d * x * y, d * x * z, d * y * z], 1
        ),
        np.stack(
            [
                f[0] * (5 * z**3 - 3 * z),
                f[1] * x * (5 * z**2 - 1),
                f[1] * y * (5 * z**2 - 1),
                f[2] * z * (x**2 - y**2),
                2 * f[2] * x * y * z,
                f[3] * (x**3 - 3 * x * y**2),
                f[3] * (3 * x**2 * y - y**3),
            ],
            1,
        ),
    ]


@pytest.mark.parametrize("l", range(MAX_DEGREE + 1))
def test_permutation_takes_orbitals_of_openmx_to_the_house_harmonics(l):
    v = np.random.default_rng(5).normal(size=(20, 3))
    theirs = openmx_harmonics(v)[l][:, list(_FILE_PLACE[l])]
    house = solid_harmonics(l, torch.from_numpy(v / np.linalg.norm(v, axis=1, keepdims=True)))[l].numpy()
    # House harmonics have Σ_m Y² = 2l + 1, OpenMX's (2l + 1)/4π; the orbitals are the same.
    np.testing.assert_allclose(theirs * np.sqrt(4 * np.pi), house, atol=1e-8)


# -- compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", list(COMPRESS))
def test_compressed_files_read_the_same(suffix, tracked, tmp_path):
    folder = copy(tracked("openmx/nibr2_v40_collinear"), tmp_path)
    before = READER.read(folder, ReadOptions())
    for path in list(folder.iterdir()):
        path.with_name(path.name + suffix).write_bytes(COMPRESS[suffix](path.read_bytes()))
        path.unlink()
    assert READER.recognises(folder)
    after = READER.read(folder, ReadOptions())
    assert_same(before.sample, after.sample)
    # The checksum is that of the content, whatever wraps it.
    assert before.sample.provenance["checksum"] == after.sample.provenance["checksum"]
    assert after.converged
    assert np.array_equal(before.references[0].energies_ev, after.references[0].energies_ev)


@pytest.mark.parametrize("suffix", list(COMPRESS))
def test_several_members_of_a_compressed_file_are_one_content(suffix, tmp_path):
    path = tmp_path / f"x.out{suffix}"
    path.write_bytes(COMPRESS[suffix](b"one ") + COMPRESS[suffix](b"two"))
    assert read_text(path) == "one two"


@pytest.mark.parametrize("suffix", list(COMPRESS))
def test_truncated_compression_is_an_error_at_every_length(suffix, tmp_path):
    path = tmp_path / f"x.scfout{suffix}"
    packed = COMPRESS[suffix](bytes(range(256)) * 40)
    for length in range(1, len(packed)):
        path.write_bytes(packed[:length])
        with pytest.raises(ReaderError, match=r"x\.scfout"):
            read_buffer(path)


@pytest.mark.parametrize("suffix", list(COMPRESS))
def test_damaged_compression_is_an_error(suffix, tmp_path):
    path = tmp_path / f"x.scfout{suffix}"
    packed = COMPRESS[suffix](os.urandom(20_000))
    for content in (b"no compression at all", packed + b"rubbish behind it", b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(ReaderError, match=r"damaged compression|in the middle"):
            read_buffer(path)


@pytest.mark.parametrize("suffix", list(COMPRESS))
def test_a_file_that_grows_out_of_proportion_is_refused(suffix, tmp_path):
    path = tmp_path / f"bomb.scfout{suffix}"
    path.write_bytes(COMPRESS[suffix](bytes(2**27)))
    assert path.stat().st_size < 2**20
    with pytest.raises(ReaderError, match="expand to more than"):
        read_buffer(path)


def test_plain_and_compressed_copy_side_by_side_are_an_error(tmp_path):
    (tmp_path / "x.out").write_text("a")
    (tmp_path / "x.out.gz").write_bytes(gzip.compress(b"b"))
    with pytest.raises(ReaderError, match="stale copy"):
        companion(tmp_path, "x.out")
    assert companion(tmp_path, "y.out") is None


def test_two_binary_files_in_a_folder_are_an_error_unless_one_is_named(tracked, tmp_path):
    folder = copy(tracked("openmx/nibr2_unpolarised"), tmp_path)
    shutil.copy(folder / "nibr2.scfout", folder / "copy.scfout")
    with pytest.raises(ReaderError, match=r"copy\.scfout, nibr2\.scfout; expected one"):
        READER.read(folder, ReadOptions())
    # A renamed file finds the output by the System.Name of its text.
    run = READER.read(folder / "copy.scfout", ReadOptions())
    assert run.converged
    assert run.sample.total_energy_ev is not None
