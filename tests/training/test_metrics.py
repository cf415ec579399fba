"""Losses, learning rates and errors against closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from hamnet.bloch import channel_blocks
from hamnet.models.readout import blocks_from_parts
from hamnet.training.config import OptimiserConfig
from hamnet.training.losses import LOSSES, part_weights, weighted_mean
from hamnet.training.metrics import ErrorSums
from hamnet.training.schedule import Plateau, learning_rate, progress

X = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], dtype=torch.float64)


# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mae", [3, 0.5, 0, 0.5, 3]),
        ("mse", [9, 0.25, 0, 0.25, 9]),
        ("huber", [2.5, 0.125, 0, 0.125, 2.5]),
        ("pseudo-huber", [math.sqrt(10) - 1, math.sqrt(1.25) - 1, 0, math.sqrt(1.25) - 1, math.sqrt(10) - 1]),
    ],
)
def test_losses_have_their_closed_forms(name, expected):
    assert LOSSES[name](X, 1.0).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_even_and_differentiable_at_their_joints(name):
    assert torch.equal(LOSSES[name](X, 0.5), LOSSES[name](-X, 0.5))
    x = torch.tensor([0.4999, 0.5001], dtype=torch.float64, requires_grad=True)
    LOSSES[name](x, 0.5).sum().backward()
    assert x.grad is not None
    assert abs(float(x.grad[1] - x.grad[0])) < 1e-3


def test_the_loss_counts_a_pair_twice_if_it_stands_for_its_adjoint():
    penalties = [torch.full((2, 1, 2, 3), 1.0), torch.full((1, 1, 1, 1), 5.0)]
    weights = [torch.tensor([2.0, 2.0]), torch.tensor([1.0])]
    loss = weighted_mean(penalties, weights, torch.ones(1, 1, 1))
    assert float(loss) == pytest.approx((24 * 1 + 5) / (24 + 1))


def test_weights_of_parts_follow_their_meaning():
    parts = part_weights("soc", 1.0, 2.0, 3.0).flatten().tolist()
    blocks = blocks_from_parts(torch.tensor(parts)[None, :, None, None], "soc")[0, :, 0, 0]
    assert blocks.tolist() == [1 + 1j, 2 + 3j, 2 + 3j, 2 + 3j]
    assert part_weights("collinear", 1.0, 2.0, 3.0).flatten().tolist() == [1, 2]
    assert part_weights("spin-group", 1.0, 2.0, 3.0).flatten().tolist() == [1, 2, 2, 2]


# -- learning rate -----------------------------------------------------------------------------------------------------


def test_a_cosine_schedule_rises_falls_and_ends_at_its_fraction():
    config = OptimiserConfig(lr=2.0, warmup_steps=10, final_fraction=0.1)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.2)
    assert learning_rate(config, 100, 0.0) == pytest.approx(2.0)
    assert learning_rate(config, 100, 0.5) == pytest.approx(1.1)
    assert learning_rate(config, 100, 1.0) == pytest.approx(0.2)


def test_a_plateau_lowers_the_rate_after_its_patience():
    plateau = Plateau(patience=2, decay=0.5)
    for value, factor in ((3.0, 1), (2.0, 1), (2.0, 1), (2.1, 1), (2.2, 0.5), (1.0, 0.5), (1.0, 0.5)):
        plateau.update(value)
        assert plateau.factor == factor
    again = Plateau(patience=2, decay=0.5)
    again.load(plateau.state())
    assert again == plateau


def test_a_run_is_done_when_steps_or_clock_say_so():
    assert progress(5, 10, 0.0, None) == 0.5
    assert progress(5, 10, 90.0, 100.0) == 0.9
    assert progress(0, None, 200.0, 100.0) == 1.0


# -- errors ------------------------------------------------------------------------------------------------------------


def test_errors_of_one_element_are_those_computed_by_hand():
    # ΔH = (1 + 2i) σ0 + (3 + 4i) σx + 5 σy + 6i σz, in eV.
    sums = ErrorSums()
    sums.add(torch.tensor([1 + 2j, 3 + 4j, 5, 6j], dtype=torch.complex128).reshape(1, 4, 1, 1))
    found = sums.means_mev()
    assert found["mae_meV"] == pytest.approx(1e3 * (math.sqrt(5) + 5 + 5 + 6) / 4)
    assert found["mae_spin_free_meV"] == pytest.approx(1e3 * math.sqrt(5))
    assert found["mae_exchange_meV"] == pytest.approx(1e3 * (3 + 5 + 0) / 3)
    assert found["mae_soc_meV"] == pytest.approx(1e3 * (4 + 0 + 6) / 3)
    assert found["rmse_meV"] == pytest.approx(1e3 * math.sqrt((5 + 25 + 25 + 36) / 4))
    assert found["rmse_spin_free_meV"] == pytest.approx(1e3 * math.sqrt(5))
    assert found["rmse_exchange_meV"] == pytest.approx(1e3 * math.sqrt((9 + 25 + 0) / 3))
    assert found["rmse_soc_meV"] == pytest.approx(1e3 * math.sqrt((16 + 0 + 36) / 3))
    up_up, down_down, up_down, down_up = 1 + 8j, 1 - 4j, 3 - 1j, 3 + 9j
    assert found["mae_spinor_meV"] == pytest.approx(1e3 * sum(map(abs, (up_up, down_down, up_down, down_up))) / 4)


def test_the_spinor_error_is_that_of_the_assembled_blocks():
    generator = torch.Generator().manual_seed(0)
    difference = torch.randn((5, 4, 3, 2), dtype=torch.complex128, generator=generator)
    sums = ErrorSums()
    sums.add(difference)
    spinor = channel_blocks(SimpleNamespace(n_spin=4, blocks=(difference,)))[0]  # type: ignore[arg-type]
    assert sums.means_mev()["mae_spinor_meV"] == pytest.approx(1e3 * float(spinor.abs().mean()))


def test_squares_of_the_parts_add_up_to_the_square_of_the_whole():
    """Pauli matrices are orthogonal with tr σ² = 2, so the spinor elements hold the same square sum, twice per part."""
    generator = torch.Generator().manual_seed(2)
    sums = ErrorSums()
    sums.add(torch.randn((7, 4, 3, 5), dtype=torch.complex128, generator=generator))
    rms = {key: value for key, value in sums.means_mev().items() if key.startswith("rmse")}
    parts = rms["rmse_spin_free_meV"] ** 2 + 3 * rms["rmse_exchange_meV"] ** 2 + 3 * rms["rmse_soc_meV"] ** 2
    assert 4 * rms["rmse_meV"] ** 2 == pytest.approx(parts)
    assert rms["rmse_spinor_meV"] ** 2 == pytest.approx(2 * rms["rmse_meV"] ** 2)


@pytest.mark.parametrize(("n_spin", "parts"), [(1, {"exchange", "soc"}), (2, {"soc"})])
def test_parts_that_a_hamiltonian_cannot_have_have_no_error(n_spin, parts):
    sums = ErrorSums()
    sums.add(torch.ones(2, n_spin, 2, 2, dtype=torch.float64))
    means = sums.means_mev()
    missing = {f"{kind}_{part}_meV" for kind in ("mae", "rmse") for part in parts}
    assert {key for key, value in means.items() if value is None} == missing
    # Both components 1 eV: the channels of a collinear ΔH are 2 and 0.
    assert means["mae_spinor_meV"] == pytest.approx(1e3)


def test_weights_count_blocks_and_joined_sums_are_those_of_all_blocks():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn((n, 4, 2, 2), dtype=torch.complex128, generator=generator) for n in (3, 4))
    weighted, repeated, joined, other = (ErrorSums() for _ in range(4))
    weighted.add(a, torch.tensor([1.0, 2.0, 1.0]))
    repeated.add(a[[0, 1, 1, 2]])
    assert weighted.means_mev() == pytest.approx(repeated.means_mev())
    joined.add(a)
    other.add(b)
    joined.join(other)
    together = ErrorSums()
    together.add(torch.cat([a, b]))
    assert joined.means_mev() == pytest.approx(together.means_mev())
