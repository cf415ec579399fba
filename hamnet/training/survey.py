"""What the training data are, and whether they belong together: looked at once, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hamnet.basis import Basis
from hamnet.blocks import Pairs
from hamnet.errors import BasisError, ConfigError
from hamnet.models.guards import choice_of
from hamnet.models.io import TrainedOn
from hamnet.models.irreps import Mode
from hamnet.structure import Structure

from .samples import SampleList

__all__ = ["Survey", "choose_magnetic", "choose_mode", "survey"]

_LEAST_MOMENT_MUB = 0.5
_LEAST_PRESCRIBED_MUB = 0.02
_SPIN = {1: "none", 2: "collinear", 4: "vector"}


@dataclass(frozen=True, slots=True)
class Survey:
    """Facts about a list of samples.

    basis : species that occur. trained_on : kinds, distances and moments (of all species) found.
    mean_moments_mub : per species label, mean |m|; empty without moments. prescribed : whether all moments were
        prescribed by the user of the DFT code rather than taken from its density.
    n_atoms : of all samples together. n_pairs : (n_samples,) stored pairs. n_elements : (n_samples, 2) matrix elements
        of self pairs and of all others.
    """

    basis: Basis
    trained_on: TrainedOn
    mean_moments_mub: dict[str, float]
    prescribed: bool
    n_atoms: int
    n_pairs: NDArray[np.int64]
    n_elements: NDArray[np.int64]


def survey(samples: SampleList) -> Survey:
    """Look at all samples without reading their blocks.

    Raises :class:`ConfigError` where samples do not belong into one training set: different spin kinds, spin–orbit
    with and without, different codes or functionals, constraint penalties kept and subtracted; no Hamiltonian.
    """
    basis = Basis(())
    facts: dict[str, dict] = {name: {} for name in ("spin kind", "spin–orbit coupling", "code", "functional")}
    constraints: dict[str | None, str] = {}
    moments: dict[str, list[np.ndarray]] = {}
    distances: dict[str, tuple[float, float]] = {}
    prescribed, n_atoms, n_pairs, n_elements = [], 0, [], []
    for index in range(len(samples)):
        name, provenance = samples.name(index), samples.provenance(index)
        own, structure = samples.basis(index), samples.structure(index)
        basis = _merged(basis, own, index, samples)
        facts["spin kind"].setdefault(_SPIN[samples.n_spin(index)], name)
        facts["spin–orbit coupling"].setdefault(samples.spin_orbit(index), name)
        facts["code"].setdefault(provenance.get("code"), name)
        facts["functional"].setdefault(provenance.get("settings", {}).get("xc"), name)
        constraints.setdefault(choice_of(provenance, "constraint"), name)
        prescribed.append(choice_of(provenance, "moments") == "initial")
        species = own.species_of(structure)
        if structure.moments is not None:
            sizes = np.linalg.norm(structure.moments, axis=1)
            for s in np.unique(species).tolist():
                moments.setdefault(own[s].label, []).append(sizes[species == s])
        pairs = samples.pairs(index, own)
        _widen(distances, pairs, structure, own)
        n_atoms += len(structure)
        n_pairs.append(len(pairs))
        n_elements.append(_elements(pairs, own))
    for what, found in facts.items():
        _all_equal(what, found, samples)
    if "keep" in constraints and len(constraints) > 1:
        other = next(choice for choice in constraints if choice != "keep")
        raise ConfigError(
            f"constraint penalties kept in H of {constraints['keep']!r}, but {_said(other)} in {constraints[other]!r}",
            expected="one choice for all samples",
            remedy="read the runs again with the same --constraint",
            path=samples.places[0][0],
        )
    joined = {label: np.concatenate(sizes) for label, sizes in moments.items()}
    trained_on = TrainedOn(
        spin=next(iter(facts["spin kind"])),
        spin_orbit=next(iter(facts["spin–orbit coupling"])),
        code=next(iter(facts["code"])),
        constraint=next((choice for choice in constraints if choice is not None), None),
        species_pairs=distances,
        moments_mub={label: (float(m.min()), float(m.max())) for label, m in joined.items()},
    )
    means = {label: float(m.mean()) for label, m in joined.items()}
    return Survey(basis, trained_on, means, all(prescribed), n_atoms, np.array(n_pairs), np.array(n_elements))


def _merged(basis: Basis, own: Basis, index: int, samples: SampleList) -> Basis:
    try:
        return basis.merged(own)
    except BasisError as error:
        here = {species.label: species for species in own.species}
        label = next(s.label for s in basis.species if here.get(s.label, s) != s)
        first = next(i for i in range(index) if label in samples.basis(i).labels)
        raise ConfigError(
            f"{error.found}, in samples {samples.name(first)!r} and {samples.name(index)!r}",
            expected=error.expected,
            remedy=f"give the species another label in one of the sets, as {{ path = …, labels = {{ {label} = "
            f'"{label}_2" }} }}',
            path=samples.places[index][0],
        ) from error


def _elements(pairs: Pairs, basis: Basis) -> tuple[int, int]:
    """Matrix elements of the self pairs, and of all others."""
    onsite = offsite = 0
    is_self = pairs.is_self
    for group in pairs.groups:
        area = basis[group.row_species].n_orbitals * basis[group.col_species].n_orbitals
        n_self = int(is_self[group.pairs].sum())
        onsite += n_self * area
        offsite += (group.pairs.stop - group.pairs.start - n_self) * area
    return onsite, offsite


def _said(choice: str | None) -> str:
    return "taken out" if choice == "subtract" else "no constraint"


def _all_equal(what: str, found: dict, samples: SampleList) -> None:
    if len(found) > 1:
        (a, first), (b, second) = list(found.items())[:2]
        raise ConfigError(
            f"{what} {_text(a)} in sample {first!r} and {_text(b)} in {second!r}",
            expected="samples of one kind",
            remedy="train one model for each kind, or choose with `names` and `exclude`",
            path=samples.places[0][0],
        )


def _text(value: object) -> str:
    return {True: "on", False: "off", None: "not known"}.get(value, str(value))  # type: ignore[call-overload]


def _widen(distances: dict[str, tuple[float, float]], pairs: Pairs, structure: Structure, basis: Basis) -> None:
    lengths = np.linalg.norm(pairs.vectors(structure.cell, structure.positions), axis=1)
    is_self = pairs.is_self
    for group in pairs.groups:
        if group.row_species > group.col_species:
            continue
        here = lengths[group.pairs][~is_self[group.pairs]]
        if len(here):
            key = f"{basis[group.row_species].label}-{basis[group.col_species].label}"
            low, high = distances.get(key, (np.inf, 0.0))
            distances[key] = (min(low, float(here.min())), max(high, float(here.max())))


def choose_mode(asked: str, data: TrainedOn) -> Mode:
    """The mode of the network: what the data are, which is also what may be asked for."""
    if data.spin == "vector":
        if data.spin_orbit is None and asked not in ("soc", "spin-group"):
            raise ConfigError(
                "vector Hamiltonians that do not tell whether spin–orbit coupling was on",
                expected="mode = 'soc' or mode = 'spin-group' to be given",
                place="[model] mode",
            )
        fits: Mode = "soc" if data.spin_orbit or (data.spin_orbit is None and asked == "soc") else "spin-group"
    else:
        fits = "collinear" if data.spin == "collinear" else "none"
    if asked not in ("auto", fits):
        kind = data.spin if data.spin != "vector" else f"vector, spin–orbit coupling {_text(data.spin_orbit)}"
        raise ConfigError(
            f"mode = {asked!r} for data with spin kind {kind}",
            expected=f"mode = {fits!r}",
            remedy="leave the mode out to have it taken from the data",
            place="[model] mode",
        )
    return fits


def choose_magnetic(asked: Sequence[str] | None, mode: Mode, data: Survey) -> tuple[tuple[str, ...], str]:
    """Labels of the species whose moments are an input, and why.

    Without a choice of the user: where all moments were prescribed, every species that has some; else those with a mean
    |m| of at least 0.5 μ_B – smaller ones are taken to be induced by these, and are then no input.
    """
    if mode == "none":
        if asked:
            raise ConfigError(
                f"magnetic = {list(asked)} for data without spin",
                expected="no magnetic species",
                place="[model] magnetic",
            )
        return (), "the data have no spin"
    if not data.mean_moments_mub:
        raise ConfigError(
            f"no moments in the training set, which mode {mode!r} takes as input", expected="samples with moments"
        )
    if asked is not None:
        return _named(asked, data), "named in the configuration"
    least = _LEAST_PRESCRIBED_MUB if data.prescribed else _LEAST_MOMENT_MUB
    chosen = tuple(label for label, mean in data.mean_moments_mub.items() if mean >= least)
    how = "prescribed moments" if data.prescribed else "moments of the density"
    return chosen, f"{how} with a mean size of at least {least:g} μ_B"


def _named(asked: Sequence[str], data: Survey) -> tuple[str, ...]:
    from ase.data import atomic_numbers

    chosen: list[str] = []
    for word in asked:
        found = [s.label for s in data.basis.species if s.label == word or s.number == atomic_numbers.get(word)]
        if not found:
            raise ConfigError(
                f"{word!r} is no species of the training set",
                expected=f"some of {', '.join(data.basis.labels)}",
                place="[model] magnetic",
            )
        chosen += [label for label in found if label not in chosen]
    return tuple(chosen)
