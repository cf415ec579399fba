"""Checks of runs: good ones pass, and each kind of damage is seen by the check that is made for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hamnet.blocks import BlockOperator
from hamnet.sample import mulliken
from preprocessing.checks import (
    BANDS_LIMIT_MEV,
    ELECTRONS_LIMIT,
    HERMITICITY_LIMIT_MEV,
    RunCheck,
    check_path,
    check_paths,
    check_run,
    non_finite,
)
from preprocessing.readers import find_runs, read_run, reader_of
from preprocessing.readers.protocol import Run

ARCHIVES = sorted((Path(__file__).parents[1] / "data").glob("*/*.tar.xz"))


@pytest.fixture(scope="module")
def run(tracked) -> Run:
    """A non-collinear run of OpenMX with bands, density matrix and printed moments."""
    return read_run(tracked("openmx/nibr2_1x1_nc"))


def changed(operator: BlockOperator | None, change: Callable[[torch.Tensor], torch.Tensor]) -> BlockOperator:
    """The operator with its first blocks changed."""
    assert operator is not None
    first = operator.blocks[0].clone()
    return replace(operator, blocks=(change(first), *operator.blocks[1:]))


def diagonal(amount: complex) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(block: torch.Tensor) -> torch.Tensor:
        block[:, 0] += amount * torch.eye(block.shape[-1], dtype=block.dtype)
        return block

    return change


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: f"{archive.parent.name}/{archive.name[:-7]}")
def test_every_tracked_run_agrees_with_what_its_code_printed(archive, tracked):
    for path in find_runs([tracked(f"{archive.parent.name}/{archive.name.removesuffix('.tar.xz')}")]):
        check = check_path(path)
        assert check.ok, f"{path.name}: {check.reason}"
        assert check.code == archive.parent.name
        assert check.converged
        assert check.hermiticity_max_meV is not None
        assert check.hermiticity_max_meV <= HERMITICITY_LIMIT_MEV
        assert check.overlap_min_eigenvalue is not None
        assert check.overlap_min_eigenvalue > 0
        assert check.bands_max_dev_meV is not None
        # OpenMX stores H in double precision; SIESTA prints bands to 1e-4 eV and stores H in single precision.
        limit = BANDS_LIMIT_MEV if check.code == "openmx" else 0.1
        assert check.bands_max_dev_meV <= limit
        if check.electrons_dev is not None:
            assert abs(check.electrons_dev) <= ELECTRONS_LIMIT


@pytest.mark.parametrize("name", ["openmx/nibr2_kinds", "openmx/cri3", "siesta/fept_soc_sym", "siesta/fe_bcc_nc"])
def test_every_run_of_a_larger_set_agrees_with_what_its_code_printed(name, unpacked):
    for _, check in check_paths(find_runs([unpacked(name)])):
        assert check.ok, f"{check.path}: {check.reason}"


def test_a_level_shift_of_0_02_meV_is_seen_in_the_bands(run):
    shifted = replace(run, stored_hamiltonian=changed(run.stored_hamiltonian, diagonal(2e-4)))
    check = check_run(shifted, "run")
    assert not check.ok
    assert check.bands_max_dev_meV is not None
    assert check.bands_max_dev_meV > BANDS_LIMIT_MEV
    assert check.reason is not None
    assert "bands differ by" in check.reason
    assert "nibr2.Band" in check.reason


def test_a_wrong_sign_of_the_y_component_of_h_is_seen(run):
    def flip(block: torch.Tensor) -> torch.Tensor:
        return block * torch.tensor([1, 1, -1, 1]).reshape(4, 1, 1)

    check = check_run(replace(run, stored_hamiltonian=run.stored_hamiltonian.map(flip)), "run")
    assert not check.ok
    # Without bands, the band energy still sees it.
    check = check_run(replace(run, stored_hamiltonian=run.stored_hamiltonian.map(flip), references=()), "run")
    assert not check.ok
    assert "Tr ρH" in str(check.reason)


def test_an_antihermitian_part_is_seen(run):
    check = check_run(replace(run, stored_hamiltonian=changed(run.stored_hamiltonian, diagonal(1e-6j))), "run")
    assert not check.ok
    assert check.hermiticity_max_meV == pytest.approx(2e-3, rel=0.1)
    assert "not Hermitian" in str(check.reason)


def test_an_overlap_that_is_not_positive_is_seen(run):
    sample = replace(run.sample, overlap=changed(run.sample.overlap, diagonal(-1.0)))
    check = check_run(replace(run, sample=sample), "run")
    assert not check.ok
    assert check.overlap_min_eigenvalue is not None
    assert check.overlap_min_eigenvalue < 0
    assert check.bands_max_dev_meV is None
    assert "smallest eigenvalue of S(k)" in str(check.reason)


def test_a_density_matrix_that_holds_other_electrons_is_seen(run):
    wrong = changed(run.sample.density, diagonal(1e-6))
    electrons = float(mulliken(wrong, run.sample.overlap)[0].sum())
    check = check_run(replace(run, code_electrons=electrons), "run")
    assert not check.ok
    assert check.electrons_dev is not None
    assert check.electrons_dev > ELECTRONS_LIMIT
    assert "Tr ρS" in str(check.reason)


def test_a_moment_that_is_off_by_more_than_the_printed_digits_is_seen(run):
    moments = run.code_moments.copy()
    moments[1, 2] += 2 * run.moment_precision_mub
    check = check_run(replace(run, code_moments=moments), "run")
    assert not check.ok
    assert "moment of atom 1 (Br)" in str(check.reason)


def test_an_unconverged_run_is_not_ok_though_its_numbers_agree(run):
    check = check_run(replace(run, converged=False, convergence="dUele 1e-3 Ha"), "run")
    assert not check.ok
    assert check.converged is False
    assert check.reason == "not converged: dUele 1e-3 Ha"


def test_a_run_with_nothing_to_compare_with_is_not_verified(run):
    bare = replace(
        run, references=(), printed_moments=None, code_electrons=None, sample=replace(run.sample, density=None)
    )
    check = check_run(bare, "run")
    assert not check.ok
    assert (check.bands_max_dev_meV, check.electrons_dev, check.moments_max_dev_muB) == (None, None, None)
    assert "nothing to compare with" in str(check.reason)
    assert "no density matrix" in str(check.reason)


def test_what_was_not_compared_is_named_in_a_run_that_is_ok(run):
    check = check_run(replace(run, references=()), "run")
    assert check.ok
    assert check.bands_max_dev_meV is None
    assert check.reason == "not compared – H(k): no band energies printed, but Tr ρH agrees with their sum"


def test_numbers_that_are_not_finite_are_named(run):
    def spoil(block: torch.Tensor) -> torch.Tensor:
        block[0, 0, 0, 0] = torch.nan
        return block

    spoilt = changed(run.stored_hamiltonian, spoil)
    assert non_finite(overlap=run.sample.overlap, hamiltonian=spoilt) == "hamiltonian holds numbers that are not finite"
    check = check_run(replace(run, stored_hamiltonian=spoilt), "run")
    assert not check.ok
    assert check.bands_max_dev_meV is None


def test_printed_bands_of_another_size_are_reported(run):
    reference = replace(run.references[0], energies_ev=np.zeros((1, 1, 999)), k_frac=np.zeros((1, 3)))
    check = check_run(replace(run, references=(reference,)), "run")
    assert not check.ok
    assert check.bands_max_dev_meV is None
    assert "energies of shape (1, 1, 999)" in str(check.reason)


def test_what_cannot_be_read_is_not_ok_for_the_reason_of_the_reader(tmp_path):
    (tmp_path / "empty").mkdir()
    check = check_path(tmp_path / "empty")
    assert check == RunCheck(str(tmp_path / "empty"), None, False, f"empty: an empty folder; expected {_sought()}")
    assert "no such file or folder" in str(check_path(tmp_path / "missing").reason)


def _sought() -> str:
    return "a run of OpenMX (*.scfout) or a run of SIESTA (*.HSX)"


def test_output_of_two_codes_in_one_folder_is_refused(tmp_path, tracked):
    for name in ("openmx/nibr2_unpolarised", "siesta/fept_soc_step"):
        for file in tracked(name).iterdir():
            (tmp_path / file.name).symlink_to(file)
    check = check_path(tmp_path)
    assert not check.ok
    assert "output of openmx and siesta; expected one run in a folder" in str(check.reason)


def test_runs_are_found_at_any_depth_and_failed_ones_too(tmp_path, tracked):
    good = tmp_path / "set" / "deep" / "good"
    good.parent.mkdir(parents=True)
    good.symlink_to(tracked("openmx/nibr2_unpolarised"))
    (tmp_path / "set" / "empty").mkdir()
    (tmp_path / "set" / "crashed").mkdir()
    (tmp_path / "set" / "crashed" / "x.fdf").touch()
    (tmp_path / "set" / "notes").mkdir()
    (tmp_path / "set" / "notes" / "readme.md").touch()
    assert find_runs([tmp_path]) == [tmp_path / "set" / name for name in ("crashed", "deep/good", "empty")]
    assert find_runs([good, tmp_path / "set"]) == find_runs([tmp_path])
    assert find_runs([tmp_path / "set" / "notes"]) == [tmp_path / "set" / "notes"]
    assert reader_of(good).code == "openmx"
