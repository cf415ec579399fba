"""Configuration of a training run: frozen dataclasses, read from TOML. Defaults stand here and nowhere else."""

from __future__ import annotations

import difflib
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hamnet.errors import ConfigError, ModelError
from hamnet.models import MODELS
from hamnet.models.io import config_class

from .losses import LOSSES

__all__ = [
    "DataConfig",
    "ModelSection",
    "OptimiserConfig",
    "OutputConfig",
    "Selection",
    "TrainConfig",
    "TrainingConfig",
    "load_config",
    "parse_config",
]


@dataclass(frozen=True, slots=True)
class Selection:
    """Samples of one set file.

    path : the set, relative to the configuration file.
    names : patterns (``nibr2_2x1/r0*``) or plain names of the samples wanted. exclude : those left out again.
    fraction : share of what is left that is used, drawn with the seed of the run.
    labels : new names of species, as ``{ Br = "Br_small" }``, where another set uses the label for another basis.
    """

    path: str
    names: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    fraction: float = 1.0
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(0 < self.fraction <= 1, "fraction", self.fraction, "above 0 and at most 1")
        _check(bool(self.names), "names", [], "at least one pattern")
        named = isinstance(self.labels, Mapping) and all(isinstance(label, str) for label in self.labels.values())
        _check(named, "labels", self.labels, 'a table of labels, as { Br = "Br_small" }')


@dataclass(frozen=True, slots=True)
class DataConfig:
    """``[data]``: which samples are learned from and judged by.

    train, validation, test : each a path, or a table of :class:`Selection`, or a list of these.
    validation_fraction : share of the training samples held back for validation where no validation set is given.
    cache : ``memory`` keeps the prepared tensors, ``none`` reads each sample again in each epoch, ``auto`` decides by
        cache_gb (of each process). workers : processes that read samples ahead (0: none).
    contradictions : ``refuse`` or ``allow`` training samples of one input with different Hamiltonians.
    """

    train: tuple[Selection, ...]
    validation: tuple[Selection, ...] = ()
    test: tuple[Selection, ...] = ()
    validation_fraction: float = 0.0
    cache: Literal["auto", "memory", "none"] = "auto"
    cache_gb: float = 2.0
    workers: int = 0
    contradictions: Literal["refuse", "allow"] = "refuse"

    def __post_init__(self) -> None:
        _check(bool(self.train), "train", [], "at least one set", "name a set file made with `hamnet preprocess`")
        _check(0 <= self.validation_fraction < 1, "validation_fraction", self.validation_fraction, "from 0 to below 1")
        _check(
            bool(self.validation) != (self.validation_fraction > 0),
            "validation",
            "both a set and a fraction" if self.validation else "neither a set nor validation_fraction",
            "one of the two",
            "give `validation`, or `validation_fraction = 0.1` to hold back a tenth of the training samples",
        )
        _check(self.cache_gb >= 0, "cache_gb", self.cache_gb, "0 or more")
        _check(self.workers >= 0, "workers", self.workers, "0 or more")


