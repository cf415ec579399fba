"""``hamnet bands``: band structure of a sample or a DFT run, as a figure with its numbers.

Keys of ``--json``: sample, figure, data (files), fermi_energy_eV (absolute), fermi_source (given, run, counted),
n_electrons, gap_eV, direct_gap_eV, vbm_eV, cbm_eV (null for a metal), gap_from (mesh, path), n_k, n_channels, n_states
(per cell), path_labels, path_ticks_per_ang, and for states of an overlay inside the window, unshifted:
overlay_mean_abs_meV, overlay_max_abs_meV, overlay_mean_shift_meV, overlay_states_compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hamnet.errors import ConfigError, HamnetError

from . import spectrum
from .solver import solver_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from postprocess.kpath import KPath

    from .sources import Source

__all__ = ["add_arguments", "add_path_arguments", "read_path", "run"]

_MARGIN = 0.1
_PATH_HELP = "GMKG with the lattice's labels, GX|YG with a jump, or points 'G=0,0,0 M=1/2,0,0 G' (the lattice's own)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    spectrum.add_source_arguments(parser)
    path = add_path_arguments(parser)
    path.add_argument("--own", action="store_true", help="the k points of the DFT run's own band file")
    path.add_argument("--printed", action="store_true", help="as --own, and the code's own eigenvalues as overlay")
    parser.add_argument(
        "--color",
        choices=["auto", *spectrum.AXES, "species", "shell", "none"],
        default="auto",
        help="colour of the bands (auto: spin-z for a vector Hamiltonian, else none)",
    )
    spectrum.add_zero_arguments(parser)


def add_path_arguments(parser: argparse.ArgumentParser) -> Any:
    """The path and its points; returns the group of ways to give it, which exclude each other."""
    path = parser.add_mutually_exclusive_group()
    path.add_argument("--path", metavar="PATH", help=_PATH_HELP)
    path.add_argument("--path-file", type=Path, metavar="TXT", help="text file with a path in the same form")
    parser.add_argument("--points", type=int, default=200, metavar="N", help="k points along the path (%(default)s)")
    return path


def run(args: argparse.Namespace) -> int:
    from postprocess.bands import Bands
    from postprocess.comparison import compare_bands, matched_levels
    from postprocess.fermi import fermi_level
    from postprocess.plotting import band_figure, check_output, save_figure
    from postprocess.tables import write_bands

    from .sources import hamiltonian_of, load_source

    check_output(args.output)
    args.count = args.count or args.mesh is not None or args.density is not None
    source = load_source(args.file, args.sample, stored=args.stored)
    other = spectrum.load_overlay(args)
    hamiltonian, overlap = hamiltonian_of(source), source.sample.operator("overlap")
    color = spectrum.color_of(args.color, hamiltonian.n_spin)
    path, printed = _path(args, source, other)
    groups = spectrum.grouping_of(color, hamiltonian)
    with solver_of(args, hamiltonian, overlap) as solver:
        zero = spectrum.zero_of(args, source, solver)
        shown = (zero.energy_ev + args.window[0], zero.energy_ev + args.window[1])
        # Lines go on beyond the frame, also where the levels outside are not known.
        margin = _MARGIN * (args.window[1] - args.window[0])
        asked = (shown[0] - margin, shown[1] + margin)
        bands = solver.bands("path", path.k_frac, asked, spin=hamiltonian.n_spin > 1, grouping=groups)
    reference, reference_label = printed, f"{source.sample.name}, as printed"
    if printed is not None and solver.sparse:
        reference = matched_levels(Bands(path.k_frac, printed, bands.n_spin), bands)
    if printed is None and other is not None:
        with solver_of(args, hamiltonian_of(other), other.sample.operator("overlap"), name="overlay") as solver:
            theirs = solver.bands("overlay", path.k_frac, asked)
        reference, reference_label = matched_levels(theirs, bands), other.sample.name
    deviation = None
    if reference is not None:
        # A code may print its lowest states only.
        n = reference.shape[2] if printed is not None else None
        deviation = compare_bands(bands.energies_ev[..., :n], reference, shown)
    figure = band_figure(
        path,
        bands,
        zero_ev=zero.energy_ev,
        window_ev=tuple(args.window),
        spin_axis=spectrum.AXES.get(color),
        by_group=groups is not None,
        label=source.sample.name,
        reference_ev=reference,
        reference_label=reference_label,
    )
    save_figure(figure, args.output)
    data = write_bands(args.output, bands, path, zero_ev=zero.energy_ev, window_ev=tuple(args.window))
    electrons = spectrum.electrons_of(args, source)
    # Band edges on the path, where all states are known.
    level = zero.counted or (fermi_level(bands, electrons) if electrons and not solver.sparse else None)
    result: dict[str, Any] = {
        **spectrum.report(args, source, zero, level, data),
        "gap_from": None if level is None else "mesh" if zero.counted else "path",
        "n_k": len(path),
        "n_channels": bands.energies_ev.shape[1],
        "n_states": bands.n_states,
        "path_labels": path.labels,
        "path_ticks_per_ang": path.ticks,
        "overlay_mean_abs_meV": None if deviation is None else 1000 * deviation.mean_abs_ev,
        "overlay_max_abs_meV": None if deviation is None else 1000 * deviation.max_abs_ev,
        "overlay_mean_shift_meV": None if deviation is None else 1000 * deviation.mean_ev,
        "overlay_states_compared": None if deviation is None else deviation.n_compared,
    }
    spectrum.print_report(args, result, f"{len(path)} k along {'-'.join(label or '·' for label in path.labels)}")
    return 0


def _path(args: argparse.Namespace, source: Source, other: Source | None) -> tuple[KPath, NDArray[np.float64] | None]:
    """The path, and the eigenvalues printed along it if they are asked for."""
    from postprocess.kpath import k_path, k_path_through, periodic_directions

    from .sources import hamiltonian_of

    structure = source.sample.structure
    periodic = periodic_directions(structure, hamiltonian_of(source).pairs)
    if not (args.own or args.printed):
        text = args.path
        if args.path_file is not None:
            text = read_path(args.path_file)
        return k_path(structure, text, n_points=args.points, periodic=periodic), None
    runs = [candidate for candidate in (source, other) if candidate is not None]
    if args.printed:
        runs = runs[-1:]  # eigenvalues of the reference
    found = [r for candidate in runs for r in candidate.references if "band" in Path(r.source).name.lower()]
    if not found:
        raise HamnetError(
            "no band file (.Band of OpenMX, .bands of SIESTA)",
            expected="a DFT run with one",
            remedy="give a path with --path",
            path=runs[-1].path,
        )
    path = k_path_through(structure, found[0].k_frac, periodic=periodic, names=dict(found[0].corners))
    return path, found[0].energies_ev if args.printed else None


def read_path(file: Path) -> str:
    """The path in a text file, as `--path` takes it; comments after ``#``."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({error})", expected="a text file with a path", path=file) from error
    return " ".join(line.partition("#")[0] for line in lines)
