"""Spin textures: closed forms of spirals, walls, skyrmions and vortices, their topological charge, and field files."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from hamnet.errors import ConfigError, HamnetError, ReaderError, StructureError
from hamnet.structure import Structure
from hamnet.supercell import tile_structure
from hamnet.textures.charge import layer_charges, periodic_triangles, solid_angles
from hamnet.textures.commensurate import (
    check_commensurate,
    nearest_commensurate,
    primitive_cells,
    smallest_supercell,
)
from hamnet.textures.fields import (
    domain_walls,
    ferromagnet,
    perpendicular_frame,
    random_cone,
    random_directions,
    spiral,
)
from hamnet.textures.formula import evaluate, parse_formula
from hamnet.textures.ovf import (
    VectorField,
    index_by_fraction,
    index_by_length,
    index_by_site,
    read_ovf,
    sample_field,
)
from hamnet.textures.plane import layers_of, plane_of, reduced_vectors, shortest_image
from hamnet.textures.solitons import skyrmion_lattice, vortex, vortex_lattice

HEXAGONAL = np.array([[3.7, 0, 0], [-1.85, 3.7 * np.sqrt(3) / 2, 0], [0, 0, 12.0]])
SITES = {
    "triangular": [[0.1, 0.2, 0.5]],
    "honeycomb": [[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]],
    "kagome, buckled": [[0.5, 0, 0.51], [0, 0.5, 0.49], [0.5, 0.5, 0.5]],
}


def _crystal(sites: str = "triangular", cell: np.ndarray = HEXAGONAL) -> Structure:
    fractions = np.array(SITES[sites])
    n = len(fractions)
    return Structure(cell, fractions @ cell, np.full(n, 28), ("Ni",) * n)


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _skyrmions(crystal: Structure, **options) -> np.ndarray:
    """Directions of one skyrmion in the middle of the cell, Cartesian."""
    plane = plane_of(crystal.cell)
    centre = options.pop("centre", plane.vectors.sum(axis=0) / 2)
    local = skyrmion_lattice(plane.texture_points(crystal.positions), plane.vectors, centre, **options)
    return local @ plane.frame


# Spirals


@pytest.mark.parametrize("axis", [(0, 0, 1), (1, 2, -1), (1, 0, 0)])
def test_spiral_turns_by_2_pi_q_R_about_its_axis_from_cell_to_cell(axis):
    crystal, q = _crystal("honeycomb"), np.array([0.21, -0.4, 0.1])
    shift = np.array([2, -1, 3])
    home = spiral(crystal.fractional_positions, q, axis, phase_rad=0.3, cone_rad=1.1)
    away = spiral(crystal.fractional_positions + shift, q, axis, phase_rad=0.3, cone_rad=1.1)
    np.testing.assert_allclose(away, home @ _rotation(axis, 2 * np.pi * q @ shift).T, atol=1e-12)


def test_conical_spiral_keeps_its_angle_to_the_axis_and_a_flat_one_lies_across():
    fractions = np.random.default_rng(0).random((50, 3))
    axis = np.array([1, 1, 2]) / np.sqrt(6)
    for cone in (0.0, 0.4, np.pi / 2, 2.5):
        directions = spiral(fractions, [0.1, 0.2, 0.3], axis, cone_rad=cone)
        np.testing.assert_allclose(directions @ axis, np.cos(cone), atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-12)


def test_spiral_of_q_000_with_phase_0_is_the_ferromagnet_along_e1():
    e1 = perpendicular_frame((0, 0, 1))[0]
    np.testing.assert_allclose(spiral(np.ones((4, 3)), [0, 0, 0], (0, 0, 1)), ferromagnet(4, e1), atol=1e-15)
    np.testing.assert_allclose(e1, [1, 0, 0])


Q = [
    ("1/8", "0", "0"),
    ("1/3", "1/3", "0"),
    ("-1/3", "2/3", "1/2"),
    ("13/100", "0", "0"),
    ("0.237", "0.1", "0"),
    ("1/7", "2/7", "3/7"),
    ("0", "0", "1/5"),
]


@pytest.mark.parametrize("words", Q, ids=" ".join)
@pytest.mark.parametrize(
    "matrix", [np.diag([8, 1, 1]), np.diag([3, 5, 1]), np.array([[2, 1, 0], [-1, 3, 0], [0, 1, 2]])]
)
def test_every_cell_that_an_incommensurate_spiral_is_referred_to_holds_it(words, matrix):
    q, crystal = [Fraction(word) for word in words], _crystal()
    fits = nearest_commensurate(q, matrix, crystal.cell)
    assert fits
    for fit in fits:
        check_commensurate(fit.q_frac, fit.matrix, crystal)
        assert np.linalg.det(np.array(fit.matrix)) > 0
        off = np.array([float(a - b) for a, b in zip(fit.q_frac, q, strict=True)]) @ crystal.reciprocal_cell
        assert fit.distance_per_ang == pytest.approx(np.linalg.norm(off), abs=1e-12)
    for exact in (fit for fit in fits if fit.distance_per_ang == 0):
        vectors = np.array(exact.matrix) @ crystal.cell
        moments = spiral(crystal.fractional_positions, [float(f) for f in q], (0, 0, 1))
        for vector in vectors:
            moved = (crystal.positions + vector) @ np.linalg.inv(crystal.cell)
            np.testing.assert_allclose(spiral(moved, [float(f) for f in q], (0, 0, 1)), moments, atol=1e-9)


@pytest.mark.parametrize("words", Q, ids=" ".join)
def test_smallest_supercell_of_a_spiral_has_as_many_cells_as_the_common_denominator(words):
    q = [Fraction(word) for word in words]
    matrix = smallest_supercell(q, HEXAGONAL)
    assert round(np.linalg.det(matrix)) == np.lcm.reduce([f.denominator for f in q])
    check_commensurate(q, matrix, _crystal())


def test_smallest_supercell_of_the_120_degree_state_is_root_3_by_root_3():
    matrix = smallest_supercell([Fraction(1, 3), Fraction(1, 3), Fraction(0)], HEXAGONAL)
    lengths = np.linalg.norm(matrix @ HEXAGONAL, axis=1)
    np.testing.assert_allclose(sorted(lengths), [3.7 * np.sqrt(3), 3.7 * np.sqrt(3), 12.0])


def test_incommensurate_spiral_is_refused_with_the_nearest_wave_vector_and_cell():
    with pytest.raises(StructureError) as error:
        check_commensurate([Fraction("0.13"), Fraction(0), Fraction(0)], np.diag([8, 1, 1]), _crystal())
    assert "makes 1.04, 0, 0 turns along the vectors of the supercell 8 1 1" in str(error.value)
    assert "q = 1/8 0 0 in the supercell 8 1 1" in str(error.value)
    assert "q = 13/100 0 0 in the supercell 100 1 1" in str(error.value)


def test_spiral_need_not_fit_along_a_direction_that_is_not_periodic():
    crystal = _crystal()
    slab = Structure(crystal.cell, crystal.positions, crystal.numbers, crystal.labels, pbc=(True, True, False))  # type: ignore[arg-type]
    q = [Fraction(1, 2), Fraction(0), Fraction(1, 3)]
    check_commensurate(q, np.diag([2, 1, 1]), slab)
    with pytest.raises(StructureError):
        check_commensurate(q, np.diag([2, 1, 1]), crystal)


def test_cubic_cell_of_a_bcc_crystal_holds_two_primitive_cells():
    cell = 2.87 * np.eye(3)
    two = Structure(cell, np.array([[0, 0, 0], [0.5, 0.5, 0.5]]) @ cell, [26, 26], ("Fe", "Fe"))  # type: ignore[arg-type]
    alloy = Structure(cell, two.positions, [26, 27], ("Fe", "Co"))  # type: ignore[arg-type]
    assert (primitive_cells(two), primitive_cells(alloy)) == (2, 1)
    assert primitive_cells(tile_structure(alloy, np.diag([2, 1, 3]))) == 6


# Domain walls


@pytest.mark.parametrize(("kind", "across"), [("neel", [1, 0, 0]), ("bloch", [0, 1, 0])])
@pytest.mark.parametrize("chirality", [1, -1])
def test_domain_wall_is_a_tanh_along_its_axis_and_a_sech_across(kind, across, chirality):
    period, width = 400.0, 4.0
    s = np.linspace(0, period / 2, 1001)
    m = domain_walls(
        s, period, count=2, width_ang=width, normal=(1, 0, 0), axis=(0, 0, 1), kind=kind, chirality=chirality
    )
    x = (s - period / 4) / width
    np.testing.assert_allclose(m[:, 2], -np.tanh(x), atol=1e-9)
    np.testing.assert_allclose(m @ across, chirality / np.cosh(x), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(m, axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("wound", [True, False])
def test_walls_repeat_with_the_cell_and_only_wound_ones_turn_through_360_degrees(wound):
    s = np.linspace(0, 60, 601)
    options = {"count": 4, "width_ang": 1.5, "normal": (1, 0, 0), "axis": (0, 0, 1), "wound": wound}
    m = domain_walls(s, 60, **options)
    np.testing.assert_allclose(domain_walls(s - 180, 60, **options), m, atol=1e-9)
    angle = np.unwrap(np.arctan2(m[:, 1], m[:, 2]))
    assert (angle[-1] - angle[0]) / (2 * np.pi) == pytest.approx(2 if wound else 0, abs=1e-9)
    # Domains stand in the middle between walls.
    np.testing.assert_allclose(m[[0, 150, 300, 450], 2], [1, -1, 1, -1], atol=1e-3)


def test_walls_that_do_not_fit_are_refused_with_what_would():
    options = {"normal": (1, 0, 0), "axis": (0, 0, 1)}
    with pytest.raises(StructureError, match="even number, such as 2 or 4"):
        domain_walls(np.zeros(1), 100, count=3, width_ang=2, **options)
    with pytest.raises(StructureError, match=r"at most 15\.92 Å, or a period of at least 125\.7 Å"):
        domain_walls(np.zeros(1), 100, count=2, width_ang=20, **options)
    with pytest.raises(StructureError, match="head-to-head"):
        domain_walls(np.zeros(1), 100, count=2, width_ang=2, normal=(0, 0, 1), axis=(0, 0, -1))


# Skyrmions


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("polarity", [-1, 1])
@pytest.mark.parametrize("vorticity", [1, -1, 2])
@pytest.mark.parametrize("helicity", [0.0, 0.7])
def test_charge_of_a_skyrmion_is_vorticity_times_polarity(sites, polarity, vorticity, helicity):
    crystal = tile_structure(_crystal(sites), np.diag([18, 18, 1]))
    m = _skyrmions(crystal, radius_ang=16, width_ang=6, vorticity=vorticity, polarity=polarity, helicity_rad=helicity)
    (layer,) = layer_charges(crystal.positions, m, plane_of(crystal.cell))
    assert layer.charge == vorticity * polarity
    assert len(layer.atoms) == len(crystal)


def test_skyrmion_has_the_profile_of_a_360_degree_wall_and_the_helicity_asked_for():
    radius, width = 20.0, 5.0
    r = np.linspace(0.01, 60, 500)
    for azimuth in (0.3, 2.0):
        points = np.stack([r * np.cos(azimuth), r * np.sin(azimuth)], axis=1)
        for helicity in (0.0, np.pi / 2):
            m = skyrmion_lattice(
                points, 1000 * np.eye(2), [0, 0], radius_ang=radius, width_ang=width, helicity_rad=helicity
            )
            theta = 2 * np.arctan(np.sinh(radius / width) / np.sinh(r / width))
            expected = np.array([np.cos(azimuth + helicity), np.sin(azimuth + helicity)])
            np.testing.assert_allclose(m[:, 2], np.cos(theta), atol=1e-9)
            np.testing.assert_allclose(m[:, :2], np.sin(theta)[:, None] * expected, atol=1e-9)
    at_radius = skyrmion_lattice([[radius, 0]], 1000 * np.eye(2), [0, 0], radius_ang=radius, width_ang=width)
    np.testing.assert_allclose(at_radius, [[1, 0, 0]], atol=1e-9)
    at_centre = skyrmion_lattice([[0, 0]], 1000 * np.eye(2), [0, 0], radius_ang=radius, width_ang=0.01)
    np.testing.assert_allclose(at_centre, [[0, 0, -1]], atol=1e-9)


def test_lattice_of_skyrmions_is_periodic_smooth_and_has_the_charge_of_all_of_them():
    crystal = tile_structure(_crystal("honeycomb"), np.array([[28, 0, 0], [-14, 28, 0], [0, 0, 1]]))
    plane = plane_of(crystal.cell)
    centres = np.array([[0.25, 0.25], [0.75, 0.75], [0.1, 0.7]]) @ plane.vectors
    options = {"radius_ang": 14.0, "width_ang": 5.0}
    points = plane.texture_points(crystal.positions)
    m = skyrmion_lattice(points, plane.vectors, centres, **options)
    moved = skyrmion_lattice(points + [3, -2] @ plane.vectors, plane.vectors, centres, **options)
    np.testing.assert_allclose(moved, m, atol=1e-7)
    (layer,) = layer_charges(crystal.positions, m @ plane.frame, plane)
    assert layer.charge == -3
    assert layer.largest_angle_deg is not None
    assert layer.largest_angle_deg < 75


def test_skyrmions_larger_than_the_cell_are_refused_with_the_largest_that_fits():
    crystal = tile_structure(_crystal(), np.diag([10, 10, 1]))
    with pytest.raises(StructureError, match=r"below 18\.5 Å, or a distance above 40 Å"):
        _skyrmions(crystal, radius_ang=20, width_ang=5)
    with pytest.raises(StructureError, match="a vorticity other than 0"):
        _skyrmions(crystal, radius_ang=5, width_ang=5, vorticity=0)


# Vortices


CELLS = {
    "square": np.array([[100.0, 0], [0, 100]]),
    "hexagonal": np.array([[100.0, 0], [-50, 50 * np.sqrt(3)]]),
    "oblong": np.array([[4000.0, 0], [0, 60]]),
    "skewed": np.array([[80.0, 10], [70, 90]]),
}


def _winding(directions: np.ndarray) -> float:
    angle = np.unwrap(np.arctan2(directions[:, 1], directions[:, 0]))
    return float(angle[-1] - angle[0]) / (2 * np.pi)


@pytest.mark.parametrize("name", CELLS)
def test_vortices_and_antivortices_alternate_and_repeat_with_the_cell(name):
    vectors = CELLS[name]
    cell = reduced_vectors(vectors)
    circle = np.linspace(0, 2 * np.pi, 200)
    ring = 3.0 * np.stack([np.cos(circle), np.sin(circle)], axis=1)
    for place, winding, helicity in (
        ((0.25, 0.25), 1, np.pi / 2), ((0.75, 0.75), 1, -np.pi / 2), ((0.75, 0.25), -1, None), ((0.25, 0.75), -1, None)
    ):  # fmt: skip
        m = vortex_lattice(place @ cell + ring, vectors, core_ang=4)
        assert _winding(m) == pytest.approx(winding, abs=1e-9)
        if helicity is not None:
            turned = np.arctan2(m[:, 1], m[:, 0]) - circle - helicity
            assert abs(np.angle(np.exp(1j * turned[:-1]).mean())) < 1e-4
        np.testing.assert_allclose(vortex_lattice([place @ cell], vectors, core_ang=4), [[0, 0, 1]], atol=1e-9)
    points = np.random.default_rng(1).random((300, 2)) @ vectors
    m = vortex_lattice(points, vectors, core_ang=4)
    for shift in ([1, 0], [0, 1], [-2, 3]):
        np.testing.assert_allclose(vortex_lattice(points + shift @ vectors, vectors, core_ang=4), m, atol=1e-6)


def test_angle_between_vortices_is_harmonic():
    """Far from the cores ∇²Φ = 0: exchange alone puts no torque on the moments."""
    vectors, step = CELLS["hexagonal"], 0.05
    points = np.random.default_rng(2).random((200, 2)) @ vectors
    star = step * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    m = vortex_lattice((points[:, None] + star).reshape(-1, 2), vectors, core_ang=0.5)
    angle = np.arctan2(m[:, 1], m[:, 0]).reshape(-1, 5)
    bends = np.angle(np.exp(1j * (angle[:, 1:] - angle[:, :1]))).sum(axis=1) / step**2
    slope = np.abs(np.angle(np.exp(1j * (angle[:, 1] - angle[:, 2])))) / (2 * step)
    assert np.abs(bends).max() < 1e-3
    assert slope.max() > 0.05


@pytest.mark.parametrize(("polarity", "anti"), [(1, 1), (1, -1), (-1, 1)])
def test_charge_of_vortices_is_half_of_winding_times_polarity_each(polarity, anti):
    crystal = tile_structure(_crystal(), np.diag([30, 30, 1]))
    plane = plane_of(crystal.cell)
    m = vortex_lattice(
        plane.texture_points(crystal.positions), plane.vectors, core_ang=8, polarity=polarity, anti_polarity=anti
    )
    (layer,) = layer_charges(crystal.positions, m @ plane.frame, plane)
    assert layer.charge == polarity - anti


def test_single_vortex_has_closed_flux_and_its_core_as_polarity_says():
    m = vortex([[3, 4], [0, 0], [1e3, 0]], [0, 0], core_ang=5, polarity=-1)
    np.testing.assert_allclose(m[0], [-0.8 * np.tanh(1), 0.6 * np.tanh(1), -1 / np.cosh(1)], atol=1e-12)
    np.testing.assert_allclose(m[1:], [[0, 0, -1], [0, 1, 0]], atol=1e-12)


def test_vortex_cores_that_do_not_fit_are_refused():
    with pytest.raises(StructureError, match=r"at most a quarter of it, 12\.5 Å"):
        vortex_lattice(np.zeros((1, 2)), CELLS["square"], core_ang=20)


# Random directions


def test_random_cone_fills_its_cap_uniformly_and_a_seed_fixes_it():
    axis, angle, n = np.array([1, -2, 2]) / 3, 0.6, 20000
    m = random_cone(n, axis, angle, np.random.default_rng(3))
    along = m @ axis
    assert along.min() >= np.cos(angle) - 1e-12
    # Uniform on a cap: m·axis is uniform between cos α and 1.
    assert along.mean() == pytest.approx((1 + np.cos(angle)) / 2, abs=4 * (1 - np.cos(angle)) / np.sqrt(12 * n))
    np.testing.assert_array_equal(m, random_cone(n, axis, angle, np.random.default_rng(3)))
    sphere = random_directions(n, np.random.default_rng(4))
    assert np.abs(sphere.mean(axis=0)).max() < 4 / np.sqrt(3 * n)
    np.testing.assert_allclose((sphere.T @ sphere) / n, np.eye(3) / 3, atol=0.02)


# Topological charge


def test_solid_angle_of_an_octant_is_half_pi_and_changes_sign_with_its_orientation():
    x, y, z = np.eye(3)[:, None]
    angles, defined = solid_angles(x, y, z)
    np.testing.assert_allclose(angles, np.pi / 2)
    np.testing.assert_allclose(solid_angles(y, x, z)[0], -np.pi / 2)
    assert defined.all()
    # Three moments on a great circle, not on one half of it: either side could be the inner one.
    assert not solid_angles(x, -0.5 * x + np.sqrt(0.75) * y, -0.5 * x - np.sqrt(0.75) * y)[1].any()
    assert not solid_angles(x, -x, y)[1].any()


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize(
    "matrix", [np.eye(3), np.diag([2, 1, 1]), [[7, 0, 0], [3, 6, 0], [0, 0, 1]], np.diag([40, 1, 1])]
)
def test_periodic_triangles_tile_the_torus(sites, matrix):
    crystal = tile_structure(_crystal(sites), matrix)
    plane = plane_of(crystal.cell)
    points = plane.points(crystal.positions)
    triangles = periodic_triangles(points, plane.vectors)
    n = len(points)
    assert triangles.shape == (2 * n, 3)
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    # Each edge belongs to two triangles, which pass it in opposite directions: a closed, oriented surface.
    there, counts = np.unique(edges, axis=0, return_counts=True)
    back, counts_back = np.unique(edges[:, ::-1], axis=0, return_counts=True)
    np.testing.assert_array_equal(there, back)
    np.testing.assert_array_equal(counts, counts_back)
    heights = abs(np.linalg.det(plane.vectors)) / np.linalg.norm(plane.vectors, axis=1)
    if heights.min() > 10:  # else the nearest image is not always the corner
        first = shortest_image(points[triangles[:, 1]] - points[triangles[:, 0]], plane.vectors)
        second = shortest_image(points[triangles[:, 2]] - points[triangles[:, 0]], plane.vectors)
        areas = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2
        assert areas.min() > 0
        assert areas.sum() == pytest.approx(abs(np.linalg.det(plane.vectors)))


def test_charge_does_not_change_when_spins_turn_or_atoms_are_listed_otherwise_and_flips_with_them():
    crystal = tile_structure(_crystal("honeycomb"), np.diag([14, 14, 1]))
    plane = plane_of(crystal.cell)
    m = _skyrmions(crystal, radius_ang=14, width_ang=5)

    def charge(positions, moments):
        (layer,) = layer_charges(positions, moments, plane)
        return layer.charge

    assert charge(crystal.positions, m) == -1
    assert charge(crystal.positions, 2.7 * m @ _rotation(np.array([1, 2, 3]), 1.3).T) == -1
    assert charge(crystal.positions, -m) == 1
    order = np.random.default_rng(5).permutation(len(crystal))
    shifts = np.random.default_rng(6).integers(-2, 3, (len(crystal), 3))
    assert charge(crystal.positions[order] + shifts @ crystal.cell, m[order]) == -1


def test_charge_of_noise_is_a_whole_number_too():
    crystal = tile_structure(_crystal("kagome, buckled"), np.diag([9, 7, 1]))
    for seed in range(5):
        m = random_directions(len(crystal), np.random.default_rng(seed))
        (layer,) = layer_charges(crystal.positions, m, plane_of(crystal.cell))
        assert layer.charge == round(layer.charge or 0.0)


def test_each_layer_has_its_own_charge():
    cell = np.array([[3.0, 0, 0], [0, 3.0, 0], [1.5, 1.5, 4.0]])
    crystal = tile_structure(_crystal(cell=cell), np.diag([20, 20, 3]))
    plane = plane_of(crystal.cell)
    up, down = (_skyrmions(crystal, radius_ang=12, width_ang=5, polarity=p) for p in (1, -1))
    layers = layers_of(plane.heights(crystal.positions), plane.period_ang)
    assert [len(layer) for layer in layers] == [400, 400, 400]
    m = up.copy()
    m[layers[1]] = down[layers[1]]
    m[layers[2]] = [0, 0, 1]
    found = layer_charges(crystal.positions, m, plane)
    assert [layer.charge for layer in found] == [1, -1, 0]
    np.testing.assert_allclose(np.diff([layer.height_ang for layer in found]), 4.0)


def test_layer_at_the_boundary_of_the_cell_is_one_layer():
    heights = np.array([0.0, 9.999999, 5.0, 0.2, 5.1, 9.8])
    assert [sorted(layer.tolist()) for layer in layers_of(heights, 10.0)] == [[2, 4], [0, 1, 3, 5]]
    assert [sorted(layer.tolist()) for layer in layers_of([0.0, 5.0, 9.0], 10.0)] == [[0], [1], [2]]
    assert [len(layer) for layer in layers_of(np.arange(0, 10, 0.4), 10.0)] == [25]


def test_charge_of_opposite_or_vanishing_neighbours_is_not_defined():
    crystal = tile_structure(_crystal(), np.diag([4, 4, 1]))
    plane = plane_of(crystal.cell)
    stripes = spiral(crystal.fractional_positions * [4, 4, 1], [0.5, 0, 0], (0, 0, 1))
    assert layer_charges(crystal.positions, stripes, plane)[0].charge is None
    hole = ferromagnet(16, (0, 0, 1))
    hole[3] = 0
    assert layer_charges(crystal.positions, hole, plane)[0].charge is None
    assert layer_charges(crystal.positions, ferromagnet(16, (0, 0, 1)), plane)[0].charge == 0


def test_plane_is_right_handed_and_its_normal_that_of_its_vectors():
    cell = np.array([[4.0, 0.3, 0.1], [1.0, 5, -0.4], [0.2, 1.0, 6]])
    for name, (a, b) in {"ab": (0, 1), "bc": (1, 2), "ca": (2, 0)}.items():
        plane = plane_of(cell, name)
        np.testing.assert_allclose(plane.frame @ plane.frame.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(plane.frame) == pytest.approx(1)
        np.testing.assert_allclose(cell[[a, b]] @ plane.frame[2], 0, atol=1e-12)
        assert np.linalg.det(plane.vectors) > 0
        np.testing.assert_allclose(plane.texture_points(cell), np.array([plane.vectors[0], plane.vectors[1], [0, 0]])[
            np.argsort([a, b, 3 - a - b])
        ], atol=1e-12)  # fmt: skip
    with pytest.raises(StructureError, match="plane 'ac'; expected one of ab, bc, ca"):
        plane_of(cell, "ac")


# Formulas


def test_formula_has_the_values_of_its_functions():
    crystal = _crystal("honeycomb")
    text = "cos(2*pi*u)*exp(-x**2/10), where(v > 0.5, -1, hypot(y, z) % 2), arctan2(w, 1) + abs(-u)"
    values = evaluate(parse_formula(text), crystal, crystal.positions)
    x, y, z = crystal.positions.T
    u, v, w = crystal.fractional_positions.T
    expected = [
        np.cos(2 * np.pi * u) * np.exp(-(x**2) / 10),
        np.where(v > 0.5, -1, np.hypot(y, z) % 2),
        np.arctan2(w, 1) + np.abs(u),
    ]
    np.testing.assert_allclose(values, np.stack(expected, axis=1), atol=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true'), 0, 1",
        "open, 0, 1",
        "x.__class__, 0, 1",
        "eval('1'), 0, 1",
        "(lambda: 1)(), 0, 1",
        "[x for x in (1,)][0], 0, 1",
        "sin(x, out=y), 0, 1",
        "sin(x, y), 0, 1",
        "'text', 0, 1",
        "True, 0, 1",
        "x if y else z, 0, 1",
        "x < y < z, 0, 1",
        "x := 1, 0, 1",
        "r, 0, 1",
        "x, 0",
        "x",
        "x,, y",
        "import os",
        "-" * 500 + "1, 0, 1",
        "(" * 300 + "1" + ")" * 300 + ", 0, 1",
        "1" + "0" * 400 + ", 0, 1",
        "x + " * 1000 + "x, 0, 1",
        "x\0, 0, 1",
    ],
)
def test_formula_with_anything_but_arithmetic_is_refused(text):
    with pytest.raises(ConfigError, match=r"formula|nested"):
        parse_formula(text)


@pytest.mark.parametrize("text", ["1/(x - x), 0, 1", "sqrt(-1 - x**2), 0, 1", "9**9**9**9, 0, 1", "0, log(0*x), 1"])
def test_formula_with_values_that_are_not_finite_is_refused(text):
    crystal = _crystal()
    with pytest.raises(ConfigError, match="finite numbers"):
        evaluate(parse_formula(text), crystal, crystal.positions)


# OVF files


HEADER = """# OOMMF OVF 2.0
#
# Segment count: 1
#
# Begin: Segment
# Begin: Header
# Title: m
# meshtype: rectangular
# meshunit: {unit}
# xmin: 0
# ymin: 0
# zmin: 0
# xmax: 3e-9
# ymax: 1e-9
# zmax: 2e-9
# valuedim: 3
# valuelabels: m_x m_y m_z
# valueunits: 1 1 1
## a comment with a colon: nothing
# Desc: Total simulation time:  0  s
# xbase: 5e-10 ## first node
# ybase: 2.5e-10
# zbase: 1e-9
# xnodes: 3
# ynodes: 2
# znodes: 1
# xstepsize: 1e-9
# ystepsize: 5e-10
# zstepsize: 2e-9
# End: Header
# Begin: Data {form}
"""
VALUES = np.random.default_rng(7).normal(size=(3, 2, 1, 3))


def _ovf(form: str, *, order: str = "<", unit: str = "m", check: float | None = None) -> bytes:
    """An OVF 2.0 file as the specification says, x running fastest."""
    values = VALUES.transpose(2, 1, 0, 3).reshape(-1, 3)
    head = HEADER.format(unit=unit, form=form).encode()
    tail = f"\n# End: Data {form}\n# End: Segment\n".encode()
    if form == "Text":
        return head + "\n".join(" ".join(f"{v:.17g}" for v in row) for row in values).encode() + tail
    if form == "CSV":
        return head + ",\n".join(", ".join(f"{v:.17g}" for v in row) for row in values).encode() + tail
    size = int(form[-1])
    known = {4: 1234567.0, 8: 123456789012345.0}[size] if check is None else check
    return head + np.concatenate([[known], values.ravel()]).astype(f"{order}f{size}").tobytes() + tail


@pytest.mark.parametrize(
    ("form", "order", "tolerance"),
    [("Text", "<", 0), ("CSV", "<", 0), ("Binary 4", "<", 1e-6), ("Binary 8", "<", 0), ("Binary 8", ">", 0)],
)
def test_ovf_files_of_all_forms_give_the_field_that_was_written(tmp_path, form, order, tolerance):
    path = tmp_path / "m.ovf"
    path.write_bytes(_ovf(form, order=order))
    field = read_ovf(path)
    np.testing.assert_allclose(field.values, VALUES, rtol=0, atol=tolerance)
    np.testing.assert_allclose(field.base_ang, [5, 2.5, 10])
    np.testing.assert_allclose(field.step_ang, [10, 5, 20])
    assert field.title == "m"


def test_check_value_of_the_specification_is_the_one_in_the_file():
    assert np.float32(1234567.0).tobytes()[::-1].hex() == "4996b438"
    assert np.float64(123456789012345.0).tobytes()[::-1].hex() == "42dc12218377de40"


def test_one_segment_of_several_is_chosen_by_its_number(tmp_path):
    path, data = tmp_path / "chain.ovf", _ovf("Binary 8")
    first, rest = data.split(b"# Begin: Segment", 1)
    path.write_bytes(first + b"# Begin: Segment" + rest + b"# Begin: Segment" + rest.replace(b"Title: m", b"Title: n"))
    assert [read_ovf(path, number).title for number in (1, 2)] == ["m", "n"]
    with pytest.raises(ReaderError, match="2 segments; expected the number of one"):
        read_ovf(path)
    with pytest.raises(ReaderError, match="none with the number 3"):
        read_ovf(path, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.replace(b"OVF 2.0", b"OVF 1.0"), "expected '# OOMMF OVF 2.0'"),
        (lambda d: d.replace(b"rectangular", b"irregular"), "meshtype irregular; expected rectangular"),
        (lambda d: d.replace(b"valuedim: 3", b"valuedim: 1"), "values of dimension 1; expected 3"),
        (lambda d: d.replace(b"# xnodes: 3\n", b""), "no xnodes in the header"),
        (lambda d: d.replace(b"xnodes: 3", b"xnodes: three"), "xnodes: 'three' in the header"),
        (lambda d: d.replace(b"xnodes: 3", b"xnodes: 0"), "at least one along each axis"),
        (lambda d: d[:-120], "bytes of data; expected 152"),
        (lambda d: d.replace(b"Data Binary 8\n", b"Data Binary 6\n", 1), "expected text, binary 4 or binary 8"),
        (lambda d: d.split(b"# Begin: Data")[0], "a header without data"),
        (lambda d: b"# OOMMF OVF 2.0\n", "0 segments"),
        (lambda d: _ovf("Binary 8", check=1.0), "a wrong check value"),
        (lambda d: _ovf("Text").replace(b"\n# End: Data", b" 1\n# End: Data"), "19 numbers of data; expected 18"),
        (lambda d: _ovf("Text").replace(b"\n# End: Data", b"x\n# End: Data"), "could not convert"),
    ],
)  # fmt: skip
def test_damaged_or_other_field_files_are_refused(tmp_path, change, message):
    path = tmp_path / "m.ovf"
    path.write_bytes(change(_ovf("Binary 8")))
    with pytest.raises(ReaderError) as error:
        read_ovf(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def _field(values: np.ndarray, step: float = 10.0) -> VectorField:
    return VectorField(values, np.full(3, step / 2), np.full(3, step), "")


def test_field_is_linear_between_nodes_exact_on_them_and_repeats():
    values = np.random.default_rng(8).normal(size=(4, 3, 2, 3))
    field = _field(values)
    nodes = np.array(list(np.ndindex(4, 3, 2)))
    for shift in ([0, 0, 0], [4, -3, 2]):
        np.testing.assert_allclose(sample_field(field, nodes + shift), values.reshape(-1, 3), atol=1e-12)
        np.testing.assert_array_equal(sample_field(field, nodes + shift + 0.4, nearest=True), values.reshape(-1, 3))
    middle = sample_field(field, [[3.25, 1, 0]])
    np.testing.assert_allclose(middle, [0.75 * values[3, 1, 0] + 0.25 * values[0, 1, 0]], atol=1e-12)


def test_stretched_field_covers_the_supercell_from_edge_to_edge_and_true_lengths_stay():
    field = _field(np.random.default_rng(9).normal(size=(4, 6, 1, 3)))
    np.testing.assert_allclose(index_by_fraction(field, [[0.125, 0.5, 0.9]]), [[0, 2.5, 0.4]])
    cell = np.diag([40.0, 120.0, 15.0])
    crystal = Structure(cell, [[0, 0, 0]], [28], ("Ni",))  # type: ignore[arg-type]
    np.testing.assert_allclose(index_by_length(field, [[5, 25, 5]], crystal), [[0, 2, 0]])
    longer = Structure(np.diag([48.0, 120.0, 15.0]), [[0, 0, 0]], [28], ("Ni",))  # type: ignore[arg-type]
    with pytest.raises(ReaderError, match=r"40 × 60 × 10 Å on a supercell with the vector \[48\.0"):
        index_by_length(field, [[5, 25, 5]], longer)
    with pytest.raises(ReaderError, match="known unit of length"):
        index_by_length(VectorField(field.values, None, None, ""), [[5, 25, 5]], crystal)


def test_nodes_of_spirit_are_atoms_sites_of_a_cell_first():
    cells = np.array(list(np.ndindex(3, 2, 1))).repeat(2, axis=0)
    sites = np.tile([0, 1], 6)
    field = _field(np.arange(36.0).reshape(6, 2, 1, 3, order="F"))
    index = index_by_site(field, cells, sites, (3, 2, 1))
    np.testing.assert_array_equal(index[:4], [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    with pytest.raises(ReaderError, match="expected 4 × 3 × 1: 2 magnetic atoms in each of 2 × 3 × 1 cells"):
        index_by_site(field, cells, sites, (2, 3, 1))


def test_errors_of_textures_are_those_of_a_user():
    assert issubclass(StructureError, HamnetError)
    for call in (
        lambda: ferromagnet(3, (0, 0, 0)),
        lambda: random_cone(3, (0, 0, 1), 4.0, np.random.default_rng(0)),
        lambda: vortex(np.zeros((1, 2)), [0, 0], core_ang=-1),
    ):
        with pytest.raises(StructureError):
            call()
