"""Cost of one layer of messages, against the convolutions of e3nn with the same features in and out.

Features of both parities, even and odd under time reversal, of each degree l ≤ L with the same number of channels, on
random graphs with twelve neighbours per atom; float32; geometry, forward and backward to features and weights, as in a
training step. The layers:

hamnet            the messages of :class:`hamnet.models.interaction.Interaction`: both ends mixed and turned into the
                  frame of the edge, gains by a radial network, two equal-|m| maps with gates between them, turned back,
                  summed and mixed.
fully_connected   Σ_j x_j ⊗ Y(r̂_ij) by ``o3.FullyConnectedTensorProduct``, all weights of all paths from a radial
                  network for each edge: the convolution of e3nn's guide. Spherical harmonics up to L. This is what the
                  target is about.
nequip            the same product channel by channel (``uvu``, weights by path and channel from a radial network)
                  between two ``o3.Linear``, as in NequIP.
shared            ``o3.FullyConnectedTensorProduct`` with one set of weights for all edges, times one radial function:
                  no layer in use, but what the product itself costs without weights for each edge.

All radial networks are alike up to their last layer: 8 Bessel functions, twice 64 SiLU. Y keeps time parity, so the
layers of e3nn are two, one for each. The layer of hamnet has two maps and a gate where the others have one linear
product, and sees both ends of an edge; it is not the same function, only the same features.

Times are the best of alternating rounds in one process. Memory is the largest that a step has in use at once, as the
allocator of torch counts it; that of an edge is the difference between graphs of N and 2N edges over N, so that weights
and their gradients are left out. With a GPU, cuEquivariance (``fully_connected`` products) and OpenEquivariance
(``nequip`` ones, fused with the sum) are measured where they are installed.

    python benchmarks/interaction.py [--degrees 4 6] [--channels 16] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet
from reading import environment
from torch import Tensor, nn

from hamnet.models.embedding import RadialBasis, envelope
from hamnet.models.frames import edge_rotation
from hamnet.models.incidence import Incidence
from hamnet.models.interaction import EdgeNetwork
from hamnet.models.irreps import ALGEBRAS, EquivariantLinear

TARGET_TIME, TARGET_MEMORY = 10.0, 5.0
NEIGHBOURS, N_RADIAL, WIDTH, CUTOFF_ANG = 12, 8, 64, 4.5
TIME_REVERSAL = 2
"""Features even and odd under time reversal."""


@dataclass(frozen=True, slots=True)
class Edges:
    """row, col : (e,) atoms; vectors : (e, 3) Å from row to col; n_atoms."""

    row: Tensor
    col: Tensor
    vectors: Tensor
    n_atoms: int

    @classmethod
    def random(cls, n_edges: int, device: str) -> Edges:
        generator = torch.Generator().manual_seed(0)
        n_atoms = n_edges // NEIGHBOURS
        row = torch.arange(n_atoms).repeat_interleave(NEIGHBOURS)
        col = torch.randint(n_atoms, (len(row),), generator=generator)
        direction = torch.nn.functional.normalize(torch.randn(len(row), 3, generator=generator), dim=-1)
        length = CUTOFF_ANG * (0.5 + 0.5 * torch.rand(len(row), 1, generator=generator))
        return cls(row.to(device), col.to(device), (direction * length).to(device), n_atoms)

    def radial(self) -> tuple[Tensor, Tensor]:
        """Bessel functions (e, 8) and envelope (e,)."""
        fraction = self.vectors.norm(dim=-1) / CUTOFF_ANG
        return RadialBasis(N_RADIAL).to(self.vectors)(fraction), envelope(fraction, 12) / math.sqrt(NEIGHBOURS)


class HamnetMessages(nn.Module):
    def __init__(self, l_max: int, channels: int) -> None:
        super().__init__()
        algebra = ALGEBRAS["soc"]
        self.shape = ((l_max + 1) ** 2, 2, TIME_REVERSAL, channels)
        self.l_max = l_max
        self.edge = EdgeNetwork(l_max, algebra, channels, channels, N_RADIAL, channels)
        self.out = EquivariantLinear(l_max, algebra, channels, channels)

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        radial, weight = edges.radial()
        rotation = edge_rotation(edges.vectors, self.l_max)
        ends = Incidence.of(torch.stack([edges.row, edges.col + edges.n_atoms], dim=1), 2 * edges.n_atoms)
        (messages,) = self.edge(x, ends, rotation, radial, weight, [(len(edges.row), self.l_max)])
        summed = Incidence.of(edges.row[:, None], edges.n_atoms).scattered(messages.flatten(1))
        return self.out(summed.reshape(edges.n_atoms, *self.shape))


def node_irreps(l_max: int, channels: int) -> o3.Irreps:
    return o3.Irreps([(channels, (l, p)) for l in range(l_max + 1) for p in (1, -1)])  # type: ignore[return-value]


def radial_network(n_out: int) -> FullyConnectedNet:
    return FullyConnectedNet([N_RADIAL, WIDTH, WIDTH, n_out], torch.nn.functional.silu)


class Convolution(nn.Module):
    """Σ_j x_j ⊗ Y with weights by a radial network; `product` takes (x, Y, weights), or a fused one sums as well."""

    def __init__(
        self, l_max: int, channels: int, product: Callable[..., nn.Module], *, mixed: bool, fused: bool
    ) -> None:
        super().__init__()
        irreps, harmonics = node_irreps(l_max, channels), o3.Irreps.spherical_harmonics(l_max)
        self.shape, self.l_max, self.fused = (TIME_REVERSAL, irreps.dim), l_max, fused
        self.products = nn.ModuleList(product(irreps, harmonics) for _ in range(TIME_REVERSAL))
        self.radial = nn.ModuleList(radial_network(int(p.weight_numel)) for p in self.products)  # type: ignore[arg-type]
        out = [p.irreps_out for p in self.products]
        self.before = nn.ModuleList(o3.Linear(irreps, irreps) if mixed else nn.Identity() for _ in self.products)
        self.after = nn.ModuleList(o3.Linear(o, irreps) if mixed else nn.Identity() for o in out)  # type: ignore[arg-type]

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        basis, weight = edges.radial()
        harmonics = o3.spherical_harmonics(list(range(self.l_max + 1)), edges.vectors, normalize=True)
        harmonics = harmonics * weight[:, None]
        result = []
        for own, product, radial, before, after in zip(
            x.unbind(dim=1), self.products, self.radial, self.before, self.after, strict=True
        ):
            own = before(own)
            if self.fused:
                summed = product(own, harmonics, radial(basis), edges.row, edges.col)
            else:
                messages = product(own[edges.col], harmonics, radial(basis))
                summed = messages.new_zeros(edges.n_atoms, messages.shape[1]).index_add(0, edges.row, messages)
            result.append(after(summed))
        return torch.stack(result, dim=1)


def fully_connected(irreps: o3.Irreps, harmonics: o3.Irreps) -> nn.Module:
    return o3.FullyConnectedTensorProduct(irreps, harmonics, irreps, shared_weights=False, internal_weights=False)


class Shared(nn.Module):
    weight_numel = 1

    def __init__(self, irreps: o3.Irreps, harmonics: o3.Irreps) -> None:
        super().__init__()
        self.product = o3.FullyConnectedTensorProduct(irreps, harmonics, irreps)
        self.irreps_out = irreps

    def forward(self, x: Tensor, harmonics: Tensor, radial: Tensor) -> Tensor:
        return self.product(x, harmonics * radial)


def channelwise_paths(irreps: o3.Irreps, harmonics: o3.Irreps) -> tuple[o3.Irreps, list[tuple]]:
    """Irreps of all paths into `irreps`, sorted, and the instructions of the product."""
    found = [
        (own.mul, out, i, j)
        for i, own in enumerate(irreps)
        for j, other in enumerate(harmonics)
        for out in own.ir * other.ir
        if out in irreps
    ]
    sorted_ = o3.Irreps([(mul, out) for mul, out, _, _ in found]).sort()  # type: ignore[union-attr]
    return sorted_.irreps, [(i, j, k, "uvu", True) for (_, _, i, j), k in zip(found, sorted_.p, strict=True)]


def channelwise(irreps: o3.Irreps, harmonics: o3.Irreps) -> nn.Module:
    paths, instructions = channelwise_paths(irreps, harmonics)
    return o3.TensorProduct(irreps, harmonics, paths, instructions, shared_weights=False, internal_weights=False)


def cue_fully_connected(irreps: o3.Irreps, harmonics: o3.Irreps) -> nn.Module:
    cue, cuet = (importlib.import_module(name) for name in ("cuequivariance", "cuequivariance_torch"))
    own, other = cue.Irreps("O3", str(irreps)), cue.Irreps("O3", str(harmonics))
    product = cuet.FullyConnectedTensorProduct(
        own,
        other,
        own,
        layout=cue.mul_ir,
        shared_weights=False,
        internal_weights=False,
        method="fused_tp" if torch.cuda.is_available() else "naive",
    )
    product.irreps_out = irreps
    return product


class OpenChannelwise(nn.Module):
    """Channel by channel, summed over neighbours in the same kernel."""

    def __init__(self, irreps: o3.Irreps, harmonics: o3.Irreps) -> None:
        super().__init__()
        oeq = importlib.import_module("openequivariance")
        self.irreps_out, instructions = channelwise_paths(irreps, harmonics)
        problem = oeq.TPProblem(
            irreps, harmonics, self.irreps_out, instructions, shared_weights=False, internal_weights=False
        )
        self.weight_numel = problem.weight_numel
        self.product = oeq.TensorProductConv(problem, torch_op=True, deterministic=False)

    def forward(self, x: Tensor, harmonics: Tensor, weights: Tensor, row: Tensor, col: Tensor) -> Tensor:
        return self.product(x, harmonics, weights, row, col)


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "hamnet": HamnetMessages,
    "fully_connected": lambda l, c: Convolution(l, c, fully_connected, mixed=False, fused=False),
    "nequip": lambda l, c: Convolution(l, c, channelwise, mixed=True, fused=False),
    "shared": lambda l, c: Convolution(l, c, Shared, mixed=False, fused=False),
    "cuequivariance": lambda l, c: Convolution(l, c, cue_fully_connected, mixed=False, fused=False),
    "openequivariance": lambda l, c: Convolution(l, c, OpenChannelwise, mixed=True, fused=True),
}
NEEDS = {"cuequivariance": "cuequivariance_torch", "openequivariance": "openequivariance"}


def step_of(name: str, l_max: int, channels: int, n_edges: int, device: str) -> Callable[[], None]:
    """One forward and backward pass of a new layer."""
    torch.manual_seed(0)
    layer = LAYERS[name](l_max, channels).to(torch.float32).to(device)
    edges = Edges.random(n_edges, device)
    x = torch.randn(edges.n_atoms, *layer.shape, device=device, requires_grad=True)  # type: ignore[misc]
    n_features = (l_max + 1) ** 2 * 2 * TIME_REVERSAL * channels
    assert x[0].numel() == n_features, "all layers have the same features"

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        y = layer(x, edges)
        assert y.shape == x.shape
        y.square().mean().backward()

    return step


def seconds(step: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def best_times(names: list[str], args: argparse.Namespace, l_max: int) -> dict[str, float]:
    steps = {name: step_of(name, l_max, args.channels, args.edges, args.device) for name in names}
    for step in steps.values():  # e3nn compiles on the first two calls
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(3 if args.quick else 10):
        for name, step in steps.items():
            times[name].append(seconds(step, args.device))
    return {name: min(values) for name, values in times.items()}


def peak_bytes(step: Callable[[], None], device: str) -> float:
    """Largest memory in use at once during a step, as torch's allocator counts it, above what was in use before."""
    step()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


