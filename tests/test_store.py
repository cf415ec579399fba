"""The sample set: kept bit by bit, shared, lazy, and whole or not at all."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import textwrap
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hamnet.basis import Basis
from hamnet.blocks import BlockOperator, Pairs
from hamnet.errors import BasisError, StoreError
from hamnet.sample import Sample
from hamnet.store import FORMAT_VERSION, BlockStream, SampleSet, SampleWriter, may_be_replaced, write_samples
from hamnet.store_format import BLOCK_AXES, NUMBERS, SAMPLE_ARRAYS
from hamnet.symmetry import rotate, time_reverse
from preprocessing.readers import read_run

DOCS = Path(__file__).resolve().parent.parent / "docs" / "file_format.md"


@pytest.fixture(scope="module")
def nibr2(tracked) -> Sample:
    """A non-collinear run with density, position and momentum: everything that a sample can hold."""
    return read_run(tracked("openmx/nibr2_1x1_nc")).sample


@pytest.fixture(scope="module")
def fept(tracked) -> Sample:
    return read_run(tracked("siesta/fept_soc_step")).sample


@pytest.fixture(scope="module")
def reversed_nibr2(nibr2) -> Sample:
    """The same crystal with all moments reversed, as time reversal gives it."""
    assert nibr2.structure.moments is not None
    return replace(
        nibr2,
        name="reversed",
        structure=nibr2.structure.with_moments(-nibr2.structure.moments),
        hamiltonian=time_reverse(nibr2.hamiltonian),
        density=time_reverse(nibr2.density),
    )


@pytest.fixture
def written(tmp_path, nibr2, reversed_nibr2, fept) -> Path:
    path = tmp_path / "set.h5"
    write_samples(path, [nibr2, reversed_nibr2, fept])
    return path


def operators(sample: Sample) -> dict[str, BlockOperator]:
    found = {name: getattr(sample, name) for name in ("overlap", "hamiltonian", "density")}
    for name in ("position", "momentum"):
        found.update({f"{name}_{axis}": op for axis, op in zip("xyz", getattr(sample, name) or (), strict=False)})
    return {name: operator for name, operator in found.items() if operator is not None}


def assert_same(read: Sample, kept: Sample) -> None:
    assert read.name == kept.name
    assert read.provenance == kept.provenance
    mine = read.basis.restricted(kept.basis.labels)
    assert mine == kept.basis
    for field in fields(kept.structure):
        here, there = getattr(read.structure, field.name), getattr(kept.structure, field.name)
        assert type(here) is type(there), field.name
        assert np.array_equal(here, there), field.name
    for name in (*NUMBERS, *SAMPLE_ARRAYS):
        here, there = getattr(read, name), getattr(kept, name)
        assert type(here) is type(there) or float(here) == float(there), name
        assert np.array_equal(here, there), name
    assert operators(read).keys() == operators(kept).keys()
    for name, operator in operators(kept).items():
        same = operators(read)[name]
        assert same.pairs.equals(operator.with_basis(read.basis).pairs), name
        for here, there in zip(same.blocks, operator.blocks, strict=True):
            assert here.dtype == there.dtype, name
            assert torch.equal(here, there), name


def test_every_field_of_every_sample_comes_back_bit_by_bit(written, nibr2, reversed_nibr2, fept):
    assert nibr2.position is not None
    assert nibr2.momentum is not None
    with SampleSet(written) as samples:
        assert samples.names == (nibr2.name, "reversed", fept.name)
        for kept, read in zip((nibr2, reversed_nibr2, fept), samples, strict=True):
            assert_same(read, kept)
            assert read.basis == nibr2.basis.merged(fept.basis)


def test_what_a_sample_lacks_is_absent_after_reading(tmp_path, nibr2):
    bare = Sample("bare", nibr2.structure.with_moments(None), nibr2.basis, nibr2.overlap)
    write_samples(tmp_path / "set.h5", [bare])
    with SampleSet(tmp_path / "set.h5") as samples:
        assert_same(samples[0], bare)
        assert samples[0].hamiltonian is None
        assert samples[0].structure.moments is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_the_file_keeps_precision_and_realness_and_samples_are_read_in_double(tmp_path, nibr2, dtype):
    real = nibr2.hamiltonian.map(lambda block: block.real if not dtype.is_complex else block).to(dtype)
    write_samples(tmp_path / "set.h5", [replace(nibr2, hamiltonian=real)])
    with SampleSet(tmp_path / "set.h5") as samples:
        assert torch.from_numpy(samples.blocks(0, "hamiltonian", "Ni", "Br")).dtype == dtype
        read = samples[0].hamiltonian
        assert read is not None
        wide = torch.complex128 if dtype.is_complex else torch.float64
        assert read.dtype == wide
        assert read.max_abs_difference(real.to(wide)) == 0


def streams_of(sample: Sample) -> dict[str, BlockStream]:
    def stream(operator: BlockOperator) -> BlockStream:
        blocks = [block.numpy() for block in operator.blocks]
        return BlockStream(operator.n_spin, blocks[0].dtype, lambda group, pairs: blocks[group][pairs])

    return {name: stream(operator) for name, operator in operators(sample).items()}


def test_a_streamed_sample_is_the_same_as_one_from_memory(tmp_path, nibr2, monkeypatch):
    monkeypatch.setattr("hamnet.store_writer._PORTION_BYTES", 300_000)  # several portions
    with SampleWriter(tmp_path / "set.h5") as writer:
        writer.add_streams(
            nibr2.name,
            nibr2.structure,
            nibr2.basis,
            nibr2.pairs,
            streams_of(nibr2),
            provenance=nibr2.provenance,
            numbers={name: getattr(nibr2, name) for name in NUMBERS},
        )
        writer.add(replace(nibr2, name="again"))
    with SampleSet(tmp_path / "set.h5") as samples:
        bare = replace(nibr2, **dict.fromkeys(SAMPLE_ARRAYS))
        assert_same(samples[0], bare)
        assert samples[1].overlap is samples[0].overlap, "both have the same hash"
        for kind in ("overlap", "hamiltonian", "position_x"):
            assert len(samples.file[kind]) == 1


def test_a_stream_that_breaks_off_leaves_the_old_set_alone(written, nibr2):
    before = written.read_bytes()

    def broken(group: int, pairs: slice) -> np.ndarray:
        raise KeyboardInterrupt

    streams = {"overlap": BlockStream(1, np.dtype("float64"), broken)}
    with pytest.raises(KeyboardInterrupt), SampleWriter(written) as writer:
        writer.add_streams("x", nibr2.structure, nibr2.basis, nibr2.pairs, streams, provenance={}, numbers={})
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


def test_samples_of_one_geometry_share_pairs_overlap_and_position(written, nibr2):
    with SampleSet(written) as samples:
        assert len(samples.file["pairs"]) == 2
        assert len(samples.file["overlap"]) == 2
        assert len(samples.file["position_x"]) == 1
        assert len(samples.file["hamiltonian"]) == 3
        assert samples[0].overlap is samples[1].overlap


def test_a_turned_crystal_has_an_overlap_of_its_own(tmp_path, nibr2):
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    turned = Sample(
        "turned",
        nibr2.structure.rotated(turn),
        nibr2.basis,
        rotate(nibr2.overlap, turn),
        rotate(nibr2.hamiltonian, turn),
    )
    write_samples(tmp_path / "set.h5", [nibr2, turned])
    with SampleSet(tmp_path / "set.h5") as samples:
        assert len(samples.file["overlap"]) == 2
        assert len(samples.file["pairs"]) == 1
        assert_same(samples["turned"], turned)


def test_a_range_of_pairs_is_read_alone(written, nibr2):
    group = next(n for n, g in enumerate(nibr2.overlap.pairs.groups) if g.row_species != g.col_species)
    row, col = (nibr2.basis[s].label for s in (nibr2.overlap.pairs.groups[group].row_species, 1))
    kept = nibr2.hamiltonian.blocks[group].numpy()
    with SampleSet(written) as samples:
        assert np.array_equal(samples.blocks(nibr2.name, "hamiltonian", row, col, slice(3, 7)), kept[3:7])
        assert np.array_equal(samples.blocks(0, "hamiltonian", row, col), kept)
        assert samples.pairs(0).equals(nibr2.overlap.with_basis(samples.basis).pairs)
        with pytest.raises(StoreError, match=r"no pairs Ni–Pt.*expected one of"):
            samples.blocks(0, "hamiltonian", "Ni", "Pt")
        with pytest.raises(StoreError, match="has no 'charge'; expected one of overlap, hamiltonian"):
            samples.blocks(0, "charge", row, col)


def test_structure_and_provenance_are_read_without_blocks(written, nibr2, monkeypatch):
    with SampleSet(written) as samples:
        monkeypatch.setattr(SampleSet, "_operator", None)
        assert samples.provenance(0) == nibr2.provenance
        assert np.array_equal(samples.structure(-3).positions, nibr2.structure.positions)
        assert samples.basis_of(0) == nibr2.basis


def test_a_set_is_a_sequence_with_names(written):
    with SampleSet(written) as samples:
        assert len(samples) == 3
        assert "reversed" in samples
        assert samples["reversed"].name == samples[1].name == samples[-2].name
        with pytest.raises(IndexError):
            samples[3]
        with pytest.raises(StoreError, match=r"no sample 'r99'; expected one of .*reversed"):
            samples["r99"]
    with pytest.raises(StoreError, match="the set was closed"):
        samples[0]


def test_a_set_can_be_sent_to_another_process_and_used_in_a_forked_one(written):
    with SampleSet(written) as samples:
        assert pickle.loads(pickle.dumps(samples)).names == samples.names  # noqa: S301 – our own bytes
        handle = samples.file
        samples._process = -1  # as a forked process finds it
        assert samples.file is not handle
        handle.close()


def test_copying_from_a_set_gives_the_same_samples(tmp_path, written, nibr2, reversed_nibr2, fept):
    with SampleSet(written) as source, SampleWriter(tmp_path / "copy.h5") as writer:
        writer.copy(source, fept.name)
        writer.copy(source, 0)
        writer.copy(source, 1)
    with SampleSet(tmp_path / "copy.h5") as samples:
        for read, kept in zip(samples, (fept, nibr2, reversed_nibr2), strict=True):
            assert_same(read, kept)
        assert len(samples.file["overlap"]) == 2


def test_the_same_samples_give_the_same_bytes(tmp_path, written, nibr2, reversed_nibr2, fept):
    write_samples(tmp_path / "again.h5", [nibr2, reversed_nibr2, fept])
    assert (tmp_path / "again.h5").read_bytes() == written.read_bytes()


def test_a_species_label_with_two_bases_is_refused(tmp_path, nibr2):
    first, *others = nibr2.basis.species
    changed = Basis((replace(first, shells=(replace(first.shells[0], cutoff_ang=9.9), *first.shells[1:])), *others))

    def with_changed(operator):
        return replace(operator, basis=changed)

    other = Sample("other", nibr2.structure, changed, with_changed(nibr2.overlap), with_changed(nibr2.hamiltonian))
    with pytest.raises(BasisError, match="with two bases"):
        write_samples(tmp_path / "set.h5", [nibr2, other])
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_occurs_twice_is_refused(tmp_path, nibr2):
    with pytest.raises(StoreError, match="two samples are named"):
        write_samples(tmp_path / "set.h5", [nibr2, nibr2])


def test_operators_on_other_pairs_than_the_overlap_are_refused(tmp_path, nibr2):
    atoms = np.arange(len(nibr2.structure))
    alone, _ = Pairs.build(nibr2.overlap.pairs.species, atoms, atoms, np.zeros((len(atoms), 3)))
    with pytest.raises(StoreError, match=r"hamiltonian has 3 pairs, overlap .*with_pairs"):
        write_samples(tmp_path / "set.h5", [replace(nibr2, hamiltonian=nibr2.hamiltonian.with_pairs(alone))])


# -- damage ------------------------------------------------------------------------------------------------------------


def test_an_error_while_writing_leaves_the_old_set_alone(written, nibr2):
    before = written.read_bytes()

    def interrupted():
        yield nibr2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(written, interrupted())
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


@pytest.mark.parametrize("limit_bytes", [4_000, 40_000, 400_000])
def test_a_full_disk_leaves_the_old_set_alone_and_says_what_to_do(written, limit_bytes):
    before = written.read_bytes()
    script = textwrap.dedent(f"""
        import resource, sys
        from hamnet.errors import StoreError
        from hamnet.store import SampleSet, write_samples
        with SampleSet({str(written)!r}) as samples:
            sample = samples[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))
        try:
            write_samples({str(written)!r}, [sample])
        except StoreError as error:
            print(error)
            sys.exit(2)
    """)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "no space left on the disk" in result.stdout
    assert "free some space" in result.stdout.lower()
    assert result.stderr == ""
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


def test_a_killed_writer_leaves_the_old_set_alone(written):
    before = written.read_bytes()
    script = textwrap.dedent(f"""
        import os, signal
        from hamnet.store import SampleSet, SampleWriter
        with SampleSet({str(written)!r}) as samples, SampleWriter({str(written)!r}) as writer:
            writer.add(samples[0])
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert result.returncode == -9
    assert written.read_bytes() == before
    with SampleSet(written) as samples:
        assert len(samples) == 3


