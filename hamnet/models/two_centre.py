"""What blocks owe to pairs of atoms alone: two-centre integrals of Slater and Koster, Phys. Rev. 94, 1498 (1954).

Kinetic energy, overlap-like hopping and, on the atom, the sum of the neighbours' potentials (crystal-field integrals)
make most of H and nearly all of how it changes when atoms move. Given to the readout as they are, as functions of the
distance times harmonics of the direction, they are found by linear regression from a few displaced crystals; messages
and gates, which would have to form them from each other, extrapolate ten times worse.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hamnet.harmonics import spherical_harmonics

from .embedding import RadialBasis
from .irreps import SpinAlgebra

__all__ = ["TwoCentre"]


class TwoCentre(nn.Module):
    """B_n(r) Y_lm(r̂), n = 1 … size: natural, even and free of spin."""

    def __init__(self, size: int, algebra: SpinAlgebra) -> None:
        super().__init__()
        self.radial = RadialBasis(size)
        self.n_components = algebra.n_components

    def forward(self, vectors: Tensor, fraction: Tensor, weight: Tensor, degree: int) -> Tensor:
        """(n, (degree+1)², 2, q, size) from vectors (n, 3), distances over the cutoff and factors, (n,) each."""
        return self._labelled(self._terms(vectors, fraction, weight, degree))

    def summed(
        self,
        vectors: Tensor,
        fraction: Tensor,
        weight: Tensor,
        degree: int,
        index: Tensor,
        n_atoms: int,
        n_species: int,
    ) -> Tensor:
        """(n_atoms, (degree+1)², 2, q, n_species · size): sums over the neighbours of each species.

        index : (n,) atom · n_species + species of the neighbour.
        """
        terms = self._terms(vectors, fraction, weight, degree)
        total = terms.new_zeros((n_atoms * n_species, *terms.shape[1:])).index_add(0, index, terms)
        return self._labelled(total.unflatten(0, (n_atoms, n_species)).transpose(1, 2).flatten(2))

    def _terms(self, vectors: Tensor, fraction: Tensor, weight: Tensor, degree: int) -> Tensor:
        harmonics = torch.cat(spherical_harmonics(degree, vectors), dim=-1)
        return harmonics[:, :, None] * (self.radial(fraction) * weight[:, None])[:, None]

    def _labelled(self, terms: Tensor) -> Tensor:
        """(n, M, c) as natural, even and spin-free among (n, M, 2, q, c)."""
        return nn.functional.pad(terms[:, :, None, None], (0, 0, 0, self.n_components - 1, 0, 1))
