"""What a model refuses: anything that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hamnet.basis import Basis
from hamnet.blocks import Group, Pairs
from hamnet.errors import ModelError
from hamnet.sample import Sample
from hamnet.structure import Structure, frozen

from .io import LoadedModel

__all__ = ["check_basis", "check_pairs", "check_sample", "check_structure", "choice_of", "renumbered"]

_TRANSVERSE_MUB = 1e-3
_MOMENT_MARGIN = 0.2
_LENGTH_MARGIN_ANG = 0.3
_BEYOND_REACH_ANG = 1e-3


def choice_of(provenance: Mapping[str, Any], name: str) -> str | None:
    """What a reader chose (``constraint``, ``moments``), without its reason; None where there was nothing to choose."""
    choice = (provenance.get("choices") or {}).get(name)
    return choice.get("value") if isinstance(choice, Mapping) else choice


def check_structure(loaded: LoadedModel, structure: Structure) -> list[str]:
    """Whether the model can treat the structure; warnings where it has to extrapolate.

    Raises :class:`ModelError` for unknown species, and for moments that the model needs and the structure lacks or the
    other way round.
    """
    model, data = loaded.model, loaded.trained_on
    species = model.basis.species_of(structure)
    scale = np.asarray(model.moment_scale)[species]
    if structure.moments is None:
        if (scale > 0).any():
            wanted = sorted({model.basis[int(s)].label for s in species[scale > 0]})
            raise ModelError(
                "a structure without moments",
                expected=f"moments of {', '.join(wanted)} in μ_B, which this model takes as input",
                remedy="give them with --moments, or in the structure file",
                path=loaded.path,
            )
        return []
    sizes = np.linalg.norm(structure.moments, axis=1)
    if model.config.mode == "none" and sizes.max() > 0:
        raise ModelError(
            f"moments up to {sizes.max():.3g} μ_B",
            expected="no moments: this model was trained without spin",
            remedy="take the moments away, or use a model that was trained with spin",
            path=loaded.path,
        )
    transverse = np.abs(structure.moments[scale > 0, :2]).max(initial=0.0)
    if model.config.mode == "collinear" and transverse > _TRANSVERSE_MUB:
        raise ModelError(
            f"moments with x and y components up to {transverse:.3g} μ_B",
            expected="moments along z: this model was trained on collinear runs",
            remedy="turn the moments to z, or use a model that was trained on vector moments",
            path=loaded.path,
        )
    warnings = []
    for index in np.unique(species[scale > 0]).tolist():
        label = model.basis[index].label
        low, high = data.moments_mub.get(label, (0.0, np.inf))
        here = sizes[species == index]
        if not model.config.moment_sizes:
            if here.min() == 0:
                warnings.append(f"moments of {label} that vanish; the model was trained on {low:.2f} … {high:.2f} μ_B")
            continue
        if here.max() > (1 + _MOMENT_MARGIN) * high or here.min() < (1 - _MOMENT_MARGIN) * low:
            warnings.append(
                f"moments of {label} are {here.min():.2f} … {here.max():.2f} μ_B, "
                f"the model was trained on {low:.2f} … {high:.2f} μ_B"
            )
    return warnings


def check_pairs(loaded: LoadedModel, structure: Structure, pairs: Pairs) -> list[str]:
    """Whether the model knows pairs of these species at these distances (species numbered as in its basis)."""
    model, known = loaded.model, loaded.trained_on.species_pairs
    reach = model.get_buffer("pair_cutoff").double().cpu().numpy()
    lengths = np.linalg.norm(pairs.vectors(structure.cell, structure.positions), axis=1)
    is_self, warnings = pairs.is_self, []
    for group in pairs.groups:
        a, b = group.row_species, group.col_species
        here = lengths[group.pairs][~is_self[group.pairs]]
        if a > b or not len(here):
            continue
        name = f"{model.basis[a].label}-{model.basis[b].label}"
        if name not in known:
            raise ModelError(
                f"pairs {name}",
                expected=f"pairs that the training set has: {', '.join(known)}",
                remedy="train on structures in which these species are neighbours",
                path=loaded.path,
            )
        if here.max() > reach[a, b] + _BEYOND_REACH_ANG:
            raise ModelError(
                f"pairs {name} of length {here.max():.3f} Å",
                expected=f"at most {reach[a, b]:.3f} Å, the reach of the basis that the model was trained with",
                remedy="was the overlap made with another basis? Use the basis of the training set",
                path=loaded.path,
            )
        if here.min() < known[name][0] - _LENGTH_MARGIN_ANG:
            warnings.append(
                f"pairs {name} as short as {here.min():.2f} Å, the model was trained on {known[name][0]:.2f} Å and more"
            )
    return warnings


def check_basis(loaded: LoadedModel, sample: Sample) -> None:
    """Whether the sample's species have the bases of the training set; raises otherwise."""
    mine = loaded.model.basis
    used = [sample.basis[int(s)] for s in np.unique(sample.pairs.species)]
    for species in used:
        if species.label not in mine.labels:
            raise ModelError(
                f"species {species.label!r}",
                expected=f"one of {', '.join(mine.labels)}",
                remedy="use a model that was trained with this species",
                path=loaded.path,
            )
    mine.merged(sample.basis.restricted([s.label for s in used]))


