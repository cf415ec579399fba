"""The samples of a run: selected, held against each other, and looked at before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Self

from hamnet.basis import Basis
from hamnet.errors import ConfigError
from hamnet.models.io import TrainedOn

from .config import TrainConfig
from .samples import SampleList, select, split
from .survey import Survey, survey
from .twins import disagreement, find_twins

__all__ = ["TrainingData", "check_kinds"]

_AGREE_MEV = 25.0
"""Largest |ΔH| that tolerances of the input, convergence and the real-space grid may make between equal inputs."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Samples to learn from and to be judged by, and what was found in those of training and of validation."""

    train: SampleList
    validation: SampleList
    test: SampleList
    survey: Survey
    validation_survey: Survey

    @classmethod
    def select(cls, config: TrainConfig) -> Self:
        """What the configuration names. Raises :class:`ConfigError` where samples do not belong together."""
        d, seed = config.data, config.training.seed
        train = select(d.train, seed=seed, key="train")
        if d.validation:
            validation = select(d.validation, seed=seed, key="validation")
        else:
            train, validation = split(train, d.validation_fraction, seed=seed)
        test = select(d.test, seed=seed, key="test") if d.test else SampleList(())
        for key, others in (("validation", validation), ("test", test)):
            both = sorted(set(train.places) & set(others.places))
            if both:
                raise ConfigError(
                    f"sample {both[0][1]!r} is in train and in {key}",
                    expected="samples of which the model has not seen the answer",
                    remedy=f"take such samples ({len(both)} in all) out of one of the two with `exclude`",
                    path=both[0][0],
                )
        facts, seen = survey(train), survey(validation)
        _check_alike(facts, seen, "validation", validation)
        if len(test):
            _check_alike(facts, survey(test), "test", test)
        return cls(train, validation, test, facts, seen)

    def check_labels(self, basis: Basis) -> None:
        """Raises :class:`ConfigError` where a Hamiltonian that is only read late in the run is not finite."""
        for samples in (self.validation, self.test):
            for index in range(len(samples)):
                samples.operator(index, "hamiltonian", basis)

    def check_inputs(
        self, basis: Basis, magnetic: Collection[str], *, sizes: bool, allow: bool, say: Callable[[str], None]
    ) -> None:
        """Whether equal inputs (moments of `magnetic` species with their `sizes`, or directions) have equal labels.

        Raises :class:`ConfigError` that names the runs where they have not, unless `allow`.
        """
        train = self.train
        if len(train) == 1:
            say("warning: one training sample alone: the model learns nothing of what changes H")
        twins = list(find_twins(train, basis, magnetic, sizes=sizes))
        apart = [(t, d) for t in twins if (d := disagreement(train, train, basis, t)).largest_mev > _AGREE_MEV]
        if apart:
            worst, size = max(apart, key=lambda entry: entry[1].largest_mev)
            names = [f"{train.name(i)!r}{train.energy_text(i)}" for i in (worst.first, worst.second)]
            others = [f"{train.name(t.first)!r} and {train.name(t.second)!r}" for t, _ in apart if t is not worst]
            text = (
                f"{names[0]} and {names[1]} are the same input, but their Hamiltonians differ by up to "
                f"{size.largest_mev:.1f} meV (mean {size.mean_mev:.3g} meV"
            )
            aligned = size.largest_mu_aligned_mev
            text += ")" if aligned is None else f"; after the best shift μS up to {aligned:.1f} meV)"
            text += f"; so do {', '.join(others[:4])}{' …' if len(others) > 4 else ''}" if others else ""
            if not allow:
                raise ConfigError(
                    text,
                    expected=f"one Hamiltonian for equal structures and moments of magnetic species, "
                    f"to {_AGREE_MEV:g} meV",
                    remedy="these may be several self-consistent solutions: keep one by `exclude`, tell them apart by "
                    "the moments of more species with [model] magnetic, or set data.contradictions = 'allow'",
                    path=train.places[worst.second][0],
                )
            say(f"warning: {text}")
        if len(twins) > len(apart):
            t = next(t for t in twins if all(t is not bad for bad, _ in apart))
            say(
                f"{len(twins) - len(apart)} training samples repeat the input of another one, as {train.name(t.second)}"
                f" that of {train.name(t.first)}"
            )
        if len(train) > 1 and len({t.second for t in twins}) == len(train) - 1:
            say("warning: all training samples are alike: the model learns nothing of what changes H")
        seen = list(find_twins(train, basis, magnetic, sizes=sizes, others=self.validation))
        if seen:
            size = disagreement(train, self.validation, basis, seen[0])
            say(
                f"warning: {len(seen)} validation samples have the input of a training sample, as "
                f"{self.validation.name(seen[0].second)} that of {train.name(seen[0].first)} (Hamiltonians differ by "
                f"up to {size.largest_mev:.3g} meV): their errors say nothing of crystals that were not seen"
            )


def _check_alike(train: Survey, other: Survey, key: str, samples: SampleList) -> None:
    strange = [label for label in other.basis.labels if label not in train.basis.labels]
    if strange:
        raise ConfigError(
            f"species {', '.join(strange)} in [data] {key}",
            expected=f"species of the training set: {', '.join(train.basis.labels)}",
            path=samples.places[0][0],
        )
    train.basis.merged(other.basis)
    check_kinds(train.trained_on, other.trained_on, f"[data] {key}", "train", samples.places[0][0])


def check_kinds(expected: TrainedOn, found: TrainedOn, what: str, as_in: str, path: str) -> None:
    """Raises :class:`ConfigError` where samples are of another kind than those that were, or are to be, learned."""
    for name in ("spin", "spin_orbit", "code"):
        a, b = getattr(expected, name), getattr(found, name)
        if a != b and (name != "code" or None not in (a, b)):
            raise ConfigError(f"{what} has {name} = {b}", expected=f"{a}, as in {as_in}", path=path)
    a, b = expected.constraint, found.constraint
    if a != b and "keep" in (a, b):
        raise ConfigError(
            f"{what} has constraint choice {b!r}",
            expected=f"{a!r}, as in {as_in}",
            remedy="read the runs again with the same --constraint",
            path=path,
        )
