"""OpenMX runs: ``*.scfout`` with its ``.out``, ``.std`` and ``.Band``, to a sample.

The pieces: :mod:`.openmx_scfout` reads the bytes, :mod:`.openmx_blocks` puts matrix elements into the house order,
:mod:`.openmx_input` and :mod:`.openmx_output` parse the texts, :mod:`.openmx_companions` decides which belong to
the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hamnet.basis import Basis
from hamnet.blocks import BlockOperator
from hamnet.errors import ReaderError, StructureError
from hamnet.sample import Sample, mulliken
from hamnet.structure import Structure, frozen

from .compressed import files_ending, logical_name, read_buffer
from .openmx_blocks import BlockLayout, make_hermitian, pauli_rows, vector_rows
from .openmx_companions import Companions, band_references, find_companions
from .openmx_constraint import constraint_energy, constraint_field, subtract_penalty
from .openmx_input import AtomRows, InputText
from .openmx_momentum import momentum_sign
from .openmx_output import OutFile
from .openmx_scfout import Scfout, parse_scfout
from .openmx_units import BOHR_ANG, HARTREE_EV
from .protocol import ReadOptions, Run

__all__ = ["OpenMXReader"]

_SPIN = {0: "none", 1: "collinear", 3: "vector"}
_VECTOR = 3
_EXTRA_TERMS = {
    "scf.Hubbard.U": "hubbard_u",
    "scf.NC.Zeeman.Spin": "zeeman_spin",
    "scf.NC.Zeeman.Orbital": "zeeman_orbital",
}
"""Switches of terms that OpenMX adds to H and that stay in it."""


class OpenMXReader:
    """Reads runs of OpenMX 3.7 to 4.0 that were made with ``HS.fileout on``."""

    code = "openmx"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a ``.scfout`` file (plain, .gz, .xz, .zst) or a folder that holds one."""
        try:
            if path.is_dir():
                return bool(files_ending(path, ".scfout"))
            return logical_name(path).endswith(".scfout") and path.is_file()
        except OSError:
            return False

    def read(self, path: Path, options: ReadOptions) -> Run:
        """Read the run in a folder, or the one that a ``.scfout`` file names.

        Raises :class:`ReaderError` for a file that is missing, damaged or unknown, for printed files of another run,
        and for terms in H that cannot be treated as the options ask.
        """
        file = _scfout_path(Path(path))
        wanted = options.operators
        buffer = read_buffer(file)
        # The checksum takes longer than all the rest, and does not hold the interpreter lock.
        with ThreadPoolExecutor(1) as pool:
            checksum = pool.submit(_sha256, buffer)
            raw = parse_scfout(buffer, file, position="position" in wanted, momentum="momentum" in wanted)
            return _run(raw, options, checksum)


def _sha256(buffer: bytes | mmap) -> str:
    return sha256(buffer).hexdigest()


