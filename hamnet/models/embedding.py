"""What the network starts from: species, vector moments, distances."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hamnet.harmonics import solid_harmonics

from .irreps import Mode, SpinAlgebra

__all__ = ["GridAnisotropy", "NodeEmbedding", "RadialBasis", "envelope"]


def envelope(fraction: Tensor, p: int) -> Tensor:
    """1 at 0, 0 from 1 on, twice continuously differentiable, the flatter the larger p.

    1 − (p+1)(p+2)/2 xᵖ + p(p+2) xᵖ⁺¹ − p(p+1)/2 xᵖ⁺²: Gasteiger, Groß, Günnemann (2020), arXiv:2003.03123, eq. 8.
    """
    x = fraction.clamp(max=1.0)
    return 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)


class RadialBasis(nn.Module):
    """√2 sin(nπx)/x for n = 1 … size, x = distance / cutoff."""

    frequency: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("frequency", math.pi * torch.arange(1, size + 1, dtype=torch.float64), persistent=False)

    def forward(self, fraction: Tensor) -> Tensor:
        x = fraction[:, None]
        return math.sqrt(2) * torch.sin(self.frequency * x) / x


class NodeEmbedding(nn.Module):
    """Species as even scalars; moments as Y_l(m̂) f_l(|m|), f_l ~ |m|^l: analytic at m = 0.

    With spin–orbit coupling the moment m is an axial vector of space: its degree-l harmonics have even parity and time
    parity (−1)^l. Without it m is a vector of free spin, or its z component, and enters at l = 0.

    Parameters
    ----------
    moment_scale : (n_species,) μ_B, the typical size of a moment; 0 for species whose moments are no input.
    moment_sizes : whether the sizes of moments are an input; if not, every moment but zero counts as typical.
    """

    _WIDTHS = (0.25, 0.5, 1.0, 2.0)

    moment_scale: Tensor
    widths: Tensor

    def __init__(
        self,
        mode: Mode,
        l_max: int,
        algebra: SpinAlgebra,
        channels: int,
        moment_scale: Tensor,
        *,
        moment_sizes: bool = True,
    ) -> None:
        super().__init__()
        self.mode, self.l_max, self.algebra, self.channels = mode, l_max, algebra, channels
        self.moment_sizes = moment_sizes
        n_species = len(moment_scale)
        self.species = nn.Parameter(torch.randn(n_species, channels, dtype=torch.float64))
        # One set of radial weights for each power of the moment: l = 0 … l_max, or 1 and m.
        self.n_powers = {"none": 0, "collinear": 2, "soc": l_max + 1, "spin-group": 2}[mode]
        size = (n_species, self.n_powers, len(self._WIDTHS), channels)
        # Higher powers of the moment need spin–orbit coupling that often, so they begin small.
        hierarchy = 0.3 ** (torch.arange(self.n_powers, dtype=torch.float64) - 1).clamp(min=0)
        moment = torch.randn(size, dtype=torch.float64) / math.sqrt(len(self._WIDTHS))
        self.moment = nn.Parameter(moment * hierarchy[:, None, None])
        self.register_buffer("moment_scale", moment_scale, persistent=False)
        self.register_buffer("widths", torch.tensor(self._WIDTHS, dtype=torch.float64), persistent=False)

    def scaled_moments(self, species: Tensor, moments: Tensor) -> Tensor:
        """(n, 3) moments in units of the typical size; zero where they are no input, along z alone if collinear."""
        scale = self.moment_scale[species]
        magnetic = (scale > 0) & (self.mode != "none")
        m = moments / torch.where(magnetic, scale, torch.ones_like(scale))[:, None] * magnetic[:, None]
        m = nn.functional.pad(m[:, 2:], (2, 0)) if self.mode == "collinear" else m
        return m if self.moment_sizes else nn.functional.normalize(m, dim=1)

    def forward(self, species: Tensor, moments: Tensor) -> Tensor:
        """(n, M, 2, q, channels) from species (n,) and moments (n, 3) in μ_B."""
        n, q = len(species), self.algebra.n_components
        x = self.species.new_zeros(n, (self.l_max + 1) ** 2, 2, q, self.channels)
        scalars = self.species[species]
        if self.mode == "none":
            x[:, 0, 0, 0] = scalars
            return x
        m = self.scaled_moments(species, moments)
        radial = self._radial(species, m)
        weights = torch.einsum("nk,npkc->npc", radial, self.moment[species])
        if self.mode == "soc":
            for l, harmonic in enumerate(solid_harmonics(self.l_max, m)):
                term = harmonic[:, :, None] * weights[:, None, l]
                # Even parity: natural for even l. Time parity (−1)^l.
                x[:, l * l : (l + 1) ** 2, l % 2, l % 2] = term
            x[:, 0, 0, 0] = x[:, 0, 0, 0] + scalars
        else:
            x[:, 0, 0, 0] = scalars + weights[:, 0]
            odd = m if self.mode == "spin-group" else m[:, 2:]
            x[:, 0, 0, 1 : 1 + odd.shape[1]] = odd[:, :, None] * weights[:, None, 1]
        return x

    @property
    def n_own(self) -> int:
        """Number of :meth:`own_terms`: none without sizes, which are then an answer that neighbours have a say in."""
        return len(self._WIDTHS) if self.moment_sizes and self.mode != "none" else 0

    def own_terms(self, species: Tensor, moments: Tensor, degree: int) -> Tensor:
        """(n, (degree+1)², 2, q, n_own) what a moment does on its own atom: exp(−w m²) and m exp(−w m²), w the widths.

        The readout sees them as they are. In a small cell, whose copies are all parallel, an atom's own moment cannot
        be told from the sum of its neighbours', and the exchange splitting of a level is the atom's own. Higher powers,
        which need spin–orbit coupling that often, are left to the network.
        """
        x = moments.new_zeros(len(species), (degree + 1) ** 2, 2, self.algebra.n_components, self.n_own)
        if not self.n_own:
            return x
        m = self.scaled_moments(species, moments)
        radial = self._radial(species, m)[:, None]
        x[:, 0, 0, :1] = radial
        if self.mode == "soc":
            x[:, 1:4, 1, 1] = solid_harmonics(1, m)[1][:, :, None] * radial
        else:
            odd = m if self.mode == "spin-group" else m[:, 2:]
            x[:, 0, 0, 1 : 1 + odd.shape[1]] = odd[:, :, None] * radial
        return x

    def _radial(self, species: Tensor, m: Tensor) -> Tensor:
        """(n, n_widths) exp(−w m²) of scaled moments; zero where moments are no input."""
        size = (m * m).sum(dim=-1, keepdim=True)
        return torch.exp(-self.widths * size) * (self.moment_scale[species] > 0)[:, None]


class GridAnisotropy(nn.Module):
    """Anisotropy that the DFT code's real-space grid brings into its Hamiltonians, as features of the atoms.

    Finite differences along the steps g_a of the grid err by (1/6) Σ_a d_a (g_a · ∇)³ with the dual vectors d_a: a
    tensor of degrees 2 and 4, second order in the steps. The harmonics of each step and of each dual vector enter,
    linearly, with weights of their own, as codes do not treat their axes alike. Without a grid all are exactly zero.
    """

    _STEP_ANG = 0.15
    _N_KINDS = 6

    def __init__(self, l_max: int, algebra: SpinAlgebra, n_species: int, channels: int) -> None:
        super().__init__()
        self.l_max, self.n_components = l_max, algebra.n_components
        self.degrees = range(2, min(l_max, 4) + 1, 2)
        size = (n_species, len(self.degrees), self._N_KINDS, channels)
        self.weight = nn.Parameter(torch.randn(size, dtype=torch.float64))

    def forward(self, species: Tensor, crystal: Tensor, grids: Tensor) -> Tensor:
        """(n, M, 2, q, channels) from the steps (n_crystals, 3, 3) in Å; zero for no grid."""
        present = grids.abs().amax(dim=(1, 2)) > 0
        steps = torch.where(present[:, None, None], grids / self._STEP_ANG, torch.eye(3).to(grids))
        duals = torch.linalg.inv(steps).mT
        squares = torch.cat([(steps * steps).sum(dim=-1), 1 / (duals * duals).sum(dim=-1)], dim=1)
        directions = torch.nn.functional.normalize(torch.cat([steps, duals], dim=1), dim=-1)
        size = squares * present[:, None]
        x = grids.new_zeros(len(species), (self.l_max + 1) ** 2, 2, self.n_components, self.weight.shape[-1])
        harmonics = solid_harmonics(max(self.degrees, default=0), directions)
        for place, l in enumerate(self.degrees):
            values = (harmonics[l] * size[..., None])[crystal]
            x[:, l * l : (l + 1) ** 2, 0, 0] = torch.einsum("nkm,nkc->nmc", values, self.weight[species, place])
        return x