@dataclass(frozen=True, slots=True)
class ModelSection:
    """``[model]``: which network, and how large.

    name : place in the registry of models. mode : spin mode; default: what the data are.
    magnetic : species (labels or chemical symbols) whose moments are an input; default: decided from the data.
    start : a model file, relative to the configuration file, whose weights training begins from (fine-tuning).
    settings : every other key, passed to the configuration of the model.
    """

    name: str = next(iter(MODELS))
    mode: Literal["auto", "none", "collinear", "soc", "spin-group"] = "auto"
    magnetic: tuple[str, ...] | None = None
    start: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def model_config(self, **measured: Any) -> Any:
        """Configuration object of the model; `measured` are values taken from the training set."""
        return _build(config_class(self.name), {**measured, **self.settings}, "[model]")


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """``[optimiser]``.

    name : ``soap`` is Adam in the eigenbasis of the gradients' covariances: a third of the steps. lr : largest learning
        rate. betas, weight_decay : of each of them.
    schedule : ``cosine`` falls to final_fraction · lr at the end of the run, ``plateau`` multiplies by plateau_factor
        after plateau_patience validations without progress, ``constant`` does nothing.
    warmup_steps : steps over which the rate rises from 0. gradient_clip : largest norm of the gradient (0: no limit).
    ema_decay : decay of the running average of the weights, which is what is validated and exported (0: none).
    """

    name: Literal["soap", "adam", "adamw"] = "soap"
    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    final_fraction: float = 1e-3
    warmup_steps: int = 50
    plateau_patience: int = 20
    plateau_factor: float = 0.5
    gradient_clip: float = 0.5
    ema_decay: float = 0.995

    def __post_init__(self) -> None:
        _check(self.lr > 0, "lr", self.lr, "a positive rate")
        _check(all(0 <= b < 1 for b in self.betas), "betas", list(self.betas), "two numbers from 0 to below 1")
        _check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _check(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "from 0 to 1")
        _check(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more")
        _check(self.plateau_patience >= 1, "plateau_patience", self.plateau_patience, "at least 1")
        _check(0 < self.plateau_factor < 1, "plateau_factor", self.plateau_factor, "between 0 and 1")
        _check(self.gradient_clip >= 0, "gradient_clip", self.gradient_clip, "0 or more")
        _check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "from 0 to below 1")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """``[training]``.

    epochs : passes through the training samples. max_minutes : the run ends (its schedule complete) when this much time
        is over, if the epochs are not done before; 0: no limit. One of the two must be given.
    batch_size : crystals that a process computes at once. batch_pairs : instead of it, as many crystals as together
        have at most so many pairs; 0: by batch_size. accumulate : batches of each process that make one step.
    patience : the run ends after so many validations without progress; 0: never.
    seed : of weights, order and drawn fractions.
    dtype : precision of the network. device : ``auto`` takes a GPU where there is one. threads : 0: all cores.
    loss : a name of :data:`hamnet.training.losses.LOSSES`. huber_delta_mev : δ of the losses that have one.
    onsite_weight : weight of on-site blocks: one per atom beside tens of bonds, but all bands hang on them.
    spin_free_weight, exchange_weight, soc_weight : weights of H_0, Re H_xyz and Im H_xyz in the loss.
    mu_invariant : leave out of the loss the μ by which H + μS differs from the label, crystal by crystal.
    band_weight : weight of the error of H between states within band_window_ev of the Fermi energy, in meV, at one of
        band_k_points points in each step (0: none).
    """

    epochs: int = 0
    max_minutes: float = 0.0
    batch_size: int = 1
    batch_pairs: int = 0
    accumulate: int = 1
    patience: int = 0
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    loss: str = "mae-mse"
    huber_delta_mev: float = 1.5
    onsite_weight: float = 10.0
    band_weight: float = 0.0
    band_window_ev: float = 3.0
    band_k_points: int = 16
    mu_invariant: bool = False
    spin_free_weight: float = 1.0
    exchange_weight: float = 1.0
    soc_weight: float = 1.0

    def __post_init__(self) -> None:
        _check(self.epochs >= 0, "epochs", self.epochs, "0 or more")
        _check(self.max_minutes >= 0, "max_minutes", self.max_minutes, "0 or more")
        _check(
            self.epochs > 0 or self.max_minutes > 0,
            "epochs",
            "neither epochs nor max_minutes",
            "at least one of them",
            "say how long to train: `epochs = 200` or `max_minutes = 10`",
        )
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _check(self.batch_pairs >= 0, "batch_pairs", self.batch_pairs, "0 (by batch_size) or more")
        _check(
            self.batch_pairs == 0 or self.batch_size == 1,
            "batch_pairs",
            "both batch_size and batch_pairs",
            "one of the two",
        )
        _check(self.accumulate >= 1, "accumulate", self.accumulate, "at least 1")
        _check(self.patience >= 0, "patience", self.patience, "0 (never) or more")
        _check(self.seed >= 0, "seed", self.seed, "0 or more")
        _check(self.band_window_ev > 0, "band_window_ev", self.band_window_ev, "a positive energy")
        _check(self.band_k_points >= 1, "band_k_points", self.band_k_points, "at least 1")
        _check(self.threads >= 0, "threads", self.threads, "0 (all cores) or more")
        if self.loss not in LOSSES:
            raise ConfigError(
                f"loss = {self.loss!r}", expected=f"one of {', '.join(LOSSES)}", remedy=_nearest(self.loss, LOSSES)
            )
        for name in (
            "huber_delta_mev",
            "onsite_weight",
            "band_weight",
            "spin_free_weight",
            "exchange_weight",
            "soc_weight",
        ):
            positive = name == "huber_delta_mev"
            value = getattr(self, name)
            _check(value > 0 if positive else value >= 0, name, value, "a positive number" if positive else "0 or more")


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """``[output]``.

    dir : folder of the run, relative to the configuration file. export : weights that become the model file – those of
        the ``best`` validation or of the ``last`` step.
    validate_every, checkpoint_every : epochs. checkpoint_minutes : a checkpoint also inside an epoch when so much time
        has passed since the last one; 0: at ends of epochs only.
    """

    dir: str = "run"
    export: Literal["best", "last"] = "best"
    validate_every: int = 1
    checkpoint_every: int = 1
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        _check(self.validate_every >= 1, "validate_every", self.validate_every, "at least 1")
        _check(self.checkpoint_every >= 1, "checkpoint_every", self.checkpoint_every, "at least 1")
        _check(self.checkpoint_minutes >= 0, "checkpoint_minutes", self.checkpoint_minutes, "0 or more")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """All sections. Paths in it are absolute once it comes from :func:`load_config`."""

    data: DataConfig
    training: TrainingConfig
    model: ModelSection = field(default_factory=ModelSection)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the shape that :func:`parse_config` reads."""
        entry = asdict(self)
        model = entry["model"]
        model.update(model.pop("settings"))
        for key in ("magnetic", "start"):
            if model[key] is None:
                del model[key]
        return json.loads(json.dumps(entry))


# -- reading -----------------------------------------------------------------------------------------------------------


def load_config(path: str | Path, overrides: Sequence[str] = (), *, seed: int | None = None) -> TrainConfig:
    """Read a TOML file (or the JSON that a run saves).

    Parameters
    ----------
    overrides : ``section.key=value`` with a TOML value, or plain text where that is not one. Paths in the file are
        relative to it, paths in overrides to the working directory.
    seed : replaces ``training.seed``.

    Raises :class:`ConfigError` that names file, section and key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({error})", expected="a TOML file", path=path) from error
    try:
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"no valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}", path=path) from error
    try:
        _resolve_paths(table, path.resolve().parent)
        for override in overrides:
            _override(table, override)
        if seed is not None:
            table.setdefault("training", {})["seed"] = seed
        return parse_config(table)
    except ConfigError as error:
        raise ConfigError(
            error.found, expected=error.expected, remedy=error.remedy, path=path, place=error.place
        ) from error


