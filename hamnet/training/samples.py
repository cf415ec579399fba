"""The samples that a configuration selects, read from their sets one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from hamnet.basis import Basis
from hamnet.blocks import BlockOperator, Pairs
from hamnet.errors import ConfigError
from hamnet.models.guards import renumbered
from hamnet.sample import Sample
from hamnet.store import SampleSet
from hamnet.structure import Structure

from .config import Selection

__all__ = ["SampleList", "select", "split"]


class SampleList:
    """Samples of one or several sets; nothing but names is kept in memory. Can be sent to other processes.

    places : (path of the set, name of the sample) of each. labels : for each set, other names of its species.
    """

    def __init__(
        self, places: Sequence[tuple[str, str]], labels: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    ) -> None:
        self.places, self.labels = tuple(places), {path: dict(names) for path, names in labels.items() if names}
        self._sets: dict[str, SampleSet] = {}

    def __reduce__(self):
        return (type(self), (self.places, self.labels))

    def at(self, indices: Iterable[int]) -> SampleList:
        """Some of the samples."""
        return SampleList([self.places[index] for index in indices], self.labels)

    def __len__(self) -> int:
        return len(self.places)

    def _of(self, index: int) -> tuple[SampleSet, str]:
        path, name = self.places[index]
        if path not in self._sets:
            self._sets[path] = SampleSet(path)
        return self._sets[path], name

    def name(self, index: int) -> str:
        return self.places[index][1]

    def structure(self, index: int) -> Structure:
        source, name = self._of(index)
        structure, renamed = source.structure(name), self.labels.get(self.places[index][0])
        if renamed is None:
            return structure
        return replace(structure, labels=tuple(renamed.get(label, label) for label in structure.labels))

    def structures(self) -> Iterator[Structure]:
        return (self.structure(index) for index in range(len(self)))

    def provenance(self, index: int) -> dict[str, Any]:
        source, name = self._of(index)
        return source.provenance(name)

    def spin_orbit(self, index: int) -> bool | None:
        source, name = self._of(index)
        value = source.group(name).attrs.get("spin_orbit")
        return None if value is None else bool(value)

    def energy_text(self, index: int) -> str:
        """`` (E = -12.345 eV)`` where the total energy is stored."""
        source, name = self._of(index)
        energy = source.group(name).attrs.get("total_energy_ev")
        return "" if energy is None else f" (E = {float(energy):.4f} eV)"

    def basis(self, index: int) -> Basis:
        """The species that occur in the sample."""
        source, name = self._of(index)
        return self._renamed(index, source.basis_of(name))

    def _renamed(self, index: int, basis: Basis) -> Basis:
        """With the labels of this list. They must keep the order of the species, and with it that of the blocks."""
        names = self.labels.get(self.places[index][0])
        if names is None:
            return basis
        species = [replace(s, label=names.get(s.label, s.label)) for s in basis.species]
        renamed = Basis(tuple(species))
        if list(renamed.species) != species:
            raise ConfigError(
                f"labels {names} change the order of the species {', '.join(basis.labels)}",
                expected="labels that sort within an element like those of the set",
                path=self.places[index][0],
            )
        return renamed

    def has(self, index: int, kind: str) -> bool:
        """Whether an operator is stored."""
        source, name = self._of(index)
        return kind in source.group(name).attrs

    def n_spin(self, index: int) -> int:
        """Pauli components of the Hamiltonian. Raises :class:`ConfigError` where there is none."""
        source, name = self._of(index)
        if not self.has(index, "hamiltonian"):
            raise ConfigError(
                f"sample {name!r} has no Hamiltonian",
                expected="samples with H to learn from",
                remedy="leave it out with `exclude`",
                path=source.path,
            )
        label = source.basis_of(name)[0].label
        return source.blocks(name, "hamiltonian", label, label, slice(0, 1)).shape[1]

    def pairs(self, index: int, basis: Basis) -> Pairs:
        """Pairs with species numbered as in `basis`."""
        source, name = self._of(index)
        return renumbered(source.pairs(name), self._renamed(index, source.basis), basis)

    def operator(self, index: int, kind: str, basis: Basis) -> BlockOperator:
        """H (or another operator of the set), species numbered as in `basis`; no other operator is read.

        Raises :class:`ConfigError` that names sample and pair where a number is not finite.
        """
        source, name = self._of(index)
        pairs = self.pairs(index, basis)
        stored = dict(zip(self._renamed(index, source.basis).labels, source.basis.labels, strict=True))
        labels = [stored.get(label, label) for label in basis.labels]
        blocks: list[torch.Tensor] = []
        for g in pairs.groups:
            block = torch.from_numpy(source.blocks(name, kind, labels[g.row_species], labels[g.col_species]))
            finite = torch.isfinite(block).flatten(1).all(dim=1)
            if not bool(finite.all()):
                pair = g.pairs.start + int((~finite).nonzero()[0])
                raise ConfigError(
                    f"{kind} of sample {name!r} is not finite in {int((~finite).sum())} pairs {labels[g.row_species]}–"
                    f"{labels[g.col_species]}, first in (i, j, R) = ({pairs.row[pair]}, {pairs.col[pair]}, "
                    f"{pairs.shift[pair].tolist()})",
                    expected="finite numbers",
                    remedy="leave the sample out with `exclude`, or read its run again",
                    path=source.path,
                )
            blocks.append(block)
        return BlockOperator(basis, pairs, tuple(blocks))

    def fermi_energy_ev(self, index: int) -> float:
        source, name = self._of(index)
        fermi = source.group(name).attrs.get("fermi_energy_ev")
        if fermi is None:
            raise ConfigError(
                f"sample {name!r} has no Fermi energy",
                expected="one, as training.band_weight weighs the states about it",
                remedy="set training.band_weight = 0",
                path=self.places[index][0],
            )
        return float(fermi)

    def sample(self, index: int, basis: Basis) -> Sample:
        """Structure, H and, if stored, S, species numbered as in `basis`."""
        source, name = self._of(index)
        hamiltonian = self.operator(index, "hamiltonian", basis)
        overlap = self.operator(index, "overlap", basis) if self.has(index, "overlap") else None
        return Sample(
            name,
            self.structure(index),
            basis,
            overlap,
            hamiltonian,
            spin_orbit=self.spin_orbit(index),
            provenance=source.provenance(name),
        )

    def checksum(self) -> str:
        """SHA-256 over the names and the sources (or, failing these, structures) of all samples."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            source = self.provenance(index).get("checksum")
            structure = self.structure(index)
            digest.update(f"{self.name(index)} {source} {structure.labels}".encode())
            for array in (structure.cell, structure.positions, structure.numbers, structure.moments):
                digest.update(b"none" if array is None else array.tobytes())
        return digest.hexdigest()


