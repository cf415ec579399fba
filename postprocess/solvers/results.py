"""States of many k in one HDF5 file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py

from hamnet.errors import StoreError

from ..files import replacing
from .states import States

__all__ = ["read_states", "write_states"]

_FORMAT = "hamnet states"
_VERSION = 1
_UNITS = {
    "k_frac": "fractions of the reciprocal vectors",
    "low_ev": "eV",
    "high_ev": "eV",
    "energies_ev": "eV",
    "residual_ev": "eV",
    "vectors": "c†Sc = 1, lattice gauge, rows (orbital, spin), spin fast",
}


def write_states(path: str | Path, states: Sequence[States], attributes: Mapping[str, str | float]) -> None:
    """One group for each k and channel, in order, with the fields of :class:`.states.States`; whole or not at all."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update({"format": _FORMAT, "version": _VERSION, **attributes})
        for number, state in enumerate(states):
            group = file.create_group(f"{number:06d}")
            for field in fields(States):
                value = getattr(state, field.name)
                if value is not None:
                    large = field.name == "vectors"
                    data = group.create_dataset(field.name, data=value, **({"compression": "lzf"} if large else {}))
                    if field.name in _UNITS:
                        data.attrs["unit"] = _UNITS[field.name]


def read_states(path: str | Path) -> list[States]:
    """What :func:`write_states` wrote. Raises :class:`StoreError` for a file that is none."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != _FORMAT or file.attrs.get("version") != _VERSION:
                raise StoreError("no file of states", expected=f"one that `hamnet solve` wrote ({_VERSION})", path=path)
            return [_read(file.require_group(name)) for name in sorted(file)]
    except OSError as error:
        raise StoreError(f"cannot be read ({error})", expected="a file of `hamnet solve`", path=path) from error


def _read(group: h5py.Group) -> States:
    values: dict[str, Any] = {}
    for name, data in group.items():
        assert isinstance(data, h5py.Dataset)
        values[name] = data[()].item() if data.shape == () else data[()]
    return States(**values)
