"""Each ablated network lacks its ingredient and nothing else: random weights, float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hamnet.bloch import bloch_dense
from hamnet.errors import ModelError
from hamnet.models import MODELS, HamiltonianModel, ModelConfig
from hamnet.models.io import TrainedOn, load_model, save_model
from hamnet.neighbours import basis_pairs
from hamnet.structure import Structure
from hamnet.symmetry import rotate, rotate_spin, time_reverse
from hamnet.training.statistics import calibrate
from hamnet.training.window import projected, window_states
from small_models import BASIS, ROTATION, crystal, model_hamiltonian, model_overlap, random_operator

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TOLERANCE_EV = 1e-10
SIZES = {"l_max": 3, "channels": 3, "hidden": 4, "pair_channels": 5, "product_channels": 3, "n_radial": 4}


@pytest.fixture(scope="module")
def ablated():
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(BENCHMARKS))
    from accuracy_modules import ablated  # type: ignore[import-not-found]

    yield ablated
    patch.undo()


def network(kind: type[HamiltonianModel], mode: str = "soc", **changes) -> HamiltonianModel:
    torch.manual_seed(7)
    config = ModelConfig(**{"mode": mode, "cutoff_ang": 3.0, "mean_neighbours": 6.0, **SIZES, **changes})
    model = kind(config, BASIS, tuple({"Ni": 1.5, "Br": 0.0}[label] for label in BASIS.labels))
    torch.nn.init.normal_(model.grid_out.weight)  # zero in a new model
    return model.requires_grad_(False)


def predicted(model: HamiltonianModel, structure: Structure):
    return model.hamiltonian(structure, basis_pairs(structure, BASIS))


def violations(model: HamiltonianModel, structure: Structure) -> dict[str, float]:
    """Largest |ΔH| in eV by which a symmetry is missed."""
    h = predicted(model, structure)
    moments = structure.moments
    assert moments is not None
    spun = structure.with_moments(moments @ ROTATION.T)
    pairs = {
        "rotation": (structure.rotated(ROTATION), rotate(h, ROTATION)),
        "inversion": (structure.rotated(-np.eye(3)), rotate(h, -np.eye(3))),
        "time reversal": (structure.with_moments(-moments), time_reverse(h)),
        "spin rotation": (spun, rotate_spin(h, ROTATION)),
    }
    found = {key: predicted(model, image).max_abs_difference(expected) for key, (image, expected) in pairs.items()}
    return {**found, "adjoint": h.hermiticity_violation()}


@pytest.mark.parametrize(
    ("name", "mode", "broken"),
    [
        ("no-parity", "soc", {"inversion"}),
        ("no-parity", "spin-group", {"inversion"}),
        ("no-time-label", "soc", {"time reversal"}),
        ("linear-in-moments", "soc", set()),
        ("one-scale", "soc", set()),
        ("no-envelope", "soc", set()),
        ("no-grid", "soc", set()),
    ],
)
def test_an_ablated_network_breaks_the_symmetry_that_it_lacks_and_no_other(ablated, name, mode, broken):
    structure = crystal()
    kept = violations(network(HamiltonianModel, mode), structure)
    tied = {"spin rotation"} if mode == "soc" else set()
    assert {key for key, value in kept.items() if value > TOLERANCE_EV} == tied
    found = violations(network(ablated.ABLATED[name], mode), structure)
    assert {key for key, value in found.items() if value > TOLERANCE_EV} == broken | tied
    assert all(found[key] > 1e-3 for key in broken)


def test_the_linear_network_is_the_first_order_of_the_whole_one_with_its_weights(ablated):
    structure = crystal()
    assert structure.moments is not None
    whole, linear = network(HamiltonianModel), network(ablated.LinearInMoments)
    linear.load_state_dict(whole.state_dict())

    def at(model: HamiltonianModel, factor: float):
        assert structure.moments is not None
        return predicted(model, structure.with_moments(factor * structure.moments)).blocks

    step = 1e-4
    for zero, ahead, behind, once, twice, full in zip(
        at(whole, 0), at(whole, step), at(whole, -step), at(linear, 1), at(linear, 2), at(whole, 1), strict=True
    ):
        slope = (ahead - behind) / (2 * step)
        torch.testing.assert_close(once, zero + slope, rtol=0, atol=1e-6)
        torch.testing.assert_close(twice - zero, 2 * (once - zero), rtol=0, atol=TOLERANCE_EV)
        assert (full - once).abs().max() > 1e-3
        assert slope.abs().max() > 1e-3


def test_the_linear_network_sees_directions_alone_where_sizes_are_no_input(ablated):
    model, structure = network(ablated.LinearInMoments, moment_sizes=False), crystal()
    assert structure.moments is not None
    once, twice = (predicted(model, structure.with_moments(f * structure.moments)) for f in (1, 2))
    assert twice.max_abs_difference(once) < TOLERANCE_EV
    none = predicted(model, structure.with_moments(0 * structure.moments))
    assert none.max_abs_difference(once) > 1e-3


def test_the_linear_network_is_the_same_in_single_precision_on_a_symmetric_crystal(ablated):
    """What symmetry forbids without moments is rounding, which calibration must not amplify."""
    square = Structure(np.diag([3.2, 3.2, 9.0]), np.zeros((1, 3)), np.array([28]), ("Ni",), np.array([[0.3, 0.5, 1.2]]))
    model = network(ablated.LinearInMoments, cutoff_ang=3.5)
    calibrate(model, model.graph([square], [basis_pairs(square, BASIS)]))
    double = predicted(model, square)
    single = predicted(model.to(torch.float32), square).to(torch.complex128)
    largest = max(float(block.abs().max()) for block in double.blocks)
    assert single.max_abs_difference(double) < 5e-4 * largest  # 2e-2 where rounding is amplified


def test_one_scale_serves_all_outputs_once_the_branches_are_calibrated(ablated):
    structure, spread = crystal(), {}
    for kind in (HamiltonianModel, ablated.OneScale):
        model = network(kind)
        readouts = [*model.self_readout, *model.pair_readout.values()]
        for readout in readouts:
            readout.get_buffer("scale").uniform_(0.1, 2.0)
            readout.get_buffer("shift").uniform_(0.1, 2.0)
        square = torch.cat([r.get_buffer("scale").flatten() for r in readouts]).square().mean()
        calibrate(model, model.graph([structure], [basis_pairs(structure, BASIS)]))
        scales = torch.cat([r.get_buffer("scale").flatten() for r in readouts])
        torch.testing.assert_close(scales.square().mean(), square)
        spread[kind] = float(scales.std()), max(float(r.get_buffer("shift").max()) for r in readouts)
    assert spread[ablated.OneScale] == pytest.approx((0, 0), abs=1e-12)
    assert min(spread[HamiltonianModel]) > 0.1


def dimer(distance_ang: float) -> Structure:
    positions = np.array([[0, 0, 0], [0.48, 0.6, 0.64]]) * distance_ang
    moments = np.array([[0.3, 0.5, -1.2], [2.0, 0.1, 0.6]])
    return Structure(np.diag([30.0] * 3), positions, np.array([28, 28]), ("Ni", "Ni"), moments)


def test_without_envelopes_messages_and_blocks_end_abruptly(ablated):
    reach = 2 * BASIS[BASIS.labels.index("Ni")].cutoff_ang
    for kind, smooth in ((HamiltonianModel, True), (ablated.NoEnvelope, False)):
        model = network(kind)
        block = predicted(model, dimer(reach - 1e-4)).block(0, 1, (0, 0, 0))
        near, far = (predicted(model, dimer(3.0 + d)).block(0, 0, (0, 0, 0)) for d in (-1e-4, 1e-4))
        for size in (float(block.abs().max()), float((near - far).abs().max())):
            assert size < 1e-8 if smooth else size > 1e-3


def test_without_the_grid_as_input_it_changes_nothing(ablated):
    bare = crystal()
    meshed = replace(bare, grid_axes=[[0.16, 0.01, 0.0], [-0.07, 0.15, 0.01], [0.0, 0.02, 0.2]])
    for kind, least, most in ((HamiltonianModel, 1e-3, np.inf), (ablated.NoGrid, 0, TOLERANCE_EV)):
        model = network(kind)
        assert least <= predicted(model, meshed).max_abs_difference(predicted(model, bare)) <= most


def test_with_all_states_in_the_window_errors_count_in_the_metric_of_the_inverse_overlap():
    """Σ_nm |⟨n|ΔH|m⟩|² = Tr S⁻¹ΔH S⁻¹ΔH."""
    structure = crystal()
    h, s = model_hamiltonian(structure), model_overlap(structure)
    error = random_operator(structure, BASIS, 4, seed=3)
    states = window_states(h, s, 0.0, width_ev=1000, n_k=2, dtype=torch.float64)
    assert states.vectors.shape[2] == states.vectors.shape[3] == states.inside.sum() / 2
    graph = network(HamiltonianModel).graph([structure], [error.pairs])
    for k, vectors in zip(states.k_frac, states.vectors, strict=True):
        shift = torch.tensor(error.pairs.shift).double()
        row, col = (torch.tensor(x) for x in (error.pairs.row, error.pairs.col))
        blocks = [
            (row[g.pairs], col[g.pairs], shift[g.pairs], torch.ones(len(block)).double(), block)
            for g, block in zip(error.pairs.groups, error.blocks, strict=True)
        ]
        (matrix,) = projected(blocks, graph, BASIS, [k], [vectors])
        weighted = torch.linalg.solve(*(bloch_dense(x, k.numpy()).squeeze() for x in (s.with_spin(4), error)))
        total = float((weighted @ weighted).trace().real)
        assert float(matrix.abs().square().sum()) == pytest.approx(total, rel=1e-9)


def test_ablated_networks_are_registered_for_a_while_and_their_files_can_be_read(ablated, tmp_path):
    known = dict(MODELS)
    model, structure = network(ablated.NoParity), crystal()
    path = tmp_path / "model.safetensors"
    with ablated.registered():
        assert set(MODELS) == set(known) | set(ablated.ABLATED)
        save_model(path, model, name="no-parity", trained_on=TrainedOn("vector", True), provenance={})
        loaded = load_model(path)
        assert predicted(loaded.model, structure).max_abs_difference(predicted(model, structure)) < TOLERANCE_EV
    assert known == MODELS
    with pytest.raises(ModelError, match="model 'no-parity'"):
        load_model(path)


@pytest.mark.parametrize("name", ["no-time-label", "linear-in-moments"])
def test_what_needs_a_time_parity_without_spin_vectors_refuses_them(ablated, name):
    with pytest.raises(ModelError, match="spin-group"):
        network(ablated.ABLATED[name], "spin-group")
