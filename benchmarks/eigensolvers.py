"""Sparse solvers of H(k) c = E S(k) c on magnetic superlattices, against scipy's eigsh and among each other.

The spiral of examples/nibr2/nibr2_2x2 (12 atoms, 232 spinor orbitals) is tiled to n1 × n2 cells, and each atom's
on-site block is turned in spin space by about 0.1 rad about a random axis (seed 0): 3 × 3 cells are 2,088 orbitals,
6 × 6 8,352, 10 × 9 20,880, 15 × 14 48,720, 21 × 21 102,312. k = (0.13, 0.21), no symmetry.

*Back-ends*: assembly of H − σS at one k, analysis, factorisation, solution of 8 right-hand sides, entries and memory of
the factor. *Windows*: 48 states from nothing, certified: assembly, analysis, factorisations, inertia, block Lanczos.
*eigsh*: these windows beside ``scipy.sparse.linalg.eigsh(H, k=48, M=S, sigma=σ)`` as users call it. *Same factor*:
block Lanczos and eigsh (``OPinv``), both with one factorisation that is not counted. *Inertia*: counts at more than
100 shifts against dense eigenvalues, up to 1e-10 eV from a level, and with S − x, whose smallest eigenvalue is 1e-4.
*SLEPc*: the script of ``hamnet solve --export``, run by the command in SLEPC_PYTHON, beside our windows.

Every case runs in a process of its own, for its peak of memory. On one thread times are those of the processor, which
other work on the machine hardly changes; on more of them, for all codes alike, those of the clock.

    python benchmarks/eigensolvers.py [--cells 3x3 6x6 10x9 ...] [--backends multifrontal mkl superlu] [--quick]
        [--parts backends windows eigsh same-factor inertia slepc] [--shifts gap band] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch
from numpy.typing import NDArray
from reading import ROOT, environment, scfout_files
from scipy.spatial.transform import Rotation

from hamnet.blocks import BlockOperator
from hamnet.supercell import tile_operator
from postprocess.solvers.backends import BACKENDS, estimates
from postprocess.solvers.factor import SingularFactorError, certified_factor
from postprocess.solvers.lanczos import states_near
from postprocess.solvers.pardiso import mkl_library
from postprocess.solvers.pencil import BlochPencil, SparsePencil
from postprocess.solvers.petsc import export_pencil, import_window
from postprocess.solvers.window import nearest_window
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.protocol import ReadOptions

ARCHIVE = ROOT / "examples/nibr2/nibr2_2x2.tar.xz"
K = (0.13, 0.21, 0.0)
N_STATES = 48
TARGETS = {"assembly": 0.03, "eigsh": 5.0, "eigsh_mkl": 15.0, "same_factor": 3.0}
SHIFTS_EV = {"gap": 0.05, "band": -0.5}
"""Shifts from the Fermi level: in the gap, and inside the valence bands."""


# -- the matrices -----------------------------------------------------------------------------------------------------


def turned(hamiltonian: BlockOperator, angle_rad: float, rng: np.random.Generator) -> BlockOperator:
    """Each on-site block turned in spin space about a random axis by about this angle."""
    pairs = hamiltonian.pairs
    axes = rng.normal(size=(pairs.n_atoms, 3)) * angle_rad / np.sqrt(3)
    turns = torch.from_numpy(Rotation.from_rotvec(axes).as_matrix())
    blocks = []
    for group, block in zip(pairs.groups, hamiltonian.blocks, strict=True):
        here = np.flatnonzero(pairs.is_self[group.pairs])
        if len(here):
            block = block.clone()
            atoms = torch.as_tensor(pairs.row[group.pairs][here])
            block[here, 1:] = torch.einsum("nvw,nwab->nvab", turns[atoms].to(block.dtype), block[here, 1:])
        blocks.append(block)
    return BlockOperator(hamiltonian.basis, pairs, tuple(blocks))


def superlattice(cells: str) -> tuple[SparsePencil, float]:
    """The pencil of n1 × n2 cells of the spiral, and its Fermi level in eV."""
    n1, n2 = map(int, cells.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        path = next(p for p in scfout_files([ARCHIVE], Path(folder)) if "spiral" in str(p))
        sample = OpenMXReader().read(path, ReadOptions(operators=frozenset())).sample
    matrix = np.diag([n1, n2, 1])
    h, s = tile_operator(sample.operator("hamiltonian"), matrix), tile_operator(sample.operator("overlap"), matrix)
    pencil = SparsePencil(turned(h, 0.1, np.random.default_rng(0)), s)
    assert sample.fermi_energy_ev is not None
    return pencil, sample.fermi_energy_ev


def softened(at: BlochPencil, smallest: float) -> BlochPencil:
    """The pencil at one k with S − x in the place of S, so that the smallest eigenvalue of S is `smallest`."""
    s = at.s_orbital.toarray()
    by = float(scipy.linalg.eigvalsh(s)[0]) - smallest
    pencil = at.pencil
    rows = np.repeat(np.arange(pencil.n_orbitals), np.diff(pencil.s_indptr))
    data = at.s_data.copy()
    data[rows == pencil.s_indices] -= by
    return BlochPencil(pencil, at.k_frac, at.channel, at.h_data, data)


# -- cases, each in its own process -----------------------------------------------------------------------------------


def timed(task: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor on one thread, of the clock on several, and what the task returns."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    result = task()
    return clock() - start, result


def megabytes() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def backend_case(cells: str, name: str) -> dict[str, Any]:
    pencil, fermi = superlattice(cells)
    result: dict[str, Any] = {
        "dim": pencil.dim,
        "atoms": pencil.n_atoms,
        "matrices_megabytes": pencil.memory_bytes / 1e6,
    }
    result["before_megabytes"] = megabytes()
    pencil.at(K).shifted(0.0)  # indices that are made once
    result["assembly_s"], data = timed(lambda: pencil.at(K).shifted(fermi))
    result["analysis_s"], analysis = timed(lambda: BACKENDS[name](pencil))
    result["factor_s"], factor = timed(lambda: analysis.factor(data))
    rng = np.random.default_rng(0)
    b = rng.normal(size=(pencil.dim, 8)) + 1j * rng.normal(size=(pencil.dim, 8))
    result["solve_8_s"], x = timed(lambda: factor.solve(b))
    matrix = scipy.sparse.csr_matrix((data, pencil.indices, pencil.indptr), shape=(pencil.dim, pencil.dim))
    result["residual"] = float(np.linalg.norm(matrix @ x - b) / np.linalg.norm(b))
    result |= {"entries": factor.stats.entries, "factor_megabytes": factor.stats.memory_bytes / 1e6}
    result |= {
        "negative": factor.negative,
        "flops": analysis.flops,
        "expected_peak_megabytes": analysis.memory_bytes / 1e6,
    }
    result["peak_megabytes"] = megabytes()
    estimate = estimates(pencil)[name]
    result["estimated"] = {"factor_s": estimate.factor_seconds, "window_s": estimate.window_seconds,
                           "megabytes": estimate.memory_bytes / 1e6}  # fmt: skip
    return result


def window_case(cells: str, name: str, place: str) -> dict[str, Any]:
    pencil, fermi = superlattice(cells)
    pencil.at(K).shifted(0.0)

    def window():
        return nearest_window(BACKENDS[name](pencil), pencil.at(K), fermi + SHIFTS_EV[place], N_STATES)

    seconds, found = timed(window)
    return {
        "window_s": seconds, "states": len(found.energies_ev), "residual_ev": found.residual_ev,
        "factorisations": found.n_factors, "solves": found.n_solves, "peak_megabytes": megabytes(),
        "first_ev": float(found.energies_ev[0]), "last_ev": float(found.energies_ev[-1]),
    }  # fmt: skip


def eigsh_case(cells: str, place: str) -> dict[str, Any]:
    pencil, fermi = superlattice(cells)
    at = pencil.at(K)
    n = pencil.dim
    h = scipy.sparse.csc_matrix(at.h)
    s = at.s_orbital
    s = scipy.sparse.csc_matrix(scipy.sparse.kron(s, scipy.sparse.identity(2)) if pencil.spinor else s)
    assert h.shape == s.shape == (n, n)
    del at
    sigma = fermi + SHIFTS_EV[place]
    seconds, (energies, _) = timed(lambda: scipy.sparse.linalg.eigsh(h, k=N_STATES, M=s, sigma=sigma))
    return {"eigsh_s": seconds, "peak_megabytes": megabytes(), "first_ev": float(min(energies)),
            "last_ev": float(max(energies))}  # fmt: skip


def same_factor_case(cells: str, name: str, place: str) -> dict[str, Any]:
    pencil, fermi = superlattice(cells)
    at, sigma = pencil.at(K), fermi + SHIFTS_EV[place]
    factor = certified_factor(BACKENDS[name](pencil), at, sigma)
    ours, states = timed(lambda: states_near(factor, N_STATES))
    assert states.complete
    solves = 0

    def solve(x: NDArray) -> NDArray:
        nonlocal solves
        solves += 1
        return factor.solve(x.reshape(-1, 1).astype(complex))[:, 0]

    def apply_s(x: NDArray) -> NDArray:
        return at.apply_s(x.reshape(-1, 1).astype(complex))[:, 0]

    shape = (pencil.dim, pencil.dim)
    s = scipy.sparse.linalg.LinearOperator(shape, matvec=apply_s, dtype=complex)
    inverse = scipy.sparse.linalg.LinearOperator(shape, matvec=solve, dtype=complex)
    # Stopped where the block solver stops: errors of 1e-8 eV.
    seconds = {}
    for tolerance in (1e-9, 0.0):
        seconds[tolerance], (energies, _) = timed(
            lambda tolerance=tolerance: scipy.sparse.linalg.eigsh(
                at.h, k=N_STATES, M=s, sigma=sigma, OPinv=inverse, tol=tolerance
            )
        )
    return {
        "block_s": ours, "block_solves": states.n_solves, "eigsh_s": seconds[1e-9], "eigsh_default_s": seconds[0.0],
        "eigsh_solves": solves, "difference_ev": float(np.abs(np.sort(energies) - states.energies_ev).max()),
    }  # fmt: skip


def inertia_case(cells: str, name: str) -> dict[str, Any]:
    pencil, fermi = superlattice(cells)
    analysis, rng = BACKENDS[name](pencil), np.random.default_rng(0)
    result: dict[str, Any] = {}
    straight = pencil.at(K)
    for kind, at in (("overlap", straight), ("soft_overlap", softened(straight, 1e-4))):
        levels = scipy.linalg.eigvalsh(*at.dense())
        spread = rng.uniform(levels[0], levels[-1], 30)
        near_fermi = rng.uniform(fermi - 4, fermi + 4, 20)
        beside = [
            level + sign * distance
            for distance in (1e-4, 1e-6, 1e-8, 1e-9, 1e-10)
            for level in rng.choice(levels, 2, replace=False)
            for sign in (-1, 1)
        ]
        counts = {"shifts": 0, "wrong": 0, "uncertified": 0, "certified_and_wrong": 0}
        for shift in [*spread, *near_fermi, *beside]:
            counts["shifts"] += 1
            try:
                inertia = certified_factor(analysis, at, float(shift)).inertia
            except SingularFactorError:
                counts["uncertified"] += 1
                continue
            wrong = inertia.negative != int((levels < shift).sum())
            counts["wrong"] += wrong
            counts["uncertified"] += not inertia.certified
            counts["certified_and_wrong"] += wrong and inertia.certified
        result[kind] = counts
    return result


def slepc_case(cells: str, place: str) -> dict[str, Any]:
    pencil, fermi = superlattice(cells)
    command = shlex.split(os.environ["SLEPC_PYTHON"])
    with tempfile.TemporaryDirectory() as folder:
        export_pencil(pencil.at(K), folder, fermi + SHIFTS_EV[place], N_STATES)
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([*command, "solve.py"], cwd=folder, check=True, capture_output=True)
        after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
        found = import_window(None, pencil.at(K), folder)
    if torch.get_num_threads() == 1:
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"slepc_s": seconds, "states": len(found.energies_ev), "residual_ev": found.residual_ev,
            "peak_megabytes": after.ru_maxrss / 1e3, "first_ev": float(found.energies_ev[0]),
            "last_ev": float(found.energies_ev[-1])}  # fmt: skip


CASES = {
    "backend": backend_case,
    "window": window_case,
    "eigsh": eigsh_case,
    "same_factor": same_factor_case,
    "inertia": inertia_case,
    "slepc": slepc_case,
}


def in_process(case: str, *args: str) -> dict[str, Any]:
    """Run a case in a new process, on as many threads as this one."""
    threads = str(torch.get_num_threads())
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    done = subprocess.run(
        [sys.executable, __file__, "--threads", threads, "--case", case, *args],
        capture_output=True, text=True, check=False, env=os.environ | variables,
    )  # fmt: skip
    if done.returncode:
        return {"failed": (done.stderr or f"exit code {done.returncode}").strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


# -- report -----------------------------------------------------------------------------------------------------------


def failed(cells: str, name: str, case: dict[str, Any]) -> bool:
    """Whether a case ended with an error, which is printed."""
    if "failed" in case:
        print(f"{cells:6s} {name:13s} failed: {case['failed']}", flush=True)
    return "failed" in case


def backend_lines(cells: str, names: list[str], places: list[str], report: dict[str, Any]) -> None:
    for name in names:
        e = report["backends"][f"{cells} {name}"] = in_process("backend", cells, name)
        if failed(cells, name, e):
            continue
        share = e["assembly_s"] / e["factor_s"]
        print(
            f"{cells:6s} {e['dim']:7d} {name:13s} assembly {e['assembly_s']:6.2f} s ({100 * share:4.1f} % of factor) "
            f"analysis {e['analysis_s']:6.2f} s factor {e['factor_s']:7.2f} s solve 8 {e['solve_8_s']:6.3f} s "
            f"{e['entries'] / 1e6:7.1f} M entries {e['factor_megabytes']:7.0f} MB peak {e['peak_megabytes']:7.0f} MB "
            f"residual {e['residual']:.0e} N {e['negative']}",
            flush=True,
        )


def eigsh_lines(cells: str, names: list[str], places: list[str], report: dict[str, Any]) -> None:
    for place in places:
        e = report["eigsh"][f"{cells} {place}"] = in_process("eigsh", cells, place)
        print(f"{cells:6s} shift in {place}: eigsh {e.get('eigsh_s', np.nan):.1f} s {e.get('failed', '')}", flush=True)
        window_lines(cells, names, [place], report)


def window_lines(cells: str, names: list[str], places: list[str], report: dict[str, Any]) -> None:
    for place, name in itertools.product(places, names):
        w = report["windows"][f"{cells} {place} {name}"] = in_process("window", cells, name, place)
        if failed(cells, name, w):
            continue
        beside = report["eigsh"].get(f"{cells} {place}", {}).get("eigsh_s")
        against = ""
        if beside is not None:
            w["ratio"] = beside / w["window_s"]
            target = TARGETS["eigsh_mkl" if name == "mkl" else "eigsh"]
            against = f": {w['ratio']:.1f} × (target {target:g})"
        print(
            f"{cells:6s} {name:13s} shift in {place}: {w['states']} states {w['window_s']:7.1f} s, "
            f"{w['factorisations']} factorisations, {w['solves']} block solutions, residual "
            f"{w['residual_ev']:.0e} eV, peak {w['peak_megabytes']:.0f} MB{against}",
            flush=True,
        )


def same_factor_lines(cells: str, names: list[str], places: list[str], report: dict[str, Any]) -> None:
    for name in names:
        for place in places:
            e = report["same_factor"][f"{cells} {place} {name}"] = in_process("same_factor", cells, name, place)
            if failed(cells, name, e):
                continue
            e["ratio"], e["ratio_default"] = e["eigsh_s"] / e["block_s"], e["eigsh_default_s"] / e["block_s"]
            print(
                f"{cells:6s} {name:13s} shift in {place}, same factor: block Lanczos {e['block_s']:.2f} s "
                f"({e['block_solves']} block solutions), eigsh {e['eigsh_s']:.2f} s at tol 1e-9 ({e['ratio']:.1f} ×), "
                f"{e['eigsh_default_s']:.2f} s as called ({e['ratio_default']:.1f} ×, "
                f"target {TARGETS['same_factor']:g})",
                flush=True,
            )


def inertia_lines(cells: str, names: list[str], places: list[str], report: dict[str, Any]) -> None:
    for name in names:
        e = report["inertia"][f"{cells} {name}"] = in_process("inertia", cells, name)
        print(f"{cells:6s} {name:13s} inertia {e}", flush=True)


def slepc_lines(cells: str, names: list[str], places: list[str], report: dict[str, Any]) -> None:
    for place in places:
        e = report["slepc"][f"{cells} {place}"] = in_process("slepc", cells, place)
        if failed(cells, "SLEPc", e):
            continue
        print(
            f"{cells:6s} SLEPc         shift in {place}: {e['states']} states {e['slepc_s']:7.1f} s, not counted, "
            f"residual {e['residual_ev']:.0e} eV, peak {e['peak_megabytes']:.0f} MB",
            flush=True,
        )
        window_lines(cells, names, [place], report)


PARTS = {
    "backends": backend_lines,
    "windows": window_lines,
    "eigsh": eigsh_lines,
    "same-factor": same_factor_lines,
    "inertia": inertia_lines,
    "slepc": slepc_lines,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=["3x3", "6x6"], help="n1xn2 cells of 232 orbitals")
    parser.add_argument("--backends", nargs="+", default=["multifrontal", "mkl", "superlu"], choices=list(BACKENDS))
    # Windows are part of the comparison with eigsh: alone they are for sizes that eigsh takes too long for.
    default = [part for part in PARTS if part not in ("windows", "slepc")]
    parser.add_argument("--parts", nargs="+", default=default, choices=list(PARTS))
    parser.add_argument("--shifts", nargs="+", default=list(SHIFTS_EV), choices=list(SHIFTS_EV))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="3x3 cells only, 2,088 orbitals")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.case:
        warnings.simplefilter("ignore")
        print(json.dumps(CASES[args.case[0]](*args.case[1:])))
        return
    names = [name for name in args.backends if name != "mkl" or mkl_library() is not None]
    report: dict[str, Any] = {"environment": environment(), "targets": TARGETS, "n_states": N_STATES}
    report |= {key: {} for key in ("backends", "eigsh", "windows", "same_factor", "inertia", "slepc")}
    cells = ["3x3"] if args.quick else args.cells
    for part in args.parts:
        # Dense eigenvalues, with which counts are compared, end the first size.
        for size in cells[:1] if part == "inertia" else cells:
            PARTS[part](size, names, args.shifts, report)
    if args.json:
        temporary = args.json.with_name(args.json.name + ".part")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(args.json)


if __name__ == "__main__":
    main()
