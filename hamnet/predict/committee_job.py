"""Predictions of a committee that are larger than memory: each member into a file, then their mean and spread."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hamnet.calibration import PARTS, PairKinds, mean_and_spread, pair_kinds
from hamnet.models.io import LoadedModel
from hamnet.sample import Sample
from hamnet.store import BlockStream, SampleSet, SampleWriter
from hamnet.store_writer import disk_errors
from hamnet.structure import Structure
from hamnet.units import MEV_PER_EV

from .committee import Committee
from .job import Report, check_output, predict_to_file
from .uncertainty import areas_of_pairs, crystal_rms

__all__ = ["CommitteeReport", "predict_committee_to_file", "write_uncertainty"]


@dataclass(frozen=True, slots=True, eq=False)
class CommitteeReport:
    """What the prediction of a committee was and took.

    Attributes
    ----------
    members : the reports of the members that were computed by this call; those found finished are not among them.
    n_electrons, has_overlap, warnings, file_bytes : of the set that was written.
    row, col, shift : (n_pairs,), (n_pairs,), (n_pairs, 3) the pairs. length_ang : (n_pairs,).
    kinds : of the pairs. n_spin : Pauli components of H. area : (n_pairs,) elements of a block of one component.
    spread_ev : (n_pairs, 3) standard deviation of the members by part. expected_ev : expected error, or None where the
        committee is not calibrated.
    """

    members: tuple[Report, ...]
    n_electrons: float | None
    has_overlap: bool
    warnings: tuple[str, ...]
    file_bytes: int
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    shift: NDArray[np.int64]
    length_ang: NDArray[np.float64]
    kinds: PairKinds
    n_spin: int
    area: NDArray[np.int64]
    spread_ev: NDArray[np.float64]
    expected_ev: NDArray[np.float64] | None

    @property
    def n_atoms(self) -> int:
        return int(self.row.max()) + 1

    @property
    def n_pairs(self) -> int:
        return len(self.row)

    def rms_ev(self, by_pair: NDArray[np.float64]) -> float:
        """Root mean square over all elements of H from that of the pairs (n_pairs, 3) by part."""
        return crystal_rms(by_pair, self.area, self.n_spin)


def predict_committee_to_file(
    committee: Committee,
    structure: Structure,
    path: str | Path,
    *,
    source: Sample | None = None,
    on_member: Callable[[int], None] | None = None,
    **settings: Any,
) -> CommitteeReport:
    """Predict the mean Hamiltonian of a committee and write a sample set with it.

    The members' own predictions lie in the folder ``PATH.members`` meanwhile; a call after a kill goes on from there.

    Parameters
    ----------
    source : where pairs and overlap come from, see :func:`hamnet.predict.make_plan`.
    on_member : called with the number of each member before it is computed.
    settings : of :func:`hamnet.predict.predict_to_file`, whose errors this raises, too.
    """
    path = Path(path)
    folder = path.with_name(f"{path.name}.members")
    check_output(path)
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    files, reports = [], []
    for number, member in enumerate(committee.members):
        files.append(folder / f"{number}_{member.checksum[:12]}.h5")
        if not _is_finished(files[-1], member, structure, source):
            if on_member is not None:
                on_member(number)
            reports.append(predict_to_file(member, structure, files[-1], source=source, name=path.stem, **settings))
    with ExitStack() as stack:
        sets = [stack.enter_context(SampleSet(file)) for file in files]
        report = _join(committee, sets, path, tuple(reports))
    shutil.rmtree(folder)
    return report


def _is_finished(file: Path, member: LoadedModel, structure: Structure, source: Sample | None) -> bool:
    """Whether an earlier call predicted the same with this member."""
    if not file.exists():
        return False
    with SampleSet(file) as samples:
        there, provenance = samples.structure(0), samples.provenance(0)
    names = ("cell", "positions", "numbers", "moments")
    own = None if source is None else {"sample": source.name, "checksum": source.provenance.get("checksum")}
    return (
        provenance["model"]["sha256"] == member.checksum
        and all(np.array_equal(getattr(there, name), getattr(structure, name)) for name in names)
        and provenance.get("overlap") == own
    )


def _join(committee: Committee, sets: list[SampleSet], path: Path, reports: tuple[Report, ...]) -> CommitteeReport:
    first = sets[0]
    structure, pairs, basis = first.structure(0), first.pairs(0), first.basis
    spread = np.empty((len(pairs), 3))
    attributes = first.group(0).attrs

    def blocks(samples: SampleSet, kind: str, group: int, here: slice) -> NDArray:
        g = pairs.groups[group]
        return samples.blocks(0, kind, basis[g.row_species].label, basis[g.col_species].label, here)

    def hamiltonian(group: int, here: slice) -> NDArray:
        members = [torch.from_numpy(blocks(samples, "hamiltonian", group, here)) for samples in sets]
        wide = torch.complex128 if members[0].is_complex() else torch.float64
        mean, widths = mean_and_spread([member.to(wide) for member in members])
        spread[pairs.groups[group].pairs][here] = widths
        return mean.numpy().astype(members[0].numpy().dtype)

    sample = blocks(first, "hamiltonian", 0, slice(0, 1))
    streams = {}
    if "overlap" in attributes:
        own = blocks(first, "overlap", 0, slice(0, 1))
        streams["overlap"] = BlockStream(own.shape[1], own.dtype, lambda g, here: blocks(first, "overlap", g, here))
    streams["hamiltonian"] = BlockStream(sample.shape[1], sample.dtype, hamiltonian, compressed=False)
    provenance = first.provenance(0)
    provenance["committee"] = [member.checksum for member in committee.members]
    numbers = {key: attributes[key].item() for key in ("n_electrons", "spin_orbit") if key in attributes}
    with SampleWriter(path, scratch=first.path.parent) as writer:
        writer.add_streams(first.names[0], structure, basis, pairs, streams, provenance=provenance, numbers=numbers)
    lengths = np.linalg.norm(pairs.vectors(structure.cell, structure.positions), axis=1)
    kinds = pair_kinds(structure, pairs, basis.labels)
    known = committee.calibration
    return CommitteeReport(
        members=reports,
        n_electrons=numbers.get("n_electrons"),
        has_overlap="overlap" in streams,
        warnings=tuple(provenance["warnings"]),
        file_bytes=path.stat().st_size,
        row=pairs.row,
        col=pairs.col,
        shift=pairs.shift,
        length_ang=lengths,
        kinds=kinds,
        n_spin=sample.shape[1],
        area=areas_of_pairs(pairs, basis),
        spread_ev=spread,
        expected_ev=None if known is None else known.expected_error(kinds, spread),
    )


def write_uncertainty(path: str | Path, report: CommitteeReport) -> Path:
    """Spread and expected error of each pair as a NumPy archive, units in the names; whole or not at all."""
    path = Path(path)
    arrays = {"row": report.row, "col": report.col, "shift": report.shift, "length_ang": report.length_ang}
    for column, part in enumerate(PARTS):
        arrays[f"spread_{part}_meV"] = report.spread_ev[:, column] * MEV_PER_EV
        if report.expected_ev is not None:
            arrays[f"expected_error_{part}_meV"] = report.expected_ev[:, column] * MEV_PER_EV
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path
