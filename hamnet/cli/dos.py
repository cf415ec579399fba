"""``hamnet dos``: density of states of a sample or a DFT run, as a figure with its numbers.

Keys of ``--json``: sample, figure, data (files), fermi_energy_eV (absolute; zero of the figure), fermi_source (given,
run, counted), counted_fermi_energy_eV (on this mesh), n_electrons, gap_eV, direct_gap_eV, vbm_eV, cbm_eV (null for a
metal), mesh, method, width_eV, window_eV, n_states (per cell), dos_integral (states in the window),
states_below_fermi, dos_at_fermi_per_eV (of the method), overlay_mean_abs_states_per_eV.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from hamnet.errors import ConfigError

from . import spectrum
from .output import progress_bar
from .solver import SparseSolver, solver_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from postprocess.bands import Bands
    from postprocess.dos import DensityOfStates
    from postprocess.kmesh import KMesh

    from .solver import Solver
    from .sources import Source

__all__ = ["add_arguments", "run"]

# Widths of a Gaussian beyond which nothing of it is seen.
_REACH = 6.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    spectrum.add_source_arguments(parser)
    parser.add_argument(
        "--method",
        choices=["tetrahedron", "gaussian", "quartic"],
        help="linear tetrahedra, a Gaussian for each level, or a kernel that needs no states: a factorisation for each "
        "energy, whatever their number (tetrahedron; gaussian with a sparse solver, which does not know all corners)",
    )
    text = "random vectors of --method quartic, whose scatter is printed as an error (%(default)s: the exact trace)"
    parser.add_argument("--vectors", type=int, default=0, metavar="N", help=text)
    parser.add_argument(
        "--width",
        type=float,
        default=0.05,
        metavar="EV",
        help="standard deviation of the Gaussian, half width of the quartic kernel, eV (%(default)g)",
    )
    parser.add_argument(
        "--project",
        choices=["none", "species", "shell", "atom", *spectrum.AXES],
        default="none",
        help="share of orbitals (Mulliken) or of a spin direction (%(default)s)",
    )
    parser.add_argument("--points", type=int, default=1000, metavar="N", help="energies in the window (%(default)s)")
    spectrum.add_zero_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from postprocess.dos import number_of_states
    from postprocess.fermi import fermi_level
    from postprocess.plotting import check_output, dos_figure, save_figure
    from postprocess.tables import write_dos

    from .sources import hamiltonian_of, load_source

    check_output(args.output)
    source = load_source(args.file, args.sample, stored=args.stored)
    other = spectrum.load_overlay(args)
    hamiltonian = hamiltonian_of(source)
    spectrum.color_of(args.project, hamiltonian.n_spin)  # refuses a spin direction that H has not
    mesh = spectrum.mesh_of(args, source)
    if args.method == "quartic":
        return _without_states(args, source, mesh)
    wanted = {"spin": args.project in spectrum.AXES, "grouping": spectrum.grouping_of(args.project, hamiltonian)}
    electrons = spectrum.electrons_of(args, source)
    with solver_of(args, hamiltonian, source.sample.operator("overlap")) as solver:
        _choose_method(args, solver)
        if solver.sparse:
            zero = spectrum.zero_of(args, source, solver)
            level = zero.counted
            bands = solver.bands("mesh", mesh.k_frac, _window(args, zero.energy_ev), **wanted)
        else:
            bands = solver.bands("mesh", mesh.k_frac, (-np.inf, np.inf), **wanted)
            level = (
                fermi_level(bands, electrons, temperature_k=spectrum.temperature_of(args, solver))
                if electrons
                else None
            )
            zero = spectrum.zero_of(args, source, solver, level)
    dos = _dos(args, source, bands, mesh, zero.energy_ev)
    reference = None
    if other is not None:
        with solver_of(args, hamiltonian_of(other), other.sample.operator("overlap"), name="overlay") as solver:
            _choose_method(args, solver)
            spin = bands.spin is not None and hamiltonian_of(other).n_spin > 1
            theirs = solver.bands("overlay", mesh.k_frac, _window(args, zero.energy_ev), spin=spin)
        reference = _dos(args, other, theirs, mesh, zero.energy_ev)
    figure = dos_figure(
        dos,
        zero_ev=zero.energy_ev,
        label=source.sample.name if reference is not None else "total",
        reference=reference,
        reference_label="" if other is None else other.sample.name,
    )
    save_figure(figure, args.output)
    data = write_dos(args.output, dos, zero_ev=zero.energy_ev)
    cell = source.sample.structure.reciprocal_cell
    below = number_of_states(bands, mesh, cell, zero.energy_ev, method=args.method, width_ev=args.width)[0]
    result: dict[str, Any] = {
        **spectrum.report(args, source, zero, level, data),
        "counted_fermi_energy_eV": None if level is None else level.energy_ev,
        "mesh": mesh.size,
        "method": args.method,
        "width_eV": dos.width_ev,
        "window_eV": args.window,
        "n_states": bands.n_states,
        "dos_integral": dos.integral,
        "states_below_fermi": float(below.sum()),
        "dos_at_fermi_per_eV": _density(args, bands, mesh, cell, zero.energy_ev),
        "total_error_per_eV": None,
        "n_factorisations": None,
        "overlay_mean_abs_states_per_eV": None
        if reference is None
        else float(np.abs(dos.total.sum(axis=0) - reference.total.sum(axis=0)).mean()),
    }
    spectrum.print_report(args, result, f"{' × '.join(map(str, mesh.size))} k, {args.method}")
    return 0


def _without_states(args: argparse.Namespace, source: Source, mesh: KMesh) -> int:
    """The density from the resolvent, on a grid whose neighbours share their factorisations."""
    from postprocess.dos import DensityOfStates
    from postprocess.plotting import dos_figure, save_figure
    from postprocess.solvers.broadened import broadened_dos, shared_grid
    from postprocess.solvers.states import Keep
    from postprocess.tables import write_dos

    from .sources import hamiltonian_of

    if args.overlay is not None or args.project in spectrum.AXES:
        raise ConfigError(
            "--method quartic with --overlay or a spin direction", expected="species, shell, atom or no projection",
            remedy="--method gaussian",
        )  # fmt: skip
    hamiltonian = hamiltonian_of(source)
    groups = spectrum.grouping_of(args.project, hamiltonian)
    with solver_of(args, hamiltonian, source.sample.operator("overlap"), certified=True) as solver:
        assert isinstance(solver, SparseSolver)
        zero = spectrum.zero_of(args, source, solver)
        grid = shared_grid(zero.energy_ev + args.window[0], zero.energy_ev + args.window[1], args.width)
        keep = Keep(membership=None if groups is None else groups.membership)
        with progress_bar("energies") as progress:
            found = broadened_dos(
                solver.runner(keep, "resolvent"), mesh.k_frac, grid, width_ev=args.width, n_vectors=args.vectors,
                on_progress=progress, say=lambda text: print(f"hamnet: {text}", file=sys.stderr),
            )  # fmt: skip
        assert found is not None
        start = solver.states_below(mesh.k_frac, float(grid[0]))
    # From a count at the lower end by trapezoids: exact there, elsewhere to what the kernel smears.
    steps = (found.total[:, 1:] + found.total[:, :-1]) / 2 * (grid[1] - grid[0])
    integrated = np.cumsum(np.concatenate([start[:, None], steps], axis=1), axis=1)
    projected = found.projected if groups is not None else np.zeros((0, *found.total.shape))
    labels = () if groups is None else groups.labels
    dos = DensityOfStates(grid, found.total, integrated, projected, labels, "quartic", args.width)
    save_figure(dos_figure(dos, zero_ev=zero.energy_ev), args.output)
    data = write_dos(args.output, dos, zero_ev=zero.energy_ev)
    result: dict[str, Any] = {
        **spectrum.report(args, source, zero, zero.counted, data),
        "counted_fermi_energy_eV": None if zero.counted is None else zero.counted.energy_ev,
        "mesh": mesh.size,
        "method": "quartic",
        "width_eV": args.width,
        "window_eV": args.window,
        "n_states": None,
        "dos_integral": float(steps.sum()),
        "states_below_fermi": float(np.interp(zero.energy_ev, grid, integrated.sum(axis=0))),
        "dos_at_fermi_per_eV": float(np.interp(zero.energy_ev, grid, found.total.sum(axis=0))),
        "total_error_per_eV": float(found.total_error.max()) if args.vectors else None,
        "n_factorisations": found.n_factors,
        "overlay_mean_abs_states_per_eV": None,
    }
    spectrum.print_report(args, result, f"{' × '.join(map(str, mesh.size))} k, {found.n_factors} factorisations")
    return 0


def _choose_method(args: argparse.Namespace, solver: Solver) -> None:
    """Tetrahedra need the levels at all their corners, also where these lie outside a window."""
    if args.method is None:
        args.method = "gaussian" if solver.sparse else "tetrahedron"
    elif args.method == "tetrahedron" and solver.sparse:
        raise ConfigError(
            "--method tetrahedron for a window of states", expected="gaussian, or all states", remedy="--solver dense"
        )


def _window(args: argparse.Namespace, zero_ev: float) -> tuple[float, float]:
    """Absolute window from which the shown one gets its states: Gaussians reach into it from outside."""
    reach = _REACH * args.width
    return zero_ev + args.window[0] - reach, zero_ev + args.window[1] + reach


def _density(args: argparse.Namespace, bands: Bands, mesh: KMesh, cell: NDArray, energy_ev: float) -> float:
    """States/eV at an energy: of linear tetrahedra at it, of Gaussians over a thousandth of their width."""
    from postprocess.dos import number_of_states, tetrahedron_density

    if args.method == "tetrahedron":
        return tetrahedron_density(bands, mesh, cell, energy_ev)
    step = 1e-3 * args.width
    ends = np.array([energy_ev - step / 2, energy_ev + step / 2])
    states = number_of_states(bands, mesh, cell, ends, method=args.method, width_ev=args.width)[0].sum(axis=0)
    return float(states[1] - states[0]) / step


def _dos(args: argparse.Namespace, source: Source, bands, mesh, zero_ev: float) -> DensityOfStates:
    from postprocess.dos import density_of_states, spin_weights

    shares, labels = None, ()
    if bands.spin is not None:
        shares, labels = spin_weights(bands, np.eye(3)[spectrum.AXES[args.project]])
    return density_of_states(
        bands,
        mesh,
        source.sample.structure.reciprocal_cell,
        window_ev=(zero_ev + args.window[0], zero_ev + args.window[1]),
        n_points=args.points,
        method=args.method,
        width_ev=args.width,
        weights=shares,
        labels=labels,
    )
