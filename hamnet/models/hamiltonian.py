"""The network: crystal with vector moments → Hamiltonian blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from hamnet.basis import Basis
from hamnet.blocks import BlockOperator, Pairs
from hamnet.errors import ModelError
from hamnet.structure import Structure

from .embedding import GridAnisotropy, NodeEmbedding, RadialBasis, envelope
from .frames import edge_rotation
from .graph import Graph, PairGroup
from .incidence import Incidence
from .interaction import EdgeNetwork, Interaction, NodeProduct
from .irreps import ALGEBRAS, EquivariantLinear, Mode, TensorProduct
from .readout import BlockReadout, blocks_from_parts, parts_adjoint, readout_degree
from .two_centre import TwoCentre

__all__ = ["MODES", "HamiltonianModel", "ModelConfig"]

_PRODUCT_SIZE = 0.5
# Exponents of the envelopes. Messages from neighbours close to the cutoff count nearly in full: the last shell of
# neighbours inside it carries much of exchange. Blocks fade out by themselves.
_MESSAGES_FADE, _BLOCKS_FADE = 12, 6
MODES: tuple[Mode, ...] = ("none", "collinear", "soc", "spin-group")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Size of the network.

    mode : what the Hamiltonian can be – ``none`` (no spin), ``collinear``, ``soc`` (space and spin turn together) or
        ``spin-group`` (no spin–orbit coupling: space and spin turn apart).
    cutoff_ang : reach of a message. What an atom knows of is n_layers times as far.
    l_max : highest degree of the features. channels : features of each kind on an atom.
    hidden : features of each kind on an edge. pair_channels : the same for the readout pairs.
    product_channels : features that enter the products on atoms. n_radial : radial functions of messages and pairs.
    n_two_centre : radial functions of the two-centre terms that the readout sees beside all else (0: none).
    mean_neighbours : typical number of neighbours, set from the training set.
    moment_sizes : whether the sizes of moments are an input beside their directions.
    """

    mode: Mode = "soc"
    cutoff_ang: float = 6.0
    n_layers: int = 2
    l_max: int = 4
    channels: int = 16
    hidden: int = 16
    pair_channels: int = 32
    product_channels: int = 8
    n_radial: int = 8
    n_two_centre: int = 12
    mean_neighbours: float = 12.0
    moment_sizes: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ModelError(f"mode {self.mode!r}", expected=f"one of {', '.join(MODES)}")
        for name in ("n_layers", "l_max", "channels", "hidden", "pair_channels", "product_channels", "n_radial"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} = {getattr(self, name)}", expected="at least 1")
        if self.n_two_centre < 0:
            raise ModelError(f"n_two_centre = {self.n_two_centre}", expected="0 or more")
        if not self.cutoff_ang > 0:
            raise ModelError(f"cutoff_ang = {self.cutoff_ang}", expected="a positive length in Å")

    def to_dict(self) -> dict:
        return asdict(self)


