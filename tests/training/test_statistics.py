"""What a model takes from its training set before the first step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hamnet.models import HamiltonianModel, ModelConfig
from hamnet.models.hamiltonian import half_blocks
from hamnet.sample import Sample
from hamnet.training import statistics
from hamnet.training.statistics import calibrate, fit_readout, fit_weights, mean_neighbours, moment_scales
from preprocessing.readers import read_run

SIZE = ModelConfig(mode="soc", cutoff_ang=4.0, l_max=2, channels=4, hidden=4, pair_channels=8, product_channels=4)


@pytest.fixture(scope="module")
def sample(tracked) -> Sample:
    return read_run(tracked("openmx/nibr2_1x1_nc")).sample


@pytest.fixture
def model(sample) -> HamiltonianModel:
    torch.manual_seed(3)
    scales = moment_scales([sample.structure], sample.basis, ["Ni"])
    return HamiltonianModel(SIZE, sample.basis, scales)


def mean_error(model: HamiltonianModel, sample: Sample) -> float:
    with torch.no_grad():
        return model.hamiltonian(sample.structure, sample.pairs).mean_abs_difference(sample.hamiltonian)


def test_shift_of_a_self_pair_is_the_mean_of_its_invariants_and_scales_are_the_rms(model, sample):
    fit_readout(model, [sample])
    species, _, block = next(entry for entry in half_blocks(sample.hamiltonian) if entry[1] is None)
    readout = model.self_readout[species]
    trace = block[:, 0].real.diagonal(dim1=1, dim2=2).sum(dim=1).mean()
    constant = readout.irreps.to_parts(
        torch.cat([readout.shift[None, None], torch.zeros_like(readout.shift)[None, None]], dim=1)
    )
    assert float(constant[0, 0].trace()) == pytest.approx(float(trace), rel=1e-9)
    assert (readout.scale > 0).all()


def test_regressed_readout_is_the_best_that_the_features_can_do(model, sample, monkeypatch):
    """It beats the untrained readout by far, and no small change of its weights lowers the squared error."""
    for ridge in ("_RIDGE", "_RIDGE_CENTRES", "_RIDGE_EXCHANGE", "_RIDGE_EXCHANGE_BESIDE_OWN"):
        monkeypatch.setattr(statistics, ridge, 1e-10)
    fit_readout(model, [sample])
    graph = model.graph([sample.structure], [sample.pairs])
    calibrate(model, graph)
    before = mean_error(model, sample)
    fit_weights(model, graph, [sample.hamiltonian])
    assert mean_error(model, sample) < 0.8 * before
    readout = model.self_readout[0]
    target = readout.irreps.from_parts(_self_parts(sample)) - _shift(readout)
    loss = (
        ((readout.coefficients(_self_features(model, graph)) - _shift(readout) - target) / _scale(readout)) ** 2
    ).sum()
    gradients = torch.autograd.grad(loss, list(readout.weights.values()))
    largest = max(float(g.abs().max()) for g in gradients)
    assert largest < 1e-6 * max(1.0, float((target / _scale(readout)).abs().max()) ** 2)


def test_calibrated_branches_begin_with_the_size_that_they_should_have(model, sample):
    graph = model.graph([sample.structure], [sample.pairs])
    calibrate(model, graph)
    sizes = []
    for linear, wanted in model.stages():
        seen = []
        hook = linear.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        model(graph)
        hook.remove()
        sizes.append(float(seen[0][:, 0, 0, 0].detach().pow(2).mean().sqrt()) / wanted)
    np.testing.assert_allclose(sizes, 1, rtol=1e-6)


def test_neighbours_and_moments_are_counted_per_atom(sample):
    # Ni has 6 Br at 2.6 Å and 6 Ni at 3.7 Å; Br has 3 Ni, 6 Br in its plane at 3.7 Å and 3 across the plane at 3.7 Å.
    assert mean_neighbours([sample.structure], 3.0) == pytest.approx((6 + 3 + 3) / 3)
    scale = moment_scales([sample.structure], sample.basis, ["Ni"])
    ni = np.linalg.norm(sample.structure.moments[sample.structure.numbers == 28], axis=1)
    assert dict(zip(sample.basis.labels, scale, strict=True)) == {"Ni": pytest.approx(ni.mean()), "Br": 0}


def _self_parts(sample: Sample) -> torch.Tensor:
    from hamnet.models.readout import parts_from_blocks

    return parts_from_blocks(next(b for a, c, b in half_blocks(sample.hamiltonian) if a == 0 and c is None), "soc")


def _self_features(model: HamiltonianModel, graph) -> torch.Tensor:
    seen = []
    hook = model.self_readout[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    model(graph)
    hook.remove()
    return seen[0]


def _shift(readout) -> torch.Tensor:
    return torch.cat([readout.shift[None, None], torch.zeros_like(readout.shift)[None, None]], dim=1)


def _scale(readout) -> torch.Tensor:
    return readout.scale[readout.kind][:, readout.irreps.entry]