def parse_config(table: Mapping[str, Any]) -> TrainConfig:
    """The configuration in a nested table of plain values."""
    table = dict(table)
    if "model" in table:
        table["model"] = _model_section(table["model"])
    return _build(TrainConfig, table, "")


def _model_section(table: Any) -> dict[str, Any]:
    place = "[model]"
    if not isinstance(table, Mapping):
        raise ConfigError(repr(table), expected="a table", place=place)
    name = table.get("name", ModelSection().name)
    if name not in MODELS:
        raise ConfigError(
            f"name = {name!r}", expected=f"one of {', '.join(MODELS)}", remedy=_nearest(str(name), MODELS), place=place
        )
    own = {f.name for f in fields(ModelSection)} - {"settings"}
    _known_keys(table, own | {f.name for f in fields(config_class(name))}, place)
    settings = {key: value for key, value in table.items() if key not in own}
    _build(config_class(name), settings, place)  # wrong values are found before the data are read
    return {**{key: value for key, value in table.items() if key in own}, "settings": settings}


def _resolve_paths(table: dict[str, Any], folder: Path) -> None:
    """Paths relative to `folder` become absolute; values of a wrong type are left for the check that names them."""
    data = table.get("data")
    for key in ("train", "validation", "test"):
        if isinstance(data, dict) and key in data:
            data[key] = [_resolved_selection(s, folder) for s in _listed(data[key])]
    model = table.get("model")
    if isinstance(model, dict) and isinstance(model.get("start"), str):
        model["start"] = str(folder / Path(model["start"]).expanduser())
    output = table.setdefault("output", {})
    if isinstance(output, dict) and isinstance(output.setdefault("dir", OutputConfig().dir), str):
        output["dir"] = str(folder / output["dir"])


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _resolved_selection(entry: Any, folder: Path) -> Any:
    entry = {"path": entry} if isinstance(entry, str) else entry
    if isinstance(entry, dict):
        entry = {**entry, **{k: _listed(entry[k]) for k in ("names", "exclude") if isinstance(entry.get(k), str)}}
        if isinstance(entry.get("path"), str):
            entry["path"] = str(folder / Path(entry["path"]).expanduser())
    return entry


