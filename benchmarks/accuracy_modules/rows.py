"""What benchmarks/accuracy.py measures: splits of the DFT sets, their targets, and variants of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = ["ABLATIONS", "CURVE", "QUICK", "QUICK_SETTINGS", "ROWS", "Job", "Part", "Row", "Variant"]

CURVE = (3, 6, 12, 24)
"""Training runs at the points of the learning curve."""


@dataclass(frozen=True, slots=True)
class Part:
    """Runs of one set, by patterns of their names."""

    set: str
    names: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def chosen(self, names: Sequence[str]) -> list[str]:
        def fits(name: str, patterns: Sequence[str]) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in patterns)

        return [name for name in names if fits(name, self.names) and not fits(name, self.exclude)]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    validation : runs outside train and test that are watched while training; none: a copy of a training run.
    mae_mev, bands_mean_mev, bands_max_mev : targets. start : row whose model, of the same seed, training begins from.
    """

    name: str
    title: str
    train: tuple[Part, ...]
    test: tuple[Part, ...]
    validation: tuple[Part, ...] = ()
    mae_mev: float | None = None
    bands_mean_mev: float | None = None
    bands_max_mev: float | None = None
    start: str | None = None


# Every fourth run by name, once and for all.
_SIX = ("r03", "r07", "r11", "r15", "r19", "r23")
_TWO = ("r03", "r07")
_SPARE = (Part("openmx/nibr2_1x1", ("r09",)),)
_NIBR2 = (
    Part("openmx/nibr2_1x1"),
    Part("openmx/nibr2_2x1"),
    Part("openmx/nibr2_2x1_shaken", exclude=_TWO),
)
_CRI3 = (Part("openmx/cri3", ("r*",)),)
_UNSEEN = (
    Part("openmx/nibr2_2x2"),
    Part("openmx/nibr2_r3"),
    Part("openmx/nibr2_2x1_shaken", _TWO),
    Part("openmx/cri3", ("fm", "afm")),
)
_FE = ("a030", "a090", "a150", "rand_spinrot")
_MNBR2, _MNBR2_UNSEEN = Part("openmx/mnbr2_1x1", exclude=("r03",)), Part("openmx/mnbr2_1x1", ("r03",))
ROWS = (
    Row(
        "nibr2_2x1", "NiBr2 2×1, 18 runs → the other 6", (Part("openmx/nibr2_2x1", exclude=_SIX),),
        (Part("openmx/nibr2_2x1", _SIX),), _SPARE, 0.03, 0.3,
    ),
    Row(
        "nibr2_2x2", "NiBr2 2×1 → 2×2", (Part("openmx/nibr2_2x1"),), (Part("openmx/nibr2_2x2"),), _SPARE, 0.1, 1, 10
    ),
    Row("nibr2_r3", "NiBr2 1×1 and 2×1 → √3×√3", _NIBR2[:2], (Part("openmx/nibr2_r3"),), (), 0.1, 1),
    Row(
        "nibr2_shaken", "NiBr2 2×1, ideal and shaken → shaken", _NIBR2[1:], (Part("openmx/nibr2_2x1_shaken", _TWO),),
        _SPARE, 0.5, 3,
    ),
    Row("cri3", "CrI3, random → ferro- and antiferromagnet", _CRI3, (Part("openmx/cri3", ("fm", "afm")),), (), 0.5, 4),
    Row(
        "fept", "FePt (SIESTA), 40 runs → 10 others and 2×1×1", (Part("siesta/fept_soc_train"),),
        (Part("siesta/fept_soc"), Part("siesta/fept_soc_2x1x1")), (Part("siesta/fept_soc_sym", ("base",)),), 2, 10,
    ),
    Row(
        "fe", "bcc Fe without spin–orbit (SIESTA), 5 runs → 4 others",
        (Part("siesta/fe_bcc_nc", exclude=(*_FE, "scf")),), (Part("siesta/fe_bcc_nc", _FE),),
    ),
    Row("openmx", "NiBr2, MnBr2, CrI3: one model", (*_NIBR2, _MNBR2, *_CRI3), (*_UNSEEN, _MNBR2_UNSEEN)),
    Row("openmx_less_mnbr2", "NiBr2, CrI3: one model", (*_NIBR2, *_CRI3), _UNSEEN),
    Row("mnbr2", "MnBr2, 3 runs → the fourth", (_MNBR2,), (_MNBR2_UNSEEN,)),
    Row(
        "mnbr2_tuned", "the same, from the model of NiBr2 and CrI3", (_MNBR2,), (_MNBR2_UNSEEN,),
        start="openmx_less_mnbr2",
    ),
)  # fmt: skip
QUICK = Row(
    "quick", "NiBr2 2×1, 3 runs → another, and 2×2", (Part("nibr2_2x1", ("r00", "r01", "r02")),),
    (Part("nibr2_2x1", ("r04",)), Part("nibr2_2x2", ("spiral",))), (Part("nibr2_2x1", ("r03",)),),
)  # fmt: skip
QUICK_SETTINGS = (
    "model.l_max=2", "model.n_layers=1", "model.channels=4", "model.hidden=4", "model.pair_channels=8",
    "training.epochs=2", "training.max_minutes=0",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variant:
    """A change of the training: settings, factors of whole numbers of ``[model]``, or of the samples that are seen.

    equal_moments : all moments of a species get their mean size over the training set.
    tied_spin : samples are said to have spin–orbit coupling, so that spin turns with the crystal alone.
    rows : those that it changes something in; none: every row.
    """

    settings: tuple[str, ...] = ()
    factors: tuple[tuple[str, float], ...] = ()
    equal_moments: bool = False
    tied_spin: bool = False
    rows: tuple[str, ...] = ()


# Rows of direction-constrained runs, of which the network is given directions alone.
_CONSTRAINED = tuple(row.name for row in ROWS if row.train[0].set.startswith("openmx"))
_WIDTHS = ("channels", "hidden", "pair_channels", "product_channels")
ABLATIONS: Mapping[str, Variant] = {
    "full": Variant(),
    "no parity": Variant(("model.name=no-parity",)),
    "no time label": Variant(("model.name=no-time-label",)),
    "linear in moments": Variant(("model.name=linear-in-moments",)),
    "one scale without shift": Variant(("model.name=one-scale",)),
    "no envelope": Variant(("model.name=no-envelope",)),
    "no grid": Variant(("model.name=no-grid",)),
    "moment sizes as input": Variant(("model.moment_sizes=true",), rows=_CONSTRAINED),
    "no moment size": Variant(equal_moments=True, rows=("fept", "fe")),
    "one layer": Variant(("model.n_layers=1",)),
    "three layers": Variant(("model.n_layers=3",)),
    "half width": Variant(factors=tuple((key, 0.5) for key in _WIDTHS)),
    "double width": Variant(factors=tuple((key, 2.0) for key in _WIDTHS)),
    "Adam": Variant(("optimiser.name=adam",)),
    "l up to 3": Variant(("model.l_max=3",)),
    "on-site blocks weigh as others": Variant(("training.onsite_weight=1",)),
    "errors weighed by all states": Variant(("training.band_weight=0.05", "training.band_window_ev=1000")),
    "spin tied to space": Variant(tied_spin=True, rows=("fe",)),
    # Sites without moments are symmetric, and calibration amplifies what they lack, in float32 its rounding.
    "no moments": Variant(("model.magnetic=[]", "data.contradictions=allow", "training.dtype=float64")),
    "l up to 2": Variant(("model.l_max=2",)),
    "no two-centre terms": Variant(("model.n_two_centre=0",)),
    "half radial basis": Variant(factors=(("n_radial", 0.5),)),
    "reach 3.6 ang": Variant(("model.cutoff_ang=3.6",)),
    "loss of means alone": Variant(("training.loss=mae",)),
    "loss of squares alone": Variant(("training.loss=mse",)),
    "no running average": Variant(("optimiser.ema_decay=0",)),
}
"""What each ingredient earns. The first is the network as it is; every other one lacks or changes one thing.

Names of models other than hamnet's own are those of :mod:`accuracy_modules.ablated`. With all states in its window the
band loss is the error of H in the metric of S⁻¹, Tr S⁻¹ΔH S⁻¹ΔH: near-null directions of S weigh most."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training and its evaluation.

    kind : ``row``, ``curve`` or ``ablation``. label : of the point of a curve or of the variant.
    n_train : runs drawn with the seed from the training set of the row; 0: all.
    """

    row: Row
    seed: int
    kind: str = "row"
    label: str = ""
    n_train: int = 0
    variant: Variant = Variant()

    @property
    def name(self) -> str:
        words = [self.row.name, *(["-".join((self.kind, *self.label.split()))] if self.label else [])]
        return ".".join([*words, f"seed{self.seed}"])
