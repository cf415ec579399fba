"""Tiles of a crystal: together they are the whole, and each depends on its surroundings alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hamnet.models import MODELS
from hamnet.models.hamiltonian import MODES
from hamnet.models.io import LoadedModel, load_model
from hamnet.neighbours import basis_pairs, pairs_within
from hamnet.predict import predict_operator
from hamnet.predict.tiles import Crystal, HalfPairs, blocks_of_tile, features_of_tile
from hamnet.structure import Structure
from small_models import BASIS

TOLERANCE_EV = 1e-12


def by_tiles(
    loaded: LoadedModel, structure: Structure, n_atoms: int, n_pairs: int
) -> tuple[HalfPairs, list[torch.Tensor]]:
    """The computed blocks of each species pair, joined from tiles of so many atoms and pairs."""
    model, half = loaded.model, HalfPairs.of(basis_pairs(structure, loaded.model.basis))
    cut = Crystal.of(structure, half, model.config.cutoff_ang)

    def slices(start: int, stop: int, step: int) -> list[slice]:
        return [slice(a, min(a + step, stop)) for a in range(start, stop, step)]

    known = None
    for layer in range(model.config.n_layers):
        tiles = slices(0, len(structure), n_atoms)
        known = torch.cat([features_of_tile(model, cut, layer, atoms, known) for atoms in tiles]).numpy()
    assert known is not None
    return half, [
        torch.cat([blocks_of_tile(model, cut, g, pairs, known) for pairs in slices(g.start, g.stop, n_pairs)])
        for g in half.groups
    ]


@pytest.mark.parametrize("tile", [(36, 10_000), (7, 13), (2, 3)], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", list(MODELS))
def test_tiles_of_any_size_make_the_hamiltonian_of_the_whole(model_file, small, name, mode, tile):
    loaded = load_model(model_file(mode, name=name))
    structure = small.with_moments(small.moments * [0, 0, 1]) if mode == "collinear" else small
    half, blocks = by_tiles(loaded, structure, *tile)
    whole = predict_operator(loaded, structure, half.pairs)
    expected = {(g.row_species, g.col_species): (g, b) for g, b in zip(half.pairs.groups, whole.blocks, strict=True)}
    for group, found in zip(half.groups, blocks, strict=True):
        here, block = expected[group.row_species, group.col_species]
        chosen = half.index[group.start : group.stop] - here.pairs.start
        assert float((block[chosen] - found).abs().max()) < TOLERANCE_EV


def test_each_pair_is_computed_once_or_is_the_adjoint_of_one_that_is(small):
    pairs = basis_pairs(small, BASIS)
    half = HalfPairs.of(pairs)
    assert len(half.index) == (len(pairs) + len(small)) // 2
    source = half.index[half.place]
    assert np.array_equal(source[~half.adjoint], np.flatnonzero(~half.adjoint))
    assert np.array_equal(source[half.adjoint], pairs.partner[half.adjoint])
    for group in half.groups:
        row, col = (pairs.species[a[half.index[group.start : group.stop]]] for a in (pairs.row, pairs.col))
        assert (row == group.row_species).all()
        assert (col == group.col_species).all()


def test_positions_far_from_the_origin_cost_a_single_precision_model_nothing(model_file, small):
    # Vectors between atoms are made in double precision: at 4000 Å a float32 is off by 2e-4 Å.
    loaded = load_model(model_file(), dtype=torch.float32)
    pairs = basis_pairs(small, BASIS)
    here = predict_operator(loaded, small, pairs)
    far = predict_operator(loaded, small.translated([4096.0, -4096.0, 4096.0]), pairs)
    assert here.max_abs_difference(far) < 1e-5 * max(float(block.abs().max()) for block in here.blocks)


def reached(structure: Structure, atom: int, cutoff_ang: float, n_edges: int) -> np.ndarray:
    """(n,) atoms that at most `n_edges` edges join to `atom`."""
    row, col, _ = pairs_within(structure, cutoff_ang)
    found = np.zeros(len(structure), bool)
    found[atom] = True
    for _ in range(n_edges):
        found[row[found[col]]] = True
    return found


@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_flipped_moment_among_a_thousand_atoms_changes_no_block_beyond_its_reach(model_file, large, n_layers):
    """H_ij depends on the moment of c only if ``n_layers`` edges or fewer lead from i or from j to c – bit for bit.

    So it does not if both atoms are farther than n_layers · cutoff from every image of c; and within reach it does.
    """
    loaded, atom = load_model(model_file(n_layers=n_layers)), 510
    assert large.moments is not None
    assert np.linalg.norm(large.moments[atom]) > 0.5
    moments = large.moments.copy()
    moments[atom] *= -1
    half, before = by_tiles(loaded, large, 64, 256)
    _, after = by_tiles(loaded, large.with_moments(moments), 64, 256)
    changed = np.concatenate([(a - b).abs().flatten(1).amax(1).numpy() for a, b in zip(before, after, strict=True)])
    row, col = half.pairs.row[half.index], half.pairs.col[half.index]
    cutoff = loaded.model.config.cutoff_ang
    inside = reached(large, atom, cutoff, n_layers)
    outside = ~inside[row] & ~inside[col]
    assert 0.5 < outside.mean() < 1
    assert changed[outside].max() == 0
    assert changed[~outside].max() > 1e-3
    # In Å, as a user counts: no chain of edges is longer.
    near_row, near_col, _ = pairs_within(large, n_layers * cutoff)
    within = np.zeros(len(large), bool)
    within[near_row[near_col == atom]] = True
    assert not (inside & ~within).any()
    # The reach is no smaller either: blocks at its very edge change, where n_layers edges are needed.
    edge = inside & ~reached(large, atom, cutoff, n_layers - 1)
    assert changed[(edge[row] | edge[col]) & ~outside].max() > 0
