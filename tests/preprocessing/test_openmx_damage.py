"""A damaged OpenMX file gives a ReaderError or, where only numbers were hit, a sample; no crash, no hang, no big
allocation."""

from __future__ import annotations

import shutil
import time
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hamnet.errors import ReaderError
from openmx_records import find, put, records, run_file
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.openmx_output import read_band, read_out, read_std
from preprocessing.readers.openmx_scfout import parse_scfout
from preprocessing.readers.protocol import ReadOptions

READER = OpenMXReader()
MOST_BYTES_PER_BYTE = 6
"""Memory while reading, over the size of the file: a sound file needs 4 for matrices, index arrays, operators."""
MOST_SECONDS = 5.0
INTEGERS = ("header", "order_max", "atv_ijk", "Total_NumOrbs", "FNAN", "natn", "ncn", "Solver", "lines")


def deterministic(max_examples: int):
    """The same examples in each run: a failure can be repeated anywhere."""
    return settings(
        max_examples=max_examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


class Target(NamedTuple):
    """A file that the tests overwrite, in a folder of its own, and the sound content."""

    path: Path
    content: bytes

    def __repr__(self) -> str:
        return f"Target({self.path})"  # not a megabyte of bytes in each report of a failure


@pytest.fixture(scope="module", params=["nibr2_unpolarised", "nibr2_v38_nc"])
def damaged(request, tracked, tmp_path_factory) -> Target:
    folder = tracked(f"openmx/{request.param}")
    copy = Path(shutil.copytree(folder, tmp_path_factory.mktemp("damage") / folder.name))
    return Target(run_file(copy), run_file(folder).read_bytes())


def outcome(path: Path, content: bytes) -> ReaderError | None:
    """The error of reading this content, within bounds of memory and time; None where a sample came out."""
    path.write_bytes(content)
    limit = MOST_BYTES_PER_BYTE * len(content) + 2**21
    # Threads and late imports of the process may allocate meanwhile: what exceeds the bound twice is the reader's.
    for _ in range(2):
        fault = None
        tracemalloc.start()
        begin = time.perf_counter()
        try:
            READER.read(path, ReadOptions())
        except ReaderError as error:
            fault = error
        finally:
            seconds, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        if peak < limit and seconds < MOST_SECONDS:
            break
    assert seconds < MOST_SECONDS
    assert peak < limit
    assert fault is None or str(path.parent) in str(fault)
    return fault


def test_sound_file_stays_within_the_bounds(damaged):
    path, content = damaged
    assert outcome(path, content) is None


def test_truncation_at_every_record_border_is_an_error_that_names_the_place(damaged):
    path, content = damaged
    found = records(content)
    # The writer itself ends a file behind the numbers or behind the text, as other releases do.
    complete = {r.end for r in found if r.name in ("numbers", "text")} | {len(content)}
    borders = {r.end for r in found} | {r.offset for r in found}
    cuts = {border + step for border in borders for step in (-8, -4, -1, 0, 1, 4)}
    for cut in sorted(c for c in cuts if 0 <= c < len(content) and c not in complete):
        error = outcome(path, content[:cut])
        assert error is not None, f"cut at byte {cut}"
        assert "byte" in str(error) or cut == 0


@deterministic(100)
@given(data=st.data())
def test_truncation_anywhere_is_an_error(damaged, data):
    path, content = damaged
    complete = {r.end for r in records(content) if r.name in ("numbers", "text")}
    cut = data.draw(st.integers(0, len(content) - 1).filter(lambda c: c not in complete))
    assert outcome(path, content[:cut]) is not None


@deterministic(50)
@given(extra=st.integers(1, 5000))
def test_bytes_behind_the_end_are_an_error(damaged, extra):
    path, content = damaged
    assert outcome(path, content + bytes(extra)) is not None


@deterministic(250)
@given(data=st.data())
def test_flipped_bits_give_an_error_or_a_sample(damaged, data):
    path, content = damaged
    record = data.draw(st.sampled_from([r for r in records(content) if r.size]))
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[record.offset + data.draw(st.integers(0, record.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    outcome(path, bytes(changed))


@deterministic(250)
@given(data=st.data())
def test_wrong_and_huge_counts_give_an_error_or_a_sample(damaged, data):
    path, content = damaged
    record = data.draw(st.sampled_from([r for r in records(content) if r.name in INTEGERS]))
    index = data.draw(st.integers(0, record.size // 4 - 1))
    before = int(np.frombuffer(content, "<i4", 1, record.offset + 4 * index)[0])
    extremes = [-(2**31), -1, 0, 1, before - 1, before + 1, 2 * before, 1000, 10**6, 2**28, 2**31 - 1]
    value = data.draw(st.one_of(st.sampled_from(extremes), st.integers(-(2**31), 2**31 - 1)))
    outcome(path, put(content, record.name, index, max(min(value, 2**31 - 1), -(2**31))))


@pytest.mark.parametrize("name", ["Total_NumOrbs", "FNAN", "natn", "ncn", "lines"])
def test_a_changed_count_is_always_noticed(name, damaged):
    path, content = damaged
    record = find(content, name)
    rng = np.random.default_rng(3)
    for index in rng.integers(0, record.size // 4, 20):
        before = int(np.frombuffer(content, "<i4", 1, record.offset + 4 * int(index))[0])
        for value in (before + 1, before - 1, -before - 1, 2**31 - 1):
            assert outcome(path, put(content, name, int(index), value)) is not None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_none_are_found_with_their_record(value, damaged):
    path, content = damaged
    for record in records(content):
        if record.kind == "f8" and record.name not in ("HVxc", "numbers"):
            error = outcome(path, put(content, record.name, 5, value))
            assert error is not None
            assert f"record {record.name}" in str(error)


@deterministic(120)
@given(content=st.binary(min_size=1, max_size=4000))
def test_random_bytes_are_no_run(content, tmp_path):
    assert outcome(tmp_path / "x.scfout", content) is not None


@deterministic(150)
@given(
    rest=st.binary(max_size=2000), n=st.integers(1, 40), reach=st.integers(0, 2), code=st.sampled_from([0, 1, 3, 12])
)
def test_random_bytes_behind_a_good_header_are_no_run(tmp_path, rest, n, reach, code):
    header = np.array([n, code, 0, 0, 0, (2 * reach + 1) ** 3 - 1, 1], "<i4").tobytes()
    assert outcome(tmp_path / "x.scfout", header + rest) is not None


@deterministic(120)
@given(data=st.data())
def test_changed_input_text_gives_an_error_or_a_sample(damaged, data):
    path, content = damaged
    text = find(content, "text")
    changed = bytearray(content)
    line = data.draw(st.integers(0, text.size // 256 - 1))
    new = data.draw(st.one_of(st.binary(max_size=60), st.text("0123456789.-+eEonf <>#\t", max_size=60).map(str.encode)))
    start = text.offset + 256 * line + data.draw(st.integers(0, 30))
    changed[start : start + len(new)] = new
    outcome(path, bytes(changed))


@deterministic(250)
@given(data=st.data())
def test_damaged_printed_files_give_an_error_or_their_numbers(tracked, tmp_path, data):
    folder = tracked("openmx/nibr2_v40_nc")
    name, read = data.draw(
        st.sampled_from(
            [
                ("nibr2.out", lambda path: read_out(path, 3, 3)),
                ("nibr2.Band", lambda path: read_band(path, 58, 1)),
                ("openmx.std", read_std),
            ]
        )
    )
    content = bytearray((folder / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[: at + 1]
    else:
        new = data.draw(st.binary(min_size=1, max_size=8))
        content[at : at + len(new)] = new
    path = tmp_path / name
    path.write_bytes(content)
    fault = None
    try:
        read(path)
    except ReaderError as error:
        fault = error
    assert fault is None or name in str(fault)


def test_every_fault_of_the_binary_file_tells_file_record_and_byte(damaged):
    path, content = damaged
    with pytest.raises(ReaderError) as caught:
        parse_scfout(put(content, "natn", 0, 3), path)
    natn = find(content, "natn")
    assert str(caught.value).startswith(
        f"{path}, record natn at byte {natn.offset}: the list of atom 1 begins with atom 3"
    )
    assert "expected the atom itself" in str(caught.value)
