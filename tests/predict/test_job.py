"""Predictions into a file: the same whatever the tiles, workers and kills, and never more than they may take."""

from __future__ import annotations

import itertools
import os
import re
import resource
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from hamnet.basis import Basis, Shell, SpeciesBasis
from hamnet.blocks import BlockOperator
from hamnet.errors import HamnetError, ModelError, StoreError
from hamnet.models.io import LoadedModel, load_model
from hamnet.predict import Forecast, Tile, predict, predict_operator, predict_to_file
from hamnet.predict.partial import finished_rows
from hamnet.sample import Sample
from hamnet.store import SampleSet
from hamnet.structure import Structure
from hamnet.supercell import tile_operator, tile_structure
from large_crystals import scattered
from preprocessing.readers import read_run
from small_models import crystal, model_overlap

TOLERANCE_EV = 1e-12
TILE = Tile(8, 50)


def stored(path: Path) -> Sample:
    with SampleSet(path) as samples:
        assert len(samples) == 1
        return samples[0]


def hamiltonian(path: Path) -> BlockOperator:
    return stored(path).operator("hamiltonian")


def same_bits(a: Path, b: Path) -> bool:
    return all(torch.equal(x, y) for x, y in zip(hamiltonian(a).blocks, hamiltonian(b).blocks, strict=True))


@pytest.fixture(scope="module")
def expected(loaded, small, tmp_path_factory) -> Path:
    """The set that a call which nothing disturbs makes of the small crystal."""
    path = tmp_path_factory.mktemp("expected") / "h.h5"
    predict_to_file(loaded, small, path, tile=TILE)
    return path


@pytest.fixture(scope="module")
def tiled(loaded, large, tmp_path_factory) -> dict[Tile, BlockOperator]:
    """H of a thousand atoms with tiles of different sizes."""
    found = {}
    for tile in (Tile(64, 256), Tile(101, 1017)):
        path = tmp_path_factory.mktemp("tiled") / "h.h5"
        predict_to_file(loaded, large, path, tile=tile)
        found[tile] = hamiltonian(path)
    return found


# -- what is computed --------------------------------------------------------------------------------------------------


def test_h_of_a_thousand_atoms_is_that_of_the_whole_whatever_the_tiles(loaded, large, tiled):
    first, second = tiled.values()
    assert len(first.pairs.species) == 1029
    whole = predict_operator(loaded, large, first.pairs)
    assert first.max_abs_difference(whole) < TOLERANCE_EV
    assert second.max_abs_difference(first) < TOLERANCE_EV


def test_h_ij_is_exactly_the_adjoint_of_h_ji_among_a_thousand_atoms(tiled):
    for operator in tiled.values():
        assert operator.hermiticity_violation() == 0


def test_the_set_is_that_of_a_prediction_in_memory(loaded, tmp_path):
    small_cell = crystal()
    source = Sample("run", small_cell, model_overlap(small_cell).basis, model_overlap(small_cell), n_electrons=7.0)
    matrix = [[2, 1, 0], [0, 2, 0], [0, 0, 3]]
    structure = tile_structure(small_cell, matrix)
    order = np.random.default_rng(1).permutation(len(structure))
    structure = structure.permuted(order)
    report = predict_to_file(loaded, structure, tmp_path / "texture.h5", source=source)
    found, memory = stored(tmp_path / "texture.h5"), predict(loaded, structure, source=source, name="texture").sample
    assert found.operator("hamiltonian").max_abs_difference(memory.operator("hamiltonian")) < TOLERANCE_EV
    assert found.operator("overlap").max_abs_difference(memory.operator("overlap")) == 0
    tiled_overlap = tile_operator(model_overlap(small_cell), matrix).permuted(order)
    assert found.operator("overlap").max_abs_difference(tiled_overlap) == 0
    for name in ("name", "n_electrons", "spin_orbit", "provenance", "fermi_energy_ev"):
        assert getattr(found, name) == getattr(memory, name), name
    assert found.n_electrons == report.n_electrons == 12 * 7
    assert found.structure.labels == memory.structure.labels
    assert np.array_equal(found.structure.moments, memory.structure.moments)
    assert report.has_overlap


