"""The kinds of ``hamnet texture``: for each its options, and the function of the library that they call."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hamnet.errors import ConfigError, StructureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hamnet.structure import Structure
    from hamnet.textures.plane import Plane

__all__ = ["KINDS", "Kind", "Scene", "Texture", "add_kind_parser", "allow_negative_fractions", "fraction"]

_AXES = {"a": 0, "b": 1, "c": 2}
_BOUNDARY_ANG = 3.0
_JUMP_DEG = 1.0
_BACKGROUND = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Where a texture is put.

    small : cell of the file. matrix, crystal : its supercell. magnetic : (n_magnetic,) places of the magnetic atoms in
    it. plane : of the supercell.
    """

    small: Structure
    matrix: NDArray[np.int64]
    crystal: Structure
    magnetic: NDArray[np.int64]
    plane: Plane

    @property
    def positions(self) -> NDArray[np.float64]:
        return self.crystal.positions[self.magnetic]


@dataclass(frozen=True, slots=True, eq=False)
class Texture:
    """Vectors (n_magnetic, 3): directions, or moments in units of the size where `keep_length`.

    parameters : what was used, for the output; units in the names. charge : topological charge that each layer should
        have, None where nothing is known. warnings : what the user should know.
    """

    vectors: NDArray[np.float64]
    parameters: dict[str, Any]
    charge: float | None = None
    warnings: list[str] = field(default_factory=list)
    keep_length: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    summary: str
    add: Callable[[argparse.ArgumentParser], None]
    make: Callable[[argparse.Namespace, Scene], Texture]


