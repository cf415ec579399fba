"""``hamnet solve``: certified windows of eigenstates at given k, into a file. Keys of ``--json``: docs/json.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hamnet.errors import ConfigError

from . import spectrum
from .output import print_json, progress_bar
from .solver import SparseSolver, add_solver_arguments, solver_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from postprocess.solvers.error_bars import BondErrors
    from postprocess.solvers.pencil import SparsePencil
    from postprocess.solvers.tasks import Shard

    from .sources import Source

    Place = tuple[tuple[float, ...], int]

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    spectrum.add_sample_arguments(parser)
    add("-o", "--output", type=Path, required=True, metavar="STATES", help=".h5 file of the states")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--window", type=float, nargs=2, metavar=("EMIN", "EMAX"), help="all states between, eV")
    which.add_argument("--nearest", type=int, metavar="N", help="at least the N states nearest to the zero of energy")
    text = "zero of energy, absolute eV (the Fermi level of the run; for a predicted sample see `hamnet fermi`)"
    add("--fermi", type=float, metavar="EV", help=text)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--k", type=float, nargs=3, action="append", metavar=("K1", "K2", "K3"), dest="points",
        help="k in fractions of the reciprocal vectors; may be repeated (0 0 0)",
    )  # fmt: skip
    where.add_argument("--mesh", type=int, nargs=3, metavar=("N1", "N2", "N3"), help="all k of a mesh")
    add("--vectors", action="store_true", help="write eigenvectors too")
    text = (
        "do the i-th of n parts of the k points only (0 … n−1), as in a job array; parts share --partial, and a call "
    )
    text += "without --shard joins them"
    add("--shard", metavar="i/n", help=text)
    text = "errors of H, for an error of each level: …_uncertainty.npz of `hamnet predict`, output of `hamnet evaluate "
    text += "--json`, or a number in meV (docs/error_bars.md)"
    add("--errors", metavar="FILE|MEV", help=text)
    outside = parser.add_mutually_exclusive_group()
    text = "write H(k), S(k) and a SLEPc script for the --nearest states of one k into a folder, and stop"
    outside.add_argument("--export", type=Path, metavar="DIR", help=text)
    text = "take the states that this script found, refined and counted"
    outside.add_argument("--from", type=Path, metavar="DIR", dest="solved", help=text)
    add("--json", action="store_true", help="print one JSON object")
    add_solver_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from hamnet.bloch import n_channels
    from postprocess.solvers.error_bars import ghost_warning, level_errors
    from postprocess.solvers.pencil import SparsePencil
    from postprocess.solvers.petsc import import_window
    from postprocess.solvers.results import write_states
    from postprocess.solvers.states import Keep, describe
    from postprocess.solvers.tasks import NearestTask, WindowTask

    from .sources import hamiltonian_of, load_source

    shard = _shard(args)
    source = load_source(args.file, args.sample, stored=args.stored)
    hamiltonian, overlap = hamiltonian_of(source), source.sample.operator("overlap")
    zero, k_frac = _zero(args, source), _k_points(args)
    places = [(tuple(map(float, k)), channel) for k in k_frac for channel in range(n_channels(hamiltonian))]
    if args.nearest is not None:
        tasks = [NearestTask(*place, zero, args.nearest) for place in places]  # type: ignore[arg-type]
    else:
        low, high = (zero + end for end in args.window)
        tasks = [WindowTask(*place, low, high) for place in places]  # type: ignore[arg-type]
    # Counts certify the states of every back-end, the dense one included.
    bonds = None if args.errors is None else _bond_errors(args, source)
    keep = Keep(spin=hamiltonian.n_spin > 1, vectors=args.vectors or bonds is not None)
    if args.export is not None:
        return _export(args, SparsePencil(hamiltonian, overlap), places, zero)
    with solver_of(args, hamiltonian, overlap, certified=True) as solver:
        assert isinstance(solver, SparseSolver)
        runner = solver.runner(keep, "states")
        if args.solved is not None:
            at = runner.pencil.at(*_only(places))
            states = [describe(at, import_window(runner.analysis, at, args.solved), keep)]
        else:
            with progress_bar("states") as progress:
                states = runner.run(tasks, shard=shard, on_progress=progress)
        if shard is None:
            attributes = {"sample": source.sample.name, "zero_eV": zero, "n_spin": hamiltonian.n_spin}
            kept = states if args.vectors else [replace(state, vectors=None) for state in states]
            write_states(args.output, kept, attributes)
        errors = None if bonds is None else [level_errors(state, runner.pencil, bonds) for state in states]
    warning = ghost_warning(states)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    result = {
        "sample": source.sample.name,
        "output": None if shard else str(args.output),
        "zero_eV": zero,
        "backend": runner.analysis.name,
        "dimension": runner.pencil.dim,
        "n_k": len(k_frac),
        "n_channels": runner.pencil.n_channels,
        "n_states": sum(map(len, states)),
        "n_states_by_k": [len(s) for s in states],
        "first_level_by_k": [s.first for s in states],
        "window_by_k_eV": [[s.low_ev, s.high_ev] for s in states],
        "residual_max_eV": max((s.residual_ev for s in states), default=0.0),
        "softness_max": max((float(s.softness.max(initial=0.0)) for s in states), default=0.0),
        "level_error_by_k_meV": None if errors is None else [1000 * e for e in errors],
        "warning": warning,
        "n_factorisations": sum(s.n_factors for s in states),
        "n_block_solves": sum(s.n_solves for s in states),
    }
    if args.json:
        print_json(result)
        return 0
    print(
        f"{result['sample']}: {result['n_states']} states at {result['n_k']} k, all that the counts say; "
        f"largest residual {result['residual_max_eV']:.1e} eV"
    )
    if errors is not None and any(map(len, errors)):
        every = 1000 * np.concatenate(errors)
        print(f"errors of levels against each other: {every.min():.2g} to {every.max():.2g} meV (standard deviation)")
    print(
        f"{result['n_factorisations']} factorisations ({result['backend']}), {result['n_block_solves']} block solutions"
    )
    print(f"wrote {args.output}" if shard is None else f"part {args.shard} is in {args.partial}")
    return 0


def _bond_errors(args: argparse.Namespace, source: Source) -> BondErrors:
    from postprocess.solvers.error_bars import bond_errors, read_pair_errors

    from .sources import hamiltonian_of

    hamiltonian, structure = hamiltonian_of(source), source.sample.structure
    try:
        error = float(args.errors) / 1000
    except ValueError:
        error = read_pair_errors(args.errors, structure, hamiltonian.pairs)[0]
    return bond_errors(structure, hamiltonian.pairs, error, hamiltonian.n_spin)


def _export(args: argparse.Namespace, pencil: SparsePencil, places: Sequence[Place], zero: float) -> int:
    from postprocess.solvers.petsc import export_pencil

    if args.nearest is None:
        raise ConfigError("--export of a window", expected="--nearest N, states next to the zero of energy")
    export_pencil(pencil.at(*_only(places)), args.export, zero, args.nearest)
    if args.json:
        print_json({"export": str(args.export), "dimension": pencil.dim, "nnz": pencil.nnz})
    else:
        print(f"wrote {args.export}: run solve.py there, then hamnet solve … --from {args.export}")
    return 0


def _only(places: Sequence[Place]) -> Place:
    if len(places) != 1:
        raise ConfigError(f"{len(places)} k points and channels", expected="one for SLEPc, such as --k 0 0 0")
    return places[0]


def _shard(args: argparse.Namespace) -> Shard | None:
    from postprocess.solvers.tasks import Shard

    if args.shard is None:
        return None
    if args.partial is None:
        raise ConfigError("--shard without a folder", expected="--partial DIR, which all parts share")
    index, slash, of = args.shard.partition("/")
    if not (slash and index.isdecimal() and of.isdecimal()):
        raise ConfigError(f"--shard {args.shard}", expected="i/n, such as 0/8")
    return Shard(int(index), int(of))


def _zero(args: argparse.Namespace, source: Source) -> float:
    own = None if source.sample.provenance.get("predicted") else source.sample.fermi_energy_ev
    zero = own if args.fermi is None else args.fermi
    if zero is not None:
        return zero
    raise ConfigError(
        f"{source.sample.name} has no Fermi level of its own", expected="a zero of energy",
        remedy="count with `hamnet fermi`, and give --fermi EV", path=source.path,
    )  # fmt: skip


def _k_points(args: argparse.Namespace) -> NDArray[np.float64]:
    from postprocess.kmesh import k_mesh

    if args.mesh is not None:
        return k_mesh(args.mesh).k_frac
    return np.array(args.points or [[0.0, 0.0, 0.0]])
