"""Paths: the lattice's own in whatever cell it is written, and what users write."""

import numpy as np
import pytest
from ase.lattice import all_variants

from hamnet.eigen import eigenvalues
from hamnet.errors import ConfigError
from postprocess.kpath import k_path, k_path_through, periodic_directions, special_points
from tight_binding import HEXAGONAL, operator, structure_of

SLAB = (True, True, False)


def _other_vectors(rng, rank: int) -> np.ndarray:
    """A random integer matrix of determinant 1 that mixes the first `rank` vectors."""
    while True:
        mixing = np.eye(3, dtype=int)
        mixing[:rank, :rank] = rng.integers(-2, 3, (rank, rank))
        if round(np.linalg.det(mixing)) == 1:
            return mixing


LATTICES = [lattice for lattice in all_variants() if lattice.name != "TRI"]  # its points depend on the reduction


@pytest.mark.parametrize("lattice", LATTICES, ids=lambda lattice: lattice.variant)
def test_special_points_keep_their_geometry_in_every_cell_of_the_lattice(lattice):
    rng = np.random.default_rng(5)
    rank = lattice.tocell().rank
    standard = lattice.tocell().array.copy()
    for extra in range(rank, 3):
        standard[extra] = np.eye(3)[extra] * (17.3 + extra)
    wanted = lattice.get_special_points()
    wanted_k = np.array(list(wanted.values())) @ lattice.tocell().complete().reciprocal().array
    for trial in range(8):
        order = np.roll([0, 1, 2], trial % 3 if rank < 3 else 0)
        cell = (_other_vectors(rng, rank) @ standard)[order]
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        cell = cell @ (rotation * np.linalg.det(rotation)).T
        periodic = (np.arange(3) < rank)[order]
        found, _ = special_points(structure_of(cell, pbc=periodic), periodic)
        found_k = np.array([found[label] for label in wanted]) @ np.linalg.inv(cell).T
        assert np.allclose(found_k @ found_k.T, wanted_k @ wanted_k.T, atol=2e-3 * (wanted_k**2).sum(axis=1).max())
        assert not np.array(list(found.values()))[:, ~periodic].any()


def test_special_points_of_a_triclinic_lattice_are_halves_of_reciprocal_vectors():
    rng = np.random.default_rng(7)
    for _ in range(10):
        found, _ = special_points(structure_of(_other_vectors(rng, 3) @ [[3, 0, 0], [0.7, 4, 0], [0.3, 0.6, 5]]))
        doubled = 2 * np.array(list(found.values()))
        assert np.allclose(doubled, np.rint(doubled), atol=1e-9)
        assert len(np.unique(np.rint(doubled).astype(int) % 2, axis=0)) == len(found) == 8


def test_triangular_lattice_has_the_same_bands_along_gmkg_in_cells_of_60_and_120_degrees():
    wide = structure_of(HEXAGONAL, pbc=SLAB)
    narrow = structure_of(np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]]) @ HEXAGONAL, pbc=SLAB)
    hops = {
        "wide": operator(wide, {(0, 0, s): -1.0 for s in ((1, 0, 0), (0, 1, 0), (1, 1, 0))}),
        "narrow": operator(narrow, {(0, 0, s): -1.0 for s in ((1, 0, 0), (0, 1, 0), (-1, 1, 0))}),
    }
    overlap = {"wide": operator(wide, {(0, 0, (0, 0, 0)): 1.0}), "narrow": operator(narrow, {(0, 0, (0, 0, 0)): 1.0})}
    paths = {"wide": k_path(wide, "GMKG", n_points=40), "narrow": k_path(narrow, "GMKG", n_points=40)}
    first, second = (eigenvalues(hops[name], overlap[name], paths[name].k_frac) for name in ("wide", "narrow"))
    assert np.allclose(first, second, atol=1e-12)
    assert np.allclose(paths["wide"].distance, paths["narrow"].distance, atol=1e-12)
    at = dict(zip(paths["wide"].labels, paths["wide"].ticks, strict=True))
    energy = dict(zip(np.round(paths["wide"].distance, 9), first[:, 0, 0], strict=True))
    assert energy[0.0] == pytest.approx(-6)
    assert energy[round(at["M"], 9)] == pytest.approx(2)
    assert energy[round(at["K"], 9)] == pytest.approx(3)


@pytest.mark.parametrize("vacuum", [0, 1, 2])
def test_path_of_a_slab_stays_in_its_plane(vacuum):
    order = np.roll([0, 1, 2], vacuum + 1)
    periodic = np.array(SLAB)[order]
    path = k_path(structure_of(HEXAGONAL[order], pbc=periodic))
    assert path.labels == ("G", "M", "K", "G")
    assert not path.k_frac[:, ~periodic].any()
    assert path.ticks[1] == pytest.approx(2 * np.pi / np.sqrt(3))  # |ΓM| of a = 1 Å