def test_a_newer_version_is_refused_with_both_numbers(written):
    with h5py.File(written, "r+") as file:
        file.attrs["format_version"] = FORMAT_VERSION + 1
    with pytest.raises(
        StoreError, match=f"version {FORMAT_VERSION + 1}; expected format version {FORMAT_VERSION}.*newer"
    ):
        SampleSet(written)


def test_an_older_version_is_refused_with_both_numbers(written):
    with h5py.File(written, "r+") as file:
        file.attrs["format_version"] = FORMAT_VERSION - 1
    with pytest.raises(
        StoreError, match=f"version {FORMAT_VERSION - 1}; expected.*{FORMAT_VERSION}.*hamnet preprocess"
    ):
        SampleSet(written)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "a folder; expected a sample set"),
        (lambda path: path.write_text("H = 1"), "not an HDF5 file"),
        (lambda path: path.write_bytes(b""), "not an HDF5 file"),
        (lambda path: h5py.File(path, "w").close(), "an HDF5 file of something else; expected format 'hamnet-samples'"),
    ],
)
def test_a_file_that_is_no_set_is_told_from_a_newer_one(tmp_path, make, message):
    path = tmp_path / "set.h5"
    make(path)
    with pytest.raises(StoreError, match=message) as caught:
        SampleSet(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_reported_as_damaged(written, part):
    whole = written.read_bytes()
    written.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(StoreError, match="damaged"):
        SampleSet(written)
    assert may_be_replaced(written)


def test_changed_bytes_of_a_block_are_noticed(written, nibr2):
    with h5py.File(written, "r") as file:
        reference = file["samples/000000"].attrs["hamiltonian"]
        place = file[f"hamiltonian/{reference}/0"].id.get_chunk_info(0)
    data = bytearray(written.read_bytes())
    data[place.byte_offset + place.size // 2] ^= 0xFF
    written.write_bytes(data)
    with SampleSet(written) as samples:
        assert samples[1].name == "reversed"
        with pytest.raises(StoreError, match="damaged") as caught:
            samples[0]
    assert caught.value.place == nibr2.name


def test_a_set_that_lacks_a_part_is_reported_as_damaged(written):
    with h5py.File(written, "r+") as file:
        del file["pairs"]
    with SampleSet(written) as samples, pytest.raises(StoreError, match="damaged"):
        samples[0]


def test_other_files_may_not_be_replaced(tmp_path, written):
    assert may_be_replaced(written)
    assert may_be_replaced(tmp_path / "new.h5")
    other = tmp_path / "notes.txt"
    other.write_text("important")
    assert not may_be_replaced(other)
    h5py.File(tmp_path / "other.h5", "w").close()
    assert not may_be_replaced(tmp_path / "other.h5")


def test_a_folder_that_is_not_there_is_reported(tmp_path, nibr2):
    with pytest.raises(StoreError, match=r"cannot be written.*No such file"):
        write_samples(tmp_path / "nowhere" / "set.h5", [nibr2])


# -- documentation -----------------------------------------------------------------------------------------------------


def test_the_documented_names_and_units_are_those_of_a_written_file(written, nibr2):
    field_only = replace(
        nibr2,
        name="all fields",
        constraint_field_ev=np.zeros((len(nibr2.structure), 3)),
        forces_ev_per_ang=np.zeros((len(nibr2.structure), 3)),
    )
    write_samples(written, [field_only])
    found: dict[str, tuple[str, str]] = {}
    attributes: set[str] = set()

    def visit(path: str, item: h5py.HLObject) -> None:
        generic = re.sub(r"/[0-9a-f]{32}", "/H", re.sub(r"^samples/\d{6}", "samples/S", path))
        attributes.update(item.attrs)
        if isinstance(item, h5py.Dataset):
            axes, unit = (str(item.attrs[name]) for name in ("axes", "unit"))
            found[re.sub(r"/H/\d+$", "/H/G", generic)] = (axes, unit)

    with h5py.File(written) as file:
        file.visititems(visit)
        attributes.update(file.attrs)

    text = DOCS.read_text()
    documented: dict[str, tuple[str, str]] = {}
    table = text[text.index("| path |") : text.index("Axes `block`")]
    for row in table.splitlines()[2:]:
        names, axes, unit = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:4]) if row else ("", "", "")
        for name in re.findall(r"`([^`]+)`", names):
            documented[name] = (BLOCK_AXES if axes == "block" else axes, unit)
    assert documented == found
    assert BLOCK_AXES in text
    assert {name for name in attributes if f"`{name}`" not in text} == set()
    assert f"`format_version = {FORMAT_VERSION}`" in text
