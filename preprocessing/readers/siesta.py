"""Reader of SIESTA runs, all spin kinds, HSX (all versions) or NetCDF.

Conventions of the files and what is done about them: :mod:`preprocessing.readers.siesta_blocks`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hamnet.blocks import BlockOperator
from hamnet.errors import ReaderError
from hamnet.sample import Sample, mulliken

from .compressed import read_buffer
from .protocol import BandReference, ReadOptions, Run
from .siesta_bands import band_reference, eig_reference
from .siesta_blocks import BlockLayout, density_pauli, hamiltonian_pauli, shifts_from_images, shifts_from_vectors
from .siesta_crystal import Crystal, read_crystal
from .siesta_files import RunFiles, find_run_files, looks_like_siesta, missing
from .siesta_matrices import Pattern, SiestaMatrices, read_dm, read_hsx, read_netcdf_matrices
from .siesta_moments import initial_moments, is_single_diagonalisation
from .siesta_netcdf import open_netcdf
from .siesta_output import MainOutput, read_output
from .siesta_tables import Eigenvalues, read_eig, read_forces
from .siesta_units import SiestaUnits, choose_units

__all__ = ["SiestaReader"]

_SPIN_NAMES = {1: "none", 2: "collinear", 4: "non-collinear", 8: "spin-orbit"}
_SETTINGS = {
    "Spin configuration": "spin",
    "Mesh Cutoff": "mesh_cutoff",
    "Electronic Temperature": "electronic_temperature",
    "DM tolerance for SCF": "dm_tolerance",
    "SCF mix quantity": "mixed_quantity",
    "Max. number of SCF Iter": "max_scf_steps",
    "Net charge of the system": "net_charge",
}
_ELECTRON_TOLERANCE = 1e-3
_FILES_AGREE_RY = 1e-5


@dataclass(slots=True)
class _Notes:
    """Choices with their reasons, and warnings, on the way into the provenance."""

    choices: dict[str, dict[str, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def choose(self, name: str, value: str, reason: str) -> None:
        self.choices[name] = {"value": value, "reason": reason}


class SiestaReader:
    """Reads SIESTA run folders (or the run of a named ``.fdf`` or ``.HSX``)."""

    code = "siesta"

    def recognises(self, path: Path) -> bool:
        """Whether a ``.HSX`` or ``.fdf`` is there, plain or compressed."""
        return looks_like_siesta(path)

    def read(self, path: Path, options: ReadOptions) -> Run:
        """One run. `options.constraint` has no meaning here: SIESTA does not constrain moments."""
        files, notes = find_run_files(path), _Notes()
        matrices, source, checksum = _read_matrices(files, notes)
        n_spin = len(matrices.hamiltonian_ry)
        output = read_output(files.output, int(matrices.orbital_atoms[-1]) + 1, n_spin=n_spin)
        eig_path = files.find("EIG")
        eig = read_eig(eig_path) if eig_path else None
        units, reason = choose_units(output.version, matrices.fermi_ry, eig.fermi_ev if eig else None, source)
        notes.choose("units", f"1 Bohr = {units.bohr_ang} Å, 1 Ry = {units.rydberg_ev} eV", reason)
        crystal = read_crystal(files, matrices, units)
        layout = _layout(matrices, crystal, units, source)
        stored = layout.operator(hamiltonian_pauli(matrices.hamiltonian_ry) * units.rydberg_ev, source)
        overlap = layout.operator(matrices.overlap[None], source)
        density = _density(files, matrices, layout, notes)
        n_electrons = _electrons(crystal, files, matrices, source)
        charges, computed = _populations(density, overlap, n_electrons, output, notes)
        moments = _moments(options, files, crystal, output, n_spin, density, computed, notes)
        forces = files.find("FA")
        violation = stored.hermiticity_violation()
        if violation > 1e-5:
            notes.warnings.append(f"stored H is Hermitian to {violation:.1e} eV only")
        sample = Sample(
            name=f"{files.folder.resolve().parent.name}/{files.folder.resolve().name}",
            structure=crystal.structure.with_moments(moments),
            basis=crystal.basis,
            overlap=overlap.symmetrised(),
            hamiltonian=stored.symmetrised(),
            density=density.symmetrised() if density is not None and "density" in options.operators else None,
            fermi_energy_ev=_fermi(matrices, eig, output, units, files),
            total_energy_ev=output.total_energy_ev,
            n_electrons=n_electrons,
            forces_ev_per_ang=read_forces(forces, len(crystal.structure)) if forces else None,
            charges=charges,
            computed_moments=computed,
            spin_orbit=n_spin == 8,
            provenance=_provenance(files, matrices, crystal, output, source, checksum, notes),
        )
        printed = output.populations
        return Run(
            sample=sample,
            stored_hamiltonian=stored,
            references=_references(files, matrices, crystal, output, eig, units, notes),
            printed_moments=printed.moments if printed else None,
            code_moments=computed if density is not None else None,
            code_electrons=float(charges.sum()) if density is not None and charges is not None else None,
            moment_precision_mub=printed.moment_precision_mub if printed else 0.0,
            converged=output.converged or is_single_diagonalisation(output),
            convergence=_convergence(output),
        )


def _read_matrices(files: RunFiles, notes: _Notes) -> tuple[SiestaMatrices, Path, str]:
    """H and S, the file that they are from and its sha256. The NetCDF file counts first: it has double precision."""
    hsx, netcdf = files.find("HSX"), files.find("nc")
    if hsx is None and netcdf is None:
        raise missing(files.folder, f"{files.label}.HSX", "Hamiltonian and overlap of the run")
    single = None
    if hsx is not None:
        data = read_buffer(hsx)
        single = read_hsx(data, hsx)
        chosen = single, hsx, hashlib.sha256(data).hexdigest()
    double = None
    if netcdf is not None:
        content = bytes(read_buffer(netcdf))
        with open_netcdf(content, netcdf) as root:
            double = read_netcdf_matrices(root, netcdf)
        if double is not None:
            chosen = double, netcdf, hashlib.sha256(content).hexdigest()
    if double is None and single is None:
        raise missing(files.folder, f"{files.label}.HSX", f"a Hamiltonian; {files.label}.nc holds none")
    if double is not None and single is not None:
        _check_same_run(single, double, files)
        notes.choose("hamiltonian", chosen[1].name, "double precision; agrees with the HSX file")
    elif double is None and netcdf is not None:
        notes.choose("hamiltonian", chosen[1].name, f"{netcdf.name} holds no Hamiltonian")
    else:
        notes.choose("hamiltonian", chosen[1].name, "the only file with H")
    return chosen


def _check_same_run(single: SiestaMatrices, double: SiestaMatrices, files: RunFiles) -> None:
    same = single.pattern.equals(double.pattern) and single.hamiltonian_ry.shape == double.hamiltonian_ry.shape
    difference = float(np.abs(single.hamiltonian_ry - double.hamiltonian_ry).max()) if same else np.inf
    if difference > _FILES_AGREE_RY:
        raise ReaderError(
            f"{files.label}.HSX and {files.label}.nc hold different Hamiltonians (by {difference:.2g} Ry)",
            expected="files of one run",
            remedy="remove the one that another run left behind",
            path=files.folder,
        )


def _layout(matrices: SiestaMatrices, crystal: Crystal, units: SiestaUnits, source: Path) -> BlockLayout:
    pattern, atoms, structure = matrices.pattern, matrices.orbital_atoms, crystal.structure
    if matrices.vectors_bohr is not None:
        shifts = shifts_from_vectors(pattern, matrices.vectors_bohr * units.bohr_ang, atoms, structure, source)
    else:
        assert matrices.cell is not None  # either vectors or images are in every file
        shifts = shifts_from_images(pattern, crystal.ordered(matrices.cell), atoms, structure)
    return BlockLayout.of(pattern, shifts, crystal.basis, crystal.basis.species_of(structure), atoms)


def _density(files: RunFiles, matrices: SiestaMatrices, layout: BlockLayout, notes: _Notes) -> BlockOperator | None:
    path, columns = files.find("DM"), matrices.density
    n_spin = len(matrices.hamiltonian_ry)
    if path is not None:
        pattern, columns = read_dm(read_buffer(path), path, n_orbitals=matrices.pattern.n_orbitals, n_spin=n_spin)
        columns = _in_pattern(pattern, columns, matrices.pattern, path)
        if files.fdf.logical("Write.DM", "WriteDM", default=True):
            notes.warnings.append(
                f"{path.name} holds the density after mixing; `Write.DM F`, `Write.DM.End.Of.Cycle T` write the output"
            )
    elif columns is None:
        return None
    part = "; real part only, as SIESTA keeps it without spin–orbit coupling" if n_spin == 4 else ""
    notes.choose("density", path.name if path else f"{files.label}.nc", f"density matrix of the last step{part}")
    return layout.operator(density_pauli(columns), path or files.folder)


def _in_pattern(pattern: Pattern, values: NDArray, target: Pattern, path: Path) -> NDArray[np.float64]:
    """(n_spin, nnz of target): elements of another pattern in the places of `target`."""
    if pattern.equals(target):
        return values
    stride = max(int(pattern.columns.max()), int(target.columns.max())) + 1
    keys, places = pattern.rows * stride + pattern.columns, target.rows * stride + target.columns
    order = np.argsort(places)
    found = np.minimum(np.searchsorted(places, keys, sorter=order), len(places) - 1)
    inside = places[order[found]] == keys
    if (np.abs(values[:, ~inside]) > 1e-10).any():
        raise ReaderError(
            "a density matrix with elements where H has none",
            expected="density and Hamiltonian of one run",
            remedy="remove a DM that another run left behind",
            path=path,
        )
    result = np.zeros((len(values), len(places)))
    result[:, order[found[inside]]] = values[:, inside]
    return result


def _electrons(crystal: Crystal, files: RunFiles, matrices: SiestaMatrices, source: Path) -> float:
    valence = sum(ion.valence for ion in crystal.ions)
    expected = valence - files.fdf.number("NetCharge", default=0.0)
    if abs(expected - matrices.n_electrons) > _ELECTRON_TOLERANCE:
        raise ReaderError(
            f"{matrices.n_electrons:g} electrons",
            expected=f"{expected:g}: the valence of all atoms less NetCharge",
            remedy="are all files of this run?",
            path=source,
        )
    return expected


def _populations(
    density: BlockOperator | None, overlap: BlockOperator, n_electrons: float, output: MainOutput, notes: _Notes
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Mulliken charges and moments from the density matrix, or as printed where there is none."""
    if density is not None:
        charges, moments = mulliken(density.symmetrised(), overlap.symmetrised())
        if abs(charges.sum() - n_electrons) > _ELECTRON_TOLERANCE * len(charges):
            raise ReaderError(
                f"Tr ρS = {charges.sum():.6f}",
                expected=f"{n_electrons:g} electrons",
                remedy="remove a density matrix that another run left behind",
                path=notes.choices["density"]["value"],
            )
        return charges, moments
    if output.populations is None:
        return None, None
    notes.choose("charges and computed moments", "as printed", "no density matrix; three to five decimals")
    return output.populations.charges, output.populations.moments