def check_sample(loaded: LoadedModel, sample: Sample) -> None:
    """Whether the sample's Hamiltonian is of the kind that the model predicts.

    Raises :class:`ModelError` for another basis, spin kind, spin–orbit setting or constraint choice.
    """
    check_basis(loaded, sample)
    data = loaded.trained_on

    def refuse(what: str, found: object, expected: object, remedy: str) -> None:
        raise ModelError(
            f"{sample.name} has {what} {found}", expected=f"{expected}, as the training set", remedy=remedy,
            path=loaded.path,
        )  # fmt: skip

    if sample.spin != data.spin:
        refuse("spin kind", sample.spin, data.spin, "use a model that was trained on this spin kind")
    if None not in (sample.spin_orbit, data.spin_orbit) and sample.spin_orbit != data.spin_orbit:
        on = {True: "on", False: "off"}
        refuse(
            "spin–orbit coupling", on[bool(sample.spin_orbit)], on[bool(data.spin_orbit)],
            "use a model that was trained with the same setting",
        )  # fmt: skip
    choice = choice_of(sample.provenance, "constraint")
    if choice != data.constraint and "keep" in (choice, data.constraint):
        refuse(
            "constraint penalty", choice or "none", data.constraint or "none",
            "read the run again with the same --constraint",
        )  # fmt: skip
    code = sample.provenance.get("code")
    if None not in (code, data.code) and code != data.code:
        refuse("code", code, data.code, "Hamiltonians of different codes have different bases and potentials")


def renumbered(pairs: Pairs, old: Basis, new: Basis) -> Pairs:
    """`pairs` with species numbered as in `new`, which must hold, unchanged, those that occur."""
    place = np.full(len(old), -1, dtype=np.int64)
    for index in np.unique(pairs.species).tolist():
        species = old[index]
        if species.label not in new.labels:
            raise ModelError(
                f"species {species.label!r}",
                expected=f"one of {', '.join(new.labels)}",
                remedy="use a model that was trained with this species",
            )
        place[index] = new.labels.index(species.label)
        if new[int(place[index])] != species:
            Basis((species,)).merged(new)  # raises the error that shows both bases
    if np.array_equal(place[pairs.species], pairs.species):
        return pairs
    # Both bases are sorted alike, so the canonical order of the pairs stays.
    groups = tuple(Group(int(place[g.row_species]), int(place[g.col_species]), g.pairs) for g in pairs.groups)
    return replace(pairs, species=frozen(place[pairs.species], np.int64), groups=groups)