def test_direction_without_pairs_into_the_next_cell_is_not_periodic():
    structure = structure_of(HEXAGONAL)
    h = operator(structure, {(0, 0, (1, 0, 0)): -1.0, (0, 0, (0, 1, 0)): -1.0})
    assert periodic_directions(structure, h.pairs).tolist() == [True, True, False]
    assert periodic_directions(structure_of(HEXAGONAL, pbc=(True, False, True)), h.pairs).tolist() == [
        True,
        False,
        False,
    ]


def test_molecule_has_only_gamma():
    path = k_path(structure_of(HEXAGONAL, pbc=(False, False, False)))
    assert path.k_frac.tolist() == [[0, 0, 0]]
    assert path.labels == ("G",)


def test_steps_along_the_path_are_equal_in_inverse_angstrom():
    structure = structure_of(np.diag([3.0, 4.0, 7.0]))
    path = k_path(structure, "GXSYG", n_points=400)
    steps = np.linalg.norm(np.diff(path.k_frac, axis=0) @ structure.reciprocal_cell, axis=1)
    assert steps.max() / steps.min() < 1.02
    assert np.allclose(np.diff(path.distance), steps)
    assert abs(len(path) - 400) <= 4


def test_jump_adds_no_length_and_is_labelled_by_both_points():
    structure = structure_of(np.diag([3.0, 3.0, 7.0]), pbc=SLAB)
    path = k_path(structure, "GX|MG", n_points=50)
    assert path.labels == ("G", "X|M", "G")
    assert len(path.sections) == 2
    last, first = path.sections[0].stop - 1, path.sections[1].start
    assert path.distance[last] == path.distance[first] == path.ticks[1]
    assert path.distance[-1] == pytest.approx((1 + np.sqrt(2)) * np.pi / 3)
    assert np.array_equal(k_path(structure, "GX,MG", n_points=50).k_frac, path.k_frac)


def test_points_may_be_written_as_labels_numbers_fractions_or_names():
    structure = structure_of(HEXAGONAL, pbc=SLAB)
    by_label = k_path(structure, "GMK", n_points=30)
    special, _ = special_points(structure, SLAB)
    numbers = [",".join(f"{x:.17g}" for x in special[label]) for label in "GMK"]
    for text in (" ".join(numbers), "Γ M K", f"A={numbers[0]} M {numbers[2]}"):
        assert np.allclose(k_path(structure, text, n_points=30).k_frac, by_label.k_frac)
    assert k_path(structure, " ".join(numbers)).labels == ("G", "M", "K")
    assert k_path(structure, f"A={numbers[0]} 1/5,0,0 K").labels == ("A", "", "K")


@pytest.mark.parametrize(
    ("text", "tells"),
    [
        ("GQ", "points of this lattice"),
        ("gm", "points of this lattice"),
        ("0,0 1,1,1", "three numbers"),
        ("0,0,0 1/0,0,0", "three numbers"),
        ("GM|K", "two points"),
        ("", "two points"),
        ("GG", "different points"),
    ],
)
def test_bad_path_tells_what_was_expected(text, tells):
    with pytest.raises(ConfigError, match=tells):
        k_path(structure_of(HEXAGONAL, pbc=SLAB), text)


def test_path_through_printed_points_finds_corners_jumps_and_names():
    structure = structure_of(HEXAGONAL, pbc=SLAB)
    special, _ = special_points(structure, SLAB)
    g, m, k = (special[label] for label in "GMK")

    def line(a, b, n):
        return np.round(a + np.linspace(0, 1, n)[:, None] * (b - a), 6)

    twice = k_path_through(structure, np.concatenate([line(g, m, 12), line(m, k, 12), line(k, g, 12)]), periodic=SLAB)
    assert twice.labels == ("G", "M", "K", "G")
    once = k_path_through(structure, np.concatenate([line(g, m, 12), line(m, k, 7)[1:]]), periodic=SLAB)
    assert once.labels == ("G", "M", "K")
    jump = k_path_through(structure, np.concatenate([line(g, m, 12), line(k, g, 12)]), periodic=SLAB)
    assert jump.labels == ("G", "M|K", "G")
    assert len(jump.sections) == 2
    assert jump.distance[11] == jump.distance[12]


def test_printed_points_get_the_name_of_their_equivalents_in_the_lattice():
    structure = structure_of(np.diag([3.0, 3.0, 4.0]))
    special, _ = special_points(structure)
    assert special["X"].tolist() == [0, 0.5, 0]
    assert k_path_through(structure, [[0, 0, 0], [0.25, 0, 0], [0.5, 0, 0]]).labels == ("G", "X")
    assert k_path(structure, "0,0,0 1/2,0,0 0,0,1/2").labels == ("G", "X", "Z")
