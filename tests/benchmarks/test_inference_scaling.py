"""The benchmark of large predictions measures what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from preprocessing.readers import read_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark():
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    import inference_scaling  # type: ignore[import-not-found]

    yield inference_scaling
    patch.undo()


def test_supercells_have_about_as_many_atoms_as_asked_for_and_moments_of_the_run(benchmark, tracked):
    run = read_run(tracked("openmx/nibr2_1x1_nc")).sample
    size = np.linalg.norm(run.structure.moments, axis=1)[run.structure.numbers == 28]
    for n in benchmark.SIZES:
        structure = benchmark.supercell(run, n)
        assert abs(len(structure) - n) < 0.1 * n
        sides = np.linalg.norm(structure.cell[:2], axis=1)
        assert 0.5 < sides[0] / sides[1] < 2
        lengths = np.linalg.norm(structure.moments, axis=1)
        np.testing.assert_allclose(lengths[structure.numbers == 28], size[0])
        assert (lengths[structure.numbers == 35] == 0).all()


def test_a_measurement_counts_all_steps_and_the_file(benchmark):
    row = benchmark.measure(24, 1, 1, "cpu", benchmark.MODEL)
    assert row["atoms"] == 24
    assert set(row["ms_per_atom_by_step"]) == {"structure", "features", "blocks", "file"}
    assert 0 < sum(row["ms_per_atom_by_step"].values()) <= row["ms_per_atom"]
    assert row["seconds"] == pytest.approx(24e-3 * row["ms_per_atom"])
    assert 0 < row["memory_peak_GB"]
    # 936 pairs, complex64: 24 atoms · 39 pairs, 13 and 8 orbitals.
    assert row["pairs"] == 936
    assert row["file_MB"] > 936 * 4 * 64 * 8 / 1e6
