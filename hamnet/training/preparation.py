"""From the training samples to the network before its first step: new, or from a trained model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from hamnet.basis import Basis
from hamnet.errors import ConfigError
from hamnet.models.hamiltonian import HamiltonianModel
from hamnet.models.io import LoadedModel, TrainedOn, build_model, load_model
from hamnet.units import MEV_PER_EV

from .config import ModelSection, TrainConfig
from .samples import SampleList
from .selection import TrainingData, check_kinds
from .statistics import calibrate, fit_readout, fit_weights, mean_neighbours, moment_scales
from .survey import Survey, choose_magnetic, choose_mode

__all__ = ["Prepared", "joined_limits", "prepare_model"]

_LEAST_SCALE_EV = 1e-8
_LEAST_EXCHANGE_EV = 1e-3
_MOST_FIRST_SAMPLES, _MOST_FIRST_PAIRS = 32, 10_000
_BY_SPECIES = ("embedding.species", "embedding.moment", "edge_species", "grid.weight")
"""Weights whose first axis counts species."""

Prepared = tuple[HamiltonianModel, TrainedOn, dict[str, Any]]
"""The float64 model before its first step, the limits of its use, and what was decided (as in ``result.json``)."""


def prepare_model(config: TrainConfig, data: TrainingData, *, say: Callable[[str], None]) -> Prepared:
    """The network that `config` asks for, with statistics of the training set – or that of ``[model] start``.

    Raises :class:`ConfigError` where the data do not fit what is asked for, or have nothing to learn.
    """
    return _new(config, data, say) if config.model.start is None else _from_start(config, data, say)


def _new(config: TrainConfig, data: TrainingData, say: Callable[[str], None]) -> Prepared:
    basis, section = data.survey.basis, config.model
    mode = choose_mode(section.mode, data.survey.trained_on)
    magnetic, because = choose_magnetic(section.magnetic, mode, data.survey)
    measured: dict[str, Any] = {"mode": mode}
    cutoff = section.model_config(**measured).cutoff_ang
    if "mean_neighbours" not in section.settings:
        measured["mean_neighbours"] = mean_neighbours(data.train.structures(), cutoff)
    if "moment_sizes" not in section.settings:
        # Where a run was given directions alone, the size is its answer: it tells of the neighbours, and who predicts a
        # texture does not know it.
        measured["moment_sizes"] = data.survey.trained_on.constraint is None
    scales = moment_scales(data.train.structures(), basis, magnetic)
    model = build_model(section.name, section.model_config(**measured), basis, scales, seed=config.training.seed)
    _fit_readout(model, data.train, basis)
    _check_something_to_learn(model)
    _check_magnetism(model, data.survey, say)
    _begin_well(model, data.train, basis, config.training.batch_pairs)
    facts = {"mode": mode, "magnetic": list(magnetic), "magnetic_because": because, "start_sha256": None}
    return model, joined_limits(data.survey.trained_on, None, magnetic), facts


@torch.no_grad()
def _fit_readout(model: HamiltonianModel, samples: SampleList, basis: Basis) -> None:
    fit_readout(model, (samples.sample(index, basis) for index in range(len(samples))))


def _begin_well(model: HamiltonianModel, samples: SampleList, basis: Basis, batch_pairs: int) -> None:
    """Sizes of the branches and weights of the readout, from a part of the training set that fits into memory."""
    graph, labels = _first_samples(model, samples, basis, min(batch_pairs or _MOST_FIRST_PAIRS, _MOST_FIRST_PAIRS))
    calibrate(model, graph)
    fit_weights(model, graph, labels)


def _first_samples(model: HamiltonianModel, samples: SampleList, basis: Basis, most_pairs: int):
    """(graph, Hamiltonians) of samples spread over the set: of each combination of species at least one."""
    by_species: dict[tuple[str, ...], list[int]] = {}
    for index in range(len(samples)):
        by_species.setdefault(samples.basis(index).labels, []).append(index)
    spread = [
        [of_kind[n] for n in np.unique(np.linspace(0, len(of_kind) - 1, _MOST_FIRST_SAMPLES).astype(int))]
        for of_kind in by_species.values()
    ]
    structures, labels, n_pairs = [], [], 0
    for turn in list(zip_longest(*spread))[:_MOST_FIRST_SAMPLES]:
        for index in turn:
            if index is None:
                continue
            hamiltonian = samples.operator(index, "hamiltonian", basis)
            if len(labels) >= len(by_species) and n_pairs + len(hamiltonian.pairs) > most_pairs:
                return model.graph(structures, [label.pairs for label in labels]), labels
            structures.append(samples.structure(index))
            labels.append(hamiltonian)
            n_pairs += len(hamiltonian.pairs)
    return model.graph(structures, [label.pairs for label in labels]), labels


def _scales(model: HamiltonianModel) -> list[torch.Tensor]:
    """(n_kinds, n_entries) eV of each readout; kind 0 is even under time reversal."""
    return [readout.scale for readout in (*model.self_readout, *model.pair_readout.values())]  # type: ignore[misc]


def _check_something_to_learn(model: HamiltonianModel) -> None:
    if max(float(scale.max()) for scale in _scales(model)) < _LEAST_SCALE_EV:
        raise ConfigError(
            "every training Hamiltonian equals the fitted constants: nothing is left to learn",
            expected="Hamiltonians that differ from zero or from sample to sample",
            remedy="check that the labels are what you meant (H, not H minus itself as a baseline)",
        )


def _check_magnetism(model: HamiltonianModel, data: Survey, say: Callable[[str], None]) -> None:
    """Without a moment as input, all that is odd under time reversal is exactly zero."""
    if model.config.mode == "none" or any(model.moment_scale):
        return
    exchange = max(float(scale[1:].max()) for scale in _scales(model))
    if exchange > _LEAST_EXCHANGE_EV:
        sizes = ", ".join(f"{label} {size:.3g} μ_B" for label, size in data.mean_moments_mub.items())
        raise ConfigError(
            f"Hamiltonians with exchange parts (rms up to {exchange * MEV_PER_EV:.0f} meV), but no magnetic species "
            f"(mean moments: {sizes})",
            expected="moments as input, without which a state cannot be told from its time-reverse",
            remedy="name the magnetic species, as [model] magnetic = ['Fe']",
        )
    say(f"warning: mode {model.config.mode}, but no moments and no exchange in H: the model predicts no exchange")


def joined_limits(data: TrainedOn, start: TrainedOn | None, magnetic: tuple[str, ...] | list[str]) -> TrainedOn:
    """Limits of use of a model trained on `data`, after `start`; moments of `magnetic` species alone are an input."""
    moments = {label: sizes for label, sizes in data.moments_mub.items() if label in magnetic}
    pairs = dict(data.species_pairs)
    constraint = data.constraint
    if start is not None:
        moments, pairs = _widened(moments, start.moments_mub), _widened(pairs, start.species_pairs)
        constraint = constraint or start.constraint
    return TrainedOn(data.spin, data.spin_orbit, data.code, constraint, pairs, moments)


def _widened(one: Any, two: Any) -> dict[str, tuple[float, float]]:
    keys = [*two, *(key for key in one if key not in two)]
    both = {key: [ranges[key] for ranges in (one, two) if key in ranges] for key in keys}
    return {key: (min(low for low, _ in found), max(high for _, high in found)) for key, found in both.items()}


# -- fine-tuning -------------------------------------------------------------------------------------------------------


def _from_start(config: TrainConfig, data: TrainingData, say: Callable[[str], None]) -> Prepared:
    """The model of ``[model] start`` with all its species, weights, scales and shifts.

    Species that it does not know begin as the known ones that are most like them; the readout of species and species
    pairs that it was never trained on gets scale, shift and weights from the labels as in a new model.
    """
    loaded = load_model(str(config.model.start), dtype=torch.float64)
    path, before = loaded.path, loaded.model.basis.labels
    magnetic = _check_start(config.model, loaded, data.survey)
    model = _with_species(loaded, config, data, say)
    magnetic += [label for label, scale in _scale_of(model).items() if scale > 0 and label not in before]
    model.train().requires_grad_(True)
    known = loaded.trained_on.species_pairs
    if not set(data.survey.trained_on.species_pairs) <= set(known) or len(model.basis) > len(before):
        kept = {
            key: value.clone()
            for key, value in model.state_dict().items()
            if not _is_new(key, model.basis, known, before)
        }
        _fit_readout(model, data.train, model.basis)
        most = min(config.training.batch_pairs or _MOST_FIRST_PAIRS, _MOST_FIRST_PAIRS)
        fit_weights(model, *_first_samples(model, data.train, model.basis, most))
        model.load_state_dict(kept, strict=False)
    facts = {
        "mode": model.config.mode,
        "magnetic": magnetic,
        "magnetic_because": f"as in {path}",
        "start_sha256": loaded.checksum,
    }
    return model, joined_limits(data.survey.trained_on, loaded.trained_on, magnetic), facts


def _is_new(key: str, basis: Basis, known: Any, before: tuple[str, ...]) -> bool:
    """Whether a weight belongs to the readout of a species, or of a pair, that the start was not trained on."""
    place = key.split(".")
    if place[0] == "self_readout":
        return basis[int(place[1])].label not in before
    if place[0] == "pair_readout":
        a, b = (int(number) for number in place[1].split("_"))
        return f"{basis[a].label}-{basis[b].label}" not in known
    return False


def _scale_of(model: HamiltonianModel) -> dict[str, float]:
    return dict(zip(model.basis.labels, model.moment_scale, strict=True))


def _with_species(
    loaded: LoadedModel, config: TrainConfig, data: TrainingData, say: Callable[[str], None]
) -> HamiltonianModel:
    """The model of the start, with the species that the data have beyond its own."""
    start = loaded.model
    basis = start.basis.merged(data.survey.basis)
    if len(basis) == len(start.basis):
        return start
    labels = [label for label in basis.labels if label not in start.basis.labels]
    asked = choose_magnetic(config.model.magnetic, start.config.mode, data.survey)[0]
    new = moment_scales(data.train.structures(), basis, tuple(label for label in asked if label in labels))
    scales = tuple(_scale_of(start).get(label, scale) for label, scale in zip(basis.labels, new, strict=True))
    model = build_model(loaded.name, start.config, basis, scales, seed=config.training.seed)
    if model.l_readout != start.l_readout:
        raise ConfigError(
            f"{', '.join(labels)} with orbitals of higher degree than any species of the start",
            expected=f"blocks that couple to l = {start.l_readout} at most",
            remedy="train a new model on the old and the new samples",
            path=loaded.path,
            place="[model] start",
        )
    places = [basis.labels.index(label) for label in start.basis.labels]
    like = _most_alike(loaded, basis, scales, data.survey.basis)
    for new, old in like.items():
        say(f"{basis.labels[new]} begins as {start.basis.labels[old]}, the species of the start that is most like it")
    if not torch.equal(model.pair_cutoff[places][:, places], start.pair_cutoff):
        say(
            f"warning: {', '.join(labels)} with wider projectors than those of the start make all pairs reach farther: "
            "what it predicts for its own species changes before the first step"
        )
    state = model.state_dict()
    for key, value in start.state_dict().items():
        name = key.split(".")
        if name[0] == "self_readout":
            name[1] = str(places[int(name[1])])
        elif name[0] == "pair_readout":
            name[1] = "_".join(str(places[int(number)]) for number in name[1].split("_"))
        if key in _BY_SPECIES:
            state[key][places] = value
            state[key][list(like)] = value[list(like.values())]
        elif name[0] == "self_readout" and name[2] == "weights":
            state[".".join(name)] = _around_more_species(value, start, len(basis), places, like)
        else:
            state[".".join(name)] = value
    model.load_state_dict(state)
    return model


def _most_alike(loaded: LoadedModel, basis: Basis, moment_scale: tuple[float, ...], here: Basis) -> dict[int, int]:
    """Number in `basis` of each new species: number in the start of the known one that is most like it.

    A magnetic species is like a magnetic one before anything else counts; then like one that the start has seen beside
    the other species that are `here`, whose levels know its potential (without it they would begin eV off); then the
    degrees of the shells count, and at last the atomic number.
    """
    start, pairs = loaded.model, loaded.trained_on.species_pairs
    known = {label: place for place, label in enumerate(start.basis.labels)}
    others = [label for label in here.labels if label in known]

    def unlike(new: int, old: int) -> tuple[bool, int, int, int]:
        one, other = basis[new], start.basis[old]
        strangers = sum(not {f"{label}-{other.label}", f"{other.label}-{label}"} & set(pairs) for label in others)
        shells = Counter(one.degrees), Counter(other.degrees)
        differing = (shells[0] - shells[1]) + (shells[1] - shells[0])
        magnetic = (moment_scale[new] > 0) != (start.moment_scale[old] > 0)
        return magnetic, strangers, differing.total(), abs(one.number - other.number)

    return {
        new: min(known.values(), key=lambda old: unlike(new, old))
        for new, label in enumerate(basis.labels)
        if label not in known
    }


def _around_more_species(
    weight: torch.Tensor, start: HamiltonianModel, n_species: int, places: list[int], like: dict[int, int]
) -> torch.Tensor:
    """Weights (n_kinds, channels, n) of an on-site readout; new neighbours act as those that they are like."""
    own, around = weight.tensor_split([start.config.pair_channels + start.embedding.n_own], dim=1)
    around = around.unflatten(1, (len(start.basis), -1))
    wider = around.new_zeros(len(weight), n_species, *around.shape[2:])
    wider[:, places] = around
    wider[:, list(like)] = around[:, list(like.values())]
    return torch.cat([own, wider.flatten(1, 2)], dim=1)


def _check_start(section: ModelSection, loaded: LoadedModel, data: Survey) -> list[str]:
    """Labels of the magnetic species of the start. Raises :class:`ConfigError` where it cannot learn these data."""
    model, path, place = loaded.model, loaded.path, "[model] start"
    model.basis.merged(data.basis)  # raises where a label has another basis here
    check_kinds(loaded.trained_on, data.trained_on, "[data] train", "the start", path)
    config = model.config
    asked = {**section.settings, "mode": choose_mode(section.mode, data.trained_on)}
    for key, value in asked.items():
        if getattr(config, key) != value:
            raise ConfigError(
                f"{key} = {value!r} for a start with {key} = {getattr(config, key)!r}",
                expected="the network of the start",
                remedy=f"leave {key} out: it is taken from {path}",
                place="[model]",
            )
    if section.name != loaded.name:
        raise ConfigError(f"name = {section.name!r}", expected=f"{loaded.name!r}, as the start", place="[model]")
    magnetic = [label for label, scale in zip(model.basis.labels, model.moment_scale, strict=True) if scale > 0]
    here = [label for label in magnetic if label in data.basis.labels]
    bare = [label for label in here if label not in data.mean_moments_mub]
    if bare:
        raise ConfigError(
            f"training samples without moments of {', '.join(bare)}",
            expected="moments, which the start takes as input",
            path=path,
            place=place,
        )
    if section.magnetic is not None:
        named = choose_magnetic(section.magnetic, config.mode, data)[0]
        if {label for label in named if label in model.basis.labels} != set(here):
            raise ConfigError(
                f"magnetic = {list(section.magnetic)}",
                expected=f"{here}, as in the start",
                remedy="leave it out",
                place="[model]",
            )
    return magnetic