def measured(names: list[str], args: argparse.Namespace, l_max: int) -> dict[str, dict[str, float]]:
    times = best_times(names, args, l_max)
    few, many = args.edges, 2 * args.edges
    entries: dict[str, dict[str, float]] = {}
    for name in names:
        peaks = [peak_bytes(step_of(name, l_max, args.channels, n, args.device), args.device) for n in (few, many)]
        slope = (peaks[1] - peaks[0]) / (many - few)
        entries[name] = {"step_ms": 1e3 * times[name], "kilobytes_per_edge": slope / 1e3}
    own = entries["hamnet"]
    for entry in entries.values():
        entry["time_over_hamnet"] = entry["step_ms"] / own["step_ms"]
        entry["memory_over_hamnet"] = entry["kilobytes_per_edge"] / own["kilobytes_per_edge"]
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--degrees", type=int, nargs="+", default=[4, 6], metavar="L", help="highest degrees")
    parser.add_argument("--channels", type=int, default=16, help="channels of each kind")
    parser.add_argument("--edges", type=int, default=120, help="edges of the graph")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", nargs="+", choices=list(LAYERS)[1:], help="compare with these alone")
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 10")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    there = [name for name, module in NEEDS.items() if args.device == "cuda" and importlib.util.find_spec(module)]
    names = ["hamnet", *(args.layers or [name for name in LAYERS if name not in ("hamnet", *NEEDS)] + there)]
    report: dict[str, Any] = {
        "environment": environment(),
        "settings": {key: getattr(args, key) for key in ("channels", "edges", "threads", "device", "quick")},
        "targets": {"time_over_hamnet": TARGET_TIME, "memory_over_hamnet": TARGET_MEMORY},
        "degrees": {},
    }
    for l_max in args.degrees:
        entries = report["degrees"][str(l_max)] = measured(names, args, l_max)
        print(f"l ≤ {l_max}, {args.channels} channels of each kind, {args.edges} edges, {args.threads} threads")
        for name, entry in entries.items():
            print(
                f"  {name:16s} {entry['step_ms']:9.1f} ms {entry['time_over_hamnet']:7.1f} ×"
                f"   {entry['kilobytes_per_edge']:9.1f} kB per edge {entry['memory_over_hamnet']:7.1f} ×"
            )
        if "fully_connected" in entries:
            time_ratio, memory_ratio = (
                entries["fully_connected"][k] for k in ("time_over_hamnet", "memory_over_hamnet")
            )
            met = time_ratio >= TARGET_TIME and memory_ratio >= TARGET_MEMORY
            print(
                f"  fully connected product: {time_ratio:.1f} times as long (target {TARGET_TIME:g}), "
                f"{memory_ratio:.1f} times as much memory (target {TARGET_MEMORY:g}): {'met' if met else 'NOT met'}"
            )
    if args.json:
        temporary = args.json.with_name(args.json.name + ".part")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(args.json)


if __name__ == "__main__":
    main()