def _override(table: dict[str, Any], text: str) -> None:
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot or not key:
        raise ConfigError(f"--set {text}", expected="--set section.key=value, as in --set training.epochs=50")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    single: dict[str, Any] = {section: {key: parsed}}
    if section == "data" or (section, key) in (("output", "dir"), ("model", "start")):
        _resolve_paths(single, Path.cwd())
    inner = table.setdefault(section, {})
    if isinstance(inner, dict):
        inner[key] = single[section][key]


# -- dataclasses from plain values -------------------------------------------------------------------------------------


def _build(cls: type, table: Any, place: str) -> Any:
    if not isinstance(table, Mapping):
        raise ConfigError(repr(table), expected="a table", place=place)
    hints = get_type_hints(cls)
    _known_keys(table, hints, place)
    values = {}
    for key, value in table.items():
        inside = f"[{key}]" if not place else f"{place} {key}"
        values[key] = _convert(hints[key], value, inside)
    missing = [f.name for f in fields(cls) if f.name not in values and not _has_default(f)]
    if missing:
        what = f"[{missing[0]}]" if not place else f"key {missing[0]!r}"
        raise ConfigError(f"no {what}", expected=f"{what} to be given", place=place)
    try:
        return cls(**values)
    except (ConfigError, ModelError) as error:
        raise ConfigError(
            error.found, expected=error.expected, remedy=error.remedy, place=error.place or place
        ) from error


def _has_default(f: Any) -> bool:
    return f.default is not MISSING or f.default_factory is not MISSING


def _known_keys(table: Mapping[str, Any], known: Any, place: str) -> None:
    for key in table:
        if key not in known:
            what = "section" if not place else "key"
            raise ConfigError(
                f"unknown {what} {key!r}",
                expected=f"one of {', '.join(sorted(known))}",
                remedy=_nearest(key, known),
                place=place,
            )


def _nearest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else ""


def _convert(kind: Any, value: Any, place: str) -> Any:
    """`value` as the type `kind`, or a ConfigError: nothing is guessed (no "3" for 3, no 1 for true)."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        inner = [k for k in get_args(kind) if k is not type(None)]
        return None if value is None else _convert(inner[0], value, place)
    if origin is Literal:
        if value in get_args(kind):
            return value
        options = get_args(kind)
        raise ConfigError(
            repr(value),
            expected=f"one of {', '.join(options)}",
            remedy=_nearest(str(value), options),
            place=place,
        )
    if origin is tuple:
        return _convert_tuple(get_args(kind), value, place)
    if is_dataclass(kind):
        if kind is Selection and isinstance(value, str):
            value = {"path": value}
        return _build(kind, value, place)  # type: ignore[arg-type]
    if origin is Mapping or kind is Mapping:
        return dict(value) if isinstance(value, Mapping) else value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
        raise ConfigError(repr(value), expected=names.get(kind, str(kind)), place=place)
    if isinstance(value, float) and value != value:
        raise ConfigError("nan", expected="a number", place=place)
    return value


def _convert_tuple(kinds: tuple, value: Any, place: str) -> tuple:
    repeated = len(kinds) == 2 and kinds[1] is Ellipsis
    if repeated and not isinstance(value, list | tuple):
        value = [value]  # one entry needs no brackets
    if not isinstance(value, list | tuple) or (not repeated and len(value) != len(kinds)):
        raise ConfigError(repr(value), expected=f"a list of {len(kinds)}" if not repeated else "a list", place=place)
    each = [kinds[0]] * len(value) if repeated else kinds
    return tuple(_convert(k, v, place) for k, v in zip(each, value, strict=True))


def _check(good: bool, name: str, value: Any, expected: str, remedy: str = "") -> None:
    if not good:
        text = value if isinstance(value, str) and " " in value else f"{name} = {value!r}"
        raise ConfigError(text, expected=expected, remedy=remedy)