def _run(raw: Scfout, options: ReadOptions, checksum: Future[str]) -> Run:
    warnings: list[str] = []
    beside = find_companions(raw, warnings)
    text, out = beside.text, beside.out
    atoms = text.atoms(raw.n_atoms, tuple(s.label for s in text.species()), angles=raw.spin_switch == _VECTOR)
    basis, structure = _crystal(raw, text, atoms)
    layout = BlockLayout.build(raw, basis, basis.species_of(structure))

    overlap_rows = raw.overlap[None].copy()
    make_hermitian(layout, overlap_rows)
    overlap = layout.operator(overlap_rows)
    h_rows = _hamiltonian_rows(raw, layout)
    stored = layout.operator(h_rows)
    make_hermitian(layout, h_rows[::3] if raw.spin_switch == _VECTOR else h_rows)
    density = layout.operator(_density_rows(raw, layout))
    charges, moments = mulliken(density, overlap)
    field = _constraint(raw, text, atoms, moments, beside, options, warnings)
    if field is not None and options.constraint == "subtract":
        subtract_penalty(h_rows, field, overlap_rows[0], raw)
    converged, convergence = beside.convergence()
    references = band_references(raw, warnings)
    energy, forces = (None, None) if out is None else (out.total_energy_ha, out.forces_ha_per_bohr)
    sample = Sample(
        name=_name(raw.path),
        structure=_with_grid(structure, out).with_moments(_input_moments(raw, atoms, moments, options)),
        basis=basis,
        overlap=overlap,
        hamiltonian=layout.operator(h_rows),
        density=density if "density" in options.operators and _density_is_complete(raw, warnings) else None,
        position=_vector_operator(layout, raw.position, BOHR_ANG),
        momentum=_momentum(raw, layout, beside, options, warnings),
        fermi_energy_ev=raw.chemical_potential_ha * HARTREE_EV,
        total_energy_ev=None if energy is None else energy * HARTREE_EV,
        n_electrons=raw.n_electrons,
        forces_ev_per_ang=None if forces is None else frozen(forces * (HARTREE_EV / BOHR_ANG), np.float64),
        constraint_field_ev=None if field is None else frozen(field, np.float64),
        charges=frozen(charges, np.float64),
        computed_moments=frozen(moments, np.float64),
        spin_orbit=raw.spin_switch == _VECTOR and text.flag("scf.SpinOrbit.Coupling"),
        provenance=_provenance(raw, beside, options, checksum.result(), field is not None, warnings),
    )
    printed = None if out is None or out.moments is None else frozen(out.moments, np.float64)
    return Run(
        sample=sample,
        stored_hamiltonian=stored,
        references=references,
        printed_moments=printed,
        code_moments=_row_sum_moments(raw),
        # Half of the last digit: up − down is printed with 5 digits in a non-collinear run, else with 9.
        moment_precision_mub=6e-6 if raw.spin_switch == _VECTOR else 6e-10,
        converged=converged,
        convergence=convergence,
        code_electrons=float(charges.sum()),
        printed_band_energy_ev=None if out is None or out.band_energy_ha is None else out.band_energy_ha * HARTREE_EV,
    )


def _scfout_path(path: Path) -> Path:
    if path.is_file():
        return path
    found = files_ending(path, ".scfout")
    if len(found) != 1:
        if not path.exists():
            raise ReaderError("no such file or folder", path=path)
        raise ReaderError(
            ", ".join(p.name for p in found) or "no .scfout file",
            expected="one .scfout file (plain, .gz, .xz or .zst)",
            remedy="name one of them" if found else "OpenMX writes it with `HS.fileout on` in the input",
            path=path,
        )
    return found[0]


def _name(file: Path) -> str:
    folder = file.resolve().parent
    return f"{folder.parent.name}/{folder.name}"


# -- crystal ---------------------------------------------------------------------------------------------------------


def _crystal(raw: Scfout, text: InputText, atoms: AtomRows) -> tuple[Basis, Structure]:
    """Basis with the species of the atoms, and the structure without moments."""
    key = "Definition.of.Atomic.Species"
    used = {s.label: s for s in text.species() if s.label in atoms.labels}
    counts = np.array([used[label].n_orbitals for label in atoms.labels])
    if (counts != raw.n_orbitals).any():
        a = int(np.argmax(counts != raw.n_orbitals))
        species = used[atoms.labels[a]]
        raise text.fault(
            key,
            f"atom {a + 1} ({species.label}, {species.source}) with {counts[a]} orbitals",
            f"{raw.n_orbitals[a]}, as in record Total_NumOrbs of {raw.path.name}",
            "the text belongs to another run",
        )
    valence = _valence(raw, text, atoms)
    basis = Basis(tuple(replace(s, valence=valence.get(label)) for label, s in used.items()))
    try:
        structure = Structure(
            cell=raw.cell_bohr * BOHR_ANG,
            positions=raw.positions_bohr * BOHR_ANG,
            numbers=np.array([used[label].number for label in atoms.labels]),
            labels=atoms.labels,
        )
    except StructureError as error:
        raise ReaderError(
            error.found, expected=error.expected, remedy=error.remedy, path=raw.path, place="records tv and Gxyz"
        ) from error
    return basis, structure


