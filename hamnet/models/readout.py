"""From features to Hamiltonian blocks: coupled irreps of shell pairs, and Clebsch–Gordan to the orbitals.

A block of the shells (l_a, l_b) is the sum of irreps L of l_a ⊗ l_b, and with spin–orbit coupling of J of L ⊗ 1 for
its spin vector. Re H_0 and Im H_xyz are even under time reversal, Im H_0 and Re H_xyz odd.

*Parts* are the real components of a block that a mode can have: (Re H_0) for ``none``; (Re H_0, Re H_z) for
``collinear``; (Re H_0, Re H_xyz) for ``spin-group``; (Re H_0, Re H_xyz, Im H_0, Im H_xyz) for ``soc``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hamnet.basis import SpeciesBasis

from .irreps import ALGEBRAS, Mode, clebsch_gordan, permuted

__all__ = [
    "BlockIrreps",
    "BlockReadout",
    "blocks_from_parts",
    "n_parts",
    "parts_adjoint",
    "parts_from_blocks",
    "readout_degree",
]

_N_PARTS = {"none": 1, "collinear": 2, "spin-group": 4, "soc": 8}
_COMPONENTS = {"none": (0,), "collinear": (0, 1), "spin-group": (0, 1, 2, 3), "soc": (0, 1)}
"""Components of the spin algebra that a block is made of."""


def n_parts(mode: Mode) -> int:
    return _N_PARTS[mode]


def readout_degree(species: tuple[SpeciesBasis, ...], mode: Mode) -> int:
    """Largest irrep of any block: 2 l_max, and one more for the spin vector."""
    return 2 * max(max(s.degrees) for s in species) + (1 if mode == "soc" else 0)


def parts_from_blocks(blocks: Tensor, mode: Mode) -> Tensor:
    """(n, n_parts, n_row, n_col) real parts of blocks (n, n_spin, n_row, n_col) of an operator."""
    if mode != "soc":
        return blocks.real if blocks.is_complex() else blocks
    return torch.cat([blocks.real, blocks.imag], dim=1)


def blocks_from_parts(parts: Tensor, mode: Mode) -> Tensor:
    """The inverse of :func:`parts_from_blocks`; complex for ``soc``."""
    return torch.complex(parts[:, :4], parts[:, 4:]) if mode == "soc" else parts


def parts_adjoint(parts: Tensor, mode: Mode) -> Tensor:
    """Parts of the block of the reversed pair: transposed, imaginary parts with the other sign."""
    transposed = parts.transpose(-1, -2)
    if mode != "soc":
        return transposed
    return torch.cat([transposed[:, :4], -transposed[:, 4:]], dim=1)


@dataclass(frozen=True, slots=True)
class _ShellPairs:
    """All shell pairs with the degrees (l_a, l_b) of one species pair.

    irreps : (J, natural) of each coupled irrep, in the order of the rows of `matrix`.
    matrix : (dim, S, 2l_a+1, 2l_b+1) orthonormal; S = 4 Pauli components for ``soc``, else 1.
    shells : the (shell of a, shell of b) that have these degrees.
    """

    irreps: tuple[tuple[int, int], ...]
    matrix: Tensor
    shells: tuple[tuple[int, int], ...]


def _shell_pairs(row: SpeciesBasis, col: SpeciesBasis, mode: Mode) -> Iterator[_ShellPairs]:
    for la in sorted(set(row.degrees)):
        for lb in sorted(set(col.degrees)):
            irreps: list[tuple[int, int]] = []
            rows: list[Tensor] = []
            for l in range(abs(la - lb), la + lb + 1):
                space = clebsch_gordan(la, lb, l)  # (a, b, M)
                unnatural = (la + lb + l) % 2
                if mode != "soc":
                    irreps.append((l, unnatural))
                    rows.append(space.permute(2, 0, 1)[:, None])
                    continue
                zero = torch.zeros(2 * l + 1, 4, 2 * la + 1, 2 * lb + 1, dtype=torch.float64)
                zero[:, 0] = space.permute(2, 0, 1)
                irreps.append((l, unnatural))
                rows.append(zero)
                for j in range(abs(l - 1), l + 2):
                    spin = clebsch_gordan(l, 1, j)[:, [2, 0, 1]]  # house order (y, z, x) → Pauli order x, y, z
                    coupled = torch.einsum("abm,msj->jsab", space, spin)
                    irreps.append((j, (la + lb + j) % 2))
                    rows.append(torch.cat([torch.zeros_like(coupled[:, :1]), coupled], dim=1))
            shells = tuple(
                (a, b) for a, x in enumerate(row.degrees) for b, y in enumerate(col.degrees) if (x, y) == (la, lb)
            )
            yield _ShellPairs(tuple(irreps), torch.cat(rows), shells)


class BlockIrreps(nn.Module):
    """Blocks of one species pair ↔ their coupled irreps, an orthogonal map.

    Coefficients (n, n_components, total) hold for each spin-algebra component the irreps one after another, sorted by
    (J, naturality), with m slow and the number of the irrep fast. `entries[J, naturality]` counts them.
    """

    gather: Tensor
    ungather: Tensor
    orbital: Tensor
    entry: Tensor
    into_kinds: Tensor
    into_parts: Tensor

    def __init__(self, row: SpeciesBasis, col: SpeciesBasis, mode: Mode) -> None:
        super().__init__()
        self.mode: Mode = mode
        self.shape = (row.n_orbitals, col.n_orbitals)
        self.n_spin = 4 if mode == "soc" else 1
        kinds = list(_shell_pairs(row, col, mode))
        # Number the irreps of equal (J, naturality) through all shell pairs.
        count: dict[tuple[int, int], int] = {}
        places: list[list[list[int]]] = []  # per kind and shell pair: number of each of its irreps
        for kind in kinds:
            for _ in kind.shells:
                numbers = []
                for irrep in kind.irreps:
                    numbers.append(count.get(irrep, 0))
                    count[irrep] = numbers[-1] + 1
                places.append(numbers)
        self.entries = dict(sorted(count.items()))
        start, offset = {}, 0
        for (j, natural), multiplicity in self.entries.items():
            start[j, natural] = offset
            offset += (2 * j + 1) * multiplicity
        self.total = offset
        self.degree = max(j for j, _ in self.entries)
        gather: list[int] = []
        scatter: list[Tensor] = []
        orbital = torch.arange(self.n_spin * row.n_orbitals * col.n_orbitals).reshape(self.n_spin, *self.shape)
        row_slices, col_slices = row.shell_slices(), col.shell_slices()
        numbers = iter(places)
        self.sizes: list[tuple[int, int]] = []
        for index, kind in enumerate(kinds):
            dim = kind.matrix.shape[0]
            self.register_buffer(f"matrix_{index}", kind.matrix.reshape(dim, -1), persistent=False)
            self.sizes.append((len(kind.shells), dim))
            for a, b in kind.shells:
                for (j, natural), number in zip(kind.irreps, next(numbers), strict=True):
                    multiplicity = self.entries[j, natural]
                    gather += [start[j, natural] + m * multiplicity + number for m in range(2 * j + 1)]
                scatter.append(orbital[:, row_slices[a], col_slices[b]].reshape(-1))
        place = torch.tensor(gather)
        self.register_buffer("gather", place, persistent=False)
        self.register_buffer("ungather", torch.argsort(place), persistent=False)
        self.register_buffer("orbital", torch.cat(scatter), persistent=False)
        into_kinds, into_parts = self._orders(place, torch.cat(scatter))
        self.register_buffer("into_kinds", into_kinds, persistent=False)
        self.register_buffer("into_parts", into_parts, persistent=False)
        # Which (irrep, number) each coefficient belongs to: scales are per irrep, not per m.
        entry, number_of = [], 0
        for (j, _), multiplicity in self.entries.items():
            entry.append((torch.arange(multiplicity) + number_of).repeat(2 * j + 1))
            number_of += multiplicity
        self.n_entries = number_of
        self.register_buffer("entry", torch.cat(entry), persistent=False)

    def _orders(self, gather: Tensor, orbital: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficient (component, number) at each (kind, row of its matrix, component, shell pair), and where of (kind,
        column of its matrix, component, shell pair) to find each (part, row, column)."""
        n_comp = len(_COMPONENTS[self.mode])
        component = torch.arange(n_comp)[:, None]
        into_kinds, place = [], torch.empty(n_comp, len(orbital), dtype=torch.long)
        start = column = 0
        for n_shells, dim in self.sizes:
            rows = gather[start : start + n_shells * dim].reshape(n_shells, dim).T
            into_kinds.append((component * self.total + rows[:, None]).flatten())
            shell, own = torch.arange(n_shells)[:, None], torch.arange(dim)
            place[:, orbital[column : column + n_shells * dim]] = (
                n_comp * start + (own * n_comp + component[..., None]) * n_shells + shell
            ).reshape(n_comp, -1)
            start, column = start + n_shells * dim, column + n_shells * dim
        parts = place.reshape(n_comp, self.n_spin, *self.shape)
        if self.mode == "soc":
            even, odd = parts
            parts = torch.cat([even[:1], odd[1:], odd[:1], even[1:]])
        return torch.cat(into_kinds), parts.flatten()

    def to_parts(self, coefficients: Tensor) -> Tensor:
        """(n, n_parts, n_row, n_col) from (n, n_components, total)."""
        # Pairs are the last axis in memory, so that every sorting moves whole rows.
        rows = coefficients.permute(1, 2, 0).reshape(-1, len(coefficients)).index_select(0, self.into_kinds)
        n_comp = coefficients.shape[1]
        pieces = [
            (getattr(self, f"matrix_{index}").T @ part.reshape(dim, -1)).reshape(-1, len(coefficients))
            for index, ((_, dim), part) in enumerate(
                zip(self.sizes, rows.split([n_comp * n * dim for n, dim in self.sizes]), strict=True)
            )
        ]
        flat = torch.cat(pieces).index_select(0, self.into_parts)
        return permuted(flat, 1, 0).reshape(len(coefficients), -1, *self.shape)

    def from_parts(self, parts: Tensor) -> Tensor:
        """The inverse, and the adjoint, of :meth:`to_parts`."""
        n = len(parts)
        if self.mode == "soc":
            even = torch.cat([parts[:, :1], parts[:, 5:]], dim=1)
            odd = torch.cat([parts[:, 4:5], parts[:, 1:4]], dim=1)
            blocks = torch.stack([even, odd], dim=1)
        else:
            blocks = parts[:, :, None]
        components = blocks.shape[1]
        flat = blocks.reshape(n, components, -1)[:, :, self.orbital]
        pieces, start = [], 0
        for index, (multiplicity, dim) in enumerate(self.sizes):
            part = flat[:, :, start : start + multiplicity * dim].reshape(n, components, multiplicity, dim)
            pieces.append((part @ getattr(self, f"matrix_{index}").mT).reshape(n, components, -1))
            start += multiplicity * dim
        return torch.cat(pieces, dim=-1)[:, :, self.ungather]