def test_the_overlap_of_a_supercell_is_that_of_a_dft_run_on_it(model_file, tmp_path):
    """Two runs of OpenMX on the same lattice: the overlap of the larger cell is the tiled one of the smaller."""
    folder = Path(__file__).parents[2] / "examples" / "nibr2"
    runs = {}
    for name in ("nibr2_2x1", "nibr2_2x2"):
        subprocess.run(["tar", "xf", str(folder / f"{name}.tar.xz"), "-C", str(tmp_path)], check=True)
        runs[name] = read_run(sorted(p for p in (tmp_path / name).iterdir() if p.is_dir())[0]).sample
    basis = runs["nibr2_2x1"].basis
    loaded = load_model(model_file(basis=basis, n_layers=1, l_max=1))
    structure = runs["nibr2_2x2"].structure
    predict_to_file(loaded, structure, tmp_path / "h.h5", source=runs["nibr2_2x1"])
    found, theirs = stored(tmp_path / "h.h5").operator("overlap"), runs["nibr2_2x2"].operator("overlap")
    assert found.pairs.equals(theirs.pairs)
    assert found.max_abs_difference(theirs) < 1e-7


def test_a_single_precision_model_stores_single_precision(model_file, small, tmp_path):
    narrow = load_model(model_file(), dtype=torch.float32)
    predict_to_file(narrow, small, tmp_path / "h.h5")
    with SampleSet(tmp_path / "h.h5") as samples:
        assert samples.blocks(0, "hamiltonian", "Ni", "Br").dtype == np.complex64
    assert hamiltonian(tmp_path / "h.h5").dtype == torch.complex128


# -- kills -------------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal
import numpy as np
from hamnet.models.io import load_model
from hamnet.predict import Tile, job, predict_to_file
from hamnet.predict.forecast import memory_bytes
from hamnet.structure import Structure
with np.load({structure!r}) as arrays:
    structure = Structure(**arrays)
loaded = load_model({model!r})
"""
DISTURBED = """
job._TASK_S = 0.0  # a task is a tile
calls = 0
def after(step, finished, total):
    global calls
    calls += step == {step!r}
    if calls == {number}:
        {action}
