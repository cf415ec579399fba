"""What every registered model obeys exactly, whatever its weights: random weights, float64, 1e-10 eV."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from hamnet.basis import Basis, Shell, SpeciesBasis
from hamnet.models import MODELS, ModelConfig
from hamnet.models.hamiltonian import MODES
from hamnet.neighbours import basis_pairs, pairs_within
from hamnet.structure import Structure
from hamnet.supercell import tile_operator, tile_structure
from hamnet.symmetry import rotate, rotate_spin, time_reverse

TOLERANCE_EV = 1e-10
ROTATION = Rotation.from_rotvec([0.3, -1.2, 0.9]).as_matrix()
# Short radii keep the cells of these tests small; species differ in shells, radii and magnetism.
BASIS = Basis(
    (
        SpeciesBasis("Ni", 28, (Shell(0, 0, 2.4), Shell(0, 1, 2.4), Shell(1, 0, 2.4), Shell(2, 0, 2.4))),
        SpeciesBasis("Br", 35, (Shell(0, 0, 2.6), Shell(1, 0, 2.6), Shell(1, 1, 2.6))),
        SpeciesBasis("Cr", 24, (Shell(0, 0, 2.2), Shell(2, 0, 2.2))),
    )
)
MOMENT_SCALE = tuple({"Ni": 1.5, "Br": 0.0, "Cr": 3.0}[label] for label in BASIS.labels)
CONFIG = {
    "cutoff_ang": 3.0,
    "n_layers": 2,
    "l_max": 3,
    "channels": 3,
    "hidden": 4,
    "pair_channels": 5,
    "product_channels": 3,
    "n_radial": 4,
    "mean_neighbours": 6.0,
}


def crystal(mode: str) -> Structure:
    """A skew cell without any symmetry, atoms partly outside of it."""
    moments = np.array([[0.7, -1.1, 0.4], [0.1, 0.2, 0.1], [-1.4, 0.3, 2.1], [0.0, 0.1, -0.2]])
    structure = Structure(
        cell=[[3.9, 0.2, 0.0], [-1.7, 3.6, 0.3], [0.1, 0.4, 4.8]],
        positions=[[0.1, 0.0, 0.2], [1.9, 1.3, 1.6], [0.2, 2.2, 2.9], [5.6, 1.9, 4.4]],
        numbers=[28, 35, 24, 35],
        labels=["Ni", "Br", "Cr", "Br"],
        moments=moments,
        grid_axes=[[0.16, 0.01, 0.0], [-0.07, 0.15, 0.01], [0.0, 0.02, 0.2]],
    )
    if mode == "none":
        return structure.with_moments(None)
    return structure.with_moments(moments * [0, 0, 1]) if mode == "collinear" else structure


def random_model(name: str, mode: str, **changes):
    torch.manual_seed(7)
    model = MODELS[name](ModelConfig(**{"mode": mode, **CONFIG, **changes}), BASIS, MOMENT_SCALE)
    torch.nn.init.normal_(model.grid_out.weight)  # zero in a new model
    return model.requires_grad_(False)


def predict(model, structure: Structure):
    return model.hamiltonian(structure, basis_pairs(structure, BASIS))


every_model = pytest.mark.parametrize("name", list(MODELS))
every_mode = pytest.mark.parametrize("mode", list(MODES))
magnetic_mode = pytest.mark.parametrize("mode", [m for m in MODES if m != "none"])


def with_moments_of(structure: Structure, other: Structure) -> Structure:
    return structure.with_moments(other.moments)


@every_model
@pytest.mark.parametrize("mode", ["none", "soc"])
@pytest.mark.parametrize("improper", [False, True], ids=["proper", "improper"])
def test_rotating_structure_and_moments_rotates_every_block(name, mode, improper):
    model, structure = random_model(name, mode), crystal(mode)
    q = -ROTATION if improper else ROTATION
    expected = rotate(predict(model, structure), q)
    assert predict(model, structure.rotated(q)).max_abs_difference(expected) < TOLERANCE_EV


@every_model
@pytest.mark.parametrize("mode", ["collinear", "spin-group"])
@pytest.mark.parametrize("improper", [False, True], ids=["proper", "improper"])
def test_rotating_the_crystal_alone_rotates_orbitals_alone_without_spin_orbit(name, mode, improper):
    model, structure = random_model(name, mode), crystal(mode)
    q = -ROTATION if improper else ROTATION
    expected = rotate(predict(model, structure), q, spin=False)
    turned = with_moments_of(structure.rotated(q), structure)
    assert predict(model, turned).max_abs_difference(expected) < TOLERANCE_EV


@every_model
@every_mode
def test_inversion_leaves_moments_and_maps_blocks(name, mode):
    model, structure = random_model(name, mode), crystal(mode)
    inverted = structure.rotated(-np.eye(3))
    if structure.moments is not None:
        np.testing.assert_array_equal(inverted.moments, structure.moments)
    expected = rotate(predict(model, structure), -np.eye(3))
    assert predict(model, inverted).max_abs_difference(expected) < TOLERANCE_EV


@every_model
def test_treating_moments_as_polar_vectors_breaks_inversion(name):
    """Negative control: the check above sees a wrong parity of the moments."""
    model, structure = random_model(name, "soc"), crystal("soc")
    wrong = structure.rotated(-np.eye(3)).with_moments(-structure.moments)
    assert predict(model, wrong).max_abs_difference(rotate(predict(model, structure), -np.eye(3))) > 1e-3


@every_model
@magnetic_mode
def test_flipped_moments_give_time_reversed_h(name, mode):
    model, structure = random_model(name, mode), crystal(mode)
    h = predict(model, structure)
    flipped = predict(model, structure.with_moments(-structure.moments))
    assert flipped.max_abs_difference(time_reverse(h)) < TOLERANCE_EV
    assert flipped.max_abs_difference(h) > 1e-3, "H must depend on the moments for this to say anything"


@every_model
def test_free_spin_rotation_without_spin_orbit(name):
    model, structure = random_model(name, "spin-group"), crystal("spin-group")
    turned = structure.with_moments(structure.moments @ ROTATION.T)
    expected = rotate_spin(predict(model, structure), ROTATION)
    assert predict(model, turned).max_abs_difference(expected) < TOLERANCE_EV


@every_model
def test_spin_orbit_ties_spin_to_space(name):
    """Negative control: with spin–orbit coupling turning the moments alone is no symmetry."""
    model, structure = random_model(name, "soc"), crystal("soc")
    turned = structure.with_moments(structure.moments @ ROTATION.T)
    expected = rotate_spin(predict(model, structure), ROTATION)
    assert predict(model, turned).max_abs_difference(expected) > 1e-3


@every_model
def test_collinear_h_conserves_sigma_z(name):
    h = predict(random_model(name, "collinear"), crystal("collinear"))
    vector = h.with_spin(4)
    for block in vector.blocks:
        assert not block[:, 1:3].any()
    flipped = predict(random_model(name, "collinear"), crystal("collinear").with_moments(-crystal("collinear").moments))
    for here, there in zip(h.blocks, flipped.blocks, strict=True):
        torch.testing.assert_close(here[:, 0] + here[:, 1], there[:, 0] - there[:, 1], rtol=0, atol=TOLERANCE_EV)


@every_model
@every_mode
def test_translation_changes_nothing(name, mode):
    model, structure = random_model(name, mode), crystal(mode)
    moved = structure.translated([0.3, -7.1, 2.2])
    assert predict(model, moved).max_abs_difference(predict(model, structure)) < TOLERANCE_EV


@every_model
@every_mode
def test_renumbering_atoms_and_moving_them_by_lattice_vectors_relabels_blocks(name, mode):
    model, structure = random_model(name, mode), crystal(mode)
    order, shifts = [2, 3, 0, 1], [[1, 0, 0], [0, -2, 0], [0, 0, 0], [3, 1, -1]]
    expected = predict(model, structure).permuted(order, shifts)
    assert predict(model, structure.permuted(order, shifts)).max_abs_difference(expected) < TOLERANCE_EV


@every_model
@every_mode
def test_h_is_hermitian(name, mode):
    assert predict(random_model(name, mode), crystal(mode)).hermiticity_violation() < TOLERANCE_EV


@every_model
@every_mode
def test_supercell_has_the_blocks_of_the_cell(name, mode):
    model, structure = random_model(name, mode), crystal(mode)
    matrix = [[1, 1, 0], [-1, 1, 0], [0, 0, 1]]
    expected = tile_operator(predict(model, structure), matrix)
    assert predict(model, tile_structure(structure, matrix)).max_abs_difference(expected) < TOLERANCE_EV


def dimer(distance: float) -> Structure:
    return Structure(
        cell=np.diag([30.0, 30.0, 30.0]),
        positions=[[0, 0, 0], np.array([0.48, 0.6, 0.64]) * distance],
        numbers=[28, 24],
        labels=["Ni", "Cr"],
        moments=[[0.3, 0.5, -1.2], [2.0, 0.1, 0.6]],
    )


@every_model
@every_mode
def test_message_fades_smoothly_at_its_cutoff(name, mode):
    """The on-site block of a dimer leaves its value at infinity like (cutoff − r)³, or as smoothly."""
    model = random_model(name, mode)
    if mode == "none":
        change = [_onsite_change(model, delta, moments=False) for delta in (0.02, 0.01)]
    else:
        change = [_onsite_change(model, delta) for delta in (0.02, 0.01)]
    assert 0 < change[0] < 1e-3
    assert change[0] / change[1] > 8 * 0.85


def _onsite_change(model, delta: float, *, moments: bool = True) -> float:
    structures = [dimer(CONFIG["cutoff_ang"] + sign * delta) for sign in (-1, 1)]
    if not moments:
        structures = [s.with_moments(None) for s in structures]
    near, far = (predict(model, s).block(0, 0, (0, 0, 0)) for s in structures)
    return float((near - far).abs().max())


@every_model
@every_mode
def test_block_vanishes_smoothly_at_the_reach_of_the_orbitals(name, mode):
    model = random_model(name, mode)
    reach = BASIS[BASIS.labels.index("Ni")].cutoff_ang + BASIS[BASIS.labels.index("Cr")].cutoff_ang
    size = []
    for delta in (0.02, 0.01):
        structure = dimer(reach - delta)
        structure = structure.with_moments(None) if mode == "none" else structure
        size.append(float(predict(model, structure).block(0, 1, (0, 0, 0)).abs().max()))
    assert 0 < size[0] < 1e-3
    assert size[0] / size[1] > 8 * 0.85
    assert len(basis_pairs(dimer(reach + 0.01), BASIS)) == 2, "no pair beyond the reach"


@every_model
@pytest.mark.parametrize("mode", ["soc", "spin-group"])
def test_h_is_smooth_in_a_vanishing_moment(name, mode):
    """At m = 0 the time-odd part has a finite slope, the same from autograd and from differences."""
    model, structure = random_model(name, mode), crystal(mode)
    pairs = basis_pairs(structure, BASIS)
    graph = model.graph([structure], [pairs])
    moments = torch.zeros_like(graph.moments, requires_grad=True)
    direction = torch.as_tensor(crystal(mode).moments.copy())

    def probe(m):
        return sum(
            (parts * torch.cos(torch.arange(parts.numel())).reshape(parts.shape)).sum()
            for *_, parts in model(graph.with_moments(m))
        )

    (gradient,) = torch.autograd.grad(probe(moments), moments, create_graph=True)
    slope = float((gradient.detach() * direction).sum())
    step = 1e-4
    difference = float((probe(step * direction) - probe(-step * direction)).detach()) / (2 * step)
    assert np.isfinite(slope)
    assert abs(slope) > 1e-3
    assert slope == pytest.approx(difference, rel=1e-5)
    (second,) = torch.autograd.grad((gradient * direction).sum(), moments)
    assert torch.isfinite(second).all(), "forces on torques need the second derivative"


@every_model
@pytest.mark.parametrize("mode", ["none", "soc"])
def test_h_is_differentiable_in_positions_and_cell(name, mode):
    model, structure = random_model(name, mode), crystal(mode)
    graph = model.graph([structure], [basis_pairs(structure, BASIS)])
    graph.positions.requires_grad_()
    graph.cells.requires_grad_()
    value = sum((parts**2).sum() for *_, parts in model(graph))
    by_position, by_cell = torch.autograd.grad(value, [graph.positions, graph.cells])
    assert torch.isfinite(by_cell).all()
    torch.testing.assert_close(by_position.sum(dim=0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    step = 1e-5
    ends = []
    for sign in (1, -1):
        moved = structure.positions.copy()
        moved[2, 1] += sign * step
        shifted = replace(structure, positions=moved)
        ends.append(
            float(sum((parts**2).sum() for *_, parts in model(model.graph([shifted], [basis_pairs(structure, BASIS)]))))
        )
    assert float(by_position[2, 1]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-8)


@every_model
@magnetic_mode
def test_a_moment_changes_nothing_beyond_the_receptive_field(name, mode):
    model = random_model(name, mode)
    structure = tile_structure(crystal(mode), np.diag([7, 1, 1]))
    changed_atom = 2  # Cr in the first cell
    moments = structure.moments.copy()
    moments[changed_atom] *= -0.5
    before, after = predict(model, structure), predict(model, structure.with_moments(moments))
    reach = CONFIG["n_layers"] * CONFIG["cutoff_ang"]
    row, col, _ = pairs_within(structure, reach)
    affected = np.zeros(len(structure), bool)
    affected[col[row == changed_atom]] = True
    assert 0 < affected.sum() < len(structure) - 8
    outside = ~(affected[before.pairs.row] | affected[before.pairs.col])
    assert outside.sum() > 50
    difference = np.zeros(len(before.pairs))
    for group, a, b in zip(before.pairs.groups, before.blocks, after.blocks, strict=True):
        difference[group.pairs] = (a - b).abs().amax(dim=(1, 2, 3)).numpy()
    assert difference[outside].max() < TOLERANCE_EV
    assert difference[~outside].max() > 1e-3


@every_model
@every_mode
def test_without_a_grid_h_has_the_symmetry_of_the_crystal_and_with_one_it_does_not(name, mode):
    """Four-fold axis through every atom of a square lattice, moments along it; the grid has two unequal steps."""
    model = random_model(name, mode)
    square = Structure(np.diag([3.6, 3.6, 9.0]), [[0, 0, 0]], [28], ["Ni"], [[0, 0, 1.2]])
    square = square.with_moments(None) if mode == "none" else square
    quarter = Rotation.from_rotvec([0, 0, np.pi / 2]).as_matrix()

    def violation(structure: Structure) -> float:
        h = predict(model, structure)
        block = h.block(0, 0, (0, 0, 0))
        return float((rotate(h, quarter).block(0, 0, (0, 0, 0)) - block).abs().max())

    assert violation(square) < TOLERANCE_EV
    assert violation(replace(square, grid_axes=np.diag([0.16, 0.14, 0.15]))) > 1e-4


@every_model
def test_h_is_nonlinear_in_the_moments_of_several_atoms_at_once(name):
    """The mixed second difference over the moments of two atoms does not vanish in the spin-free part."""
    model, structure = random_model(name, "soc"), crystal("soc")
    pairs = basis_pairs(structure, BASIS)

    def h(first: float, second: float):
        moments = structure.moments.copy()
        moments[0] *= first
        moments[2] *= second
        return model.hamiltonian(structure.with_moments(moments), pairs)

    mixed = h(1, 1) - h(1, -1) - h(-1, 1) + h(-1, -1)
    assert max(float(block[:, 0].abs().max()) for block in mixed.blocks) > 1e-4


@every_model
@every_mode
def test_rounding_shrinks_with_precision(name, mode):
    """A bug would not: float32 breaks rotation symmetry a thousand times less than it matters, float64 not at all."""
    structure = crystal(mode)
    q = ROTATION
    turned = structure.rotated(q)
    spin = mode in ("soc", "none")
    turned = turned if spin else with_moments_of(turned, structure)
    single = random_model(name, mode).to(torch.float32)
    expected = rotate(predict(single, structure).to(torch.float64 if mode != "soc" else torch.complex128), q, spin=spin)
    assert predict(single, turned).to(expected.dtype).max_abs_difference(expected) < 1e-4


@every_model
@magnetic_mode
def test_a_model_of_directions_does_not_see_the_sizes_of_moments(name, mode):
    structure = crystal(mode)
    sizes = np.array([0.7, 1.0, 1.6, 1.0])[:, None]
    changed = structure.with_moments(structure.moments * sizes)
    directions, vectors = (random_model(name, mode, moment_sizes=sized) for sized in (False, True))
    assert predict(directions, changed).max_abs_difference(predict(directions, structure)) < TOLERANCE_EV
    assert predict(vectors, changed).max_abs_difference(predict(vectors, structure)) > 1e-3
    turned = structure.with_moments(-structure.moments)
    assert predict(directions, turned).max_abs_difference(predict(directions, structure)) > 1e-3
