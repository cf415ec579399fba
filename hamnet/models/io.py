"""Model files: weights in safetensors, everything else as JSON in the header of the same file.

``docs/model_file.md`` describes the header. Nothing in such a file is executed when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from hamnet import __version__
from hamnet.basis import Basis
from hamnet.errors import ConfigError, HamnetError, ModelError

from . import MODELS
from .hamiltonian import HamiltonianModel

__all__ = [
    "CONVENTIONS",
    "FORMAT",
    "FORMAT_VERSION",
    "LoadedModel",
    "TrainedOn",
    "build_model",
    "config_class",
    "load_model",
    "save_model",
]

FORMAT = "hamnet-model"
FORMAT_VERSION = 2

CONVENTIONS = {
    "units": "eV, angstrom, mu_B",
    "orbital_order": "shells as listed in the basis, m = -l ... l inside, real spherical harmonics without "
    "Condon-Shortley sign, polar axis z",
    "pair_convention": "block of (row i, col j, shift R) is <i, 0| O |j, R>; atoms count from 0",
    "spin_convention": "Pauli components, O = sum_mu O_mu sigma_mu",
}

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """What the training data were: a model says nothing about anything else.

    spin : spin kind of the Hamiltonians. spin_orbit : whether spin–orbit coupling was on.
    code : the DFT code. constraint : what its reader did with the penalty of direction-constrained runs.
    species_pairs : ``"Ni-Br"`` (sorted as in the basis) → (shortest, longest) distance in Å, self pairs left out.
    moments_mub : per species label (smallest, largest) |m| that was an input.
    """

    spin: str
    spin_orbit: bool | None
    code: str | None = None
    constraint: str | None = None
    species_pairs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    moments_mub: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        entry: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("species_pairs", "moments_mub"):
            entry[name] = {key: list(values) for key, values in entry[name].items()}
        return entry

    @staticmethod
    def from_dict(entry: Mapping[str, Any]) -> TrainedOn:
        values = dict(entry)
        for name in ("species_pairs", "moments_mub"):
            values[name] = {key: (float(low), float(high)) for key, (low, high) in values.get(name, {}).items()}
        return TrainedOn(**values)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and what its file says of it.

    model : in evaluation mode. name : its place in the registry. trained_on : limits of its use.
    provenance : configuration, data sets with checksums, seed, errors reached. checksum : SHA-256 of the file.
    """

    model: HamiltonianModel
    name: str
    trained_on: TrainedOn
    provenance: Mapping[str, Any]
    path: str
    checksum: str


def config_class(name: str) -> Any:
    """Configuration dataclass of a registered model."""
    return get_type_hints(MODELS[name].__init__)["config"]


def build_model(name: str, config: Any, basis: Basis, moment_scale: tuple[float, ...], *, seed: int) -> Any:
    """An untrained float64 model; weights drawn with `seed`, the caller's random state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](config, basis, moment_scale).to(torch.float64)


def save_model(
    path: str | Path, model: nn.Module, *, name: str, trained_on: TrainedOn, provenance: Mapping[str, Any]
) -> str:
    """Write a model file, whole or not at all; its SHA-256. The dtype in the file is the model's own."""
    path = Path(path)
    dtype = next(key for key, value in _DTYPES.items() if value == next(model.parameters()).dtype)
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "code_version": __version__,
        "model": name,
        "config": model.config.to_dict(),  # type: ignore[union-attr]
        "basis": model.basis.to_dict(),  # type: ignore[union-attr]
        "moment_scale_mub": list(model.moment_scale),  # type: ignore[arg-type]
        "dtype": dtype,
        "conventions": CONVENTIONS,
        "trained_on": trained_on.to_dict(),
        "provenance": dict(provenance),
    }
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    data = save(state, metadata={"hamnet": json.dumps(header, allow_nan=False)})
    _write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def _write_atomically(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            Path(temporary).chmod(0o666 & ~mask)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"cannot be written ({error})", expected="a folder with free space", path=path) from error


def load_model(
    path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> LoadedModel:
    """Read a model file.

    dtype : precision to compute in; default: that of the file.

    Raises :class:`ModelError` where the file is missing, damaged, not a model, or of another format, and
    :class:`ConfigError` for a device that is not there.
    """
    path, device = Path(path), _device(device)
    header, state, checksum = _read(path)
    version = header.get("format_version")
    if header.get("format") != FORMAT or not isinstance(version, int):
        raise ModelError(f"format {header.get('format')!r}", expected=f"format {FORMAT!r}", path=path)
    if version != FORMAT_VERSION:
        raise ModelError(
            f"model file of format version {version}",
            expected=f"format version {FORMAT_VERSION}",
            remedy="it was written by a newer hamnet: update this one" if version > FORMAT_VERSION else "train it anew",
            path=path,
        )
    if header["model"] not in MODELS:
        raise ModelError(f"model {header['model']!r}", expected=f"one of {', '.join(MODELS)}", path=path)
    try:
        config = config_class(header["model"])(**header["config"])
        basis = Basis.from_dict(header["basis"])
        trained_on = TrainedOn.from_dict(header["trained_on"])
        model = build_model(header["model"], config, basis, tuple(header["moment_scale_mub"]), seed=0)
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError, HamnetError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"damaged, or of another code version: {reason}",
            expected=f"a model of hamnet {header.get('code_version', '?')}",
            path=path,
        ) from error
    model = model.to(dtype=dtype or _DTYPES[header["dtype"]], device=device).eval()
    model.requires_grad_(False)
    return LoadedModel(model, header["model"], trained_on, header["provenance"], str(path), checksum)


def _device(name: torch.device | str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {str(name)!r}", expected="cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {str(name)!r}, which is not there",
            expected="an NVIDIA GPU and a torch that was built for it",
            remedy="compute on the cpu",
        )
    return device


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], str]:
    remedy = "make one with `hamnet train`"
    if path.is_dir():
        inside = path / "model.safetensors"
        hint = f"give {inside}" if inside.exists() else remedy
        raise ModelError("a folder", expected="a model file", remedy=hint, path=path)
    try:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("hamnet")
            if text is None:
                raise ModelError(
                    "a safetensors file of something else", expected="a model file", remedy=remedy, path=path
                )
            return json.loads(text), {key: file.get_tensor(key) for key in file.keys()}, checksum
    except FileNotFoundError as error:
        raise ModelError("no such file", expected="a model file", remedy=remedy, path=path) from error
    except OSError as error:
        raise ModelError(f"cannot be read ({error})", expected="a model file", path=path) from error
    except (SafetensorError, ValueError) as error:
        raise ModelError(
            f"not a model file, or a damaged one ({error})", expected="a safetensors file", remedy=remedy, path=path
        ) from error
