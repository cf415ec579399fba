"""``hamnet fermi``: Fermi level and gap of a sample or a DFT run, by counting. Keys of ``--json``: docs/json.md."""

from __future__ import annotations

import argparse

from hamnet.errors import ConfigError

from . import spectrum
from .output import number, print_json
from .solver import add_solver_arguments, solver_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    spectrum.add_sample_arguments(parser)
    parser.add_argument(
        "--hint", type=float, metavar="EV", help="a level near by, as that of the tile (the sample's own, or a guess)"
    )
    spectrum.add_filling_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_solver_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from .sources import hamiltonian_of, load_source

    source = load_source(args.file, args.sample, stored=args.stored)
    electrons = spectrum.electrons_of(args, source)
    if electrons is None:
        raise ConfigError(
            f"{source.sample.name} has no number of electrons", expected="one", remedy="give --electrons N",
            path=source.path,
        )  # fmt: skip
    mesh = spectrum.mesh_of(args, source)
    hint = source.sample.fermi_energy_ev if args.hint is None else args.hint
    with solver_of(args, hamiltonian_of(source), source.sample.operator("overlap")) as solver:
        temperature = spectrum.temperature_of(args, solver)
        level = solver.level(mesh.k_frac, electrons, temperature, hint)
    result = {
        "sample": source.sample.name,
        "fermi_energy_eV": level.energy_ev,
        "chemical_potential_eV": level.chemical_potential_ev,
        "vbm_eV": level.vbm_ev,
        "cbm_eV": level.cbm_ev,
        "gap_eV": level.gap_ev,
        "direct_gap_eV": level.direct_gap_ev,
        "n_electrons": level.n_electrons,
        "temperature_K": level.temperature_k,
        "mesh": mesh.size,
        "run_fermi_energy_eV": source.sample.fermi_energy_ev,
    }
    if args.json:
        print_json(result)
        return 0
    kind = "metal" if level.vbm_ev is None else f"gap {level.gap_ev:.4f} eV, direct {level.direct_gap_ev:.4f} eV"
    print(f"{source.sample.name}: E_F {level.energy_ev:.6f} eV, {kind}")
    if level.vbm_ev is not None:
        print(f"band edges {level.vbm_ev:.6f} and {number(level.cbm_ev, '.6f')} eV")
    print(f"{electrons:g} electrons, {' × '.join(map(str, mesh.size))} k, {temperature:g} K")
    return 0
