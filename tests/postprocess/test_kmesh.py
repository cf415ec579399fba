"""Meshes of k points."""

import numpy as np
import pytest

from hamnet.errors import ConfigError
from postprocess.kmesh import k_mesh, mesh_size
from tight_binding import HEXAGONAL, structure_of


def test_mesh_is_a_group_under_addition_and_holds_gamma():
    mesh = k_mesh((4, 3, 1))
    sums = (mesh.k_frac[:, None] + mesh.k_frac[None]).reshape(-1, 3)
    apart = sums[:, None] - mesh.k_frac[None]
    assert (np.abs(apart - np.rint(apart)).max(axis=2).min(axis=1) < 1e-12).all()
    assert len(mesh) == 12


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 3, 1), (5, 6, 2)])
def test_monkhorst_pack_mesh_sums_every_short_lattice_wave_to_zero(size):
    for gamma_centred in (True, False):
        mesh = k_mesh(size, gamma_centred=gamma_centred)
        waves = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1).reshape(-1, 3)[1:]
        assert np.abs(np.exp(2j * np.pi * mesh.k_frac @ waves.T).sum(axis=0)).max(initial=0) < 1e-10 * len(mesh)


def test_monkhorst_pack_mesh_of_even_size_avoids_gamma_and_is_inversion_symmetric():
    mesh = k_mesh((4, 4, 4), gamma_centred=False)
    assert np.abs(mesh.k_frac).max(axis=1).min() == 0.125
    assert np.allclose(mesh.k_frac, -mesh.k_frac[::-1])


def test_odd_meshes_of_both_kinds_are_the_same_points():
    one, other = (k_mesh((5, 3, 1), gamma_centred=kind).k_frac for kind in (True, False))
    apart = one[:, None] - other[None]
    assert (np.abs(apart - np.rint(apart)).max(axis=2).min(axis=1) < 1e-12).all()


def test_mesh_by_density_is_finer_where_the_cell_is_short_and_flat_without_periodicity():
    structure = structure_of(2 * HEXAGONAL)
    assert mesh_size(structure, 5.0, (True, True, False)) == (19, 19, 1)
    assert mesh_size(structure, 5.0) == (19, 19, 2)


@pytest.mark.parametrize("size", [(0, 4, 4), (2, 2), (-1, 1, 1)])
def test_impossible_mesh_is_refused(size):
    with pytest.raises(ConfigError, match="integers"):
        k_mesh(size)
    with pytest.raises(ConfigError, match="positive"):
        mesh_size(structure_of(HEXAGONAL), 0.0)
