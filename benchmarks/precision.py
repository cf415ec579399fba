"""What fast matrix products of low precision cost a prediction: tf32 and bf16, against double precision.

Graphics processors multiply faster with fewer digits. Here the operands of all matrix products are rounded as they
would be (tf32: 10 bits of mantissa, bf16: 7), sums are kept in single precision as the hardware does, and the predicted
H is compared with that in double precision, beside the model's own error against DFT. It needs no such hardware.

    python benchmarks/precision.py [MODEL RUN …] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from band_errors import MODEL, run_folders
from reading import environment
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hamnet.blocks import BlockOperator
from hamnet.cli.sources import load_source
from hamnet.models.io import load_model
from hamnet.training.metrics import ErrorSums

_MANTISSA = {"tf32": 10, "bf16": 7}
_FLOAT32_MANTISSA = 23
_FIRST_FACTOR = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}


class RoundedProducts(TorchDispatchMode):
    """Rounds the factors of all matrix products in single precision to `bits` of mantissa, to nearest."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.drop = _FLOAT32_MANTISSA - bits

    def rounded(self, values: Tensor) -> Tensor:
        if values.dtype != torch.float32:  # geometry is in double precision
            return values
        raw = values.contiguous().view(torch.int32)
        return ((raw + (1 << (self.drop - 1))) & ~((1 << self.drop) - 1)).view(torch.float32)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first = _FIRST_FACTOR.get(func._schema.name.removeprefix("aten::").removesuffix("_"))
        if first is not None:
            factors = (self.rounded(value) for value in args[first : first + 2])
            args = (*args[:first], *factors, *args[first + 2 :])
        return func(*args, **(kwargs or {}))


def mean_error_mev(one: BlockOperator, other: BlockOperator) -> float:
    sums = ErrorSums()
    for block in (one - other).blocks:
        sums.add(block)
    value = sums.means_mev()["mae_meV"]
    assert value is not None
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=MODEL, help="model file (the shipped one)")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders (the 2×2 spiral of the example)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    args = parser.parse_args()
    single, double = (load_model(args.model, dtype=dtype).model for dtype in (torch.float32, torch.float64))
    results = []
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        for path in run_folders(args.runs, Path(scratch)):
            sample = load_source(path).sample.with_basis(single.basis)
            true = sample.operator("hamiltonian")
            exact = double.hamiltonian(sample.structure, true.pairs).to(true.dtype)
            entry = {"model": mean_error_mev(exact, true)}
            for name in ("float32", *_MANTISSA):
                with RoundedProducts(_MANTISSA[name]) if name in _MANTISSA else nullcontext():
                    predicted = single.hamiltonian(sample.structure, true.pairs)
                entry[name] = mean_error_mev(predicted.to(true.dtype), exact)
            words = ", ".join(f"{name} {value:.2g}" for name, value in entry.items() if name != "model")
            print(f"{sample.name}: mean change of H {words} meV; error of the model {entry['model']:.2g} meV")
            results.append({"run": sample.name, "mae_meV": entry})
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
