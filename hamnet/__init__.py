"""hamnet: ab initio Hamiltonians of magnetic superlattices from an equivariant network.

Public names are imported when they are first used, so that ``import hamnet`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .basis import Basis, Shell, SpeciesBasis
    from .blocks import BlockOperator, Pairs
    from .errors import HamnetError
    from .sample import Sample
    from .store import SampleSet, write_samples
    from .structure import Structure

__all__ = [
    "Basis",
    "BlockOperator",
    "HamnetError",
    "Pairs",
    "Sample",
    "SampleSet",
    "Shell",
    "SpeciesBasis",
    "Structure",
    "__version__",
    "write_samples",
]

__version__ = "0.1.0"

_HOME = {
    "Basis": "basis",
    "BlockOperator": "blocks",
    "HamnetError": "errors",
    "Pairs": "blocks",
    "Sample": "sample",
    "SampleSet": "store",
    "Shell": "basis",
    "SpeciesBasis": "basis",
    "Structure": "structure",
    "write_samples": "store",
}
"""Module of each public name."""


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f"hamnet.{_HOME[name]}"), name)
    raise AttributeError(f"module 'hamnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