predict_to_file(loaded, structure, {path!r}, tile=Tile(8, 50), on_progress=after)
"""


def in_own_process(
    script: str, loaded: LoadedModel, structure: Structure, path: Path, **values
) -> subprocess.CompletedProcess:
    arrays = {name: getattr(structure, name) for name in ("cell", "positions", "numbers", "labels", "moments")}
    np.savez(path.with_name("structure.npz"), **arrays)
    values |= {"structure": str(path.with_name("structure.npz")), "model": loaded.path, "path": str(path)}
    code = (SCRIPT + script).format(**values)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def disturbed(loaded: LoadedModel, structure: Structure, path: Path, step: str, number: int, action: str):
    """A prediction in a process of its own, in which `action` is done after progress call `number` of `step`."""
    return in_own_process(DISTURBED, loaded, structure, path, step=step, number=number, action=action)


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def interrupted(loaded: LoadedModel, structure: Structure, path: Path, step: str, number: int, action=None) -> None:
    """A prediction in this process, broken off (or `action` done) after progress call `number` of `step`."""
    calls = itertools.count(1)

    def after(name: str, finished: int, total: int) -> None:
        if name == step and next(calls) == number:
            if action is None:
                raise KeyboardInterrupt
            action()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hamnet.predict.job._TASK_S", 0.0)
        if action is not None:
            return predict_to_file(loaded, structure, path, tile=TILE, on_progress=after)
        with pytest.raises(KeyboardInterrupt):
            predict_to_file(loaded, structure, path, tile=TILE, on_progress=after)


@pytest.mark.parametrize(("step", "number"), [("features", 7), ("blocks", 5), ("file", 2)])
def test_a_killed_call_goes_on_where_it_was_and_ends_with_the_same_bits(
    loaded, small, expected, tmp_path, step, number
):
    path = tmp_path / "h.h5"
    path.write_bytes(b"")
    assert disturbed(loaded, small, path, step, number, KILL).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"", "what stood under the name stays until the end"
    calls: list[str] = []
    forecasts: list[Forecast] = []
    predict_to_file(
        loaded, small, path, tile=TILE, on_forecast=forecasts.append, on_progress=lambda s, *_: calls.append(s)
    )
    assert same_bits(path, expected)
    assert forecasts[0].finished > 0
    assert (forecasts[0].finished == 1) == (step == "file")
    if step != "features":
        assert "features" not in calls, "nothing is computed twice"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h.h5", "structure.npz"]


def test_a_killed_call_may_go_on_with_other_tiles_and_less_memory(loaded, small, expected, tmp_path):
    path = tmp_path / "h.h5"
    interrupted(loaded, small, path, "blocks", 2)
    there = finished_rows(path.with_name("h.h5.partial"), "blocks_0_0")
    assert 0 < there.sum() < len(there)
    predict_to_file(loaded, small, path, tile=Tile(5, 33), memory_gb=3)
    assert hamiltonian(path).max_abs_difference(hamiltonian(expected)) < TOLERANCE_EV


def test_another_command_is_refused_where_a_killed_one_left_its_work(loaded, model_file, small, expected, tmp_path):
    path = tmp_path / "h.h5"
    interrupted(loaded, small, path, "blocks", 1)
    other_model = load_model(model_file(n_layers=1))
    narrow = load_model(loaded.path, dtype=torch.float32)
    changes: list[tuple[dict, str]] = [
        ({"structure": small.with_moments(-small.moments)}, "moments"),
        ({"structure": small.translated([0.1, 0, 0])}, "structure"),
        ({"loaded": other_model}, "model"),
        ({"loaded": narrow}, "precision"),
        ({"name": "other"}, "name"),
    ]
    for change, word in changes:
        call = {"loaded": loaded, "structure": small, "name": None} | change
        with pytest.raises(
            StoreError, match=rf"unfinished prediction with another {word}; .*delete this folder"
        ) as error:
            predict_to_file(call["loaded"], call["structure"], path, name=call["name"])
        assert error.value.path == f"{path}.partial"
    predict_to_file(loaded, small, path, tile=TILE)
    assert same_bits(path, expected)


def test_a_folder_that_was_killed_before_it_began_is_taken_over(loaded, small, expected, tmp_path):
    partial = tmp_path / "h.h5.partial"
    partial.mkdir()
    (partial / "lock").touch()
    (partial / "positions.npy").write_bytes(b"half")
    predict_to_file(loaded, small, tmp_path / "h.h5", tile=TILE)
    assert same_bits(tmp_path / "h.h5", expected)


def test_two_processes_do_not_write_one_file(loaded, small, tmp_path):
    refused: list[str] = []

    def again(step: str, finished: int, total: int) -> None:
        if not refused:
            with pytest.raises(StoreError, match="another process is at work here") as error:
                predict_to_file(loaded, small, tmp_path / "h.h5")
            refused.append(str(error.value))

    predict_to_file(loaded, small, tmp_path / "h.h5", on_progress=again)
    assert len(refused) == 1


# -- workers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def dask() -> Iterator[Executor]:
    distributed = pytest.importorskip("distributed", reason="needs Dask: pip install 'hamnet[dask]'")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor()


@pytest.mark.parametrize("kind", ["pool", "dask"])
def test_two_workers_give_the_bits_of_one(loaded, small, expected, tmp_path, kind, request, monkeypatch):
    monkeypatch.setattr("hamnet.predict.job._TASK_S", 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    predict_to_file(loaded, small, tmp_path / "one.h5", tile=TILE)
    torch.set_num_threads(threads)
    executor, progress = request.getfixturevalue(kind), []
    predict_to_file(
        loaded, small, tmp_path / "two.h5", tile=TILE, executor=executor, workers=2,
        on_progress=lambda *call: progress.append(call),
    )  # fmt: skip
    assert hamiltonian(tmp_path / "two.h5").max_abs_difference(hamiltonian(expected)) < TOLERANCE_EV
    assert same_bits(tmp_path / "one.h5", tmp_path / "two.h5")
    for step in ("features", "blocks", "file"):
        counts = [(finished, total) for name, finished, total in progress if name == step]
        assert counts == sorted(counts)
        assert counts[-1][0] == counts[-1][1]


def test_what_the_caller_holds_is_not_counted_for_each_worker(loaded, small, pool, tmp_path):
    forecasts: list[Forecast] = []
    for gigabytes in (0, 1):
        ballast = np.ones(gigabytes * 2**27)
        predict_to_file(
            loaded, small, tmp_path / "h.h5", tile=TILE, executor=pool, workers=2, on_forecast=forecasts.append
        )
        del ballast
    assert 0.9 < forecasts[1].memory_gb - forecasts[0].memory_gb < 1.5


class Dying(ProcessPoolExecutor):
    """Workers that are killed from outside after some tasks, as a machine short of memory does it."""

    left = 4

    def submit(self, function: Callable, /, *args, **keywords):
        self.left -= 1
        return super().submit(os._exit, 9) if self.left < 0 else super().submit(function, *args, **keywords)


def test_a_lost_worker_is_told_and_what_is_finished_is_kept(loaded, small, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("hamnet.predict.job._TASK_S", 0.0)
    path = tmp_path / "h.h5"
    with (
        Dying(1, mp_context=get_context("spawn")) as pool,
        pytest.raises(
            HamnetError,
            match=r"a worker was lost \(BrokenProcessPool.*run the same command again: what is finished is kept",
        ),
    ):
        predict_to_file(loaded, small, path, tile=TILE, executor=pool, workers=1)
    assert not path.exists()
    forecasts: list[Forecast] = []
    predict_to_file(loaded, small, path, tile=TILE, on_forecast=forecasts.append)
    assert forecasts[0].finished > 0
    assert same_bits(path, expected)


def test_an_error_in_a_worker_is_that_of_this_process(model_file, small, pool, tmp_path):
    path = tmp_path / "changed.safetensors"
    path.write_bytes(model_file().read_bytes())
    loaded = load_model(path)
    path.write_bytes(model_file(n_layers=1).read_bytes())
    with pytest.raises(ModelError, match="another model than at the start"):
        predict_to_file(loaded, small, tmp_path / "h.h5", executor=pool, workers=2)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_too_little_memory_is_refused_with_the_least_that_does(loaded, small, tmp_path):
    with pytest.raises(HamnetError, match=r"0\.01 GB of memory; expected at least [\d.]+ GB for 36 atoms") as error:
        predict_to_file(loaded, small, tmp_path / "h.h5", memory_gb=0.01)
    assert list(tmp_path.iterdir()) == [], "nothing was begun"
    least = float(re.search(r"--memory-gb ([\d.]+)", str(error.value))[1])
    forecasts: list[Forecast] = []
    predict_to_file(loaded, small, tmp_path / "h.h5", memory_gb=least, on_forecast=forecasts.append)
    assert forecasts[0].memory_gb <= least


def test_less_memory_makes_smaller_tiles(model_file, small, tmp_path):
    wide = load_model(model_file(pair_channels=64, hidden=64))
    forecasts: list[Forecast] = []
    predict_to_file(wide, small, tmp_path / "h.h5", on_forecast=forecasts.append)
    with pytest.raises(HamnetError, match="expected at least") as error:
        predict_to_file(wide, small, tmp_path / "h.h5", memory_gb=0.01)
    least = float(re.search(r"--memory-gb ([\d.]+)", str(error.value))[1])
    predict_to_file(wide, small, tmp_path / "h.h5", memory_gb=least + 0.02, on_forecast=forecasts.append)
    assert forecasts[1].tile.n_pairs < forecasts[0].tile.n_pairs == 256


WIDE = Basis(
    tuple(
        SpeciesBasis(label, number, tuple(Shell(l, zeta, 2.3) for l in range(3) for zeta in range(3)))
        for label, number in (("Ni", 28), ("Br", 35))
    )
)
PEAK = """
held = memory_bytes()
report = predict_to_file(loaded, structure, {path!r}, tile=Tile(16, 64))
print(held / 2**30, report.forecast.memory_gb, report.memory_gb, report.file_bytes / 2**30)
"""


def test_memory_stays_within_the_forecast_though_the_blocks_are_larger(model_file, tmp_path):
    loaded = load_model(model_file(basis=WIDE, l_max=1, n_layers=1))
    structure = scattered(tile_structure(crystal(), np.diag([4, 4, 4])))
    done = in_own_process(PEAK, loaded, structure, tmp_path / "h.h5")
    assert done.returncode == 0, done.stderr
    held, forecast, peak, size = map(float, done.stdout.split())
    assert held < peak < forecast
    assert size > 1.5 * (forecast - held), "the blocks would not fit"


@pytest.mark.parametrize(("step", "number"), [("blocks", 3), ("file", 1)])
def test_a_full_disk_is_told_and_what_is_finished_is_kept(loaded, small, expected, tmp_path, step, number):
    path, limits = tmp_path / "h.h5", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(StoreError, match=r"no space left on the disk .*Free some space"):
            interrupted(
                loaded, small, path, step, number,
                action=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1])),
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()
    forecasts: list[Forecast] = []
    predict_to_file(loaded, small, path, tile=TILE, on_forecast=forecasts.append)
    assert forecasts[0].finished > 0
    assert same_bits(path, expected)


def test_a_disk_that_is_too_small_is_told_before_the_work(loaded, small, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1e6, 0, 1e6))
    with pytest.raises(StoreError, match=r"0\.00\d+ GB free on this disk; expected [\d.]+ GB for \d+ pairs"):
        predict_to_file(loaded, small, tmp_path / "h.h5")
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_a_file_that_is_no_set_is_not_replaced(loaded, small, tmp_path):
    path = tmp_path / "structure.cif"
    path.write_text("precious", encoding="utf-8")
    for output, words in (
        (path, "a file that is no sample set"),
        (tmp_path, "a folder"),
        (path / "x.h5", "no such folder"),
    ):
        with pytest.raises(StoreError, match=words):
            predict_to_file(loaded, small, output)
    assert path.read_text(encoding="utf-8") == "precious"
    folder = tmp_path / "h.h5.partial"
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(StoreError, match="not the folder of an unfinished prediction"):
        predict_to_file(loaded, small, tmp_path / "h.h5")
    assert (folder / "mine").exists()


def test_a_model_that_gives_no_numbers_is_told(model_file, small, tmp_path):
    broken = load_model(model_file())
    broken.model.edge_species.fill_(np.nan)
    with pytest.raises(ModelError, match=r"numbers that are not finite, in features_0 0 …"):
        predict_to_file(broken, small, tmp_path / "h.h5")


def test_the_forecast_counts_atoms_pairs_and_bytes(loaded, small, tmp_path):
    forecasts: list[Forecast] = []
    report = predict_to_file(loaded, small, tmp_path / "h.h5", on_forecast=forecasts.append)
    (forecast,) = forecasts
    assert report.forecast == forecast
    operator = hamiltonian(tmp_path / "h.h5")
    assert (forecast.n_atoms, forecast.n_pairs) == (36, len(operator.pairs))
    assert forecast.finished == 0
    assert 0 < forecast.seconds < 60
    size = sum(block.numel() for block in operator.blocks) * 16
    assert size < report.file_bytes == (tmp_path / "h.h5").stat().st_size < forecast.disk_gb * 2**30 < 2 * size
    assert set(report.seconds) == {"structure", "features", "blocks", "file"}
