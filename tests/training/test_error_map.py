"""Where the error sits: sums by irrep and shell pair against those of whole blocks, angles against geometry."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hamnet.basis import Shell, SpeciesBasis
from hamnet.symmetry import rotate
from hamnet.training.error_map import ErrorMap, angles_between, shell_names
from hamnet.training.metrics import ErrorSums
from small_models import BASIS, ROTATION, crystal, random_operator

PARTS = ("spin_free", "exchange", "soc")
COMPONENTS = {"spin_free": 1, "exchange": 3, "soc": 3}


def _mapped(operator, structure, magnetic=("Ni",)) -> dict:
    result = ErrorMap()
    result.add(operator, structure, magnetic)
    return result.to_dict()


@pytest.fixture(scope="module")
def difference():
    structure = crystal()
    return structure, random_operator(structure, BASIS, 4, seed=3)


def test_mean_squares_of_the_irreps_add_up_to_those_of_the_blocks(difference):
    structure, operator = difference
    entries = _mapped(operator, structure)["by_shell_pair"]
    for row, col, onsite in (("Ni", "Ni", True), ("Ni", "Ni", False), ("Ni", "Br", False), ("Br", "Br", True)):
        sums = ErrorSums()
        for group, block in zip(operator.pairs.groups, operator.blocks, strict=True):
            labels = (BASIS[group.row_species].label, BASIS[group.col_species].label)
            if labels == (row, col):
                sums.add(block[torch.as_tensor(operator.pairs.is_self[group.pairs] == onsite)])
        for part in PARTS:
            square = count = 0.0
            for entry in entries:
                if entry["onsite"] == onsite and (entry["row"].split()[0], entry["col"].split()[0]) == (row, col):
                    width = 2 * np.array(entry["degrees"]) + 1
                    both = 1 if entry["row"] == entry["col"] or row != col else 2  # and the adjoint shell pair
                    square += both * entry["n_pairs"] * (width * np.array(entry[f"rmse_{part}_meV"]) ** 2).sum()
                    count += both * entry["n_pairs"] * width.sum()
            assert np.sqrt(square / count) == pytest.approx(sums.means_mev()[f"rmse_{part}_meV"]), (row, col, part)


def test_irreps_keep_their_sizes_when_the_crystal_is_turned_with_its_spin(difference):
    structure, operator = difference
    before = _mapped(operator, structure)["by_shell_pair"]
    after = _mapped(rotate(operator, ROTATION), structure.rotated(ROTATION))["by_shell_pair"]
    for a, b in zip(before, after, strict=True):
        assert (a["row"], a["col"], a["degrees"]) == (b["row"], b["col"], b["degrees"])
        for part in PARTS:
            assert a[f"rmse_{part}_meV"] == pytest.approx(b[f"rmse_{part}_meV"])


def test_an_error_of_one_cubic_harmonic_is_found_in_its_irrep_alone():
    """p ⊗ p holds the identity in L = 0, an antisymmetric matrix in L = 1, diag(1, −1, 0) in L = 2."""
    structure = crystal()
    zero = random_operator(structure, BASIS, 1, seed=0, dtype=torch.float64) * 0
    matrices = (torch.eye(3), torch.tensor([[0, 1, 0], [-1, 0, 0], [0, 0, 0]]), torch.diag(torch.tensor([1, -1, 0])))
    for degree, matrix in enumerate(matrices):
        changed = zero.map(torch.clone)
        for group, block in zip(changed.pairs.groups, changed.blocks, strict=True):
            if BASIS[group.row_species].label == BASIS[group.col_species].label == "Br":
                own = torch.as_tensor(changed.pairs.is_self[group.pairs])
                block[own, :, :3, :3] = matrix.to(torch.float64)
        entries = _mapped(changed, structure)["by_shell_pair"]
        sizes = {(e["onsite"], e["row"], e["col"]): np.array(e["rmse_spin_free_meV"]) for e in entries}
        hit = sizes.pop((True, "Br p1", "Br p1"))
        assert np.flatnonzero(hit > 1e-9).tolist() == [degree]
        assert hit[degree] == pytest.approx(1e3 * float(torch.linalg.norm(matrix.double())) / np.sqrt(2 * degree + 1))
        assert max(size.max() for size in sizes.values()) == 0
        assert entries[0]["rmse_exchange_meV"] is None


def test_angles_are_those_between_the_moments_of_magnetic_atoms():
    structure = crystal()
    moments = np.array([[0, 0, 2.0], [1, 0, 0], [0, -0.5, 0.5]])
    row, col = np.array([0, 0, 2, 1]), np.array([0, 2, 0, 0])
    assert angles_between(structure.with_moments(moments), row, col, {"Ni"})[:3] == pytest.approx([0, 45, 45])
    opposite = structure.with_moments(np.array([[0, 0, 2.0], [0, 0, 0], [0, 0, -1e-3]]))
    found = angles_between(opposite, np.array([0, 0]), np.array([2, 1]), {"Ni", "Br"})
    assert found[0] == 180
    assert np.isnan(found[1])
    assert np.isnan(angles_between(structure.with_moments(None), row, col, {"Ni"})).all()


def test_bins_of_angles_hold_each_pair_of_two_magnetic_atoms_once(difference):
    structure, operator = difference
    result = ErrorMap()
    result.add(operator, structure, {"Ni"})
    labels = np.array(structure.labels)
    pairs = operator.pairs
    wanted = (labels[pairs.row] == "Ni") & (labels[pairs.col] == "Ni") & ~pairs.is_self
    per_pair = 4 * BASIS[0].n_orbitals ** 2
    assert sum(sums.counts[""] for sums in result.by_angle.values()) == wanted.sum() * per_pair
    antiparallel = structure.with_moments(np.array([[0, 0, 1.0], [0, 0, 0], [0, 0, -1.0]]))
    ends = [(e["from_deg"], e["to_deg"]) for e in _mapped(operator, antiparallel)["by_angle"]]
    assert ends == [(0, 15), (165, 180)]


def test_joined_maps_are_those_of_all_samples(difference):
    structure, a = difference
    b = random_operator(structure, BASIS, 4, seed=4)
    together, first, second = ErrorMap(), ErrorMap(), ErrorMap()
    for operator, single in ((a, first), (b, second)):
        together.add(operator, structure, {"Ni"})
        single.add(operator, structure, {"Ni"})
    first.join(second)
    for x, y in zip(together.to_dict()["by_shell_pair"], first.to_dict()["by_shell_pair"], strict=True):
        assert x["n_pairs"] == y["n_pairs"]
        assert x["rmse_exchange_meV"] == pytest.approx(y["rmse_exchange_meV"])


def test_shells_of_one_degree_are_counted():
    species = SpeciesBasis("Ni", 28, (Shell(0, 0, 2.0), Shell(1, 0, 2.0), Shell(0, 1, 2.0), Shell(2, 0, 2.0)))
    assert shell_names(species) == ["Ni s1", "Ni p1", "Ni s2", "Ni d1"]
