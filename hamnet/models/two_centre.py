"""What blocks owe to pairs of atoms alone: two-centre integrals of Slater and Koster, Phys. Rev. 94, 1498 (1954).

Kinetic energy, overlap-like hopping and, on the atom, the sum of the neighbours' potentials (crystal-field integrals)
make most of H and nearly all of how it changes when atoms move. Given to the readout as they are, as functions of the
distance times harmonics of the direction, they are found by linear regression from a few displaced crystals; messages
and gates, which would have to form them from each other, extrapolate far worse.

On the atom each neighbour counts once more with m_i · m_j as a factor, Heisenberg's form. Without it the terms of the
neighbours' moments are left to messages alone, and where a neighbour is the atom's own copy, always parallel, its part
cannot be told from a constant: levels learned in such cells are then tens of meV off in larger ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hamnet.harmonics import spherical_harmonics

from .embedding import RadialBasis
from .irreps import Mode, SpinAlgebra

__all__ = ["TwoCentre"]


class TwoCentre(nn.Module):
    """B_n(r) Y_lm(r̂), n = 1 … size: natural, even and free of spin.

    B_n falls as 1/n², so that equal weights make a function with a bounded slope and weights that are kept small make a
    smooth one. Crystals that hold a bond at a few lengths alone (the lattice vectors of a small cell) leave open what
    happens between them; without the factor, regression fills it with functions that swing.

    n_pair : how many of them a pair has. n_self : how many an atom has, with a sum of its own for the neighbours of
    each species. is_exchange : (n_self,) those of them that have m_i · m_j as a factor.
    """

    order: Tensor
    is_exchange: Tensor

    def __init__(self, size: int, mode: Mode, algebra: SpinAlgebra, n_species: int) -> None:
        super().__init__()
        self.radial = RadialBasis(size)
        self.register_buffer("order", torch.arange(1, size + 1, dtype=torch.float64), persistent=False)
        self.n_components, self.n_species, self.magnetic = algebra.n_components, n_species, mode != "none"
        self.n_pair = size
        self.n_self = n_species * size * (2 if self.magnetic else 1)
        exchange = torch.arange(self.n_self // n_species) >= size
        self.register_buffer("is_exchange", exchange.repeat(n_species), persistent=False)

    def forward(self, vectors: Tensor, fraction: Tensor, weight: Tensor, degree: int) -> Tensor:
        """(n, (degree+1)², n_pair) of pairs.

        vectors : (n, 3) from atom to atom; fraction : (n,) distances over the cutoff; weight : (n,) factors.
        """
        return _harmonics(vectors, degree) * self._radial(fraction, weight)[:, None]

    def around(
        self,
        vectors: Tensor,
        fraction: Tensor,
        weight: Tensor,
        exchange: Tensor,
        degree: int,
        row: Tensor,
        species: Tensor,
        n_atoms: int,
    ) -> Tensor:
        """(n_atoms, (degree+1)², n_self): sums over the neighbours, of all edges of the first so many atoms.

        exchange : (n_edges,) m_i · m_j. row, species : (n_edges,) number of the atom, species of its neighbour.
        """
        radial = self._radial(fraction, weight)
        if self.magnetic:
            radial = torch.cat([radial, radial * exchange[:, None]], dim=1)
        terms = _harmonics(vectors, degree) * radial[:, None]
        total = terms.new_zeros((n_atoms * self.n_species, *terms.shape[1:]))
        total = total.index_add(0, row * self.n_species + species, terms)
        return total.unflatten(0, (n_atoms, self.n_species)).transpose(1, 2).flatten(2)

    def labelled(self, terms: Tensor) -> Tensor:
        """Terms (n, M, c) as the natural, even and spin-free ones among features (n, M, 2, q, c)."""
        return nn.functional.pad(terms[:, :, None, None], (0, 0, 0, self.n_components - 1, 0, 1))

    def _radial(self, fraction: Tensor, weight: Tensor) -> Tensor:
        return self.radial(fraction) / self.order**2 * weight[:, None]


def _harmonics(vectors: Tensor, degree: int) -> Tensor:
    """(n, (degree+1)², 1)"""
    return torch.cat(spherical_harmonics(degree, vectors), dim=-1)[:, :, None]
