"""Counting electrons."""

import numpy as np
import pytest

from hamnet.errors import SolverError
from hamnet.occupations import occupations
from postprocess.bands import Bands, solve_bands
from postprocess.fermi import fermi_level
from postprocess.kmesh import k_mesh
from tight_binding import chain, honeycomb, operator, square


def _levels(energies, n_spin: int = 4) -> Bands:
    energies = np.asarray(energies, dtype=float)
    return Bands(np.zeros((len(energies), 3)), energies, n_spin)


def test_half_filled_square_lattice_has_its_fermi_level_at_the_centre():
    _, h, s = square()
    bands = solve_bands(h, s, k_mesh((16, 16, 1)).k_frac)
    level = fermi_level(bands, 1.0)  # without spin a state holds two
    assert level.energy_ev == pytest.approx(0, abs=1e-12)
    assert level.gap_ev == 0
    assert level.vbm_ev is None


@pytest.mark.parametrize("temperature_k", [0.0, 10.0, 300.0, 3000.0])
@pytest.mark.parametrize("n_electrons", [0.1, 0.73, 1.0, 1.9])
def test_occupations_at_the_chemical_potential_hold_the_electrons(temperature_k, n_electrons):
    _, h, s = chain(-1.0, 0.1)
    bands = solve_bands(h, s, k_mesh((400, 1, 1)).k_frac)
    level = fermi_level(bands, n_electrons, temperature_k=temperature_k)
    counted = 2 * occupations(bands.energies_ev, level.chemical_potential_ev, temperature_k).sum() / 400
    # Without temperature whole (pairs of) levels are filled.
    assert counted == pytest.approx(n_electrons, abs=1e-12 if temperature_k else 4 / 400)


def test_chain_fills_to_its_closed_form_level():
    _, h, s = chain()
    bands = solve_bands(h, s, k_mesh((4000, 1, 1)).k_frac)
    level = fermi_level(bands, 0.5, temperature_k=0)
    assert level.energy_ev == pytest.approx(-2 * np.cos(np.pi / 4), abs=2e-3)


def test_insulator_reports_its_edges_and_the_middle_of_the_gap():
    _, h, s = honeycomb(-1.0, 0.4)
    bands = solve_bands(h, s, k_mesh((12, 12, 1)).k_frac)  # holds K
    level = fermi_level(bands, 2.0)
    assert (level.vbm_ev, level.cbm_ev) == (pytest.approx(-0.4), pytest.approx(0.4))
    assert level.gap_ev == pytest.approx(0.8)
    assert level.direct_gap_ev == pytest.approx(0.8)
    assert level.energy_ev == pytest.approx(0)
    assert -0.4 < level.chemical_potential_ev < 0.4


def test_bands_that_touch_are_no_insulator():
    _, h, s = honeycomb()
    assert fermi_level(solve_bands(h, s, k_mesh((12, 12, 1)).k_frac), 2.0).gap_ev == 0


def test_overlapping_bands_are_a_metal_even_if_levels_are_apart():
    # At every k there is a gap, but at different energies.
    level = fermi_level(_levels([[[0.0, 1.0]], [[2.0, 3.0]]]), 1.0)
    assert level.gap_ev == 0
    assert level.vbm_ev is None
    assert level.energy_ev == pytest.approx(1.5, abs=0.5)


def test_direct_and_indirect_gap_differ():
    level = fermi_level(_levels([[[0.0, 1.5]], [[0.5, 1.0 + 1.0]]]), 1.0)
    assert level.gap_ev == pytest.approx(1.0)
    assert level.direct_gap_ev == pytest.approx(1.5)


def test_channels_of_a_collinear_state_share_one_level():
    structure, _, s = chain()
    onsite = np.array([0, -3.0]).reshape(2, 1, 1)
    hop = np.array([-0.5, 0]).reshape(2, 1, 1)
    h = operator(structure, {(0, 0, (0, 0, 0)): onsite, (0, 0, (1, 0, 0)): hop})
    bands = solve_bands(h, s, k_mesh((20, 1, 1)).k_frac)
    level = fermi_level(bands, 1.0)  # ↑ full, ↓ empty: not half of each
    assert level.gap_ev == pytest.approx(6 - 2)
    assert level.energy_ev == pytest.approx(0)
    assert level.direct_gap_ev == np.inf  # within a channel nothing is above or below


def test_spin_free_states_hold_two_electrons_and_others_one():
    energies = [[[0.0, 1.0, 2.0]]]
    assert fermi_level(_levels(energies, n_spin=1), 2.0).energy_ev == pytest.approx(0.5)
    assert fermi_level(_levels(energies, n_spin=4), 2.0).energy_ev == pytest.approx(1.5)


def test_partly_filled_degenerate_level_pins_the_fermi_level():
    assert fermi_level(_levels([[[0.0, 1.0, 1.0, 1.0, 4.0]]]), 2.0, temperature_k=0).energy_ev == 1.0


@pytest.mark.parametrize("n_electrons", [-1.0, 0.0, 3.0, 9.0])
def test_electrons_that_do_not_fit_are_refused(n_electrons):
    with pytest.raises(SolverError, match="between 0 and 3"):
        fermi_level(_levels([[[0.0, 1.0, 2.0]]]), n_electrons)