class HamiltonianModel(nn.Module):
    """Predicts all blocks of H from species, positions, cell and moments; exactly equivariant.

    A new model is float64, coupling coefficients included; ``model.to(torch.float32)`` narrows it for training.

    Parameters
    ----------
    config : size of the network.
    basis : species that the model can treat.
    moment_scale : (n_species,) typical |m| in μ_B; 0 marks species whose moments are not an input.
    """

    pair_cutoff: Tensor

    def __init__(self, config: ModelConfig, basis: Basis, moment_scale: tuple[float, ...]) -> None:
        super().__init__()
        if len(moment_scale) != len(basis):
            raise ModelError(f"{len(moment_scale)} moment scales", expected=f"{len(basis)}, one per species")
        self.config, self.basis, self.moment_scale = config, basis, tuple(float(x) for x in moment_scale)
        c, algebra = config, ALGEBRAS[config.mode]
        self.l_readout = max(readout_degree(basis.species, config.mode), 1)
        self.embedding = NodeEmbedding(
            config.mode,
            c.l_max,
            algebra,
            c.channels,
            torch.tensor(self.moment_scale, dtype=torch.float64),
            moment_sizes=c.moment_sizes,
        )
        self.radial = RadialBasis(c.n_radial)
        # Radial functions see the two species through vectors of their own.
        width = 8
        self.edge_species = nn.Parameter(torch.randn(len(basis), 2, width, dtype=torch.float64))
        n_scalars = c.n_radial + 2 * width
        self.interactions = nn.ModuleList(
            Interaction(c.l_max, algebra, c.channels, c.hidden, c.product_channels, n_scalars)
            for _ in range(c.n_layers)
        )
        self.lift_left = EquivariantLinear(c.l_max, algebra, c.channels, c.channels, bias=True)
        self.lift_right = EquivariantLinear(c.l_max, algebra, c.channels, c.channels, bias=True)
        self.lift = TensorProduct(c.l_max, self.l_readout, algebra)
        self.lift_out = EquivariantLinear(self.l_readout, algebra, c.channels, c.channels)
        self.lift_linear = EquivariantLinear(min(c.l_max, self.l_readout), algebra, c.channels, c.channels)
        self.grid = GridAnisotropy(c.l_max, algebra, len(basis), c.product_channels)
        self.grid_left = EquivariantLinear(c.l_max, algebra, c.channels, c.product_channels, bias=True)
        self.grid_out = EquivariantLinear(self.l_readout, algebra, c.product_channels, c.channels)
        self.grid_product = TensorProduct(c.l_max, self.l_readout, algebra)
        # From zero: where the data do not tell what belongs to the grid, it is nothing.
        nn.init.zeros_(self.grid_out.weight)
        self.self_product = NodeProduct(self.l_readout, algebra, c.channels, c.product_channels)
        self.self_linear = EquivariantLinear(self.l_readout, algebra, c.channels, c.pair_channels)
        self.pair_network = EdgeNetwork(self.l_readout, algebra, c.channels, c.hidden, n_scalars + 1, c.pair_channels)
        self.two_centre = TwoCentre(c.n_two_centre, c.mode, algebra, len(basis))
        n_self = c.pair_channels + self.embedding.n_own + self.two_centre.n_self
        n_pair = c.pair_channels + self.two_centre.n_pair
        self.self_readout = nn.ModuleList(BlockReadout(s, s, c.mode, n_self) for s in basis.species)
        self.pair_readout = nn.ModuleDict(
            {
                f"{a}_{b}": BlockReadout(basis[a], basis[b], c.mode, n_pair)
                for a in range(len(basis))
                for b in range(a, len(basis))
            }
        )
        reach = torch.tensor(
            [
                [x.cutoff_ang + y.cutoff_ang + 2 * _widest_projector(basis) for y in basis.species]
                for x in basis.species
            ],
            dtype=torch.float64,
        )
        self.register_buffer("pair_cutoff", reach, persistent=False)

    # -- forward ---------------------------------------------------------------------------------------------------

    def features(self, graph: Graph) -> Tensor:
        """(n_atoms, (l_readout+1)², n) of each atom, all that the readout sees: see :meth:`unpacked`."""
        x, edges = self.embed(graph), self.edges(graph)
        for layer in range(self.config.n_layers):
            x = self.interact(layer, x, graph, edges)
        return self.lifted(x, graph, edges)

    def embed(self, graph: Graph) -> Tensor:
        """(n_atoms, (l_max+1)², 2, q, channels) what each atom knows of itself: species and moment."""
        return self.embedding(graph.species, graph.moments)

    def edges(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """Frames, invariants and weights of the short edges, the same for all rounds of messages."""
        vectors = graph.vectors(graph.edge_row, graph.edge_col, graph.edge_shift)
        fraction = vectors.norm(dim=-1) / self.config.cutoff_ang
        scalars = self._edge_scalars(graph, fraction, graph.edge_row, graph.edge_col)
        weight = envelope(fraction, _MESSAGES_FADE) / math.sqrt(self.config.mean_neighbours)
        return edge_rotation(vectors, self.config.l_max), scalars, weight

    def interact(
        self, layer: int, x: Tensor, graph: Graph, edges: tuple[Tensor, Tensor, Tensor], n_rows: int | None = None
    ) -> Tensor:
        """One round of messages: what each atom knows after `layer` + 1 rounds from what it and its neighbours knew.

        The features of an atom then depend on atoms (positions, species, moments) that `layer` + 1 edges reach.

        n_rows : only the first so many atoms are updated and returned; no edge may have another row atom.
        """
        return self.interactions[layer](x, graph.edge_row, graph.edge_col, *edges, n_rows)

    def lifted(self, x: Tensor, graph: Graph, edges: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """:meth:`features` from those of the first n atoms, row atoms of all edges, after the last round."""
        lifted = self.lift_out(self.lift(self.lift_left.beside(self.lift_right, x)))
        size = min(x.shape[1], lifted.shape[1])
        straight = self.lift_linear(x[:, :size])
        lifted = lifted + nn.functional.pad(straight, (0, 0, 0, 0, 0, 0, 0, lifted.shape[1] - size))
        # Linear in the anisotropy of the grid, and after all else: what the grid does must not mix with physics.
        grid = self.grid(graph.species[: len(x)], graph.crystal[: len(x)], graph.grids)
        both = torch.cat([self.grid_left(x), grid], dim=-1)
        lifted = lifted + self.grid_out(self.grid_product(both))
        vectors = graph.vectors(graph.edge_row, graph.edge_col, graph.edge_shift)
        field = self.two_centre.around(
            vectors,
            vectors.norm(dim=-1) / self.config.cutoff_ang,
            edges[2],
            self._exchange(graph, graph.edge_row, graph.edge_col),
            self.l_readout,
            graph.edge_row,
            graph.species[graph.edge_col],
            len(x),
        )
        return torch.cat([lifted.flatten(2), field], dim=-1)

    def unpacked(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(n, M, 2, q, channels) of the network and (n, M, n_self) two-centre terms of the neighbourhoods."""
        q, n_self = ALGEBRAS[self.config.mode].n_components, self.two_centre.n_self
        learned, field = features.split([features.shape[-1] - n_self, n_self], dim=-1)
        return learned.unflatten(2, (2, q, self.config.channels)), field

    def forward(self, graph: Graph) -> list[tuple[int, int, Tensor, Tensor]]:
        """(row species, column species, pair index (n,), parts (n, n_parts, n_row, n_col) in eV).

        Only pairs with row species ≤ column species; the others are adjoints. Self pairs come first.
        """
        return self.readout(self.features(graph), graph)

    def readout(self, x: Tensor, graph: Graph) -> list[tuple[int, int, Tensor, Tensor]]:
        """The output of :meth:`forward` from the :meth:`features` of all atoms that occur in the graph's pairs."""
        mode = self.config.mode
        result = []
        x, field = (part.contiguous() for part in self.unpacked(x))
        atoms_of = [atoms for _, atoms, _ in graph.self_pairs]
        if atoms_of:
            atoms = torch.cat(atoms_of)
            learned, around = (part.index_select(0, atoms) for part in (x, field))
            own = self.embedding.own_terms(graph.species[atoms], graph.moments[atoms], self.l_readout)
            around = self.two_centre.labelled(around)
            onsite = torch.cat([self.self_linear(self.self_product(learned)), own, around], dim=-1)
            of_species = onsite.split([len(atoms) for atoms in atoms_of])
            for (species, _, index), own in zip(graph.self_pairs, of_species, strict=True):
                parts = self.self_readout[species](own)
                result.append((species, species, index, _hermitian(parts, parts, mode)))
        if not graph.pairs:
            return result
        by_degree = [list(groups) for _, groups in groupby(sorted(graph.pairs, key=self._degree), key=self._degree)]
        ordered = [group for groups in by_degree for group in groups]
        row, col, shift = (torch.cat([getattr(g, name) for g in ordered]) for name in ("row", "col", "shift"))
        vectors = graph.vectors(row, col, shift)
        fraction = vectors.norm(dim=-1) / self.pair_cutoff[graph.species[row], graph.species[col]]
        weight = envelope(fraction, _BLOCKS_FADE)
        wanted = [(sum(len(g.row) for g in groups), self._degree(groups[0])) for groups in by_degree]
        features = self.pair_network(
            x,
            Incidence.of(torch.stack([row, col + len(x)], dim=1), 2 * len(x)),
            edge_rotation(vectors, self.l_readout),
            torch.cat([self._edge_scalars(graph, fraction, row, col), self._exchange(graph, row, col)[:, None]], dim=1),
            weight,
            wanted,
        )
        counts = [count for count, _ in wanted]
        lines = zip(*(t.split(counts) for t in (vectors, fraction, weight)), strict=True)
        parts_of: dict[str, Tensor] = {}
        for groups, of_degree, line, (_, degree) in zip(by_degree, features, lines, wanted, strict=True):
            terms = self.two_centre.labelled(self.two_centre(*line, degree))
            of_degree = torch.cat([of_degree, terms], dim=-1)
            for group, own in zip(groups, of_degree.split([len(g.row) for g in groups]), strict=True):
                parts = self.pair_readout[_key(group)](own)
                if group.partner is not None:
                    parts = _hermitian(parts, parts.index_select(0, group.partner), mode)
                parts_of[_key(group)] = parts
        return result + [(g.row_species, g.col_species, g.index, parts_of[_key(g)]) for g in graph.pairs]

    def _degree(self, group: PairGroup) -> int:
        """Highest degree that the blocks of a species pair are made of."""
        return self.pair_readout[_key(group)].degree  # type: ignore[return-value]

    def _edge_scalars(self, graph: Graph, fraction: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """(n, n_scalars) what the radial functions see: length and the two species."""
        species_row, species_col = graph.species[row], graph.species[col]
        ends = [self.edge_species[:, i].index_select(0, s) for i, s in enumerate((species_row, species_col))]
        return torch.cat([self.radial(fraction), *ends], dim=1)

    def _exchange(self, graph: Graph, row: Tensor, col: Tensor) -> Tensor:
        """(n,) m_i · m_j in units of the typical sizes.

        The radial functions of blocks and the two-centre terms on atoms see it, those of messages do not: what is
        nonlinear in the moments around an atom must be so in their sum, the molecular field, and not bond by bond.
        Small cells, whose moments repeat, cannot tell the two apart, and levels of NiBr2 go with the field.
        """
        m = self.embedding.scaled_moments(graph.species, graph.moments)
        return (m[row] * m[col]).sum(dim=-1)

    def stages(self) -> Iterator[tuple[EquivariantLinear, float]]:
        """(linear map at the end of a branch, size that its output should begin with), as data flow through them.

        Messages begin as large as what an atom knows of itself, products as a small correction to it.
        """
        for interaction in self.interactions:
            yield interaction.out, 1.0  # type: ignore[misc]
            yield interaction.product.out, _PRODUCT_SIZE  # type: ignore[union-attr,misc]
        yield self.lift_linear, 1.0
        yield self.lift_out, _PRODUCT_SIZE
        yield self.self_product.out, _PRODUCT_SIZE

    # -- use -------------------------------------------------------------------------------------------------------

    def graph(self, structures: list[Structure], pairs: list[Pairs]) -> Graph:
        """The input tensors in the model's dtype and device."""
        parameter = self.edge_species
        return Graph.build(
            structures, pairs, self.basis, self.config.cutoff_ang, dtype=parameter.dtype, device=parameter.device
        )

    def hamiltonian(self, structure: Structure, pairs: Pairs) -> BlockOperator:
        """H in eV on `pairs` (species numbered as in the model's basis); differentiable where the input is."""
        output = self(self.graph([structure], [pairs]))
        return assemble(output, pairs, self.basis, self.config.mode)


def _key(group: PairGroup) -> str:
    return f"{group.row_species}_{group.col_species}"


def _hermitian(parts: Tensor, reverse: Tensor, mode: Mode) -> Tensor:
    """Mean of a block and the adjoint of its partner's."""
    return (parts + parts_adjoint(reverse, mode)) / 2


def _widest_projector(basis: Basis) -> float:
    return max(s.projector_cutoff_ang for s in basis.species)


def assemble(output: list[tuple[int, int, Tensor, Tensor]], pairs: Pairs, basis: Basis, mode: Mode) -> BlockOperator:
    """The operator on all pairs of one crystal from the output of the network."""
    blocks: dict[tuple[int, int], Tensor] = {}
    for a, b, index, parts in output:
        group = next(g for g in pairs.groups if (g.row_species, g.col_species) == (a, b))
        if (a, b) not in blocks:
            blocks[a, b] = parts.new_zeros(group.pairs.stop - group.pairs.start, *parts.shape[1:])
        blocks[a, b] = blocks[a, b].index_copy(0, index - group.pairs.start, parts)
    for group in pairs.groups:
        a, b = group.row_species, group.col_species
        if a > b:
            mirror = next(g for g in pairs.groups if (g.row_species, g.col_species) == (b, a))
            partner = torch.as_tensor(pairs.partner[group.pairs] - mirror.pairs.start, device=blocks[b, a].device)
            blocks[a, b] = parts_adjoint(blocks[b, a][partner], mode)
    ordered = tuple(blocks_from_parts(blocks[g.row_species, g.col_species], mode) for g in pairs.groups)
    return BlockOperator(basis, pairs, ordered)


def half_blocks(operator: BlockOperator) -> list[tuple[int, int | None, Tensor]]:
    """The blocks that the network computes: (species, None, self blocks) and (row, column species, off-site blocks)."""
    is_self = operator.pairs.is_self
    result: list[tuple[int, int | None, Tensor]] = []
    for group, block in zip(operator.pairs.groups, operator.blocks, strict=True):
        if group.row_species > group.col_species:
            continue
        onsite = torch.as_tensor(is_self[group.pairs].copy(), device=block.device)
        if group.row_species == group.col_species:
            result.append((group.row_species, None, block[onsite]))
        if not bool(onsite.all()):
            result.append((group.row_species, group.col_species, block[~onsite]))
    return result
