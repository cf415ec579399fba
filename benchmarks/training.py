"""Cost of training and inference, beside what the machine could do at best.

A crystal of NiBr2 (the first run of examples/nibr2, and supercells of it) goes through the default network in float32:
*inference* is the network alone, *backward* the network with loss and gradients, *step* that with gradient clipping and
the optimiser. Times are the best of some rounds – of the processor where there is one thread, since other work then
disturbs less, else of the clock; rates are in crystals and in stored pair blocks per second. Memory is the largest in
use at once, as torch's allocator counts it.

The *floor* is the larger of two times: the floating-point operations of all matrix products, counted while they run,
at the rate of a large product measured in this run; and the bytes of their operands and results, each read or written
once, at the measured rate of a copy. Everything else – sums, gates, sorting, Python – is free in it. Target: backward
within 5 floors.

Of the first case it is told where the time goes: the largest shares of a step by kind of operation (torch's profiler,
the time of an operation less that of those it calls), and of inference by part of the network.

    python benchmarks/training.py [--tiles 1 2 3] [--degrees 2 3 4 5] [--threads N] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interaction import peak_bytes
from reading import ROOT, environment, scfout_files
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hamnet.blocks import BlockOperator
from hamnet.models.hamiltonian import HamiltonianModel, ModelConfig
from hamnet.structure import Structure
from hamnet.supercell import tile_operator, tile_structure
from hamnet.training.batches import Batch, prepare
from hamnet.training.config import parse_config
from hamnet.training.module import TrainingModule
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.protocol import ReadOptions

ARCHIVE = ROOT / "examples/nibr2/nibr2_2x1.tar.xz"
TARGET = 5.0
GEMM_SIZE, COPY_BYTES = 1024, 2**28
_MOST_SHARES = 6


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured rates."""

    flops_per_s: float
    bytes_per_s: float

    @classmethod
    def measured(cls) -> Machine:
        a, b = torch.randn(2, GEMM_SIZE, GEMM_SIZE)
        source = torch.zeros(COPY_BYTES // 4)
        target = torch.empty_like(source)
        return cls(
            2 * GEMM_SIZE**3 / best(lambda: torch.mm(a, b), 10), 2 * COPY_BYTES / best(lambda: target.copy_(source), 10)
        )


class Products(TorchDispatchMode):
    """Counts operations and bytes of all matrix products that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.n_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            tensors = [value for value in args if isinstance(value, Tensor)]
            self.flops += 2 * result.numel() * tensors[-1].shape[-2]
            self.n_bytes += sum(t.numel() * t.element_size() for t in (*tensors, result))
        return result


def best(task: Callable[[], object], rounds: int) -> float:
    """Least time in seconds."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    task()
    times = []
    for _ in range(rounds):
        start = clock()
        task()
        times.append(clock() - start)
    return min(times)


def crystal(folder: Path) -> tuple[Structure, BlockOperator]:
    read = OpenMXReader().read(scfout_files([ARCHIVE], folder)[0], ReadOptions(operators=frozenset()))
    return read.sample.structure, read.sample.operator("hamiltonian")


def supercell(structure: Structure, hamiltonian: BlockOperator, n: int) -> tuple[Structure, BlockOperator]:
    matrix = np.diag([n, n, 1])
    return tile_structure(structure, matrix), tile_operator(hamiltonian, matrix)


def case(structure: Structure, hamiltonian: BlockOperator, l_max: int) -> tuple[TrainingModule, Batch]:
    basis = hamiltonian.basis
    moments = np.linalg.norm(structure.moments, axis=1)  # type: ignore[arg-type]
    sizes = [moments[basis.species_of(structure) == s].mean() for s in range(len(basis))]
    torch.manual_seed(0)
    model = HamiltonianModel(ModelConfig(l_max=l_max), basis, tuple(float(m) if m > 0.5 else 0.0 for m in sizes))
    model = model.to(torch.float32)
    settings = {"data": {"train": "none.h5", "validation_fraction": 0.1}, "training": {"epochs": 1}}
    module = TrainingModule(model, parse_config(settings), identity={}, n_steps=1)
    return module, prepare(model.graph([structure], [hamiltonian.pairs]), hamiltonian, model.config.mode)


def tasks(module: TrainingModule, batch: Batch) -> dict[str, Callable[[], None]]:
    optimiser, parameters = module.configure_optimizers(), list(module.model.parameters())

    def inference() -> None:
        with torch.no_grad():
            module.model(batch.graph)

    def backward() -> None:
        optimiser.zero_grad()
        module.training_step(batch, 0).backward()

    def step() -> None:
        backward()
        torch.nn.utils.clip_grad_norm_(parameters, module.config.optimiser.gradient_clip)
        optimiser.step()

    return {"inference": inference, "backward": backward, "step": step}


def figures(task: Callable[[], None], batch: Batch, machine: Machine, rounds: int) -> dict[str, float]:
    seconds = best(task, rounds)
    with Products() as products:
        task()
    flops_s, bytes_s = products.flops / machine.flops_per_s, products.n_bytes / machine.bytes_per_s
    return {
        "ms": 1e3 * seconds,
        "crystals_per_s": 1 / seconds,
        "blocks_per_s": sum(batch.n_pairs) / seconds,
        "peak_megabytes": peak_bytes(task, "cpu") / 1e6,
        "gigaflops": products.flops / 1e9,
        "megabytes_of_products": products.n_bytes / 1e6,
        "floor_flops_ms": 1e3 * flops_s,
        "floor_bytes_ms": 1e3 * bytes_s,
        "over_floor": seconds / max(flops_s, bytes_s),
    }


def shares_of_operations(step: Callable[[], None]) -> list[tuple[str, float]]:
    """Operations with their share of the processor's time, largest first."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(5):
            step()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    found = [(event.key, event.self_cpu_time_total / total) for event in events]
    return sorted(found, key=lambda entry: -entry[1])[:_MOST_SHARES]


def shares_of_parts(model: HamiltonianModel, inference: Callable[[], None]) -> list[tuple[str, float]]:
    """Parts of the network, its children, with their share of the time of inference, largest first."""
    seconds: dict[str, float] = {}
    began: list[float] = []
    hooks = []

    def ends(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began.pop()

        return hook

    for name, child in model.named_children():
        several = isinstance(child, (torch.nn.ModuleList, torch.nn.ModuleDict))
        for part in child.children() if several else [child]:
            hooks.append(part.register_forward_pre_hook(lambda *_: began.append(time.perf_counter())))
            hooks.append(part.register_forward_hook(ends(name)))
    inference()
    seconds.clear()
    start = time.perf_counter()
    for _ in range(5):
        inference()
    total = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    found = [(name, value / total) for name, value in seconds.items()]
    found.append(("frames, sums and all else", 1 - sum(share for _, share in found)))
    return sorted(found, key=lambda entry: -entry[1])[:_MOST_SHARES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 2, 3], help="supercells n × n of the crystal")
    parser.add_argument("--degrees", type=int, nargs="+", default=[2, 3, 4, 5], help="l_max of the network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, tiles 1 2 and degrees 3 4")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds = 5 if args.quick else 20
    default = ModelConfig().l_max
    if args.quick:
        args.tiles, args.degrees = [1, 2], [3, default]
    cases = [(n, default) for n in args.tiles] + [(1, l_max) for l_max in args.degrees if l_max != default]
    machine = Machine.measured()
    report: dict[str, Any] = {
        "environment": environment(),
        "threads": args.threads,
        "flops_per_s": machine.flops_per_s,
        "bytes_per_s": machine.bytes_per_s,
        "target_backward_over_floor": TARGET,
        "cases": [],
    }
    rates = f"products {machine.flops_per_s / 1e9:.0f} GFLOP/s, copy {machine.bytes_per_s / 1e9:.1f} GB/s"
    print(f"{args.threads} threads: {rates}")
    with tempfile.TemporaryDirectory() as folder:
        structure, hamiltonian = crystal(Path(folder))
        for n, l_max in cases:
            module, batch = case(*supercell(structure, hamiltonian, n), l_max)
            entry: dict[str, Any] = {"tiles": n, "l_max": l_max, "pairs": sum(batch.n_pairs)}
            print(f"{n} × {n} cells, l_max {l_max}: {len(batch.graph.species)} atoms, {sum(batch.n_pairs)} pairs")
            for name, task in tasks(module, batch).items():
                e = entry[name] = figures(task, batch, machine, max(3, rounds // n**2))
                print(
                    f"  {name:10s} {e['ms']:9.1f} ms {e['crystals_per_s']:8.2f} crystals/s {e['blocks_per_s']:9.0f} "
                    f"blocks/s {e['peak_megabytes']:8.1f} MB {e['over_floor']:6.1f} floors of "
                    f"{max(e['floor_flops_ms'], e['floor_bytes_ms']):.1f} ms"
                )
            if not report["cases"]:
                run = tasks(module, batch)
                shares = {
                    "step": shares_of_operations(run["step"]),
                    "inference": shares_of_parts(module.model, run["inference"]),
                }
                report["shares"] = shares
                for name, parts in shares.items():
                    print(f"  {name}: " + ", ".join(f"{part} {share:.0%}" for part, share in parts))
            report["cases"].append(entry)
    ratio = report["cases"][0]["backward"]["over_floor"]
    print(f"backward, first case: {ratio:.1f} floors, target {TARGET:g}: {'met' if ratio <= TARGET else 'NOT met'}")
    if args.json:
        temporary = args.json.with_name(args.json.name + ".part")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(args.json)


if __name__ == "__main__":
    main()