def fraction(text: str) -> Fraction:
    """The type of a component of a wave vector on the command line."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number or fraction such as 1/8") from error


def add_kind_parser(kinds: Any, name: str, kind: Kind) -> argparse.ArgumentParser:
    """A parser for one kind, with its own options."""
    summary = kind.summary
    parser = kinds.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    allow_negative_fractions(parser)
    kind.add(parser)
    return parser


def allow_negative_fractions(parser: argparse.ArgumentParser) -> None:
    """argparse takes a word like -1/3 for an option; this is its own test for negative numbers, with fractions."""
    parser._negative_number_matcher = re.compile(r"^-\d*\.?\d+([/eE.]-?\d+)?$")


def _vector(parser: Any, name: str, default: tuple[float, float, float], text: str) -> None:
    shown = " ".join(f"{x:g}" for x in default)
    parser.add_argument(
        name, type=float, nargs=3, default=default, metavar=("X", "Y", "Z"), help=f"{text}, Cartesian ({shown})"
    )


def _add_ferromagnet(parser: argparse.ArgumentParser) -> None:
    _vector(parser, "--direction", (0, 0, 1), "direction of all moments")


def _ferromagnet(args: argparse.Namespace, scene: Scene) -> Texture:
    from hamnet.textures.fields import ferromagnet

    return Texture(ferromagnet(len(scene.magnetic), args.direction), {"direction": list(args.direction)}, 0)


def _add_spiral(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "wave vector in fractions of the reciprocal vectors of STRUCTURE's own cell, such as 1/8 0 0"
    add("--q", type=fraction, nargs=3, required=True, metavar=("Q1", "Q2", "Q3"), help=text)
    text = "axis of rotation: three Cartesian numbers, screw (along q) or cycloid (in the plane, across q) (0 0 1)"
    add("--axis", nargs="+", default=["0", "0", "1"], metavar="X Y Z", help=text)
    add("--phase", type=float, default=0.0, metavar="DEG", help="phase at the origin, degrees (%(default)g)")
    add("--cone", type=float, default=90.0, metavar="DEG", help="angle between moments and axis (%(default)g: flat)")


def _spiral(args: argparse.Namespace, scene: Scene) -> Texture:
    from hamnet.textures.commensurate import check_commensurate, primitive_cells
    from hamnet.textures.fields import spiral

    check_commensurate(args.q, scene.matrix, scene.small)
    q = np.array([float(f) for f in args.q])
    along = q @ scene.small.reciprocal_cell
    axis = _spiral_axis(args.axis, along, scene.plane)
    fractions = scene.positions @ np.linalg.inv(scene.small.cell)
    vectors = spiral(fractions, q, axis, phase_rad=np.radians(args.phase), cone_rad=np.radians(args.cone))
    length = float(np.linalg.norm(along))
    parameters = {
        "q_frac": q.tolist(),
        "q_per_ang": along.tolist(),
        "period_ang": 2 * np.pi / length if length else None,
        "axis": axis.tolist(),
        "phase_deg": args.phase,
        "cone_deg": args.cone,
    }
    copies, warnings = primitive_cells(scene.small), []
    if copies > 1:
        warnings.append(f"the cell of {args.structure} holds {copies} primitive cells; q counts its reciprocal vectors")
    return Texture(vectors, parameters, 0, warnings)


def _spiral_axis(words: list[str], q_per_ang: NDArray, plane: Plane) -> NDArray[np.float64]:
    from hamnet.textures.plane import unit_vector

    if words in (["screw"], ["cycloid"]):
        along = unit_vector(q_per_ang, "wave vector")
        return along if words == ["screw"] else unit_vector(np.cross(plane.frame[2], along), "normal × q")
    try:
        return unit_vector([float(word) for word in words], "axis")
    except ValueError as error:
        raise ConfigError(f"axis {' '.join(words)!r}", expected="three numbers, screw or cycloid") from error


def _add_walls(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--along", choices=list(_AXES), default="a", help="lattice vector across the walls (%(default)s)")
    add("--count", type=int, default=2, metavar="N", help="walls in the supercell, an even number (%(default)s)")
    add("--width", type=float, required=True, metavar="ANG", help="Δ of tanh(s/Δ) in Å; the full width is πΔ")
    add("--type", choices=["bloch", "neel"], default="bloch", help="plane in which the moments turn (%(default)s)")
    add("--chirality", type=int, choices=[-1, 1], default=1, help="sense of the first wall (%(default)s)")
    add("--unwound", action="store_true", help="every second wall turns back (default: all turn in one sense)")
    _vector(parser, "--axis", (0, 0, 1), "axis of the domains")


def _walls(args: argparse.Namespace, scene: Scene) -> Texture:
    from hamnet.textures.fields import domain_walls

    reciprocal = np.linalg.inv(scene.crystal.cell)[:, _AXES[args.along]]
    period = float(1 / np.linalg.norm(reciprocal))
    vectors = domain_walls(
        scene.positions @ reciprocal * period,
        period,
        count=args.count,
        width_ang=args.width,
        normal=reciprocal,
        axis=args.axis,
        kind=args.type,
        chirality=args.chirality,
        wound=not args.unwound,
    )
    parameters = {
        "along": args.along,
        "count": args.count,
        "width_ang": args.width,
        "type": args.type,
        "chirality": args.chirality,
        "wound": not args.unwound,
        "axis": list(args.axis),
        "distance_of_walls_ang": period / args.count,
    }
    along, warnings = float(np.abs(vectors @ np.array(args.axis) / np.linalg.norm(args.axis)).max()), []
    if along < _BACKGROUND:
        warnings.append(f"the walls overlap: in the domains m·axis is {along:.2f} of 1 at most")
    return Texture(vectors, parameters, 0, warnings)


def _add_block(parser: argparse.ArgumentParser) -> None:
    text = "blocks along the two vectors of the plane, each with the whole arrangement (1 1)"
    parser.add_argument("--repeat", type=int, nargs=2, default=(1, 1), metavar=("N1", "N2"), help=text)


def _block(args: argparse.Namespace, scene: Scene) -> NDArray[np.float64]:
    """(2, 2) Å, vectors of a block."""
    if min(args.repeat) < 1:
        raise ConfigError(f"--repeat {args.repeat[0]} {args.repeat[1]}", expected="two positive numbers")
    return scene.plane.vectors / np.array(args.repeat)[:, None]


def _add_skyrmions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--radius", type=float, required=True, metavar="ANG", help="radius in Å, where the moments lie in the plane")
    add("--width", type=float, required=True, metavar="ANG", help="w of the wall in Å: sinh(R/w)/sinh(r/w)")
    add("--vorticity", type=int, default=1, help="1 skyrmions, -1 antiskyrmions, other integers (%(default)s)")
    text = "helicity in degrees: 0 or 180 Néel, 90 or -90 Bloch (%(default)g)"
    add("--helicity", type=float, default=0.0, metavar="DEG", help=text)
    add("--polarity", type=int, choices=[-1, 1], default=-1, help="of the core along the axis (%(default)s)")
    _add_block(parser)
    text = "a centre in fractions of the block, may be given several times (0.5 0.5)"
    add("--centre", type=fraction, nargs=2, action="append", metavar=("U", "V"), help=text)
    text = "axis of core and background, Cartesian; one in the plane makes bimerons (the plane's normal)"
    add("--axis", type=float, nargs=3, metavar=("X", "Y", "Z"), help=text)


def _skyrmions(args: argparse.Namespace, scene: Scene) -> Texture:
    from hamnet.textures.plane import unit_vector
    from hamnet.textures.solitons import skyrmion_lattice

    block = _block(args, scene)
    centres = np.array([[float(f) for f in centre] for centre in args.centre or [[0.5, 0.5]]])
    vectors = skyrmion_lattice(
        scene.plane.texture_points(scene.positions),
        block,
        centres @ block,
        radius_ang=args.radius,
        width_ang=args.width,
        vorticity=args.vorticity,
        helicity_rad=np.radians(args.helicity),
        polarity=args.polarity,
    )
    frame, normal = scene.plane.frame, scene.plane.frame[2]
    axis = normal if args.axis is None else unit_vector(args.axis, "axis")
    count = len(centres) * args.repeat[0] * args.repeat[1]
    parameters = {
        "radius_ang": args.radius,
        "width_ang": args.width,
        "vorticity": args.vorticity,
        "helicity_deg": args.helicity,
        "polarity": args.polarity,
        "count": count,
        "repeat": list(args.repeat),
        "centres_frac": centres.tolist(),
        "axis": axis.tolist(),
    }
    background, warnings = float((-args.polarity * vectors[:, 2]).max()), []
    if background < _BACKGROUND:
        warnings.append(
            f"the skyrmions overlap: between them the moments come no nearer to the background than m·axis = "
            f"{background:.2f} of 1, and m·axis = 0 is not at the radius asked for"
        )
    turned = vectors @ frame @ _turn(normal, axis).T
    return Texture(turned, parameters, count * args.vorticity * args.polarity, warnings)


def _turn(start: NDArray, end: NDArray) -> NDArray[np.float64]:
    """(3, 3) smallest rotation of one unit vector into another; half a turn about x or y where they are opposite."""
    from hamnet.textures.fields import perpendicular_frame

    if start @ end < -1 + 1e-12:
        about = perpendicular_frame(start)[0]
        return 2 * np.outer(about, about) - np.eye(3)
    cross = np.cross(start, end)
    matrix = np.array([[0, -cross[2], cross[1]], [cross[2], 0, -cross[0]], [-cross[1], cross[0], 0]])
    return np.eye(3) + matrix + matrix @ matrix / (1 + start @ end)


def _add_vortices(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--core", type=float, required=True, metavar="ANG", help="size of the cores in Å: m_z = sech(r/core)")
    text = "angle of m to the radius at the first vortex, degrees; 90 or -90: closed flux (%(default)g)"
    add("--helicity", type=float, default=90.0, metavar="DEG", help=text)
    add("--polarity", type=int, choices=[-1, 1], default=1, help="m_z at the cores of the vortices (%(default)s)")
    add("--anti-polarity", type=int, choices=[-1, 1], default=1, help="and of the antivortices (%(default)s)")
    _add_block(parser)
    add("--single", action="store_true", help="one vortex alone: not periodic, jumps at the boundary of the cell")


def _vortices(args: argparse.Namespace, scene: Scene) -> Texture:
    from hamnet.textures.solitons import vortex, vortex_lattice

    points, block = scene.plane.texture_points(scene.positions), _block(args, scene)
    options = {"core_ang": args.core, "helicity_rad": np.radians(args.helicity), "polarity": args.polarity}
    parameters = {
        "core_ang": args.core,
        "helicity_deg": args.helicity,
        "polarity": args.polarity,
        "anti_polarity": None if args.single else args.anti_polarity,
        "repeat": list(args.repeat),
        "single": args.single,
    }
    if args.single:
        if tuple(args.repeat) != (1, 1):
            raise ConfigError("--single with --repeat", expected="one of them")
        vectors = vortex(points, scene.plane.vectors.sum(axis=0) / 2, **options)
        warning = "a single vortex is not periodic: the moments jump at the boundary of the cell, and H is that of "
        return Texture(vectors @ scene.plane.frame, parameters, None, [warning + "a crystal with these jumps"])
    vectors = vortex_lattice(points, block, anti_polarity=args.anti_polarity, **options)
    charge = (args.polarity - args.anti_polarity) * args.repeat[0] * args.repeat[1]
    return Texture(vectors @ scene.plane.frame, parameters, charge)


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, required=True, metavar="N", help="of the random numbers, 0 or more")


def _generator(args: argparse.Namespace) -> np.random.Generator:
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed}", expected="0 or more")
    return np.random.default_rng(args.seed)


def _add_cone(parser: argparse.ArgumentParser) -> None:
    _vector(parser, "--axis", (0, 0, 1), "axis of the cone")
    text = "half the opening angle: the largest angle between a moment and the axis, degrees"
    parser.add_argument("--angle", type=float, required=True, metavar="DEG", help=text)
    _add_seed(parser)


def _cone(args: argparse.Namespace, scene: Scene) -> Texture:
    from hamnet.textures.fields import random_cone

    vectors = random_cone(len(scene.magnetic), args.axis, np.radians(args.angle), _generator(args))
    return Texture(vectors, {"axis": list(args.axis), "angle_deg": args.angle, "seed": args.seed})


def _random(args: argparse.Namespace, scene: Scene) -> Texture:
    from hamnet.textures.fields import random_directions

    return Texture(random_directions(len(scene.magnetic), _generator(args)), {"seed": args.seed})


def _add_keep(parser: argparse.ArgumentParser) -> None:
    text = "a vector of length 1 is the whole moment, shorter ones are smaller moments (default: directions alone)"
    parser.add_argument("--keep-length", action="store_true", help=text)


def _add_formula(parser: argparse.ArgumentParser) -> None:
    text = "'MX, MY, MZ' with x, y, z in Å and u, v, w in fractions of the supercell; pi, sin, exp, where, …"
    parser.add_argument("--components", required=True, metavar="TEXT", help=text)
    _add_keep(parser)


def _formula(args: argparse.Namespace, scene: Scene) -> Texture:
    from hamnet.textures.formula import evaluate, parse_formula

    formula, crystal = parse_formula(args.components), scene.crystal
    vectors = evaluate(formula, crystal, scene.positions)
    warnings, fractions = [], scene.positions @ np.linalg.inv(crystal.cell)
    for axis, name in enumerate(_AXES):
        # What comes after the far end of the cell must be what stands at its near end.
        depth = (fractions[:, axis] - fractions[:, axis].min()) / np.linalg.norm(np.linalg.inv(crystal.cell)[:, axis])
        near = depth < _BOUNDARY_ANG
        beyond = evaluate(formula, crystal, scene.positions[near] + crystal.cell[axis])
        jump = _largest_angle_deg(vectors[near], beyond)
        if crystal.pbc[axis] and jump > _JUMP_DEG:
            warnings.append(
                f"the formula is not periodic: it turns the moments by {jump:.0f}° over the boundary along {name}; "
                "periodic functions of 2*pi*u, 2*pi*v, 2*pi*w are"
            )
    return Texture(vectors, {"components": args.components}, None, warnings, args.keep_length)


def _largest_angle_deg(first: NDArray, second: NDArray) -> float:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine = np.where(lengths > 0, (first * second).sum(axis=1) / np.where(lengths > 0, lengths, 1), 1)
    return float(np.degrees(np.arccos(np.clip(cosine.min(initial=1), -1, 1))))


def _add_ovf(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--field", type=Path, required=True, metavar="FILE.ovf", help="OVF 2.0 file (OOMMF, mumax3, Spirit)")
    add("--segment", type=int, metavar="N", help="which segment of the file, from 1, if it holds several")
    text = (
        "stretch: the mesh over the supercell, edge to edge; length: in true lengths, the supercell must repeat with "
        "the mesh; sites: one node for each magnetic atom, as Spirit writes them (%(default)s)"
    )
    add("--place", choices=["stretch", "length", "sites"], default="stretch", help=text)
    add("--nearest", action="store_true", help="vector of the nearest node (default: linear between eight nodes)")
    _add_keep(parser)


def _ovf(args: argparse.Namespace, scene: Scene) -> Texture:
    from hamnet.textures import ovf

    field_, crystal, warnings = ovf.read_ovf(args.field, args.segment), scene.crystal, []
    if args.place == "sites":
        if not np.array_equal(scene.matrix, np.diag(np.diag(scene.matrix))):
            raise ConfigError("--place sites on a supercell of nine numbers", expected="--supercell N1 N2 N3")
        cells, sites = _sites(scene)
        index = ovf.index_by_site(field_, cells, sites, tuple(np.diag(scene.matrix).tolist()))
    elif args.place == "length":
        index = ovf.index_by_length(field_, scene.positions, crystal)
    else:
        index = ovf.index_by_fraction(field_, scene.positions @ np.linalg.inv(crystal.cell))
        warnings += _strain(field_, crystal)
    nearest = args.nearest or args.place == "sites"
    parameters = {
        "field": str(args.field),
        "title": field_.title,
        "nodes": field_.nodes.tolist(),
        "place": args.place,
        "interpolation": "none" if args.place == "sites" else "nearest" if nearest else "linear",
    }
    values = ovf.sample_field(field_, index, nearest=nearest)
    return Texture(values, parameters, None, warnings, args.keep_length)


def _sites(scene: Scene) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(cells (n_magnetic, 3), place among the magnetic atoms of a cell (n_magnetic,)) of a diagonal supercell."""
    n_small = len(scene.small)
    within = scene.magnetic % n_small
    moved = scene.positions - scene.small.positions[within]
    cells = np.rint(moved @ np.linalg.inv(scene.small.cell)).astype(np.int64)
    return cells, np.searchsorted(np.unique(within), within)


