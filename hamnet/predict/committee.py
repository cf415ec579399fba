"""Committees: models that were trained alike from different seeds, and what is known about how far to trust them.

A committee file is JSON: the members' files with checksums, and, once it was calibrated on samples that no member was
trained on, the factors from spread to error and the residuals of moments that are normal. ``docs/uncertainty.md``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hamnet import __version__
from hamnet.blocks import BlockOperator, Pairs
from hamnet.calibration import Calibration, mean_and_spread
from hamnet.errors import ModelError
from hamnet.models.io import LoadedModel, load_model
from hamnet.structure import Structure
from hamnet.verify import NormalResidual

from .prediction import predict_operator

__all__ = ["Committee", "is_committee", "join_models", "load_committee", "mean_operator", "save_committee"]

_FORMAT = "hamnet-committee"
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Committee:
    """Models of one kind, and their calibration.

    Attributes
    ----------
    members : at least one; the first speaks for all where they are the same.
    calibration : factors from spread to error, None where the committee was not calibrated or has one member.
    normal : residuals of moments that are normal, by species; empty where nothing is known.
    samples : names of those that it was calibrated on.
    path : of the file, None for one that has none.
    """

    members: tuple[LoadedModel, ...]
    calibration: Calibration | None = None
    normal: Mapping[str, NormalResidual] = field(default_factory=dict)
    samples: tuple[str, ...] = ()
    path: str | None = None

    @property
    def first(self) -> LoadedModel:
        return self.members[0]

    def is_input(self, labels: Sequence[str]) -> NDArray[np.bool_]:
        """(n,) whether the moments of atoms of these species determine H."""
        model = self.first.model
        scale = dict(zip(model.basis.labels, model.moment_scale, strict=True))
        return np.array([scale[label] > 0 for label in labels])


def join_models(members: Sequence[LoadedModel]) -> Committee:
    """An uncalibrated committee.

    Raises :class:`ModelError` where the models are not of one kind: basis, mode, magnetic species, DFT code, spin and
    constraint must be the same, and no file may come twice.
    """
    first = members[0]
    for other in members[1:]:
        for what, value in _kind(first).items():
            if _kind(other)[what] != value:
                raise ModelError(
                    f"another {what} than that of {first.path}",
                    expected="models that were trained on the same data",
                    path=other.path,
                )
    sums = [member.checksum for member in members]
    for place, member in enumerate(members):
        if member.checksum in sums[:place]:
            raise ModelError("the same model twice", expected="models trained from different seeds", path=member.path)
    return Committee(tuple(members))


def _kind(loaded: LoadedModel) -> dict[str, Any]:
    data, model = loaded.trained_on, loaded.model
    return {
        "basis": model.basis.to_dict(),
        "mode": model.config.mode,
        "set of magnetic species": [scale > 0 for scale in model.moment_scale],
        "DFT code": data.code,
        "spin": (data.spin, data.spin_orbit),
        "constraint": data.constraint,
    }


@torch.no_grad()
def mean_operator(
    committee: Committee, structure: Structure, pairs: Pairs
) -> tuple[BlockOperator, NDArray[np.float64]]:
    """(mean of the members' H on `pairs`, standard deviation (n_pairs, 3) in eV by part). All in memory, no checks.

    The mean of exactly equivariant predictions is exactly equivariant, and the spread is invariant.
    """
    operators = [predict_operator(member, structure, pairs) for member in committee.members]
    spread, blocks = np.empty((len(pairs), 3)), []
    for group, members in zip(pairs.groups, zip(*(o.blocks for o in operators), strict=True), strict=True):
        mean, spread[group.pairs] = mean_and_spread(members)
        blocks.append(mean)
    return BlockOperator(operators[0].basis, pairs, tuple(blocks)), spread


# -- files -------------------------------------------------------------------------------------------------------------


def is_committee(path: str | Path) -> bool:
    """Whether a file is to be read as a committee, by its suffix."""
    return Path(path).suffix.lower() == ".json"


def save_committee(path: str | Path, committee: Committee, *, notes: Mapping[str, Any]) -> None:
    """Write a committee file, whole or not at all; members are named relative to it. notes : JSON values to keep."""
    path = Path(path)
    content = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "code_version": __version__,
        "members": [
            {"file": os.path.relpath(member.path, path.parent), "sha256": member.checksum}
            for member in committee.members
        ],
        "samples": list(committee.samples),
        "factors": None if committee.calibration is None else committee.calibration.to_dict(),
        "normal_moments": {label: asdict(normal) for label, normal in committee.normal.items()},
        **notes,
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ModelError(f"cannot be written ({error})", expected="a folder with free space", path=path) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_committee(
    path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Committee:
    """A committee with its models, or a single model as a committee of one.

    Raises :class:`ModelError` for a file that is none, for members that are missing or were trained anew since.
    """
    path = Path(path)
    if not is_committee(path):
        return Committee((load_model(path, dtype=dtype, device=device),))
    content = _read(path)
    members = []
    for entry in content["members"]:
        member = load_model(path.parent / entry["file"], dtype=dtype, device=device)
        if member.checksum != entry["sha256"]:
            raise ModelError(
                f"another model than when {path.name} was made",
                expected=f"SHA-256 {entry['sha256']}",
                remedy="make the committee again with `hamnet committee`",
                path=member.path,
            )
        members.append(member)
    joined = join_models(members)
    normal = {
        label: NormalResidual((float(n["size_mub"][0]), float(n["size_mub"][1])), n["angle_deg"], n["n_atoms"])
        for label, n in content["normal_moments"].items()
    }
    factors = content["factors"]
    return Committee(
        joined.members,
        None if factors is None else Calibration.from_dict(factors),
        normal,
        tuple(content["samples"]),
        str(path),
    )


def _read(path: Path) -> dict[str, Any]:
    remedy = "make one with `hamnet committee`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError("no such file", expected="a committee", remedy=remedy, path=path) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read ({error})", expected="a committee", remedy=remedy, path=path) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ModelError("a JSON file of something else", expected="a committee", remedy=remedy, path=path)
    if content.get("format_version") != _FORMAT_VERSION:
        raise ModelError(
            f"committee of format version {content.get('format_version')}",
            expected=f"format version {_FORMAT_VERSION}",
            remedy="update hamnet, or make the committee again",
            path=path,
        )
    missing = [key for key in ("members", "samples", "factors", "normal_moments") if key not in content]
    if missing or not content["members"]:
        raise ModelError(f"no {' and no '.join(missing or ['members'])}", expected="a whole committee", path=path)
    return content
