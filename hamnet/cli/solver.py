"""How verbs solve H(k): dense for small cells, sparse windows for large ones, on one process or many."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .executors import add_executor_arguments, executor_of
from .output import progress_bar

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from hamnet.blocks import BlockOperator
    from postprocess.bands import Bands
    from postprocess.fermi import FermiLevel
    from postprocess.grouping import Grouping
    from postprocess.solvers.pencil import SparsePencil
    from postprocess.solvers.states import Keep, States
    from postprocess.solvers.tasks import Runner
    from postprocess.unfold import KStates

__all__ = ["BACKENDS", "DenseSolver", "Solver", "SparseSolver", "add_solver_arguments", "solver_of"]

BACKENDS = ("auto", "dense", "mkl", "multifrontal", "superlu")


# Up to here all states by dense diagonalisation cost about as much as a window of them.
_DENSE_DIM = 1500


def add_solver_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "solver", "Small cells are diagonalised. Of large ones the states in the window are found, and counted."
    )
    text = "all states by dense diagonalisation, or a window of states by one of the sparse factorisations (auto: what "
    text += "is estimated to be cheaper)"
    group.add_argument("--solver", choices=BACKENDS, default="auto", help=text)
    text = "folder of finished k of a sparse solution; a call that was killed goes on from there (OUTPUT.partial)"
    group.add_argument("--partial", type=Path, metavar="DIR", help=text)
    add_executor_arguments(parser, mpi=True)


class DenseSolver:
    """All states at each k."""

    sparse = False

    def __init__(self, hamiltonian: BlockOperator, overlap: BlockOperator) -> None:
        self.hamiltonian, self.overlap = hamiltonian, overlap

    def bands(
        self,
        what: str,
        k_frac: NDArray[np.float64],
        window_ev: tuple[float, float],
        *,
        spin: bool = False,
        grouping: Grouping | None = None,
    ) -> Bands:
        """States at k; all of them, whatever the window."""
        from postprocess.bands import solve_bands

        self._announce(what, len(k_frac))
        with progress_bar(what) as progress:
            return solve_bands(self.hamiltonian, self.overlap, k_frac, spin=spin, grouping=grouping, progress=progress)

    def level(
        self, k_frac: NDArray[np.float64], n_electrons: float, temperature_k: float, hint_ev: float | None
    ) -> FermiLevel:
        """Fermi level over a mesh."""
        from postprocess.fermi import fermi_level

        states = self.bands("mesh for the Fermi level", k_frac, (-np.inf, np.inf))
        return fermi_level(states, n_electrons, temperature_k=temperature_k)

    def vectors(self, what: str, k_frac: NDArray[np.float64], window_ev: tuple[float, float]) -> Iterator[KStates]:
        """States with vectors at each k."""
        from hamnet.eigen import eigenstates
        from postprocess.unfold import KStates

        self._announce(what, len(k_frac))
        step = 2 if self.hamiltonian.n_spin == 4 else 1
        done = 0
        with progress_bar(what) as progress:
            for batch in eigenstates(self.hamiltonian, self.overlap, k_frac):
                parts = (batch.energies.numpy(), batch.vectors.numpy(), batch.overlap.numpy()[:, 0, ::step, ::step])
                for at_k in zip(*parts, strict=True):
                    yield KStates(*at_k)
                    done += 1
                    progress(done, len(k_frac))

    def _announce(self, what: str, n_k: int) -> None:
        from postprocess.bands import dense_cost

        cost = dense_cost(self.hamiltonian, n_k)
        if cost.seconds > 2:
            print(f"hamnet: {what}: {cost}", file=sys.stderr)


@dataclass(frozen=True, slots=True, eq=False)
class SparseSolver:
    """States in a window, certified by counts; what is finished lies in `folder`.

    n_electrons of the sample and its Fermi level are no part of it: they come with each question.
    """

    pencil: SparsePencil
    backend: str
    folder: Path | None
    executor: Executor | None
    workers: int

    sparse = True

    def bands(
        self,
        what: str,
        k_frac: NDArray[np.float64],
        window_ev: tuple[float, float],
        *,
        spin: bool = False,
        grouping: Grouping | None = None,
    ) -> Bands:
        """States at k inside the absolute window, ±inf where a level lies outside at some k."""
        from postprocess.solvers.levels import joined
        from postprocess.solvers.states import Keep

        keep = Keep(spin=spin, membership=None if grouping is None else grouping.membership)
        found = self.windows(what, k_frac, window_ev, keep)
        labels = () if grouping is None else grouping.labels
        return joined(found, self.pencil.n_channels, self.pencil.n_spin, groups=labels)

    def windows(
        self, what: str, k_frac: NDArray[np.float64], window_ev: tuple[float, float], keep: Keep
    ) -> list[States]:
        """All states in the window at each k and channel, channel fastest."""
        from postprocess.solvers.tasks import WindowTask

        tasks = [
            WindowTask(tuple(map(float, k)), channel, *map(float, window_ev))  # type: ignore[arg-type]
            for k in k_frac
            for channel in range(self.pencil.n_channels)
        ]
        runner = self.runner(keep, "states")
        with progress_bar(what) as progress:
            return runner.run(tasks, on_progress=progress)

    def level(
        self, k_frac: NDArray[np.float64], n_electrons: float, temperature_k: float, hint_ev: float | None
    ) -> FermiLevel:
        """Fermi level over a mesh, by counts of states and one window."""
        from postprocess.solvers.filling import sparse_fermi_level
        from postprocess.solvers.states import Keep

        runner = self.runner(Keep(), "counts")
        level, _ = sparse_fermi_level(
            runner,
            k_frac,
            n_electrons,
            hint_ev=hint_ev,
            temperature_k=temperature_k,
            say=lambda text: print(f"hamnet: {text}", file=sys.stderr),
        )
        return level

    def states_below(self, k_frac: NDArray[np.float64], energy_ev: float) -> NDArray[np.float64]:
        """(n_channels,) states per cell below an energy, counted, mean over k; two electrons each without spin."""
        from postprocess.solvers.states import Keep
        from postprocess.solvers.tasks import CountTask

        n = self.pencil.n_channels
        tasks = [CountTask(tuple(map(float, k)), channel, energy_ev) for k in k_frac for channel in range(n)]  # type: ignore[arg-type]
        counts = self.runner(Keep(), "counts").run(tasks)
        return np.reshape(counts, (-1, n)).mean(axis=0) * self.pencil.electrons_per_state

    def vectors(self, what: str, k_frac: NDArray[np.float64], window_ev: tuple[float, float]) -> Iterator[KStates]:
        """States with vectors at each k, one k at a time: vectors of large cells fill the memory."""
        from postprocess.solvers.states import Keep
        from postprocess.solvers.tasks import WindowTask
        from postprocess.unfold import KStates

        runner = self.runner(Keep(vectors=True), "vectors")
        with progress_bar(what) as progress:
            for done, k in enumerate(k_frac):
                progress(done, len(k_frac))
                place = tuple(map(float, k))
                tasks = [WindowTask(place, c, *map(float, window_ev)) for c in range(self.pencil.n_channels)]  # type: ignore[arg-type]
                found: Sequence[States] = runner.run(tasks)
                overlap = self.pencil.at(k).s_orbital
                yield KStates([s.energies_ev for s in found], [s.vectors for s in found], overlap)  # type: ignore[misc]

    def runner(self, keep: Keep, name: str) -> Runner:
        """Does tasks for this H and S; `name` of the folder in which results of one kind lie."""
        from postprocess.solvers.tasks import Runner

        return Runner(
            self.pencil,
            backend=self.backend,
            keep=keep,
            folder=None if self.folder is None else self.folder / name,
            executor=self.executor,
            workers=self.workers,
        )


Solver = DenseSolver | SparseSolver


def _large(hamiltonian: BlockOperator) -> bool:
    return hamiltonian.n_orbitals * (2 if hamiltonian.n_spin == 4 else 1) > _DENSE_DIM


@contextmanager
def solver_of(
    args: argparse.Namespace,
    hamiltonian: BlockOperator,
    overlap: BlockOperator,
    *,
    name: str = "sample",
    certified: bool = False,
) -> Iterator[Solver]:
    """The solver that the options ask for, or the cheaper one.

    What it finishes lies in the folder --partial, under `name`; the default folder goes when the block ends well.
    certified : windows with counts also of small cells.
    """
    if not certified and (args.solver == "dense" or (args.solver == "auto" and not _large(hamiltonian))):
        yield DenseSolver(hamiltonian, overlap)
        return
    from postprocess.solvers.backends import choose
    from postprocess.solvers.pencil import SparsePencil

    output = getattr(args, "output", None)
    own = None if output is None else output.with_name(f"{output.name}.partial")
    folder = args.partial or own
    place = None if folder is None else folder / name
    pencil = SparsePencil(hamiltonian, overlap)
    choice = choose(pencil, args.solver)
    print(f"hamnet: {choice.reason}\nhamnet: {choice.estimate}", file=sys.stderr)
    with executor_of(args) as (executor, workers):
        yield SparseSolver(pencil, choice.backend, place, executor, workers)
    if args.partial is None and own is not None and own.exists():
        shutil.rmtree(own)