def _strain(field_: Any, crystal: Structure) -> list[str]:
    """A warning where a stretched mesh has other lengths or angles than the supercell."""
    if field_.step_ang is None:
        return []
    many = np.flatnonzero(field_.nodes > 1)
    box = (field_.nodes * field_.step_ang)[many]
    cell = crystal.cell[many]
    lengths = np.linalg.norm(cell, axis=1)
    cosines = (cell @ cell.T) / np.outer(lengths, lengths) - np.eye(len(many))
    scales = lengths / box
    if np.abs(scales - 1).max(initial=0) < 0.02 and np.abs(cosines).max(initial=0) < 0.02:
        return []
    told = ", ".join(f"{length:.4g} Å on {new:.4g} Å" for length, new in zip(box, lengths, strict=True))
    sheared = " and sheared, since its vectors are not at right angles" if np.abs(cosines).max() > 0.02 else ""
    return [f"the field is stretched over the supercell ({told}){sheared}; --place length keeps true lengths"]


def _add_moments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "structure with moments (extxyz column moments, DFT run, sample set): this supercell, or a cell of it"
    add("--source", type=Path, required=True, metavar="FILE", help=text)
    add("--source-sample", metavar="NAME", help="sample of the set --source")


def _moments(args: argparse.Namespace, scene: Scene) -> Texture:
    moments = source_moments(args, scene.crystal)[scene.magnetic]
    given = bool(args.size) or args.model is not None
    parameters = {"source": str(args.source), "source_sample": args.source_sample}
    return Texture(moments, parameters, None, [], not given)


