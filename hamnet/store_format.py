"""Names, axes and units of everything in a sample set file; ``docs/file_format.md`` shows them as a table."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ARRAYS",
    "BLOCK_AXES",
    "CONVENTIONS",
    "FORMAT",
    "FORMAT_VERSION",
    "NUMBERS",
    "OPERATORS",
    "PAIR_ARRAYS",
    "SAMPLE_ARRAYS",
    "STRUCTURE_ARRAYS",
    "TEXTS",
    "FieldSpec",
]

FORMAT = "hamnet-samples"
FORMAT_VERSION = 1

CONVENTIONS = {
    "orbital_order": "shells as listed in the basis, m = -l ... l inside, real spherical harmonics without "
    "Condon-Shortley sign, polar axis z: l = 1 is (y, z, x), l = 2 is (xy, yz, 3z2-r2, xz, x2-y2)",
    "pair_convention": "block of (row i, col j, shift R) is <i, 0| O |j, R>; atoms count from 0",
    "spin_convention": "Pauli components, O = sum_mu O_mu sigma_mu: n_spin 1 is (0), 2 is (0, z), 4 is (0, x, y, z)",
    "density_convention": "rho_ij(R) = 1/N_k sum_nk f c_i c_j* exp(-ik.R), so Tr rho O = sum rho_ij(R) O_ji(-R)",
}
"""Attributes of the file: what the arrays mean."""


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """What an array or number of the file is: `axes` and `unit` stand beside the data as attributes."""

    axes: str
    unit: str


STRUCTURE_ARRAYS = {
    "cell": FieldSpec("vector, xyz", "angstrom"),
    "positions": FieldSpec("atom, xyz", "angstrom"),
    "numbers": FieldSpec("atom", "atomic number"),
    "pbc": FieldSpec("vector", "periodic or not"),
    "moments": FieldSpec("atom, xyz", "mu_B"),
    "grid_axes": FieldSpec("vector, xyz", "angstrom"),
}
SAMPLE_ARRAYS = {
    "forces_ev_per_ang": FieldSpec("atom, xyz", "eV / angstrom"),
    "constraint_field_ev": FieldSpec("atom, xyz", "eV / mu_B"),
    "charges": FieldSpec("atom", "electrons"),
    "computed_moments": FieldSpec("atom, xyz", "mu_B"),
}
ARRAYS = {**STRUCTURE_ARRAYS, **SAMPLE_ARRAYS}
"""Datasets of a sample; absent where the sample has none."""
TEXTS = {
    "names": FieldSpec("sample", "text"),
    "basis": FieldSpec("", "JSON"),
    "notes": FieldSpec("", "JSON"),
    "labels": FieldSpec("atom", "text"),
    "provenance": FieldSpec("", "JSON"),
}
"""Datasets of text: the first three of the file, the others of a sample."""
NUMBERS = ("fermi_energy_ev", "total_energy_ev", "n_electrons", "spin_orbit")
"""Attributes of a sample; absent where not known."""
PAIR_ARRAYS = {
    "species": FieldSpec("atom", "index into the labels of this group"),
    "row": FieldSpec("pair", "atom"),
    "col": FieldSpec("pair", "atom"),
    "shift": FieldSpec("pair, lattice vector", "cells"),
}
OPERATORS = {
    "overlap": "1",
    "hamiltonian": "eV",
    "density": "electrons",
    **{f"position_{axis}": "angstrom" for axis in "xyz"},
    **{f"momentum_{axis}": "1 / angstrom" for axis in "xyz"},
}
"""Operators of a sample and their units."""

BLOCK_AXES = "pair of the group, Pauli component, row orbital, col orbital"