def _moments(
    options: ReadOptions,
    files: RunFiles,
    crystal: Crystal,
    output: MainOutput,
    n_spin: int,
    density: BlockOperator | None,
    computed: NDArray[np.float64] | None,
    notes: _Notes,
) -> NDArray[np.float64] | None:
    """The moments that the network takes as input, (n, 3) μ_B; None for a run without spin."""
    if n_spin == 1:
        notes.choose("moments", "none", "run without spin")
        return None
    single = is_single_diagonalisation(output)
    wanted = options.moments
    if wanted == "auto":
        wanted = "initial" if single else "density"
        because = (
            "H was diagonalised once and belongs to the prescribed density"
            if single
            else "H is that of the last density"
        )
    else:
        because = "asked for"
        if single and wanted == "density":
            notes.warnings.append("H belongs to the prescribed moments, not to those of the output density")
        if not single and wanted == "initial":
            notes.warnings.append("H belongs to the last density, not to the prescribed moments")
    if wanted == "initial":
        if output.start == "other":
            raise ReaderError(
                "a run that did not start from superposed atoms",
                expected="moments prescribed by DM.InitSpin",
                remedy="take moments=density, or run it with `DM.UseSaveDM F`",
                path=files.output,
            )
        moments, how = initial_moments(files.fdf, crystal.ions, n_spin)
        notes.choose("moments", "initial", f"{because}; {how}")
        return moments
    if density is None or computed is None:
        raise missing(files.folder, f"{files.label}.DM", f"the density matrix, for moments ({because})")
    if not output.converged:
        notes.warnings.append("moments are those of an unconverged density")
    notes.choose("moments", "density", because)
    return computed