def source_moments(args: argparse.Namespace, crystal: Structure) -> NDArray[np.float64]:
    """(n_atoms, 3) μ_B of ``--source`` on the atoms of the supercell, its cell repeated where it is smaller."""
    from hamnet.cli.structures import load_structure
    from hamnet.supercell import supercell_matrix, tile_structure
    from hamnet.symmetry import match_atoms

    source, _ = load_structure(args.source, sample=args.source_sample)
    if source.moments is None:
        raise StructureError(
            "a structure without moments", expected="a column moments or magmoms, in μ_B", path=args.source
        )
    try:
        tiled = tile_structure(source, supercell_matrix(crystal.cell, source.cell))
        order, shifts = match_atoms(tiled, crystal)
    except StructureError as error:
        raise StructureError(
            error.found, expected=f"{error.expected}: the supercell, or a cell of it", path=args.source
        ) from error
    matched = tiled.permuted(order, shifts).moments
    assert matched is not None
    return np.array(matched)


KINDS: dict[str, Kind] = {
    "ferromagnet": Kind("all moments along one direction", _add_ferromagnet, _ferromagnet),
    "spiral": Kind("flat or conical spin spiral", _add_spiral, _spiral),
    "walls": Kind("Bloch or Néel domain walls, an even number", _add_walls, _walls),
    "skyrmions": Kind("lattice of skyrmions, antiskyrmions or bimerons", _add_skyrmions, _skyrmions),
    "vortices": Kind("two vortices and two antivortices in a cell", _add_vortices, _vortices),
    "cone": Kind("random directions within a cone", _add_cone, _cone),
    "random": Kind("random directions", _add_seed, _random),
    "formula": Kind("three expressions of the position", _add_formula, _formula),
    "ovf": Kind("a micromagnetic field from an OVF 2.0 file", _add_ovf, _ovf),
    "moments": Kind("the moments of another structure", _add_moments, _moments),
}
