"""Spread, factors and the comparison of expected with true errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hamnet.calibration import PARTS, Calibration, PairKinds, agreement, mean_and_spread, pair_kinds, rms_by_part
from hamnet.symmetry import rotate, rotate_spin, time_reverse
from small_models import BASIS, ROTATION, crystal, random_operator


def _by_pair(operator) -> np.ndarray:
    return np.concatenate([rms_by_part(block) for block in operator.blocks])


def test_parts_of_a_block_are_root_mean_squares_of_its_elements():
    blocks = torch.randn(5, 4, 3, 2, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    found = rms_by_part(blocks)
    x = blocks.numpy()
    assert found[:, 0] == pytest.approx(np.sqrt((np.abs(x[:, 0]) ** 2).mean(axis=(1, 2))))
    assert found[:, 1] == pytest.approx(np.sqrt((x[:, 1:].real ** 2).mean(axis=(1, 2, 3))))
    assert found[:, 2] == pytest.approx(np.sqrt((x[:, 1:].imag ** 2).mean(axis=(1, 2, 3))))


def test_parts_that_a_hamiltonian_has_not_are_nan():
    known = {n_spin: ~np.isnan(rms_by_part(torch.ones(2, n_spin, 1, 1)))[0] for n_spin in (1, 2, 4)}
    assert {n: k.tolist() for n, k in known.items()} == {1: [1, 0, 0], 2: [1, 1, 0], 4: [1, 1, 0]}


@pytest.mark.parametrize(
    "operation",
    [
        lambda h: rotate(h, ROTATION),
        lambda h: rotate(h, -ROTATION),
        lambda h: rotate_spin(h, ROTATION),
        time_reverse,
    ],
    ids=["rotation", "rotoinversion", "spin rotation", "time reversal"],
)
def test_size_of_each_part_of_each_block_is_invariant(operation):
    operator = random_operator(crystal(), BASIS, 4, seed=1)
    # Sorted, since an inversion turns the lattice vectors over and with them the order of the pairs.
    assert np.sort(_by_pair(operation(operator)), axis=0) == pytest.approx(np.sort(_by_pair(operator), axis=0))


def test_spread_is_the_unbiased_standard_deviation_over_the_members():
    members = [torch.randn(3, 4, 2, 2, dtype=torch.complex128) for _ in range(5)]
    mean, spread = mean_and_spread(members)
    x = torch.stack(members).numpy()
    assert mean.numpy() == pytest.approx(x.mean(axis=0))
    assert spread[:, 1] ** 2 == pytest.approx(x[:, :, 1:].real.var(axis=0, ddof=1).mean(axis=(1, 2, 3)))
    assert (mean_and_spread(members[:1])[1] == 0).all()


def test_kinds_are_those_of_both_directions_of_a_bond():
    structure = crystal()
    operator = random_operator(structure, BASIS, 1, seed=0)
    kinds = pair_kinds(structure, operator.pairs, BASIS.labels)
    assert np.array_equal(kinds.index, kinds.index[operator.pairs.partner])
    assert np.array_equal(kinds.onsite, operator.pairs.is_self)
    lengths = np.linalg.norm(operator.pairs.vectors(structure.cell, structure.positions), axis=1)
    for number, (name, bin_) in enumerate(kinds.kinds):
        here = kinds.index == number
        species = {tuple(sorted((BASIS.labels[a], BASIS.labels[b]))) for a, b in _species(operator.pairs, here)}
        assert species == {tuple(name.split("-"))}
        assert (bin_ == -1) or (np.floor(lengths[here]) == bin_).all()


def _species(pairs, here):
    return zip(pairs.species[pairs.row[here]], pairs.species[pairs.col[here]], strict=True)


KINDS = (("Br-Ni", 2), ("Br-Ni", 5), ("Br-Br", -1), ("Ni-Ni", -1))
FACTORS = np.array([[2.0, 3.0, 0.5], [0.7, 1.0, 9.0], [4.0, 1.5, 1.0], [8.0, 2.0, 0.1]])


def _errors(seed: int, *, noise: float = 0.0) -> tuple[PairKinds, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    index = rng.integers(0, len(KINDS), 400)
    spread = 10 ** rng.uniform(-6, -3, (400, 3))
    return PairKinds(KINDS, index), spread, spread * FACTORS[index] * np.exp(noise * rng.normal(size=spread.shape))


def test_factors_between_spread_and_error_are_found_again():
    calibration = Calibration.fit([_errors(0), _errors(1)])
    assert np.array([calibration.factors[kind] for kind in KINDS]) == pytest.approx(FACTORS)
    kinds, spread, error = _errors(2)
    assert calibration.expected_error(kinds, spread) == pytest.approx(error)


def test_calibration_survives_its_file():
    calibration = Calibration.fit([_errors(0)])
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert again == calibration


def test_unknown_kinds_take_the_factors_of_their_nearest_kin():
    """On-site blocks those of on-site blocks, bonds those of the same species at the nearest distance."""
    calibration = Calibration.fit([_errors(0)])
    kinds = PairKinds((("Br-Ni", 3), ("Br-Ni", 9), ("I-Ni", -1), ("Br-Br", 5)), np.arange(4))
    found = calibration.expected_error(kinds, np.ones((4, 3)))
    assert found[0] == pytest.approx(FACTORS[0])
    assert found[1] == pytest.approx(FACTORS[1])
    assert any(found[2] == pytest.approx(FACTORS[k]) for k in (2, 3))
    assert found[3] == pytest.approx(FACTORS[1])


def test_parts_without_a_hamiltonian_have_no_factor():
    kinds, spread, error = _errors(0)
    spread[:, 2] = error[:, 2] = np.nan
    calibration = Calibration.fit([(kinds, spread, error)])
    assert all(factors[2] is None for factors in calibration.factors.values())
    assert np.isnan(calibration.expected_error(kinds, spread)[:, 2]).all()
    assert set(calibration.to_dict()[0]) > set(PARTS)


def test_agreement_counts_what_lies_within_a_factor_of_two():
    expected = np.full(4, 1e-3)
    found = agreement(expected, np.array([1.9e-3, 0.6e-3, 2.1e-3, 0.4e-3]))
    assert found is not None
    assert found.within_factor_two == 0.5
    assert found.rank_correlation is None  # equal expectations have no rank
    kinds, spread, error = _errors(3, noise=0.2)
    found = agreement(Calibration.fit([_errors(4, noise=0.2)]).expected_error(kinds, spread)[:, 1], error[:, 1])
    assert found is not None
    assert found.within_factor_two > 0.98
    assert found.rms_ratio == pytest.approx(1, abs=0.15)
    assert found.rank_correlation is not None
    assert found.rank_correlation > 0.95
    assert agreement(np.array([np.nan]), np.array([1.0])) is None
