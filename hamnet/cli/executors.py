"""Where independent tasks run: this process, processes on this machine, MPI ranks, the workers of a Dask scheduler."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hamnet.errors import ConfigError

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["add_executor_arguments", "executor_of"]


def add_executor_arguments(parser: argparse.ArgumentParser, *, mpi: bool = False) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, default=1, metavar="N", help="processes on this machine (%(default)s)")
    where.add_argument("--dask", metavar="ADDRESS", help="compute on the workers of this Dask scheduler instead")
    if mpi:
        text = "compute on MPI ranks instead: mpiexec -n N python -m mpi4py.futures -m hamnet.cli.main …"
        where.add_argument("--mpi", action="store_true", help=text)


@contextmanager
def executor_of(args: argparse.Namespace) -> Iterator[tuple[Executor | None, int]]:
    """The executor and how many workers it has; None and 1 where this process computes."""
    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers}", expected="at least 1")
    if args.dask is not None:
        with _dask(args.dask) as pool:
            yield pool
    elif getattr(args, "mpi", False):
        with _mpi() as pool:
            yield pool
    elif args.workers > 1:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        # Not forked: torch's threads do not survive that.
        with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn"), initializer=_follow_parent) as pool:
            yield pool, args.workers
    else:
        yield None, 1


@contextmanager
def _dask(address: str) -> Iterator[tuple[Executor, int]]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError(
            "--dask without Dask", expected="the package distributed", remedy="pip install 'hamnet[dask]'"
        ) from error
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler at {address} ({error})", expected="the address of one") from error
    with client:
        count = len(client.scheduler_info(n_workers=-1)["workers"])
        if not count:
            raise ConfigError(f"the Dask scheduler at {address} has no workers", expected="at least one")
        yield client.get_executor(), count


@contextmanager
def _mpi() -> Iterator[tuple[Executor, int]]:
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPIPoolExecutor
    except ImportError as error:
        raise ConfigError(
            f"--mpi without MPI ({error})", expected="the package mpi4py and an MPI library",
            remedy="pip install 'hamnet[mpi]'",
        ) from error  # fmt: skip
    ranks = MPI.COMM_WORLD.Get_size()
    if ranks < 2:
        raise ConfigError(
            "--mpi on one rank", expected="one rank to lead and others to work",
            remedy="mpiexec -n N python -m mpi4py.futures -m hamnet.cli.main …, with N of 2 or more",
        )  # fmt: skip
    with MPIPoolExecutor() as pool:
        yield pool, ranks - 1


def _follow_parent() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when that is killed."""
    import os
    import signal
    from multiprocessing import parent_process
    from threading import Thread

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
