"""One function on many inputs, in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from hamnet.errors import HamnetError

__all__ = ["completed"]

Task = TypeVar("Task")
Result = TypeVar("Result")


def completed(function: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[tuple[int, Result]]:
    """(index of the task, its result) in the order in which they get ready, computed by `jobs` processes.

    The processes are started afresh (``spawn``), so `function` must be importable. With one job all is done here.
    """
    if min(jobs, len(tasks)) <= 1:
        yield from ((index, function(task)) for index, task in enumerate(tasks))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context, initializer=_prepare) as pool:
        futures = {pool.submit(function, task): index for index, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BrokenProcessPool as error:
            raise HamnetError(
                "a worker process was killed",
                expected=f"memory for {jobs} runs at once",
                remedy="use fewer --jobs and run the same command again; what is finished is kept",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    torch.set_num_threads(1)  # the processes share the cores already
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next task for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
