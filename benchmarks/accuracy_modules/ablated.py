"""Networks that lack one ingredient each, by small surgery on hamnet's own.

Their names stand in the registry of models only inside :func:`registered`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from hamnet.basis import Basis
from hamnet.errors import ModelError
from hamnet.harmonics import solid_harmonics
from hamnet.models import MODELS, HamiltonianModel, ModelConfig
from hamnet.models.embedding import NodeEmbedding
from hamnet.models.frames import EdgeLinear
from hamnet.models.graph import Graph
from hamnet.models.irreps import ALGEBRAS, EquivariantLinear, SpinAlgebra, TensorProduct

__all__ = ["ABLATED", "registered"]

_LARGEST_GAIN = 40.0

# -- labels of features ------------------------------------------------------------------------------------------------


class _JoinedLinear(EquivariantLinear):
    """Mixes channels of equal l and of both labels along `axis` of the features: 2 naturality, 3 time parity."""

    def __init__(self, of: EquivariantLinear, axis: int) -> None:
        nn.Module.__init__(self)
        self.axis, self.bias = axis, of.bias
        # What begins at zero does so here too.
        other = torch.randn_like(of.weight) * of.weight.detach().std()
        self.weight = nn.Parameter(torch.cat([of.weight.detach(), other], dim=3) / math.sqrt(2))
        self.register_buffer("degree", of.degree, persistent=False)
        self.register_buffer("irrep", of.irrep, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_with_other(x, self.axis))

    def beside(self, other: EquivariantLinear, x: Tensor) -> Tensor:
        return super().beside(other, _with_other(x, self.axis))


class _ProperEdgeLinear(EdgeLinear):
    """The most general map in an edge frame that keeps rotations about it and time parity, but no mirror.

    Natural and unnatural features join at m = 0, and (x_m, x_−m) may be turned to (−x_−m, x_m) as well.
    """

    def forward(self, axial: Tensor, planar: Tensor, l_out: int) -> tuple[Tensor, Tensor]:
        plus, minus = planar.unbind(dim=2)
        turned = torch.stack([-minus, plus], dim=2)
        return super().forward(_with_other(axial, 1), torch.cat([planar, turned], dim=-1), l_out)


class _TimelessEdgeLinear(EdgeLinear):
    """The most general map in an edge frame that keeps rotations about it and mirrors, but no time parity."""

    def forward(self, axial: Tensor, planar: Tensor, l_out: int) -> tuple[Tensor, Tensor]:
        return super().forward(_with_other(axial, 0), _with_other(planar, 0), l_out)


def _with_other(x: Tensor, axis: int) -> Tensor:
    """Channels of each entry and after them those of the other entry of an axis of two."""
    return torch.cat([x, x.flip(axis)], dim=-1)


def _exchange(model: nn.Module, kind: type[nn.Module], make: Callable) -> None:
    """Put ``make(module)`` in the place of each module of a kind."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is kind:
                setattr(parent, name, make(child))


