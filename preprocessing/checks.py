"""What a run says about itself, held against what its DFT code printed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hamnet.blocks import BlockOperator
from hamnet.eigen import eigenvalues, overlap_min_eigenvalue
from hamnet.errors import HamnetError
from hamnet.units import MEV_PER_EV

from .pool import completed
from .readers import reader_of
from .readers.protocol import BandReference, ReadOptions, Run

__all__ = [
    "BANDS_LIMIT_MEV",
    "ELECTRONS_LIMIT",
    "HERMITICITY_LIMIT_MEV",
    "RunCheck",
    "check_path",
    "check_paths",
    "check_run",
    "describe_error",
    "non_finite",
]

_log = logging.getLogger(__name__)

BANDS_LIMIT_MEV = 0.01
"""Largest deviation of an eigenvalue, unless the digits printed (or the precision stored) allow less."""
HERMITICITY_LIMIT_MEV = 1e-3
ELECTRONS_LIMIT = 1e-6
BAND_ENERGY_LIMIT_EV = 1e-5
_OVERLAP_KPOINTS = 16


@dataclass(frozen=True, slots=True)
class RunCheck:
    """Result of the checks of one run; None where there is nothing to compare with.

    Attributes
    ----------
    ok : every comparison that could be made is within its limit, and there was at least one with printed numbers.
    reason : what failed, or what could not be compared; None if all was compared and good.
    bands_max_dev_meV : worst |eigenvalue of H(k) − printed one|.
    hermiticity_max_meV : worst |H − H†| of the stored blocks.
    overlap_min_eigenvalue : of S(k) over the corners of half a Brillouin zone and some of the printed k.
    electrons, electrons_dev : Tr ρS, and its deviation from the number that the run states.
    moments_max_dev_muB : worst component of Mulliken moments against the printed ones.
    converged : self-consistency as the code judges it.
    """

    path: str
    code: str | None
    ok: bool
    reason: str | None
    bands_max_dev_meV: float | None = None
    hermiticity_max_meV: float | None = None
    overlap_min_eigenvalue: float | None = None
    electrons: float | None = None
    electrons_dev: float | None = None
    moments_max_dev_muB: float | None = None
    converged: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_paths(paths: Sequence[Path], *, jobs: int = 1) -> Iterator[tuple[int, RunCheck]]:
    """(index of the path, its check), as they get ready."""
    yield from completed(partial(check_path, options=ReadOptions()), paths, jobs)


def check_path(path: str | Path, options: ReadOptions | None = None) -> RunCheck:
    """Read and check one run. One that cannot be read is not ok, for the reason that the reader gives."""
    code = None
    try:
        reader = reader_of(path)
        code = reader.code
        return check_run(reader.read(Path(path), options or ReadOptions()), path)
    except Exception as error:  # noqa: BLE001 – whatever is wrong with one run must not cost the others
        return RunCheck(str(path), code, False, describe_error(error))


def describe_error(error: Exception) -> str:
    """One line for a table that names the run already; an error that no reader foresaw goes to the log, too."""
    if isinstance(error, HamnetError):
        where = ", ".join(part for part in (error.path and Path(error.path).name, error.place) if part)
        text = f"{where}: {error.found}" if where else error.found
        return text + (f"; expected {error.expected}" if error.expected else "")
    if not isinstance(error, OSError):
        _log.error("unexpected error", exc_info=error)
    return f"{type(error).__name__}: {error}"


def check_run(run: Run, path: str | Path) -> RunCheck:
    """Check a run that was read with all operators."""
    sample, problems, missing = run.sample, [], []
    values: dict[str, Any] = {"converged": run.converged}
    if not run.converged:
        problems.append(f"not converged: {run.convergence}")
    bad = non_finite(overlap=sample.overlap, hamiltonian=run.stored_hamiltonian, density=sample.density)
    if bad is not None:
        return RunCheck(str(path), sample.provenance.get("code"), False, "; ".join([*problems, bad]), **values)

    hermiticity = run.stored_hamiltonian.hermiticity_violation() * MEV_PER_EV
    values["hermiticity_max_meV"] = hermiticity
    if hermiticity > HERMITICITY_LIMIT_MEV:
        problems.append(f"H is not Hermitian by {hermiticity:.2g} meV, limit {HERMITICITY_LIMIT_MEV:g} meV")
    values["overlap_min_eigenvalue"] = smallest = overlap_min_eigenvalue(
        sample.operator("overlap"), _overlap_kpoints(run)
    )
    if smallest <= 0:
        problems.append(f"smallest eigenvalue of S(k) is {smallest:.3g}")
    elif run.references:
        worst = 0.0
        for reference in run.references:
            deviation, problem = _compare_bands(run, reference)
            worst = max(worst, deviation)
            problems.extend([problem] if problem else [])
        values["bands_max_dev_meV"] = worst if np.isfinite(worst) else None
    sum_agrees = _check_band_energy(run, problems)
    if not run.references:
        missing.append("H(k): no band energies printed" + (", but Tr ρH agrees with their sum" if sum_agrees else ""))
    _check_density(run, values, problems, missing)

    compared = sum_agrees or any(
        values.get(key) is not None for key in ("bands_max_dev_meV", "electrons_dev", "moments_max_dev_muB")
    )
    if not compared and not problems:
        problems.append("nothing to compare with, so nothing is verified")
    notes = problems + ([f"not compared – {'; '.join(missing)}"] if missing else [])
    return RunCheck(str(path), sample.provenance.get("code"), not problems, "; ".join(notes) or None, **values)


def non_finite(**operators: BlockOperator | None) -> str | None:
    """Names the first operator with a number that is not finite."""
    for name, operator in operators.items():
        if operator is not None and not all(bool(torch.isfinite(block).all()) for block in operator.blocks):
            return f"{name} holds numbers that are not finite"
    return None


def _compare_bands(run: Run, reference: BandReference) -> tuple[float, str | None]:
    """(worst deviation in meV, what is wrong or None)."""
    ours = eigenvalues(run.stored_hamiltonian, run.sample.operator("overlap"), reference.k_frac)
    printed = reference.energies_ev
    n_states = printed.shape[-1]
    if printed.shape[:2] != ours.shape[:2] or n_states > ours.shape[-1]:
        return np.inf, f"{reference.source}: energies of shape {printed.shape}, H(k) gives {ours.shape}"
    deviation = np.where(printed <= reference.highest_ev, np.abs(ours[..., :n_states] - printed), 0) * MEV_PER_EV
    worst = float(deviation.max())
    limit = max(BANDS_LIMIT_MEV, reference.precision_ev * MEV_PER_EV)
    if worst <= limit:  # false for NaN
        return worst, None
    k, channel, state = np.unravel_index(int(deviation.argmax()), deviation.shape)
    where = f"k {k} {np.round(reference.k_frac[k], 6).tolist()}, spin {channel}, state {state}"
    return worst, f"bands differ by {worst:.3g} meV from {reference.source} ({where}), limit {limit:.2g} meV"


def _check_band_energy(run: Run, problems: list[str]) -> bool:
    """Whether Tr ρH of the stored H is the printed sum over occupied states; False also where it cannot be told."""
    if run.sample.density is None or run.printed_band_energy_ev is None:
        return False
    pairs = zip(run.sample.density.blocks, run.stored_hamiltonian.blocks, strict=True)
    energy = 2 * sum(float((rho.conj() * h.to(rho.dtype)).real.sum()) for rho, h in pairs)
    if abs(energy - run.printed_band_energy_ev) <= BAND_ENERGY_LIMIT_EV:
        return True
    problems.append(f"Tr ρH = {energy:.6f} eV, the run printed {run.printed_band_energy_ev:.6f} eV")
    return False


def _check_density(run: Run, values: dict[str, Any], problems: list[str], missing: list[str]) -> None:
    sample = run.sample
    if run.code_electrons is None:
        missing.append("electrons: no density matrix")
    else:
        values["electrons"] = electrons = run.code_electrons
        if sample.n_electrons is None:
            missing.append("electrons: the run does not tell their number")
        else:
            values["electrons_dev"] = deviation = electrons - sample.n_electrons
            if not abs(deviation) <= ELECTRONS_LIMIT:
                problems.append(f"Tr ρS = {electrons:.8f}, the run has {sample.n_electrons:.8f} electrons")
    if run.printed_moments is None or run.code_moments is None:
        if run.stored_hamiltonian.n_spin > 1:
            missing.append("moments: none printed" if run.printed_moments is None else "moments: no density matrix")
        return
    deviation = np.abs(run.code_moments - run.printed_moments)
    values["moments_max_dev_muB"] = worst = float(deviation.max())
    if not worst <= run.moment_precision_mub:
        atom = int(np.unravel_index(int(deviation.argmax()), deviation.shape)[0])
        problems.append(
            f"moment of atom {atom} ({sample.structure.labels[atom]}) differs by {worst:.2g} μ_B from the printed one, "
            f"limit {run.moment_precision_mub:.2g} μ_B"
        )


def _overlap_kpoints(run: Run) -> NDArray[np.float64]:
    """(n_k, 3) corners of half a zone along the directions in which atoms are joined, and some of the printed k."""
    joined = np.atleast_1d(run.sample.pairs.shift.any(axis=0))
    corners = np.stack(np.meshgrid(*([0.0, 0.5] if j else [0.0] for j in joined), indexing="ij"), -1).reshape(-1, 3)
    printed = [reference.k_frac for reference in run.references]
    every = np.concatenate([corners, *printed])
    return np.concatenate([corners, every[np.linspace(0, len(every) - 1, _OVERLAP_KPOINTS).astype(int)]])
