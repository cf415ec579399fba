"""Constants against scipy's CODATA."""

from __future__ import annotations

import pytest
import scipy.constants

from hamnet import units


def test_constants_are_those_of_codata():
    """Successive CODATA adjustments differ by 1e-9."""
    value = scipy.constants.value
    assert pytest.approx(value("Hartree energy in eV"), rel=2e-9) == units.HARTREE_EV
    assert pytest.approx(value("Bohr radius") * 1e10, rel=2e-9) == units.BOHR_ANG
    assert pytest.approx(value("Boltzmann constant in eV/K"), rel=1e-9) == units.BOLTZMANN_EV_PER_K


def test_rydberg_is_exactly_half_a_hartree():
    assert 2 * units.RYDBERG_EV == units.HARTREE_EV
    assert units.MEV_PER_EV == 1000