def _with_grid(structure: Structure, out: OutFile | None) -> Structure:
    """The structure with the steps of the real-space grid that the run printed."""
    if out is None or out.grid is None:
        return structure
    return replace(structure, grid_axes=structure.cell / np.array(out.grid)[:, None])


def _valence(raw: Scfout, text: InputText, atoms: AtomRows) -> dict[str, float]:
    """Electrons of the neutral atom of each species, from the initial occupations; empty if they do not add up.

    The occupations are a guess of the user's, only their sum is checked by OpenMX for each atom.
    """
    electrons = atoms.occupations.sum(axis=1)
    labels = np.array(atoms.labels)
    valence = {label: float(electrons[labels == label][0]) for label in dict.fromkeys(atoms.labels)}
    each = np.array([valence[label] for label in atoms.labels])
    total = float(each.sum()) - text.number("scf.system.charge", 0.0)
    if np.abs(each - electrons).max() > 1e-6 or abs(total - raw.n_electrons) > 1e-6:
        return {}
    return valence


def _input_moments(
    raw: Scfout, atoms: AtomRows, computed: NDArray[np.float64], options: ReadOptions
) -> NDArray[np.float64] | None:
    if raw.spin_switch == 0:
        return None
    return atoms.initial_moments if options.moments == "initial" else computed


# -- operators -------------------------------------------------------------------------------------------------------


def _hamiltonian_rows(raw: Scfout, layout: BlockLayout) -> NDArray:
    """Pauli components of H in eV, as stored."""
    h, g = raw.hamiltonian, raw.hamiltonian_imag
    if g is None:
        return pauli_rows(h, HARTREE_EV)
    # Im ↑↓ is the sum of the exchange–correlation part h[3] and of the rest g[2].
    return vector_rows(layout, h[:2], g[:2], h[2], h[3] + g[2], HARTREE_EV)


def _density_rows(raw: Scfout, layout: BlockLayout) -> NDArray:
    """Pauli components of ρ, Hermitian."""
    d = raw.density
    if raw.spin_switch != _VECTOR:
        rows = pauli_rows(d, 1.0)
    else:
        # OpenMX stores the conjugate of |ψ⟩⟨ψ|.
        imag = None if raw.density_imag is None else -raw.density_imag
        rows = vector_rows(layout, d[:2], imag, d[2], -d[3], 1.0)
    make_hermitian(layout, rows[::3] if raw.spin_switch == _VECTOR else rows)
    return rows


def _density_is_complete(raw: Scfout, warnings: list[str]) -> bool:
    if raw.spin_switch != _VECTOR or raw.density_imag is not None:
        return True
    warnings.append(
        "no density matrix: files of version 0 lack the imaginary part of its diagonal spin blocks "
        "(charges and moments do not need it)"
    )
    return False


def _vector_operator(
    layout: BlockLayout, rows: NDArray[np.float64] | None, scale: float
) -> tuple[BlockOperator, BlockOperator, BlockOperator] | None:
    if rows is None:
        return None
    x, y, z = (layout.operator(rows[d : d + 1] * scale) for d in range(3))
    return x, y, z


def _momentum(
    raw: Scfout, layout: BlockLayout, beside: Companions, options: ReadOptions, warnings: list[str]
) -> tuple[BlockOperator, BlockOperator, BlockOperator] | None:
    if raw.momentum is None:
        if "momentum" in options.operators:
            warnings.append("no momentum: it is not in files of version 0")
        return None
    return _vector_operator(layout, raw.momentum, momentum_sign(raw, beside.version) / BOHR_ANG)


def _row_sum_moments(raw: Scfout) -> NDArray[np.float64] | None:
    """(n, 3) μ_B as OpenMX prints them: each bond belongs to its row atom."""
    if raw.spin_switch == 0:
        return None
    first = raw.start[np.searchsorted(raw.row, np.arange(raw.n_atoms))]
    q = np.add.reduceat(raw.density * raw.overlap, first, axis=1)
    zero = np.zeros(raw.n_atoms)
    # Plus for y, because the stored density is conjugated.
    x, y = (2 * q[2], 2 * q[3]) if raw.spin_switch == _VECTOR else (zero, zero)
    return frozen(np.stack([x, y, q[0] - q[1]], axis=1), np.float64)