def _fermi(
    matrices: SiestaMatrices, eig: Eigenvalues | None, output: MainOutput, units: SiestaUnits, files: RunFiles
) -> float:
    if matrices.fermi_ry is not None:
        return matrices.fermi_ry * units.rydberg_ev
    fermi = eig.fermi_ev if eig else output.fermi_ev
    if fermi is None:
        raise missing(files.folder, f"{files.label}.EIG", "the Fermi energy")
    return fermi


def _references(
    files: RunFiles,
    matrices: SiestaMatrices,
    crystal: Crystal,
    output: MainOutput,
    eig: Eigenvalues | None,
    units: SiestaUnits,
    notes: _Notes,
) -> tuple[BandReference, ...]:
    single, references = matrices.precision == "single", []
    kp, bands = files.find("KP"), files.find("bands")
    if eig is not None and kp is not None:
        name = f"{files.label}.EIG"
        reference, how = eig_reference(
            name, eig, kp, crystal.cell_bohr, files.fdf, output.k_mesh, axes=crystal.axes, single=single
        )
        notes.choose("k points of .EIG", how, "exact where a mesh agrees with the digits of .KP")
        references.append(reference)
    elif eig is not None:
        notes.warnings.append(f"no {files.label}.KP: eigenvalues in .EIG cannot be compared")
    if bands is not None:
        reference = band_reference(bands, crystal.cell_bohr, files.fdf, units, axes=crystal.axes, single=single)
        if reference is not None:
            references.append(reference)
    return tuple(references)


