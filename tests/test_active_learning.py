"""Greedy choice of structures against the posterior variance of a Gaussian process, computed directly."""

from __future__ import annotations

import numpy as np
import pytest

from hamnet.active_learning import greedy_selection, structure_kernel
from hamnet.errors import HamnetError


def _pool(seed: int, n: int = 12, d: int = 3):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 2, n), rng.normal(size=(n, d))


@pytest.mark.parametrize("seed", range(5))
def test_each_choice_has_the_largest_variance_given_the_earlier_ones(seed: int):
    u, descriptors = _pool(seed)
    kernel = structure_kernel(descriptors)
    covariance = np.outer(u, u) * kernel
    taken: list[int] = []
    for index, left in greedy_selection(u, kernel, 6):
        cross = covariance[:, taken]
        explained = cross @ np.linalg.solve(covariance[np.ix_(taken, taken)], cross.T) if taken else 0 * covariance
        variance = np.diag(covariance - explained)
        free = np.setdiff1d(np.arange(len(u)), taken)
        assert index == free[np.argmax(variance[free])]
        assert left**2 == pytest.approx(variance[index])
        taken.append(index)


def test_a_copy_of_a_chosen_structure_is_the_last_to_be_chosen():
    u, descriptors = _pool(1)
    best = int(np.argmax(u))
    u, descriptors = np.append(u, u[best]), np.vstack([descriptors, descriptors[best]])
    chosen = [index for index, _ in greedy_selection(u, structure_kernel(descriptors), len(u))]
    assert chosen[0] == best
    assert chosen[-1] == len(u) - 1
    assert sorted(chosen) == list(range(len(u)))


def test_structures_that_have_nothing_in_common_are_taken_by_uncertainty():
    u = np.array([0.3, 2.0, 1.0, 1.5])
    assert [index for index, _ in greedy_selection(u, np.eye(4), 4)] == [1, 3, 2, 0]


def test_kernel_is_one_for_equal_structures_and_blind_to_units():
    _, descriptors = _pool(2)
    kernel = structure_kernel(descriptors)
    assert np.diag(kernel) == pytest.approx(1)
    assert np.linalg.eigvalsh(kernel).min() > 0
    scaled = descriptors * [1e3, 1e-3, 7] + [5, 0, -1]
    assert structure_kernel(scaled) == pytest.approx(kernel)
    assert structure_kernel(np.hstack([descriptors, np.ones((12, 2))])) == pytest.approx(kernel)
    assert structure_kernel(np.ones((3, 2))) == pytest.approx(np.ones((3, 3)))


@pytest.mark.parametrize("count", [0, 4])
def test_more_choices_than_structures_are_refused(count: int):
    with pytest.raises(HamnetError, match="of 3 structures"):
        greedy_selection(np.ones(3), np.eye(3), count)
