"""Real spherical harmonics in the house order against closed forms, scipy and e3nn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from e3nn import o3
from scipy.special import sph_harm_y

from hamnet.harmonics import solid_harmonics, spherical_harmonics, wigner_d
from small_models import ROTATION

L_MAX = 6
E3NN_AXES = [1, 2, 0]
"""Components (y, z, x) that e3nn must be given to return the house harmonics of (x, y, z)."""


def _directions(n: int = 40) -> torch.Tensor:
    vectors = np.random.default_rng(11).normal(size=(n, 3))
    return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_p_orbitals_are_y_z_x_and_d_orbitals_xy_yz_z2_xz_x2_minus_y2():
    v = _directions()
    x, y, z = v.unbind(-1)
    _, p, d = spherical_harmonics(2, v)
    torch.testing.assert_close(p, np.sqrt(3) * torch.stack([y, z, x], dim=-1))
    closed = [x * y, y * z, (3 * z**2 - 1) / (2 * np.sqrt(3)), x * z, (x**2 - y**2) / 2]
    torch.testing.assert_close(d, np.sqrt(15) * torch.stack(closed, dim=-1))


def test_real_harmonics_have_no_condon_shortley_sign():
    """Against scipy's complex Y_lm, which carry the sign: m > 0 is √2 (−1)^m Re Y_lm, m < 0 is √2 (−1)^m Im Y_l|m|."""
    v = _directions()
    theta, phi = np.arccos(v[:, 2].numpy()), np.arctan2(v[:, 1].numpy(), v[:, 0].numpy())
    for l, ours in enumerate(spherical_harmonics(L_MAX, v)):
        for m in range(-l, l + 1):
            complex_y = sph_harm_y(l, abs(m), theta, phi) * np.sqrt(4 * np.pi)
            part = complex_y.real if m >= 0 else complex_y.imag
            real = part * (1 if m == 0 else np.sqrt(2) * (-1) ** m)
            np.testing.assert_allclose(ours[:, l + m].numpy(), real, atol=1e-12)


def test_e3nn_harmonics_of_yzx_are_the_house_harmonics_of_xyz():
    v = _directions()
    for l, ours in enumerate(spherical_harmonics(L_MAX, v)):
        theirs = o3.spherical_harmonics(l, v[:, E3NN_AXES], normalize=False, normalization="component")
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        if l > 0:
            unpermuted = o3.spherical_harmonics(l, v, normalize=False, normalization="component")
            assert (ours - unpermuted).abs().max() > 0.1


def test_wigner_d_of_e3nn_in_the_permuted_frame_is_ours():
    rotation = torch.from_numpy(ROTATION)
    permuted = rotation[E3NN_AXES][:, E3NN_AXES]
    for l, ours in enumerate(wigner_d(L_MAX, rotation)):
        theirs = o3.Irrep(l, (-1) ** l).D_from_matrix(permuted)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # e3nn computes D in single precision


@pytest.mark.parametrize("handedness", [1.0, -1.0], ids=["proper", "improper"])
def test_wigner_d_turns_the_harmonics(handedness):
    rotation = handedness * torch.from_numpy(ROTATION)
    v = _directions()
    for d, y, turned in zip(
        wigner_d(L_MAX, rotation),
        spherical_harmonics(L_MAX, v),
        spherical_harmonics(L_MAX, v @ rotation.T),
        strict=True,
    ):
        torch.testing.assert_close(turned, y @ d.T, rtol=0, atol=1e-11)


def test_wigner_d_is_an_orthogonal_representation_and_inversion_is_parity():
    a, b = torch.from_numpy(ROTATION), torch.linalg.matrix_power(torch.from_numpy(ROTATION).T, 3)
    batch = wigner_d(L_MAX, torch.stack([a, b, a @ b, -torch.eye(3, dtype=torch.float64)]))
    for l, d in enumerate(batch):
        torch.testing.assert_close(d[2], d[0] @ d[1], rtol=0, atol=1e-11)
        torch.testing.assert_close(d[0] @ d[0].T, torch.eye(2 * l + 1, dtype=torch.float64), rtol=0, atol=1e-11)
        torch.testing.assert_close(d[3], (-1) ** l * torch.eye(2 * l + 1, dtype=torch.float64), rtol=0, atol=1e-11)


def test_harmonics_are_orthonormal_on_the_sphere():
    nodes, weights = np.polynomial.legendre.leggauss(L_MAX + 1)
    angles = 2 * np.pi * np.arange(2 * L_MAX + 1) / (2 * L_MAX + 1)
    z, phi = np.meshgrid(nodes, angles, indexing="ij")
    s = np.sqrt(1 - z**2)
    v = torch.from_numpy(np.stack([s * np.cos(phi), s * np.sin(phi), z], axis=-1).reshape(-1, 3))
    y = torch.cat(spherical_harmonics(L_MAX, v), dim=-1).numpy()
    weight = np.repeat(weights, len(angles)) / (2 * len(angles))
    np.testing.assert_allclose(y.T @ (weight[:, None] * y), np.eye((L_MAX + 1) ** 2), atol=1e-12)


def test_solid_harmonics_are_homogeneous_polynomials_and_smooth_at_zero():
    v = 3.7 * _directions(5)
    for l, (solid, y) in enumerate(zip(solid_harmonics(4, v), spherical_harmonics(4, v), strict=True)):
        torch.testing.assert_close(solid, 3.7**l * y)
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    jacobians = torch.autograd.functional.jacobian(lambda r: torch.cat(solid_harmonics(4, r)), zero)
    assert torch.isfinite(jacobians).all()
    torch.testing.assert_close(jacobians[1:4] / np.sqrt(3), torch.eye(3, dtype=torch.float64)[[1, 2, 0]])


def test_wigner_d_is_differentiable_in_the_rotation():
    rotation = torch.from_numpy(ROTATION).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: wigner_d(3, q)[3], rotation)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.float64, 1e-13)])
def test_error_of_wigner_d_is_round_off_and_shrinks_with_precision(dtype, tolerance):
    exact = wigner_d(4, torch.from_numpy(ROTATION))
    for ours, d in zip(wigner_d(4, torch.from_numpy(ROTATION).to(dtype)), exact, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - d).abs().max() < tolerance
