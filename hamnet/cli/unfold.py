"""``hamnet unfold``: bands of a supercell in the zone of a primitive cell. Keys of ``--json``: docs/json.md."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hamnet.errors import ConfigError

from . import spectrum
from .bands import add_path_arguments, read_path
from .solver import solver_of
from .texture_kinds import allow_negative_fractions, fraction

if TYPE_CHECKING:
    from hamnet.blocks import BlockOperator
    from hamnet.structure import Structure
    from postprocess.kpath import KPath
    from postprocess.tiling import Tiling
    from postprocess.unfold import Spiral, UnfoldedBands

    from .sources import Source

__all__ = ["add_arguments", "run"]

_SAME_OVERLAP = 1e-6
_SAME_CELL_ANG = 1e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    allow_negative_fractions(parser)
    spectrum.add_source_arguments(
        parser, overlay="set or run of the primitive cell: its bands are drawn as lines over the map"
    )
    add = parser.add_argument
    cell = parser.add_argument_group(
        "primitive cell", "By default that of --overlay, else the smallest cell of the lattice, moments left aside."
    ).add_mutually_exclusive_group()
    text = "structure file, DFT run or set with the primitive cell, in the orientation of the supercell"
    cell.add_argument("--primitive", type=Path, metavar="FILE", help=text)
    text = (
        "three numbers, or the nine of an integer matrix: the vectors of the supercell in units of the primitive ones"
    )
    cell.add_argument("--matrix", type=int, nargs="+", metavar="N", help=text)
    add("--primitive-sample", metavar="NAME", help="sample of the set --primitive")
    text = "how far an atom may stand from its site, Å (0.4)"
    add("--tolerance", type=float, metavar="ANG", help=text)
    add_path_arguments(parser)
    add(
        "--width",
        type=float,
        metavar="EV",
        help="standard deviation of the Gaussian for each level, eV (1/250 of the window)",
    )
    add(
        "--color",
        choices=["auto", *spectrum.AXES, "species", "shell", "atom", "none"],
        default="auto",
        help="second map: a component of spin, or the weights of orbitals (auto: spin-z for a vector Hamiltonian)",
    )
    text = "wave vector of a spiral in fractions of the primitive reciprocal vectors, such as 1/3 1/3 0: translations "
    text += "then turn spin by 2π q·T, and k is that of the frame that turns"
    add("--spiral", type=fraction, nargs=3, metavar=("Q1", "Q2", "Q3"), help=text)
    text = "axis of the spiral, Cartesian (0 0 1)"
    add("--axis", type=float, nargs=3, default=(0.0, 0.0, 1.0), metavar=("X", "Y", "Z"), help=text)
    spectrum.add_zero_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from postprocess.plotting import check_output, save_figure
    from postprocess.tables import write_unfolded
    from postprocess.unfold import (
        energy_grid,
        fold_orbitals,
        mean_overlap,
        supercell_k,
        unfold_bands,
        unique_k,
    )
    from postprocess.unfold_plot import unfolded_figure

    from .sources import hamiltonian_of, load_source

    check_output(args.output)
    window = tuple(args.window)
    width = (window[1] - window[0]) / 250 if args.width is None else args.width
    energy_grid(window, width)  # refuses a window or width that is none
    args.count = args.count or args.mesh is not None or args.density is not None
    source = load_source(args.file, args.sample, stored=args.stored)
    other = spectrum.load_overlay(args)
    hamiltonian, overlap = hamiltonian_of(source), source.sample.operator("overlap")
    color = spectrum.color_of(args.color, hamiltonian.n_spin)
    tiling, how = _tiling(args, source, other)
    spiral = _spiral(args, tiling, hamiltonian)
    path = _path(args, source, tiling)
    orbitals = fold_orbitals(tiling, hamiltonian.basis, hamiltonian.pairs.species)
    mean, deviation = mean_overlap(overlap, tiling)
    k_supercell, _ = unique_k(supercell_k(tiling, path.k_frac, spiral))
    with solver_of(args, hamiltonian, overlap) as solver:
        zero = spectrum.zero_of(args, source, solver)
        reach = 9 * width
        shown = (zero.energy_ev + window[0] - reach, zero.energy_ev + window[1] + reach)
        bands = unfold_bands(
            solver.vectors("supercell", k_supercell, shown),
            tiling,
            orbitals,
            path.k_frac,
            n_spin=hamiltonian.n_spin,
            mean=mean if deviation <= _SAME_OVERLAP else None,
            spiral=spiral,
            grouping=_grouping(color, hamiltonian, tiling),
            window_ev=shown,
        )
    reference = None
    if other is not None:
        with solver_of(args, hamiltonian_of(other), other.sample.operator("overlap"), name="overlay") as solver:
            reference = solver.bands("overlay", path.k_frac, shown)
    figure = unfolded_figure(
        path,
        bands,
        zero_ev=zero.energy_ev,
        window_ev=window,
        width_ev=width,
        spin_axis=spectrum.AXES.get(color),
        by_group=bands.groups is not None,
        reference_ev=None if reference is None else reference.energies_ev,
        reference_label="" if other is None else other.sample.name,
        k_label="" if spiral is None else f"k in the frame of the spiral q = {' '.join(map(str, args.spiral))}",
    )
    save_figure(figure, args.output)
    data = write_unfolded(args.output, bands, path, zero_ev=zero.energy_ev, window_ev=window, width_ev=width)
    result: dict[str, Any] = {
        **spectrum.report(args, source, zero, zero.counted, data),
        "primitive_from": how,
        "matrix": tiling.matrix,
        "n_cells": len(tiling),
        "primitive_cell_ang": tiling.primitive.cell,
        "displacement_max_ang": tiling.largest_displacement_ang,
        "displacement_rms_ang": float(np.sqrt((tiling.displacements_ang**2).sum(axis=1).mean())),
        "strain_max": tiling.strain,
        "overlap_deviation_max": deviation,
        "q_frac": None if spiral is None else spiral.q_frac,
        "axis": None if spiral is None else spiral.axis,
        "n_k": len(path),
        "n_supercell_k": len(k_supercell),
        "path_labels": path.labels,
        "path_ticks_per_ang": path.ticks,
        "width_eV": width,
        **_sharpness(bands, zero.energy_ev, window),
    }
    _print(args, result, source)
    return 0


def _tiling(args: argparse.Namespace, source: Source, other: Source | None) -> tuple[Tiling, str]:
    """How the primitive cell tiles the supercell, and where the cell is from: given, matrix, overlay or found."""
    from postprocess.kpath import periodic_directions
    from postprocess.tiling import TOLERANCE_ANG, average_primitive, match_primitive, smallest_cell

    from .structures import load_structure
    from .texture import supercell_of

    structure = source.sample.structure
    tolerance = TOLERANCE_ANG if args.tolerance is None else args.tolerance
    if not tolerance > 0:
        raise ConfigError(f"--tolerance {tolerance:g}", expected="a positive length in Å")
    periodic = periodic_directions(structure, source.sample.pairs)
    if args.primitive is not None:
        primitive, how = load_structure(args.primitive, sample=args.primitive_sample)[0], "given"
    elif args.matrix is not None:
        matrix = supercell_of(args.matrix, "--matrix")
        primitive, how = average_primitive(structure, matrix, tolerance_ang=tolerance, periodic=periodic), "matrix"
    elif other is not None:
        primitive, how = other.sample.structure, "overlay"
    else:
        matrix = smallest_cell(structure, tolerance_ang=tolerance, periodic=periodic)
        if round(float(np.linalg.det(matrix))) == 1:
            raise ConfigError(
                "no translation takes this crystal to itself: its cell is primitive",
                expected="a supercell",
                remedy="use `hamnet bands`, or a larger --tolerance",
                path=source.path,
            )
        primitive, how = average_primitive(structure, matrix, tolerance_ang=tolerance), "found"
    if other is not None:
        _check_overlay(primitive, other)
    return match_primitive(structure, primitive, tolerance_ang=tolerance), how


def _check_overlay(primitive: Structure, other: Source) -> None:
    off = float(np.abs(other.sample.structure.cell - primitive.cell).max())
    if off > _SAME_CELL_ANG:
        raise ConfigError(
            f"an overlay whose lattice vectors differ from those of the primitive cell by up to {off:.3g} Å",
            expected="the bands of the primitive cell",
            remedy="leave --primitive and --matrix away: the cell of the overlay is then taken",
            path=other.path,
        )


def _spiral(args: argparse.Namespace, tiling: Tiling, hamiltonian: BlockOperator) -> Spiral | None:
    from hamnet.textures.commensurate import check_commensurate
    from postprocess.unfold import Spiral

    if args.spiral is None:
        return None
    if hamiltonian.n_spin != 4:
        raise ConfigError("--spiral without spinors", expected="a vector Hamiltonian")
    check_commensurate(args.spiral, tiling.matrix, tiling.primitive)
    return Spiral(np.array([float(q) for q in args.spiral]), np.array(args.axis))


def _path(args: argparse.Namespace, source: Source, tiling: Tiling) -> KPath:
    """The path in the primitive zone, along directions in which the crystal has bonds."""
    from postprocess.kpath import k_path
    from postprocess.tiling import primitive_shifts

    periodic = np.array(tiling.primitive.pbc) & primitive_shifts(source.sample.pairs, tiling)[2].any(axis=0)
    text = args.path if args.path_file is None else read_path(args.path_file)
    return k_path(tiling.primitive, text, n_points=args.points, periodic=periodic)


def _grouping(color: str, hamiltonian: BlockOperator, tiling: Tiling):
    from postprocess.grouping import group_orbitals

    if color not in ("species", "shell", "atom"):
        return None
    return group_orbitals(hamiltonian.basis, hamiltonian.pairs.species[tiling.atoms[0]], color)  # type: ignore[arg-type]


def _sharpness(bands: UnfoldedBands, zero_ev: float, window: tuple[float, float]) -> dict[str, Any]:
    """Mean weight of the states in the window, weighted by itself: 1 for Bloch waves, 1/N if spread evenly."""
    relative = bands.energies_ev - zero_ev
    weights = bands.weights[(relative >= window[0]) & (relative <= window[1])]
    return {"n_weights": len(weights), "mean_weight": float((weights**2).sum() / weights.sum())}


def _print(args: argparse.Namespace, result: dict[str, Any], source: Source) -> None:
    from hamnet.textures.commensurate import supercell_text

    labels = "-".join(label or "·" for label in result["path_labels"])
    spectrum.print_report(
        args,
        result,
        f"{result['n_cells']} primitive cells ({supercell_text(result['matrix'])}), "
        f"{result['n_k']} k along {labels} from {result['n_supercell_k']} K",
    )
    if not args.json:
        print(
            f"atoms up to {result['displacement_max_ang']:.3g} Å from their sites, strain {result['strain_max']:.2g}; "
            f"mean weight {result['mean_weight']:.3f} (1: Bloch waves of the primitive cell)"
        )