def _convergence(output: MainOutput) -> str:
    if is_single_diagonalisation(output):
        return f"one diagonalisation of the prescribed density ({output.convergence})"
    return output.convergence


def _provenance(
    files: RunFiles,
    matrices: SiestaMatrices,
    crystal: Crystal,
    output: MainOutput,
    source: Path,
    checksum: str,
    notes: _Notes,
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        key: output.settings[name] for name, key in _SETTINGS.items() if name in output.settings
    }
    settings["xc"] = "/".join(
        files.fdf.text(key, default=default) for key, default in (("XC.functional", "LDA"), ("XC.authors", "PZ"))
    )
    if output.k_mesh is not None:
        settings["k_mesh"] = output.k_mesh.tolist()
    if not output.finished:
        notes.warnings.append(f"{files.output.name} does not say that the run ended")
    return {
        "code": SiestaReader.code,
        "version": output.version,
        "spin": _SPIN_NAMES[len(matrices.hamiltonian_ry)],
        "settings": settings,
        "files": {"hamiltonian": source.name, "format": matrices.format_name, "geometry": crystal.source},
        "checksum": {"algorithm": "sha256", "file": source.name, "value": checksum},
        "convergence": _convergence(output),
        "choices": notes.choices,
        "warnings": notes.warnings,
    }
