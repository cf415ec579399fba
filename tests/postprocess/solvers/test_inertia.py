"""The number of states below an energy, by every back-end, against dense eigenvalues. Never certified and wrong."""

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.linalg

from hamnet.errors import SolverError
from postprocess.solvers.dense import Dense
from postprocess.solvers.factor import SingularFactorError, certified_factor
from postprocess.solvers.pencil import SparsePencil
from postprocess.solvers.window import count_below, factor_off_states

GENERIC, GAMMA = (0.13, 0.21, 0.0), (0.0, 0.0, 0.0)


def _counts(analysis, at, levels, shifts) -> list[tuple[bool, bool]]:
    """(certified, right) at each shift."""
    found = []
    for shift in shifts:
        try:
            inertia = certified_factor(analysis, at, shift).inertia
        except SingularFactorError:
            found.append((False, False))
            continue
        assert inertia.negative + inertia.positive == at.dim
        found.append((inertia.certified, inertia.negative == (levels < shift).sum()))
    return found


def _levels(at) -> np.ndarray:
    h, s = at.dense()
    return scipy.linalg.eigvalsh(h, s)


def _between(levels: np.ndarray, n: int) -> np.ndarray:
    """Energies in the middle between neighbouring levels more than 1 meV apart, all over the spectrum."""
    wide = np.flatnonzero(np.diff(levels) > 1e-3)
    chosen = wide[np.linspace(0, len(wide) - 1, n).astype(int)]
    return np.r_[levels[0] - 1, (levels[chosen] + levels[chosen + 1]) / 2, levels[-1] + 1]


def _beside(levels: np.ndarray, distance_ev: float, n: int = 3) -> np.ndarray:
    chosen = np.random.default_rng(7).choice(levels, n, replace=False)
    return np.concatenate([chosen - distance_ev, chosen + distance_ev])


# Complex at a generic k; at Γ of the ferromagnet levels are degenerate; a layer without spin is real at Γ.
CASES = {
    "turned": ((3, 3), {}, GENERIC),
    "ferromagnet": ((2, 2, 0.0), {}, GAMMA),
    "collinear": ((3, 3, 0.0), {"name": "nibr2_v40_collinear"}, GAMMA),
    "spinless": ((2, 16, 0.0), {"name": "nibr2_unpolarised"}, GAMMA),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, superlattice):
    args, kwargs, k = CASES[request.param]
    at = superlattice(*args, **kwargs).at(k, channel=int(request.param == "collinear"))
    return at, _levels(at)


def test_between_levels_every_count_is_certified_and_equals_the_dense_one(case, backend):
    at, levels = case
    assert _counts(backend(at.pencil), at, levels, _between(levels, 10)) == [(True, True)] * 12


def test_next_to_a_level_no_certified_count_is_wrong(case, backend):
    at, levels = case
    analysis = backend(at.pencil)
    for distance in (1e-4, 1e-6, 1e-8, 1e-10):
        found = _counts(analysis, at, levels, _beside(levels, distance))
        assert all(right for certified, right in found if certified)
        if distance == 1e-4:
            assert sum(certified for certified, _ in found) >= 5


def test_on_a_level_the_count_is_not_certified(case):
    at, levels = case
    analysis = Dense(at.pencil)
    # Dense eigenvalues are good to 1e-13 eV; so near, both sides are possible.
    for certified, _ in _counts(analysis, at, levels, levels[:: len(levels) // 5]):
        assert not certified


def test_a_shift_on_a_level_is_moved_and_then_counts_right(case, backend):
    at, levels = case
    analysis = backend(at.pencil)
    for level in levels[5 :: len(levels) // 3]:
        factor, taken = factor_off_states(analysis, at, float(level))
        assert taken > 1
        assert 0 < factor.sigma_ev - level < 1e-3
        assert factor.inertia.negative == (levels < factor.sigma_ev).sum()


def test_count_rises_by_the_multiplicity_across_a_degenerate_level(superlattice, backend):
    at = superlattice(3, 3, 0.0, name="nibr2_unpolarised").at(GAMMA)
    levels = _levels(at)
    ends = np.flatnonzero(np.diff(levels, prepend=-np.inf, append=np.inf) > 1e-5)
    sizes = np.diff(ends)
    assert sizes.max() >= 4
    degenerate = ends[int(np.argmax(sizes))]
    analysis, level = backend(at.pencil), float(levels[degenerate])
    assert count_below(analysis, at, level + 2e-5) - count_below(analysis, at, level - 2e-5) == sizes.max()


@pytest.fixture(scope="module")
def operators(tiled):
    """H, S of a small superlattice, and the smallest eigenvalue of S(k)."""
    h, s = tiled(2, 2)
    dense = SparsePencil(h, s).at(GENERIC).dense()[1]
    return h, s, float(scipy.linalg.eigvalsh(dense)[0])


def test_almost_singular_overlap_is_counted_right(operators, softened, backend):
    h, s, smallest = operators
    at = SparsePencil(h, softened(s, smallest - 1e-4)).at(GENERIC)
    levels = _levels(at)
    assert scipy.linalg.eigvalsh(at.dense()[1])[0] == pytest.approx(1e-4, rel=1e-6)
    assert levels[-1] > 500  # what a soft direction does to the top of the spectrum
    analysis = backend(at.pencil)
    assert _counts(analysis, at, levels, _between(levels, 12)) == [(True, True)] * 14
    for distance in (1e-4, 1e-7, 1e-10):
        found = _counts(analysis, at, levels, _beside(levels, distance))
        assert all(right for certified, right in found if certified)


@dataclass
class Disturbed:
    """Factorises H − σS + δ, as a factorisation with a large backward error would."""

    analysis: Dense
    at: object
    disturbance_ev: float
    name: str = "disturbed"

    def factor(self, data):
        s = self.at.shifted(0.0) - self.at.shifted(1.0)
        return self.analysis.factor(data + self.disturbance_ev * s)


def test_certificate_notices_a_factorisation_that_is_not_of_this_matrix(case):
    at, levels = case
    shift = float(_between(levels, 3)[1])
    near = np.abs(levels - shift).min()
    # Eigenvalues of the factorised matrix lie lower by the disturbance: some levels have crossed the shift.
    wrong = certified_factor(Disturbed(Dense(at.pencil), at, -1.5 * near), at, shift)
    assert wrong.inertia.negative != (levels < shift).sum()
    assert not wrong.inertia.certified
    harmless = certified_factor(Disturbed(Dense(at.pencil), at, 1e-4 * near), at, shift)
    assert harmless.inertia.certified
    assert harmless.inertia.backward_error_ev == pytest.approx(1e-4 * near, rel=0.5)


def test_energies_that_are_no_numbers_are_refused(superlattice):
    at = superlattice(2, 2).at(GENERIC)
    with pytest.raises(SolverError, match="shift nan eV"):
        certified_factor(Dense(at.pencil), at, float("nan"))