# -- constraint and provenance ---------------------------------------------------------------------------------------


def _constraint(
    raw: Scfout,
    text: InputText,
    atoms: AtomRows,
    moments: NDArray[np.float64],
    beside: Companions,
    options: ReadOptions,
    warnings: list[str],
) -> NDArray[np.float64] | None:
    """(n, 3) eV, the field of the constraint in the stored H; None for a run without."""
    key = "scf.Constraint.NC.Spin"
    mode = text.word(key, "off").lower()
    if raw.spin_switch != _VECTOR or mode == "off":
        return None
    if mode != "on":
        if options.constraint == "subtract":
            raise text.fault(
                key,
                f"mode {mode!r}",
                "on (directions only): the form of other penalties in H is not verified",
                "read with constraint=keep, which leaves the penalty in H",
            )
        warnings.append(f"{key} {mode}: penalty of unverified form kept in H; no constraint field")
        return None
    strength_ev = text.number(f"{key}.v", 0.0)
    _check_penalty(constraint_energy(moments, atoms.directions, atoms.constrained, strength_ev), beside, warnings)
    return constraint_field(moments, atoms.directions, atoms.constrained, strength_ev)


def _check_penalty(energy_ev: float, beside: Companions, warnings: list[str]) -> None:
    """The printed penalty tells whether targets and strength in the text are those of the run."""
    if beside.out is None or beside.out.constraint_energy_ha is None:
        warnings.append("targets of the constraint are not verified: no printed Ucs")
        return
    printed, computed = beside.out.constraint_energy_ha, energy_ev / HARTREE_EV
    if abs(printed - computed) <= 1e-8 + 1e-3 * abs(printed):
        return
    message = f"constraint energy {computed:.12f} Ha from the targets in the input text, {printed:.12f} Ha printed"
    if beside.convergence()[0]:
        raise ReaderError(
            message,
            expected="the same",
            remedy="was the input changed after the run? Restore the targets of the run in it",
            path=beside.out.path,
            place="Ucs.",
        )
    warnings.append(message + " (the run is not converged)")


def _provenance(
    raw: Scfout,
    beside: Companions,
    options: ReadOptions,
    checksum: str,
    constrained: bool,
    warnings: Sequence[str],
) -> dict[str, Any]:
    text, out = beside.text, beside.out
    terms = [name for key, name in _EXTRA_TERMS.items() if text.flag(key)]
    if any(word not in ("0", "0.0") for word in text.words("scf.Electric.Field")):
        terms.append("electric_field")
    if constrained and options.constraint == "keep":
        terms.append("direction_constraint")
    penalty_ha = out.constraint_energy_ha if constrained and out is not None else None
    return {
        "code": OpenMXReader.code,
        "version": beside.version,
        "file_version": raw.version,
        "byte_order": raw.byte_order,
        "spin": _SPIN[raw.spin_switch],
        "checksum": {"sha256": checksum},
        "settings": {
            "xc": text.word("scf.XcType", "LDA"),
            "k_grid": text.integers("scf.Kgrid", [1, 1, 1]),
            "energy_cutoff_ry": text.number("scf.energycutoff", 150.0),
            "electronic_temperature_k": raw.temperature_k,
            "criterion_ha": beside.criterion_ha,
            "max_steps": beside.max_steps,
            "spin_orbit": text.flag("scf.SpinOrbit.Coupling"),
        },
        "choices": {"constraint": options.constraint if constrained else None, "moments": _moment_choice(raw, options)},
        "constraint_energy_ev": None if penalty_ha is None else penalty_ha * HARTREE_EV,
        "included_terms": terms,
        "warnings": list(warnings),
    }


def _moment_choice(raw: Scfout, options: ReadOptions) -> str | None:
    if raw.spin_switch == 0:
        return None
    return "initial" if options.moments == "initial" else "density"
