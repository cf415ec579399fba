"""The processes of one run, as ``torchrun`` starts them; alone, everything here does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Processes", "from_first", "gathered", "leave_group", "object_from_first", "send_from_first", "summed"]


@dataclass(frozen=True, slots=True)
class Processes:
    """Place of this process among all (`rank` of `world`), and how many of them share this machine (`local`)."""

    rank: int = 0
    world: int = 1
    local: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """As the environment variables of ``torchrun`` say."""
        if "TORCHELASTIC_RUN_ID" not in environment:
            return cls()
        return cls(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")))


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _joined() -> bool:
    return _in_group() and dist.get_world_size() > 1


@contextmanager
def leave_group() -> Iterator[None]:
    """Leave the process group that was joined within, by Lightning; the end of the interpreter is too late for that.

    Threads of gloo may still hold tensors, and abort the process if they free them while Python shuts down
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    before = _in_group()
    try:
        yield
    finally:
        if _in_group() and not before:
            dist.destroy_process_group()


def _device() -> torch.device:
    nccl = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def from_first(values: Sequence[float]) -> list[float]:
    """The numbers of the first process, in all."""
    if not _joined():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.broadcast(tensor, src=0)
    return tensor.tolist()


def summed(values: Sequence[float]) -> list[float]:
    """Sums over all processes."""
    if not _joined():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(tensor)
    return tensor.tolist()


def gathered(value: float) -> list[float]:
    """The number of each process."""
    if not _joined():
        return [value]
    mine = torch.tensor([value], dtype=torch.float64, device=_device())
    all_ = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_, mine)
    return [float(entry) for entry in all_]


def send_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite `tensors` with those of the first process: set-up may differ by rounding between machines."""
    if _joined():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def object_from_first(value: Any) -> Any:
    """Any plain value of the first process, in all."""
    if not _joined():
        return value
    entry = [value]
    dist.broadcast_object_list(entry, src=0, device=_device())
    return entry[0]
