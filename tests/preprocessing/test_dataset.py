"""Many runs into one set: what gets in, what is left out and why, and what a kill or a full disk leaves."""

from __future__ import annotations

import fcntl
import operator
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import pytest
import torch

from hamnet.errors import HamnetError, StoreError
from hamnet.store import SampleSet
from preprocessing.dataset import SetReport, build_set
from preprocessing.pool import completed
from preprocessing.readers import read_run
from preprocessing.readers.protocol import ReadOptions

NC, UNPOLARISED, STEP = "openmx/nibr2_1x1_nc", "openmx/nibr2_unpolarised", "siesta/fept_soc_step"


@pytest.fixture
def runs(tmp_path, tracked) -> Path:
    """Two good runs of one code and one basis."""
    folder = tmp_path / "runs"
    shutil.copytree(tracked(NC), folder / "soc" / "r0")
    shutil.copytree(tracked(UNPOLARISED), folder / "plain")
    return folder


def reasons(report: SetReport, folder: Path) -> dict[str, str]:
    return {str(Path(entry.path).relative_to(folder)): entry.reason for entry in report.rejected}


def replace_in(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def test_samples_are_named_by_their_place_below_the_common_parent(runs, tmp_path):
    report = build_set([runs], tmp_path / "set.h5")
    assert report.names == ("plain", "soc/r0")
    assert report.rejected == ()
    with SampleSet(report.output) as samples:
        assert samples.names == report.names
        assert samples["plain"].spin == "none"
        assert samples["soc/r0"].spin == "vector"


def test_runs_given_one_by_one_or_twice_make_the_same_set(runs, tmp_path):
    whole = build_set([runs], tmp_path / "whole.h5")
    single = build_set([runs / "soc" / "r0", runs / "plain", runs], tmp_path / "single.h5")
    assert whole.names == single.names
    assert whole.output.read_bytes() == single.output.read_bytes()


def test_only_h_and_s_are_stored_unless_more_is_asked_for(runs, tmp_path):
    with SampleSet(build_set([runs], tmp_path / "small.h5").output) as samples:
        for sample in samples:
            assert (sample.density, sample.position, sample.momentum) == (None, None, None)
            assert sample.charges is not None
    options = ReadOptions(operators=frozenset({"density", "position"}))
    with SampleSet(build_set([runs], tmp_path / "large.h5", options).output) as samples:
        kept, read = samples["soc/r0"].density, read_run(runs / "soc" / "r0").sample.density
        assert kept is not None
        assert read is not None
        assert kept.max_abs_difference(read.with_basis(samples.basis)) == 0
        assert samples["soc/r0"].position is not None
        assert samples["soc/r0"].momentum is None


def test_the_choice_about_the_constraint_is_kept_with_the_sample(runs, tmp_path):
    hamiltonians = {}
    for choice in ("subtract", "keep"):
        report = build_set([runs], tmp_path / f"{choice}.h5", ReadOptions(constraint=choice, operators=frozenset()))
        with SampleSet(report.output) as samples:
            hamiltonians[choice] = samples["soc/r0"].hamiltonian
            assert samples.provenance("soc/r0")["choices"]["constraint"] == choice
    stored = read_run(runs / "soc" / "r0").stored_hamiltonian
    assert hamiltonians["keep"].max_abs_difference(stored) < 1e-7
    assert hamiltonians["subtract"].max_abs_difference(stored) > 1e-5


def test_two_processes_make_the_same_file_as_one(runs, tmp_path):
    one = build_set([runs], tmp_path / "one.h5", jobs=1)
    two = build_set([runs], tmp_path / "two.h5", jobs=2)
    assert one.output.read_bytes() == two.output.read_bytes()


def test_each_bad_run_is_left_out_with_its_reason(runs, tmp_path, tracked):
    shutil.copytree(runs / "plain", runs / "zz_copy")
    (runs / "empty").mkdir()
    shutil.copytree(tracked(STEP), runs / "other_code")
    shutil.copytree(runs / "plain", runs / "unconverged")
    replace_in(runs / "unconverged" / "openmx.std", b"The SCF was achieved", b"The SCF was not achieved")
    shutil.copytree(runs / "plain", runs / "truncated")
    binary = runs / "truncated" / "nibr2.scfout"
    binary.write_bytes(binary.read_bytes()[:300_000])
    shutil.copytree(runs / "plain", runs / "crashed")
    (runs / "crashed" / "nibr2.scfout").unlink()
    shutil.copytree(runs / "plain", runs / "unknown_version")
    binary = runs / "unknown_version" / "nibr2.scfout"
    binary.write_bytes(binary.read_bytes()[:4] + (4 * 2).to_bytes(4, "little") + binary.read_bytes()[8:])

    report = build_set([runs], tmp_path / "set.h5")
    why = reasons(report, runs)
    assert report.names == ("plain", "soc/r0")
    assert set(why) == {"crashed", "empty", "other_code", "truncated", "unconverged", "unknown_version", "zz_copy"}
    assert "no output of a known DFT code" in why["crashed"]
    assert "an empty folder" in why["empty"]
    assert why["other_code"] == "siesta run in a set of openmx runs; make one set for each code"
    assert "expected" in why["truncated"]
    assert why["unconverged"].startswith("not converged: dUele")
    assert "version" in why["unknown_version"]
    assert why["zz_copy"] == "the same calculation as plain"
    with SampleSet(report.output) as samples:
        assert samples.names == ("plain", "soc/r0")
        assert {entry["path"] for entry in samples.notes["rejected"]} == {str(runs / name) for name in why}


def test_the_run_with_another_basis_than_most_is_left_out(runs, tmp_path):
    shutil.copytree(runs / "plain", runs / "other_basis")
    for file in ("nibr2.scfout", "nibr2.out", "openmx.dat"):
        # Another name of the same orbitals: the text says 6.1 Bohr, as it would for another cutoff.
        replace_in(runs / "other_basis" / file, b"Ni6.0S-s2p2d1", b"Ni6.1S-s2p2d1")
    why = reasons(build_set([runs], tmp_path / "set.h5"), runs)
    assert set(why) == {"other_basis"}
    assert "species Ni with two bases" in why["other_basis"]


def test_numbers_that_are_not_finite_are_refused(runs, tmp_path):
    binary = runs / "plain" / "nibr2.scfout"
    data = bytearray(binary.read_bytes())
    data[60_004:60_012] = b"\xff" * 8  # a double of the Hamiltonian
    binary.write_bytes(data)
    why = reasons(build_set([runs], tmp_path / "set.h5"), runs)
    assert set(why) == {"plain"}
    assert "number 5283 is nan" in why["plain"]


def test_without_a_good_run_nothing_is_written(tmp_path):
    (tmp_path / "empty").mkdir()
    report = build_set([tmp_path / "empty", tmp_path / "missing"], tmp_path / "set.h5")
    assert report.names == ()
    assert [entry.reason.split(";")[0] for entry in report.rejected] == [
        "empty: an empty folder",
        "missing: no such file or folder",
    ]
    assert not (tmp_path / "set.h5").exists()


# -- the output --------------------------------------------------------------------------------------------------------


def test_a_second_call_with_the_same_runs_and_options_does_nothing(runs, tmp_path):
    first = build_set([runs], tmp_path / "set.h5")
    stamp = first.output.stat().st_mtime_ns
    second = build_set([runs], tmp_path / "set.h5")
    assert second.unchanged
    assert second.names == first.names
    assert first.output.stat().st_mtime_ns == stamp
    assert not (tmp_path / "set.h5.parts").exists()


def test_other_options_or_a_changed_run_make_the_set_anew(runs, tmp_path):
    build_set([runs], tmp_path / "set.h5")
    kept = build_set([runs], tmp_path / "set.h5", ReadOptions(constraint="keep", operators=frozenset()))
    assert not kept.unchanged
    os.utime(runs / "plain" / "nibr2.scfout", (1, 1))
    assert not build_set([runs], tmp_path / "set.h5", ReadOptions(constraint="keep", operators=frozenset())).unchanged


def test_a_file_that_is_no_set_is_never_replaced(runs, tmp_path):
    output = tmp_path / "thesis.h5"
    output.write_text("important")
    with pytest.raises(StoreError, match=r"a file that is not a sample set.*Remove it first"):
        build_set([runs], output)
    assert output.read_text() == "important"
    output.unlink()
    h5py.File(output, "w").close()
    with pytest.raises(StoreError, match="a file that is not a sample set"):
        build_set([runs], output)


def test_a_folder_that_is_not_there_is_reported_before_the_work_begins(runs, tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        build_set([runs], tmp_path / "nowhere" / "set.h5")


def test_two_calls_for_one_output_do_not_meet(runs, tmp_path):
    parts = tmp_path / "set.h5.parts"
    parts.mkdir()
    with (parts / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another call is writing this set"):
            build_set([runs], tmp_path / "set.h5")
    assert len(build_set([runs], tmp_path / "set.h5").names) == 2


# -- kills and full disks ----------------------------------------------------------------------------------------------


def run_script(body: str, runs: Path, output: Path) -> subprocess.CompletedProcess[str]:
    script = "import os, resource, signal\nfrom preprocessing.dataset import build_set\n"
    script += f"runs, output = {str(runs)!r}, {str(output)!r}\n" + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_a_killed_call_is_taken_up_and_ends_with_the_same_file(runs, tmp_path):
    whole = build_set([runs], tmp_path / "whole.h5").output
    output = tmp_path / "set.h5"
    killed = run_script(
        """
        def kill(text, done, total):
            if done == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        build_set([runs], output, progress=kill)
        """,
        runs,
        output,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not output.exists()
    report = build_set([runs], output)
    assert report.reused == 1
    assert output.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "set.h5.parts").exists()


def test_a_call_killed_while_it_puts_the_set_together_harms_nothing(runs, tmp_path):
    output = tmp_path / "set.h5"
    before = build_set([runs / "plain"], output).output.read_bytes()
    killed = run_script(
        """
        import hamnet.store_writer as writer
        writer.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL) if samples_done else None
        samples_done = False
        def watch(text, done, total):
            global samples_done
            samples_done = done == total
        build_set([runs], output, progress=watch)
        """,
        runs,
        output,
    )
    assert killed.returncode == -signal.SIGKILL
    assert output.read_bytes() == before
    report = build_set([runs], output)
    assert report.reused == 2
    assert len(report.names) == 2


def test_a_full_disk_stops_with_a_remedy_and_keeps_old_set_and_finished_parts(runs, tmp_path):
    output = tmp_path / "set.h5"
    before = build_set([runs / "plain"], output).output.read_bytes()
    full = run_script(
        """
        from hamnet.errors import StoreError
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            build_set([runs], output)
        except StoreError as error:
            print(error)
        """,
        runs,
        output,
    )
    assert "no space left on the disk" in full.stdout
    assert "run the same command again" in full.stdout
    assert full.stderr == ""
    assert output.read_bytes() == before
    report = build_set([runs], output)
    assert report.reused == 1
    assert len(report.names) == 2


def test_a_damaged_part_is_made_again(runs, tmp_path):
    run_script(
        """
        def stop(text, done, total):
            if done == total:
                os._exit(1)
        build_set([runs], output, progress=stop)
        """,
        runs,
        tmp_path / "set.h5",
    )
    parts = sorted((tmp_path / "set.h5.parts").glob("*.h5"))
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes()[:1000])
    report = build_set([runs], tmp_path / "set.h5")
    assert report.reused == 1
    assert len(report.names) == 2


def test_a_killed_worker_is_reported_with_a_remedy():
    with pytest.raises(HamnetError, match=r"a worker process was killed.*fewer --jobs"):
        list(completed(signal.raise_signal, [signal.SIGKILL, signal.SIGKILL], jobs=2))


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = textwrap.dedent("""
        import os, signal, time
        from preprocessing.pool import completed
        for _ in completed(time.sleep, [0.0, 0.0, 600.0, 600.0], jobs=2):
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    # The workers inherit stdout: it is at its end when the last of them has gone.
    process = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=False, timeout=60)
    assert process.returncode == -signal.SIGKILL


def test_workers_use_one_thread_each():
    assert dict(completed(operator.call, [torch.get_num_threads, torch.get_num_threads], jobs=2)) == {0: 1, 1: 1}
