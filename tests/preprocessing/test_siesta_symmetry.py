"""One configuration under symmetry: H and ρ of the second run are those of the first, moved by the house operations.

The first run is read from single precision like the others: rounding is then the same on both sides, and what is left
is the program's own error (interpolation of its tables for turns off the mesh).
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import preprocessing.readers.siesta as siesta
from conftest import DATA
from hamnet.symmetry import match_atoms, rotate_spin, time_reverse
from preprocessing.readers import siesta_blocks
from siesta_runs import copied, is_run_netcdf, mapped, read


@pytest.fixture(scope="module")
def symmetric(unpacked, tmp_path_factory):
    """Runs of fept_soc_sym, and what was done to each."""
    folder = unpacked("siesta/fept_soc_sym")
    base = copied(folder / "base", tmp_path_factory.mktemp("single"), without=is_run_netcdf)
    listed = json.loads((DATA / "siesta" / "runs.json").read_text())

    def run(name):
        rotation = listed[f"fept_soc_sym/{name}"].get("R")
        return read(base if name == "base" else folder / name), None if rotation is None else np.array(rotation)

    return run


@pytest.fixture(scope="module")
def small_pair(tracked):
    """base, the turned run, and the rotation that takes one to the other."""
    base, turned = (read(tracked("siesta/small") / f"fept_soc_sym_{name}") for name in ("base", "rot"))
    return base, turned, rotation_between(base.sample.structure, turned.sample.structure)


def rotation_between(structure, target):
    rotation = (np.linalg.inv(structure.cell) @ target.cell).T
    assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-8)
    u, _, v = np.linalg.svd(rotation)
    return u @ v


def difference_ev(base, target, rotation) -> tuple[float, float, float]:
    """Largest |ΔH| in eV, |Δρ|, and |Δm| of the input moments."""
    operators = [("hamiltonian", base.sample.hamiltonian)]
    if base.sample.density is not None and target.sample.density is not None:
        operators.append(("density", base.sample.density))
    result = {}
    for name, operator in operators:
        moved, structure = mapped(operator, base.sample.structure, rotation, target.sample.structure)
        result[name] = moved.max_abs_difference(getattr(target.sample, name).with_pairs(moved.pairs))
        moments = np.abs(structure.moments - target.sample.structure.moments).max()
    return result["hamiltonian"], result.get("density", 0.0), moments


def test_turned_crystal_and_moments_have_turned_hamiltonian(small_pair):
    base, turned, rotation = small_pair
    h_error, _, moment_error = difference_ev(base, turned, rotation)
    assert h_error < 4e-7
    assert moment_error < 1e-9


WRONG_READINGS = {
    "off-diagonal conjugated": lambda h: h * np.array([1, 1, 1, -1, 1, 1, 1, -1])[:, None],
    "diagonal conjugated": lambda h: h * np.array([1, 1, 1, 1, -1, -1, 1, 1])[:, None],
    "ud and du exchanged": lambda h: h[[0, 1, 6, 7, 4, 5, 2, 3]],
}


@pytest.mark.parametrize("change", WRONG_READINGS.values(), ids=WRONG_READINGS)
def test_other_readings_of_the_spin_columns_do_not_turn_with_the_crystal(tracked, small_pair, monkeypatch, change):
    right = siesta_blocks.hamiltonian_pauli
    monkeypatch.setattr(siesta, "hamiltonian_pauli", lambda h: right(change(h)))
    folder = tracked("siesta/small")
    base, turned = (read.__wrapped__(folder / f"fept_soc_sym_{name}") for name in ("base", "rot"))
    assert difference_ev(base, turned, small_pair[2])[0] > 0.5


def test_orbitals_without_the_sign_of_odd_m_do_not_turn_with_the_crystal(tracked, small_pair, monkeypatch):
    signs = siesta_blocks.house_signs
    monkeypatch.setattr(siesta_blocks, "house_signs", lambda basis, species: np.abs(signs(basis, species)))
    folder = tracked("siesta/small")
    base, turned = (read.__wrapped__(folder / f"fept_soc_sym_{name}") for name in ("base", "rot"))
    assert difference_ev(base, turned, small_pair[2])[0] > 0.5


@pytest.mark.parametrize(
    ("name", "h_ev", "density"),
    [
        ("rot", 4e-7, 3e-8),
        ("c4z", 6e-8, 2e-9),
        ("inv", 3e-10, 5e-12),
        ("mirror", 1e-13, 1e-12),
    ],
)
def test_operations_of_space_map_hamiltonian_and_density_block_by_block(symmetric, name, h_ev, density):
    base, (target, rotation) = symmetric("base")[0], symmetric(name)
    if rotation is None:
        rotation = {"inv": -np.eye(3), "mirror": np.diag([-1.0, 1, 1])}[name]
    h_error, density_error, moment_error = difference_ev(base, target, rotation)
    assert h_error < h_ev
    assert density_error < density
    assert moment_error < 1e-9
    untouched = base.sample.hamiltonian
    if name != "rot":
        moved = target.sample.hamiltonian.with_pairs(untouched.pairs)
        assert untouched.max_abs_difference(moved) > 0.5  # the test can fail


def test_time_reversal_maps_h_of_m_to_conj_h_of_minus_m(symmetric):
    base, reversed_ = symmetric("base")[0].sample, symmetric("trev")[0].sample
    assert np.array_equal(reversed_.structure.moments.round(9), -base.structure.moments.round(9))
    assert time_reverse(base.hamiltonian).max_abs_difference(reversed_.hamiltonian) < 1e-14
    assert time_reverse(base.density).max_abs_difference(reversed_.density) < 1e-13
    assert base.hamiltonian.max_abs_difference(reversed_.hamiltonian) > 0.5


@pytest.mark.parametrize(("name", "h_ev", "density"), [("swap", 2e-8, 3e-9), ("wrap", 1e-13, 1e-13)])
def test_atom_order_and_home_cells_only_relabel_the_blocks(symmetric, name, h_ev, density):
    base, target = symmetric("base")[0].sample, symmetric(name)[0].sample
    order, shifts = match_atoms(base.structure, target.structure)
    assert not np.array_equal(order, [0, 1]) or shifts.any()
    moved = base.hamiltonian.permuted(order, shifts)
    assert moved.pairs.equals(target.hamiltonian.pairs)
    assert moved.max_abs_difference(target.hamiltonian) < h_ev
    assert base.density.permuted(order, shifts).max_abs_difference(target.density) < density
    assert np.abs(base.charges[order] - target.charges).max() < 1e-7


def test_spin_turns_apart_from_the_crystal_without_spin_orbit_coupling(unpacked):
    folder = unpacked("siesta/fe_bcc_nc")
    rand, turned = (read(folder / name).sample for name in ("rand", "rand_spinrot"))
    u, _, v = np.linalg.svd(turned.structure.moments.T @ rand.structure.moments)
    rotation = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
    assert rand.structure.moments @ rotation.T == pytest.approx(turned.structure.moments, abs=1e-9)
    assert rotate_spin(rand.hamiltonian, rotation).max_abs_difference(turned.hamiltonian) < 1e-11
    assert rotate_spin(rand.density, rotation).max_abs_difference(turned.density) < 1e-11
    assert rand.hamiltonian.max_abs_difference(turned.hamiltonian) > 0.5