def _join(model: HamiltonianModel, axis: int, edge_linear: type[EdgeLinear]) -> None:
    algebra = ALGEBRAS[model.config.mode]

    def joined(of: EdgeLinear) -> EdgeLinear:
        return edge_linear(of.l_max, algebra, 2 * of.axial.shape[2] // (of.l_max + 1), of.c_out)

    _exchange(model, EquivariantLinear, lambda of: _JoinedLinear(of, axis))
    _exchange(model, EdgeLinear, joined)


class NoParity(HamiltonianModel):
    """Natural and unnatural features are not told apart: every linear map mixes them. SO(3) instead of O(3)."""

    def __init__(self, config: ModelConfig, basis: Basis, moment_scale: tuple[float, ...]) -> None:
        super().__init__(config, basis, moment_scale)
        _join(self, 2, _ProperEdgeLinear)


class NoTimeLabel(HamiltonianModel):
    """Time-even and time-odd features are not told apart: moments count as if they were even."""

    def __init__(self, config: ModelConfig, basis: Basis, moment_scale: tuple[float, ...]) -> None:
        super().__init__(config, basis, moment_scale)
        if ALGEBRAS[config.mode].n_components != 2:
            raise ModelError(f"mode {config.mode!r}", expected="a mode whose features have a time parity and no spin")
        _join(self, 3, _TimelessEdgeLinear)


# -- moments -----------------------------------------------------------------------------------------------------------


class _FirstOrder(SpinAlgebra):
    """Time parity without products of two odd factors: what is odd is then linear in the moments, what is even free of
    them."""

    __slots__ = ()

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        left = torch.tensor([[1, 0], [1, 0], [0, 1]], dtype=torch.float64)
        right = torch.tensor([[1, 0], [0, 1], [1, 0]], dtype=torch.float64)
        return left, right, torch.tensor([[1, 0], [0, 1], [0, 1]], dtype=torch.float64).T


class _AtRest(NodeEmbedding):
    """Radial functions of |m| have their values at m = 0, so that what a moment does on its own atom is linear."""

    def _radial(self, species: Tensor, m: Tensor) -> Tensor:
        return super()._radial(species, torch.zeros_like(m))


class LinearInMoments(HamiltonianModel):
    """H(0) + Σ_i m_i · ∂H/∂m_i at m = 0, exactly that of the whole network with the same weights.

    Gates and other even scalars have no term linear in the moments, so that odd features are the first order.
    """

    def __init__(self, config: ModelConfig, basis: Basis, moment_scale: tuple[float, ...]) -> None:
        super().__init__(config, basis, moment_scale)
        if config.mode != "soc":
            raise ModelError(f"mode {config.mode!r}", expected="mode 'soc'")
        algebra = _FirstOrder(ALGEBRAS[config.mode].irreps, ())

        def first_order(of: TensorProduct) -> TensorProduct:
            m_out, m_in = len(of.coupling), math.isqrt(of.coupling.shape[1])
            return TensorProduct(math.isqrt(m_in) - 1, math.isqrt(m_out) - 1, algebra)

        def at_rest(of: NodeEmbedding) -> NodeEmbedding:
            return _AtRest(of.mode, of.l_max, of.algebra, of.channels, of.moment_scale, moment_sizes=of.moment_sizes)

        _exchange(self, TensorProduct, first_order)
        _exchange(self, NodeEmbedding, at_rest)

    def embed(self, graph: Graph) -> Tensor:
        x = super().embed(_without_moments(graph))
        moments = self.embedding.scaled_moments(graph.species, graph.moments)
        # All radial functions of |m| are one at m = 0.
        slope = self.embedding.moment[graph.species, 1].sum(dim=1)
        x[:, 1:4, 1, 1] = solid_harmonics(1, moments)[1][:, :, None] * slope[:, None]
        return x

    def stages(self) -> Iterator[tuple[EquivariantLinear, float]]:
        # Without moments in what is even, symmetric sites lack some kinds. Calibration would amplify these by its
        # largest gain in each stage, until in float32 their rounding is larger than all else: they keep their weights.
        for linear, wanted in super().stages():
            before = linear.weight.clone()
            yield linear, wanted
            gain = (linear.weight.square().sum(dim=(3, 4)) / before.square().sum(dim=(3, 4))).sqrt()
            linear.weight.copy_(torch.where((gain > _LARGEST_GAIN)[..., None, None], before, linear.weight))

    def _exchange(self, graph: Graph, row: Tensor, col: Tensor) -> Tensor:
        return super()._exchange(_without_moments(graph), row, col)


def _without_moments(graph: Graph) -> Graph:
    return graph.with_moments(torch.zeros_like(graph.moments))


# -- the rest ----------------------------------------------------------------------------------------------------------


class OneScale(HamiltonianModel):
    """One scale for all outputs, the root mean square of those of the full network, and no shift."""

    def stages(self) -> Iterator[tuple[EquivariantLinear, float]]:
        # Asked for once, after scales and shifts have been taken from the labels and before the readout is fitted.
        readouts = [*self.self_readout, *self.pair_readout.values()]
        scale = torch.cat([readout.get_buffer("scale").flatten() for readout in readouts]).square().mean().sqrt()
        for readout in readouts:
            readout.get_buffer("scale").fill_(scale)
            readout.get_buffer("shift").zero_()
        yield from super().stages()


class NoEnvelope(HamiltonianModel):
    """Messages and blocks are not made to vanish at their cutoffs."""

    def __init__(self, config: ModelConfig, basis: Basis, moment_scale: tuple[float, ...]) -> None:
        super().__init__(config, basis, moment_scale)
        self.pair_network.register_forward_pre_hook(_of_weight_one)
        self.two_centre.register_forward_pre_hook(_without_weight)

    def edges(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        rotation, scalars, weight = super().edges(graph)
        return rotation, scalars, torch.full_like(weight, 1 / math.sqrt(self.config.mean_neighbours))


def _of_weight_one(module: nn.Module, inputs: tuple) -> tuple:
    """Inputs of :class:`~hamnet.models.interaction.EdgeNetwork` with one as the weight of each edge."""
    x, ends, rotation, edge_scalars, weight, wanted = inputs
    return x, ends, rotation, edge_scalars, torch.ones_like(weight), wanted


def _without_weight(module: nn.Module, inputs: tuple) -> tuple:
    """Inputs of :class:`~hamnet.models.two_centre.TwoCentre` with one as the weight of each pair."""
    vectors, fraction, weight, degree = inputs
    return vectors, fraction, torch.ones_like(weight), degree


class NoGrid(HamiltonianModel):
    """The grid of the DFT code is no input."""

    def lifted(self, x: Tensor, graph: Graph, edges: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return super().lifted(x, replace(graph, grids=torch.zeros_like(graph.grids)), edges)


# -- registry ----------------------------------------------------------------------------------------------------------

ABLATED: Mapping[str, type[HamiltonianModel]] = {
    "no-parity": NoParity,
    "no-time-label": NoTimeLabel,
    "linear-in-moments": LinearInMoments,
    "one-scale": OneScale,
    "no-envelope": NoEnvelope,
    "no-grid": NoGrid,
}


@contextmanager
def registered() -> Iterator[None]:
    """``[model] name`` and model files may name an ablated network as long as the context lasts."""
    MODELS.update(ABLATED)
    try:
        yield
    finally:
        for name in ABLATED:
            del MODELS[name]
