"""What the verbs on spectra (bands, dos) share: their options, the zero of energy, estimates, progress and report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hamnet.errors import ConfigError

from .solver import add_solver_arguments
from .sources import Source, load_source

if TYPE_CHECKING:
    from hamnet.blocks import BlockOperator
    from hamnet.sample import Sample
    from postprocess.fermi import FermiLevel
    from postprocess.grouping import Grouping
    from postprocess.kmesh import KMesh

    from .solver import Solver

__all__ = [
    "AXES",
    "Zero",
    "add_filling_arguments",
    "add_sample_arguments",
    "add_source_arguments",
    "add_zero_arguments",
    "color_of",
    "dense_mesh",
    "electrons_of",
    "grouping_of",
    "load_overlay",
    "mesh_of",
    "print_report",
    "report",
    "temperature_of",
    "zero_of",
]

AXES = {"spin-x": 0, "spin-y": 1, "spin-z": 2}
_DENSITY_ANG = 6.0


@dataclass(frozen=True, slots=True)
class Zero:
    """The Fermi level, who says so (``given``, ``run``, ``counted``), and the count if there was one."""

    energy_ev: float
    source: str
    counted: FermiLevel | None = None


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="sample set (.h5) or DFT run folder")
    add("--sample", metavar="NAME", help="sample of the set, if it holds several")
    add(
        "--stored",
        action="store_true",
        help="of DFT runs, H as the code stored it, with the penalty of constrained moments: it has the code's own "
        "bands (default: penalty subtracted)",
    )


def add_source_arguments(
    parser: argparse.ArgumentParser, *, overlay: str = "set or run to draw in black behind, on the same scale"
) -> None:
    add_sample_arguments(parser)
    add = parser.add_argument
    add("--overlay", type=Path, metavar="FILE", help=overlay)
    add("--overlay-sample", metavar="NAME", help="sample of the overlay set, if it holds several (that of --sample)")
    add("-o", "--output", type=Path, required=True, metavar="FIGURE", help=".png, .pdf or .svg; data go beside it")
    add(
        "--window",
        type=float,
        nargs=2,
        default=(-6.0, 4.0),
        metavar=("EMIN", "EMAX"),
        help="energies shown, eV from the Fermi level (-6 4)",
    )
    add("--json", action="store_true", help="print one JSON object")


def add_zero_arguments(parser: argparse.ArgumentParser) -> None:
    level = parser.add_argument_group(
        "Fermi level and mesh",
        "The level is that of the DFT run. It is counted on the mesh for a predicted Hamiltonian, or if asked for.",
    )
    level.add_argument("--fermi", type=float, metavar="EV", help="absolute level to use, eV")
    level.add_argument(
        "--count",
        action="store_true",
        help="count electrons also where the run has a level (of bands, --mesh and --density imply it)",
    )
    add_filling_arguments(level)
    add_solver_arguments(parser)


def add_filling_arguments(group: argparse._ActionsContainer) -> None:
    """What a count of electrons needs."""
    text = "electrons per cell; with a level of the run, implies --count (the sample's)"
    group.add_argument("--electrons", type=float, metavar="N", help=text)
    text = "of occupations (300, and 0 with a sparse solver)"
    group.add_argument("--temperature", type=float, metavar="K", help=text)
    mesh = group.add_mutually_exclusive_group()
    mesh.add_argument("--mesh", type=int, nargs=3, metavar=("N1", "N2", "N3"), help="k points along each direction")
    text = f"k points per 1/Å of each reciprocal vector ({_DENSITY_ANG:g})"
    mesh.add_argument("--density", type=float, metavar="D", help=text)


def load_overlay(args: argparse.Namespace) -> Source | None:
    """The reference; of a set with several samples, by default the one with the name asked for in the first set."""
    if args.overlay is None:
        return None
    is_run = args.overlay.is_dir()
    return load_source(
        args.overlay, args.overlay_sample or (None if is_run else args.sample), stored=args.stored and is_run
    )


def color_of(choice: str, n_spin: int) -> str:
    """The choice with ``auto`` decided. Raises :class:`ConfigError` for a spin direction that H has not."""
    if choice == "auto":
        return "spin-z" if n_spin == 4 else "none"
    if choice in AXES and n_spin < (2 if choice == "spin-z" else 4):
        raise ConfigError(
            f"{choice} of a Hamiltonian {'without spin' if n_spin == 1 else 'with collinear spin along z'}",
            expected="a vector Hamiltonian" if n_spin == 2 else "a Hamiltonian with spin",
        )
    return choice


def temperature_of(args: argparse.Namespace, solver: Solver) -> float:
    """Of occupations: as given, else 300 K, but 0 where each state within 20 kT has to be searched for."""
    if args.temperature is not None:
        return args.temperature
    return 0.0 if solver.sparse else 300.0


def grouping_of(choice: str, hamiltonian: BlockOperator) -> Grouping | None:
    """Groups of orbitals of a projection onto species, shells or atoms, None for other choices."""
    from postprocess.grouping import group_orbitals

    if choice not in ("species", "shell", "atom"):
        return None
    return group_orbitals(hamiltonian.basis, hamiltonian.pairs.species, choice)  # type: ignore[arg-type]


def mesh_of(args: argparse.Namespace, source: Source) -> KMesh:
    """The mesh asked for: sizes, or a density along the directions with dispersion."""
    from postprocess.kmesh import k_mesh

    if args.mesh is not None:
        return k_mesh(args.mesh)
    return dense_mesh(source.sample, _DENSITY_ANG if args.density is None else args.density)


def dense_mesh(sample: Sample, density_ang: float) -> KMesh:
    """The mesh with so many points per 1/Å along the directions in which the pairs reach into the next cell."""
    from postprocess.kmesh import k_mesh, mesh_size
    from postprocess.kpath import periodic_directions

    return k_mesh(mesh_size(sample.structure, density_ang, periodic_directions(sample.structure, sample.pairs)))


def electrons_of(args: argparse.Namespace, source: Source) -> float | None:
    """Electrons per cell as given, or those of the sample."""
    return source.sample.n_electrons if args.electrons is None else args.electrons


def zero_of(args: argparse.Namespace, source: Source, solver: Solver, counted: FermiLevel | None = None) -> Zero:
    """The Fermi level as the options say; a level already `counted` on the mesh is not counted again."""
    # A Fermi level in a predicted sample would be that of another Hamiltonian.
    own = None if source.sample.provenance.get("predicted") else source.sample.fermi_energy_ev
    if args.fermi is not None:
        return Zero(args.fermi, "given")
    if own is not None and args.electrons is None and not args.count:
        return Zero(own, "run")
    electrons = electrons_of(args, source)
    if electrons is None:
        raise ConfigError(
            f"{source.sample.name} has neither a Fermi level nor a number of electrons",
            expected="one of them",
            remedy="give --electrons N or --fermi EV",
            path=source.path,
        )
    if counted is None:
        # A level of another Hamiltonian is a place to begin.
        hint = source.sample.fermi_energy_ev
        counted = solver.level(mesh_of(args, source).k_frac, electrons, temperature_of(args, solver), hint)
    return Zero(counted.energy_ev, "counted", counted)


def report(
    args: argparse.Namespace, source: Source, zero: Zero, level: FermiLevel | None, data: Sequence[Path]
) -> dict[str, Any]:
    """Keys that both verbs print; of a gap null where it is not known and 0 for a metal."""
    return {
        "sample": source.sample.name,
        "figure": str(args.output),
        "data": [str(file) for file in data],
        "fermi_energy_eV": zero.energy_ev,
        "fermi_source": zero.source,
        "n_electrons": electrons_of(args, source),
        "gap_eV": None if level is None else level.gap_ev,
        "direct_gap_eV": None if level is None else level.direct_gap_ev,
        "vbm_eV": None if level is None else level.vbm_ev,
        "cbm_eV": None if level is None else level.cbm_ev,
    }


def print_report(args: argparse.Namespace, result: dict[str, Any], how: str) -> None:
    """The result as JSON, or a few lines for people."""
    from .output import number, print_json

    if args.json:
        print_json(result)
        return
    print(f"{result['sample']}: {how}")
    print(
        f"E_F {result['fermi_energy_eV']:.4f} eV ({result['fermi_source']}), gap {number(result['gap_eV'], '.4f')} eV"
    )
    if result.get("overlay_max_abs_meV") is not None:
        print(
            f"overlay: mean {result['overlay_mean_abs_meV']:.3g}, largest {result['overlay_max_abs_meV']:.3g} meV "
            f"of {result['overlay_states_compared']} states in the window"
        )
    if "states_below_fermi" in result:
        print(f"{result['states_below_fermi']:.6g} states below E_F, {number(result['n_electrons'], '.6g')} electrons")
    print("wrote " + ", ".join([result["figure"], *result["data"]]))
