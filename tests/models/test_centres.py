"""One- and two-centre terms: what they are, and what a few crystals teach through them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from hamnet.blocks import BlockOperator
from hamnet.models import HamiltonianModel, ModelConfig
from hamnet.neighbours import basis_pairs
from hamnet.structure import Structure
from hamnet.supercell import tile_structure
from hamnet.training.statistics import calibrate, fit_weights
from small_models import BASIS, crystal, model_hamiltonian, model_overlap

SIZES = {"mode": "none", "l_max": 2, "n_layers": 1, "channels": 3, "hidden": 4, "pair_channels": 5, "n_radial": 4}


def network(moment_scale: tuple[float, float] = (0.0, 0.0), **changes) -> HamiltonianModel:
    torch.manual_seed(3)
    config = ModelConfig(**{"cutoff_ang": 4.0, **SIZES, **changes})
    return HamiltonianModel(config, BASIS, moment_scale).requires_grad_(False)


def two_centre_terms_alone(model: HamiltonianModel) -> HamiltonianModel:
    for readout in [*model.self_readout, *model.pair_readout.values()]:
        for weight in readout.weights.values():  # type: ignore[union-attr]
            weight[:, : model.config.pair_channels] = 0
    return model


def cluster(*labels: str) -> Structure:
    positions = {"Ni": [0.0, 0.0, 0.0], "Br": [1.1, 1.4, -0.6], "Cl": [-0.9, 1.2, 1.3]}
    numbers = {"Ni": 28, "Br": 35, "Cl": 35}
    names = tuple("Br" if label == "Cl" else label for label in labels)
    return Structure(30 * np.eye(3), [positions[x] for x in labels], [numbers[x] for x in labels], names)


def test_two_centre_terms_are_of_each_pair_alone_and_add_up_on_an_atom():
    model = two_centre_terms_alone(network())
    names = [("Ni",), ("Ni", "Br"), ("Ni", "Cl"), ("Ni", "Br", "Cl")]
    alone, first, second, both = (
        model.hamiltonian(structure, basis_pairs(structure, BASIS)) for structure in (cluster(*n) for n in names)
    )
    onsite = [h.block(0, 0, (0, 0, 0)) for h in (first, second, both)]
    shift = alone.block(0, 0, (0, 0, 0))
    assert torch.allclose(onsite[2] + shift, onsite[0] + onsite[1], atol=1e-12)
    assert (onsite[0] - shift).abs().max() > 1e-2
    assert torch.allclose(both.block(0, 1, (0, 0, 0)), first.block(0, 1, (0, 0, 0)), atol=1e-12)
    assert first.block(0, 1, (0, 0, 0)).abs().max() > 1e-2


def test_levels_follow_the_product_of_two_moments_linearly_and_bonds_do_not_know_of_it():
    model = two_centre_terms_alone(network((1.5, 0.0), mode="soc"))

    def blocks(angle: float) -> tuple[torch.Tensor, torch.Tensor]:
        moments = 1.5 * np.array([[0.0, 0.0, 1.0], [np.sin(angle), 0.0, np.cos(angle)]])
        dimer = Structure(30 * np.eye(3), [[0.0, 0.0, 0.0], [1.1, 1.4, -0.6]], [28, 28], ("Ni", "Ni"), moments)
        h = model.hamiltonian(dimer, basis_pairs(dimer, BASIS))
        return h.block(0, 0, (0, 0, 0)), h.block(0, 1, (0, 0, 0))

    parallel, oblique, opposite = blocks(0.0), blocks(np.pi / 3), blocks(np.pi)
    assert (parallel[0] - opposite[0]).abs().max() > 1e-2
    assert torch.allclose(oblique[0], 0.75 * parallel[0] + 0.25 * opposite[0], atol=1e-12)
    assert torch.allclose(oblique[1], opposite[1], atol=1e-12)


def test_a_two_centre_operator_is_found_by_regression_from_a_few_displaced_crystals():
    """Unseen displacements: a tenth of the error of random features of the network, without a training step."""
    rng, still = np.random.default_rng(0), crystal(moments=False).with_moments(None)
    moved = [replace(still, positions=still.positions + rng.normal(scale=0.05, size=(3, 3))) for _ in range(7)]
    pairs, labels = [basis_pairs(s, BASIS) for s in moved], [model_overlap(s) for s in moved]
    error = {}
    for size in (12, 0):
        model = network(n_two_centre=size)
        graph = model.graph(moved[:6], pairs[:6])
        calibrate(model, graph)
        fit_weights(model, graph, labels[:6])
        error[size] = model.hamiltonian(moved[6], pairs[6]).mean_abs_difference(labels[6])
    assert error[12] < 0.1 * error[0]
    assert error[12] < 0.05 * labels[6].mean_abs_difference(0 * labels[6])


def with_levels_of_moments(h: BlockOperator, structure: Structure) -> BlockOperator:
    """`h` with all levels of an atom moved by 0.2 eV · |m|²."""
    shift = torch.as_tensor(0.2 * (structure.moments**2).sum(axis=1))
    blocks = []
    for group, block in zip(h.pairs.groups, h.blocks, strict=True):
        here, block = torch.as_tensor(h.pairs.is_self[group.pairs]), block.clone()
        own = shift[torch.tensor(h.pairs.row[group.pairs])[here]]
        block[here, 0] += own[:, None, None] * torch.eye(*block.shape[2:], dtype=block.dtype)
        blocks.append(block)
    return replace(h, blocks=tuple(blocks))


def test_levels_and_splitting_by_the_own_moment_learned_where_all_copies_are_parallel_hold_where_they_are_not():
    """One magnetic atom in the cell: its moment, that of all its copies, cannot be told from theirs by the data."""
    rng = np.random.default_rng(1)
    cell = np.array([[3.0, 0.1, 0.0], [-0.4, 3.2, 0.2], [0.3, -0.2, 9.0]])
    small = Structure(cell, [[0.0, 0.0, 0.0], [1.4, 1.6, 1.5]], [28, 35], ("Ni", "Br"))

    def states(structure: Structure, n: int) -> list[Structure]:
        vectors = rng.normal(size=(n, len(structure), 3))
        vectors *= rng.uniform(1.0, 2.0, (n, len(structure), 1)) / np.linalg.norm(vectors, axis=2, keepdims=True)
        return [structure.with_moments(m * (structure.numbers == 28)[:, None]) for m in vectors]

    trained, (unseen,) = states(small, 12), states(tile_structure(small, np.diag([2, 1, 1])), 1)
    labels = [with_levels_of_moments(model_hamiltonian(s, spin_orbit_ev=0.0), s) for s in trained]
    model = network((1.5, 0.0), mode="soc")
    graph = model.graph(trained, [label.pairs for label in labels])
    calibrate(model, graph)
    fit_weights(model, graph, labels)
    true = with_levels_of_moments(model_hamiltonian(unseen, spin_orbit_ev=0.0), unseen)
    difference = model.hamiltonian(unseen, true.pairs) - true
    for atom in (i for i, label in enumerate(unseen.labels) if label == "Ni"):
        errors, blocks = (h.block(atom, atom, (0, 0, 0)).abs() for h in (difference, true))
        assert errors[1:].max() < 0.01 * blocks[1:].max()
        assert errors[0].max() < 0.02
