"""The band term of the loss and the loss that does not see μ, against diagonalisation and against H + μS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hamnet.eigen import eigenvalues
from hamnet.errors import ConfigError
from hamnet.models.graph import Graph
from hamnet.models.readout import blocks_from_parts
from hamnet.sample import Sample
from hamnet.store import SampleSet
from hamnet.training.batches import Batch, join_batches, prepare
from hamnet.training.losses import without_shift
from hamnet.training.window import projected, window_penalty, window_states

MODES = {1: "none", 2: "collinear", 4: "soc"}
WIDTH_EV = 4.0


def of_kind(path: Path, n_spin: int) -> Sample:
    with SampleSet(path) as samples:
        found = next(s for s in samples if s.hamiltonian is not None and s.hamiltonian.n_spin == n_spin)
    return replace(found, fermi_energy_ev=-4.0 if found.fermi_energy_ev is None else found.fermi_energy_ev)


def batch_of(sample: Sample) -> Batch:
    h, s = sample.operator("hamiltonian"), sample.operator("overlap")
    assert sample.fermi_energy_ev is not None
    window = window_states(h, s, sample.fermi_energy_ev, width_ev=WIDTH_EV, n_k=3, dtype=torch.float64)
    graph = Graph.build([sample.structure], [h.pairs], sample.basis, 4.0, dtype=torch.float64)
    return prepare(graph, h, MODES[h.n_spin], overlap=s, windows=(window,))  # type: ignore[arg-type]


def matrices(batch: Batch, basis, mode, point: int) -> list[torch.Tensor]:
    """C† H C of the labels themselves."""
    graph = batch.graph
    ends = [(atoms, atoms, graph.edge_shift.new_zeros(len(atoms), 3)) for _, atoms, _ in graph.self_pairs]
    ends += [(group.row, group.col, group.shift) for group in graph.pairs]
    blocks = [
        (*end, weight, blocks_from_parts(target, mode))
        for end, weight, target in zip(ends, batch.weights, batch.targets, strict=True)
    ]
    return projected(
        blocks, graph, basis, [w.k_frac[point] for w in batch.windows], [w.vectors[point] for w in batch.windows]
    )


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_h_between_its_own_states_is_diagonal_with_the_band_energies(mixed_set, n_spin):
    sample = of_kind(mixed_set, n_spin)
    batch = batch_of(sample)
    mode = MODES[n_spin]
    h, s = sample.operator("hamiltonian"), sample.operator("overlap")
    for point in range(3):
        (matrix,) = matrices(batch, sample.basis, mode, point)
        energies = eigenvalues(h, s, batch.windows[0].k_frac[point][None].numpy())[0]
        for channel, values in enumerate(energies):
            inside = batch.windows[0].inside[point, channel].bool()
            found = matrix[channel][inside][:, inside]
            expected = values[np.abs(values - sample.fermi_energy_ev) <= WIDTH_EV]
            np.testing.assert_allclose(np.sort(found.diagonal().real), expected, atol=1e-10)
            assert (found - torch.diag(found.diagonal())).abs().max() < 1e-10


def test_crystals_of_one_batch_keep_their_bands(mixed_set, fept_set):
    with SampleSet(fept_set) as samples:
        several = [
            replace(s, fermi_energy_ev=-4.0 if s.fermi_energy_ev is None else s.fermi_energy_ev) for s in samples
        ]
    batches = [batch_of(sample) for sample in several]
    joined = matrices(join_batches(batches), several[0].basis, "soc", 1)
    for together, batch, sample in zip(joined, batches, several, strict=True):
        (alone,) = matrices(batch, sample.basis, "soc", 1)
        torch.testing.assert_close(together, alone, atol=1e-11, rtol=0)


def test_the_penalty_is_the_first_order_error_of_the_bands_when_nothing_mixes():
    errors = torch.tensor([[0.3, -0.5, 0.2]], dtype=torch.float64)
    inside = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    penalty = window_penalty([torch.diag_embed(errors).to(torch.complex128)], [inside])
    assert float(penalty) == pytest.approx(0.4)


def test_a_window_without_states_is_refused(fept_set):
    with SampleSet(fept_set) as samples:
        sample = samples[0]
    h, s = sample.operator("hamiltonian"), sample.operator("overlap")
    with pytest.raises(ConfigError, match="no state within"):
        window_states(h, s, -1e4, width_ev=1.0, n_k=2, dtype=torch.float64)


def test_the_shifted_loss_does_not_see_mu_times_s_but_sees_all_else(fept_set):
    with SampleSet(fept_set) as samples:
        several = [replace(s, fermi_energy_ev=-4.0) for s in samples]
    batch = join_batches([batch_of(sample) for sample in several])
    graph = batch.graph
    crystals = [graph.crystal[atoms] for _, atoms, _ in graph.self_pairs]
    crystals += [graph.crystal[group.row] for group in graph.pairs]
    mu = torch.tensor([0.7, -1.3, 0.2], dtype=torch.float64)[: len(several)]
    generator = torch.Generator().manual_seed(0)
    noise = [1e-3 * torch.randn(t.shape, dtype=torch.float64, generator=generator) for t in batch.targets]
    moved = [
        n + torch.nn.functional.pad((mu[c][:, None, None] * s)[:, None], (0, 0, 0, 0, 0, n.shape[1] - 1))
        for n, s, c in zip(noise, batch.overlaps, crystals, strict=True)
    ]

    def left(differences: list[torch.Tensor]) -> list[torch.Tensor]:
        return without_shift(differences, batch.overlaps, batch.weights, crystals, len(several))

    for with_mu, without in zip(left(moved), left(noise), strict=True):
        torch.testing.assert_close(with_mu, without, atol=1e-12, rtol=0)
    assert sum(float(d.abs().sum()) for d in left(noise)) > 0.9 * sum(float(n.abs().sum()) for n in noise)
