"""Species, shells, and which atom belongs to which species."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hamnet.basis import Basis, Shell, SpeciesBasis
from hamnet.errors import BasisError
from hamnet.structure import Structure
from small_models import BASIS


def _atoms(labels: list[str], numbers: list[int]) -> Structure:
    return Structure(np.eye(3) * 9, np.arange(3 * len(labels)).reshape(-1, 3), numbers, tuple(labels))


def test_species_are_ordered_by_atomic_number_then_label_whatever_the_order_given():
    one = SpeciesBasis("Fe_b", 26, (Shell(0, 0, 2.0),))
    two = SpeciesBasis("Fe_a", 26, (Shell(1, 0, 2.0),))
    three = SpeciesBasis("C", 6, (Shell(0, 0, 2.0),))
    assert Basis((one, two, three)).labels == ("C", "Fe_a", "Fe_b")
    assert Basis((one, two, three)) == Basis((three, one, two))


def test_orbitals_stand_shell_by_shell_with_2l_plus_1_each():
    species = BASIS[BASIS.labels.index("Ni")]
    assert species.degrees == (0, 1, 2, 0)
    assert species.n_orbitals == 1 + 3 + 5 + 1
    assert species.shell_slices() == (slice(0, 1), slice(1, 4), slice(4, 9), slice(9, 10))
    assert species.cutoff_ang == 2.0


def test_orbital_offsets_are_the_running_sum_over_atoms():
    species = BASIS.species_of(_atoms(["Ni", "Br", "Ni"], [28, 35, 28]))
    assert BASIS.orbital_offsets(species).tolist() == [0, 10, 14, 24]


def test_an_atom_with_an_unlisted_label_is_known_by_its_atomic_number():
    basis = Basis((SpeciesBasis("Fe_fept_SOC", 26, (Shell(0, 0, 2.0),)), SpeciesBasis("Pt", 78, (Shell(0, 0, 2.0),))))
    assert basis.species_of(_atoms(["Fe", "Pt1", "Fe_fept_SOC"], [26, 78, 26])).tolist() == [0, 1, 0]


def test_a_species_of_unknown_number_is_refused_and_the_known_ones_are_named():
    with pytest.raises(BasisError, match=r"'Cr' \(Z = 24\) is unknown; expected one of Ni \(Z = 28\), Br \(Z = 35\)"):
        BASIS.species_of(_atoms(["Ni", "Cr"], [28, 24]))


def test_a_number_that_two_species_share_is_ambiguous():
    basis = Basis(tuple(SpeciesBasis(label, 26, (Shell(0, 0, 2.0),)) for label in ("Fe1", "Fe2")))
    assert basis.species_of(_atoms(["Fe2"], [26])).tolist() == [1]
    with pytest.raises(BasisError, match=r"'Fe' \(Z = 26\) is ambiguous.*Label the atoms with these names"):
        basis.species_of(_atoms(["Fe"], [26]))


def test_a_label_that_contradicts_its_atomic_number_is_refused():
    with pytest.raises(BasisError, match=r"labelled 'Ni' with Z = 35; expected Z = 28"):
        BASIS.species_of(_atoms(["Ni"], [35]))


def test_a_basis_survives_json_to_the_last_digit():
    species = SpeciesBasis("Pt", 78, (Shell(2, 0, 1 / 3), Shell(0, 0, 2.1)), "pbe/Pt.psml", 10.0, 1.7)
    basis = Basis((*BASIS.species, species))
    assert Basis.from_dict(json.loads(json.dumps(basis.to_dict()))) == basis


@pytest.mark.parametrize(
    "damage", [{"shells": None}, {"shells": [{"l": 0}]}, {"colour": "red"}, {"shells": [{"l": 0, "zeta": 0, "r": 1}]}]
)
def test_a_damaged_basis_entry_is_an_error_of_the_basis(damage):
    entry = {**BASIS[0].to_dict(), **damage}
    with pytest.raises(BasisError, match="species entry"):
        SpeciesBasis.from_dict(entry)


@pytest.mark.parametrize(
    ("shells", "words"),
    [
        ((), "no shells"),
        ((Shell(0, 0, 0.0),), "positive cutoff"),
        ((Shell(0, 0, float("inf")),), "positive cutoff"),
        ((Shell(-1, 0, 2.0),), "l ≥ 0"),
        ((Shell(0, 0, 2.0), Shell(1, 1, 2.0)), "number 1 of its l = 1; expected zeta to count"),
        ((Shell(0, 0, 2.0), Shell(0, 0, 2.0)), "number 2 of its l = 0"),
    ],
)
def test_impossible_shells_are_refused(shells, words):
    with pytest.raises(BasisError, match=words):
        SpeciesBasis("X", 1, shells)


def test_one_label_stands_for_one_basis():
    with pytest.raises(BasisError, match="species listed twice"):
        Basis((BASIS[0], BASIS[0]))
    other = Basis((SpeciesBasis("Ni", 28, (Shell(0, 0, 9.9),)),))
    with pytest.raises(BasisError, match=r"species Ni with two bases: .*l=2 r=1.800 Å.* and .*r=9.900 Å"):
        BASIS.merged(other)
    assert BASIS.merged(BASIS) == BASIS


def test_restriction_keeps_the_named_species_and_refuses_unknown_names():
    assert BASIS.restricted(["Br"]).labels == ("Br",)
    with pytest.raises(BasisError, match="no species Cr; expected some of Ni, Br"):
        BASIS.restricted(["Ni", "Cr"])