class _Transposed(torch.autograd.Function):
    """a bᵀ for (batch, n, k) and (batch, m, k), with gradients in the layout of a and b."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.bmm(a, b.mT)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return torch.bmm(gradients[0], b), torch.bmm(gradients[0].mT, a)


class BlockReadout(nn.Module):
    """Linear map of features (n, M, 2, q, c) to the blocks of one species pair, with scale and shift per irrep.

    scale : (n_kinds, n_entries) rms of the training labels; kinds are the spin irreps among the block's components.
    """

    kind: Tensor
    scale: Tensor
    shift: Tensor
    weight_of: Tensor
    coefficient_of: Tensor

    def __init__(self, row: SpeciesBasis, col: SpeciesBasis, mode: Mode, channels: int) -> None:
        super().__init__()
        self.irreps = BlockIrreps(row, col, mode)
        self.components = _COMPONENTS[mode]
        self.degree = max(self.irreps.degree, 1)
        kind_of = [ALGEBRAS[mode].irrep_of[q] for q in self.components]
        self.n_kinds = kind_of[-1] + 1
        self.weights = nn.ParameterDict(
            {
                f"{j}_{natural}": torch.randn(self.n_kinds, channels, multiplicity, dtype=torch.float64)
                / math.sqrt(channels)
                for (j, natural), multiplicity in self.irreps.entries.items()
            }
        )
        self.register_buffer("kind", torch.tensor(kind_of), persistent=False)
        self.register_buffer("scale", torch.ones(self.n_kinds, self.irreps.n_entries, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(self.irreps.total, dtype=torch.float64))
        weight_of, coefficient_of = self._places()
        self.register_buffer("weight_of", weight_of, persistent=False)
        self.register_buffer("coefficient_of", coefficient_of, persistent=False)

    def _places(self) -> tuple[Tensor, Tensor]:
        """Which weight (entry, kind) stands at each (M, naturality, component, number), one behind the last where there
        is none; which of these is each coefficient (component, number)."""
        n_comp, size, most = len(self.components), (self.degree + 1) ** 2, max(self.irreps.entries.values())
        n_weights = self.irreps.n_entries * self.n_kinds
        weight_of = torch.full((size, 2, n_comp, most), n_weights)
        place = torch.arange(weight_of.numel()).reshape(weight_of.shape)
        kind, coefficient_of, first = self.kind[:, None], [], 0
        for (j, natural), multiplicity in self.irreps.entries.items():
            rows = slice(j * j, (j + 1) ** 2)
            weight_of[rows, natural, :, :multiplicity] = (first + torch.arange(multiplicity)) * self.n_kinds + kind
            coefficient_of.append(place[rows, natural, :, :multiplicity].transpose(0, 1).flatten(1))
            first += multiplicity
        return weight_of.flatten(), torch.cat(coefficient_of, dim=1).flatten()

    def coefficients(self, x: Tensor) -> Tensor:
        """(n, n_components, total), scaled and shifted."""
        n, n_comp, size = len(x), len(self.components), (self.degree + 1) ** 2
        weights = torch.cat(list(self.weights.values()), dim=2) * self.scale[:, None]
        weights = nn.functional.pad(weights.permute(2, 0, 1).flatten(0, 1), (0, 0, 0, 1))
        # Few kinds of irrep have much less than the largest number of them, so all are computed as if they had as many.
        weights = weights.index_select(0, self.weight_of).reshape(2 * size * n_comp, -1, x.shape[-1])
        x = x if x.shape[1] == size and x.shape[3] == n_comp else x[:, :size, :, :n_comp]
        rows: Tensor = _Transposed.apply(weights, x.permute(1, 2, 3, 0, 4).reshape(len(weights), n, -1))  # type: ignore
        rows = rows.flatten(0, 1).index_select(0, self.coefficient_of)
        shift = nn.functional.pad(self.shift, (0, (n_comp - 1) * len(self.shift)))
        return (rows + shift[:, None]).reshape(n_comp, -1, n).permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.irreps.to_parts(self.coefficients(x))