def select(selections: Sequence[Selection], *, seed: int, key: str) -> SampleList:
    """The samples that `selections` name, in the order of their sets. `key` names the configuration's key in errors.

    Raises :class:`ConfigError` where a selection is empty or a sample is chosen twice.
    """
    places: list[tuple[str, str]] = []
    labels: dict[str, Mapping[str, str]] = {}
    for number, selection in enumerate(selections):
        with SampleSet(selection.path) as source:
            names = source.names
            unknown = [label for label in selection.labels if label not in source.basis.labels]
        path = str(Path(selection.path))
        if unknown or labels.setdefault(path, selection.labels) != selection.labels:
            raise ConfigError(
                f"labels = {dict(selection.labels)} of [data] {key}",
                expected=f"new names for some of {', '.join(source.basis.labels)}, the same wherever the set is named",
                path=path,
            )
        chosen = [n for n in names if _matches(n, selection.names) and not _matches(n, selection.exclude)]
        for pattern in (*selection.names, *selection.exclude):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    f"no sample fits {pattern!r} of [data] {key}",
                    expected=f"names like {', '.join(names[:4])}{' …' if len(names) > 4 else ''}",
                    path=selection.path,
                )
        if selection.fraction < 1:
            order = np.random.default_rng([seed, number]).permutation(len(chosen))
            keep = set(order[: max(1, round(selection.fraction * len(chosen)))].tolist())
            chosen = [name for index, name in enumerate(chosen) if index in keep]
        if not chosen:
            raise ConfigError(
                f"[data] {key} selects no sample",
                expected="at least one",
                remedy="see `names` and `exclude`",
                path=selection.path,
            )
        places += [(path, name) for name in chosen]
    if len(set(places)) != len(places):
        double = next(place for place in places if places.count(place) > 1)
        raise ConfigError(
            f"sample {double[1]!r} is selected twice by [data] {key}", expected="each sample once", path=double[0]
        )
    return SampleList(places, labels)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def split(samples: SampleList, fraction: float, *, seed: int) -> tuple[SampleList, SampleList]:
    """(rest, held back): a `fraction` of the samples, at least one, drawn with `seed`."""
    n_held = max(1, round(fraction * len(samples)))
    if n_held >= len(samples):
        raise ConfigError(
            f"validation_fraction = {fraction} of {len(samples)} samples leaves none to learn from",
            expected="at least one training sample",
            remedy="add samples, or give a validation set",
        )
    held = set(np.random.default_rng([seed, 1]).permutation(len(samples))[:n_held].tolist())
    return samples.at(i for i in range(len(samples)) if i not in held), samples.at(sorted(held))
