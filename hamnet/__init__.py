"""hamnet: ab initio Hamiltonians of magnetic superlattices from an equivariant network.

Public names are imported when they are first used, so that ``import hamnet`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PUBLIC = {
    "Basis": "hamnet.basis",
    "BlockOperator": "hamnet.blocks",
    "HamnetError": "hamnet.errors",
    "Pairs": "hamnet.blocks",
    "Sample": "hamnet.sample",
    "Shell": "hamnet.basis",
    "SpeciesBasis": "hamnet.basis",
    "Structure": "hamnet.structure",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from .basis import Basis, Shell, SpeciesBasis
    from .blocks import BlockOperator, Pairs
    from .errors import HamnetError
    from .sample import Sample
    from .structure import Structure


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'hamnet' has no attribute {name!r}")
