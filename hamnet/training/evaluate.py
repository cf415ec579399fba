"""Errors of a model on samples with known Hamiltonians: matrix elements and bands."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hamnet.blocks import BlockOperator
from hamnet.eigen import eigenvalues, overlap_min_eigenvalue
from hamnet.errors import StructureError
from hamnet.models.guards import check_pairs, check_sample, check_structure, renumbered
from hamnet.models.io import LoadedModel
from hamnet.predict import predict_operator
from hamnet.sample import Sample
from hamnet.structure import Structure
from hamnet.units import MEV_PER_EV

from .baselines import CellFit, fit_cells, linear_in_moments, mean_block
from .error_map import ErrorMap
from .metrics import ErrorSums
from .samples import SampleList

__all__ = ["BandErrors", "Evaluation", "SampleErrors", "compare", "evaluate", "evaluation_mesh", "zero_magnetism"]

_BIN_ANG = 1.0
_WINDOW_EV = 2.0
_MESH_SPACING_PER_ANG = 0.4
_MOST_K = 40
_BASELINES = ("zero", "zero_magnetism", "mean_block", "linear_in_moments")


@dataclass(frozen=True, slots=True)
class BandErrors:
    """|ΔE| of states, compared by index, whose DFT energy lies within the window about the DFT Fermi energy.

    Those named aligned are |ΔE − ⟨ΔE⟩|, with the mean of the sample's own states: nearly what is left where each
    spectrum is looked at from its own Fermi level.
    """

    mean_mev: float
    max_mev: float
    mean_aligned_mev: float
    max_aligned_mev: float
    n_states: int


@dataclass(slots=True)
class SampleErrors:
    """Errors of one sample, or of several joined.

    mu_shift_mev : the μ of H + μS that fits best, added in the figures with "mu_aligned".
    by_distance : sums by bin (−1: on-site; n: from n to n + 1 Å); sizes : the same of H itself.
    by_pair : by unordered species pair. error_map : by shell pair and angle.
    baselines, baseline_bands : of the trivial models that can say something; no_baseline : why others cannot.
    overlap_min : smallest eigenvalue of S(k) at the k of the bands.
    no_bands : why there are no band errors, if there are none.
    """

    name: str
    total: ErrorSums = field(default_factory=ErrorSums)
    aligned: ErrorSums = field(default_factory=ErrorSums)
    by_distance: dict[int, ErrorSums] = field(default_factory=dict)
    sizes: dict[int, ErrorSums] = field(default_factory=dict)
    by_pair: dict[str, ErrorSums] = field(default_factory=dict)
    pairs_by_distance: dict[int, int] = field(default_factory=dict)
    error_map: ErrorMap = field(default_factory=ErrorMap)
    baselines: dict[str, ErrorSums] = field(default_factory=dict)
    baseline_bands: dict[str, BandErrors] = field(default_factory=dict)
    no_baseline: dict[str, str] = field(default_factory=dict)
    overlap_min: float | None = None
    mu_shift_mev: float | None = None
    bands: BandErrors | None = None
    no_bands: str | None = None

    def join(self, other: SampleErrors) -> None:
        """Add the sums of another sample (its bands apart)."""
        for name in ("total", "aligned", "error_map"):
            getattr(self, name).join(getattr(other, name))
        for name in ("by_distance", "sizes", "by_pair", "baselines"):
            for key, sums in getattr(other, name).items():
                getattr(self, name).setdefault(key, ErrorSums()).join(sums)
        for key, n in other.pairs_by_distance.items():
            self.pairs_by_distance[key] = self.pairs_by_distance.get(key, 0) + n
        for key, reason in other.no_baseline.items():
            self.no_baseline.setdefault(key, f"{other.name}: {reason}")
        if other.overlap_min is not None:
            self.overlap_min = min(other.overlap_min, np.inf if self.overlap_min is None else self.overlap_min)

    def to_dict(self) -> dict[str, Any]:
        """Keys as documented in ``docs/json.md``."""
        distances = []
        for key in sorted(self.by_distance):
            edges = (0.0, 0.0) if key < 0 else (key * _BIN_ANG, (key + 1) * _BIN_ANG)
            distances.append(
                {
                    "from_ang": edges[0],
                    "to_ang": edges[1],
                    "n_pairs": self.pairs_by_distance[key],
                    "rms_h_meV": self.sizes[key].means_mev()["rmse_meV"],
                    **self.by_distance[key].means_mev(),
                }
            )
        # What one sample lacks cannot be compared with a mean over all of them.
        baselines: dict[str, Any] = {key: None for key in _BASELINES}
        for key, sums in self.baselines.items():
            if key not in self.no_baseline:
                bands = {} if key == "zero" else _band_keys(self.baseline_bands.get(key))
                baselines[key] = {**sums.means_mev(), **bands}
        return {
            "name": self.name,
            **self.total.means_mev(),
            **{f"{key}_mu_aligned": value for key, value in self.aligned.means_mev().items()},
            "mu_shift_meV": self.mu_shift_mev,
            **_band_keys(self.bands),
            "bands_n_states": None if self.bands is None else self.bands.n_states,
            "bands_missing_because": self.no_bands,
            "overlap_min_eigenvalue": self.overlap_min,
            "onsite": self.by_distance.get(-1, ErrorSums()).means_mev(),
            "mae_by_distance": distances,
            "mae_by_species_pair": {key: self.by_pair[key].means_mev() for key in sorted(self.by_pair)},
            "baselines": baselines,
            "baselines_missing_because": dict(self.no_baseline),
        }


def _band_keys(bands: BandErrors | None) -> dict[str, float | None]:
    return {
        "bands_mean_meV": None if bands is None else bands.mean_mev,
        "bands_max_meV": None if bands is None else bands.max_mev,
        "bands_mean_meV_aligned": None if bands is None else bands.mean_aligned_mev,
        "bands_max_meV_aligned": None if bands is None else bands.max_aligned_mev,
    }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Errors of all samples together, and of each; `warnings` tell where the model had to extrapolate."""

    total: SampleErrors
    samples: tuple[SampleErrors, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        total = self.total.to_dict()
        del total["name"], total["mu_shift_meV"]
        return {
            **total,
            "error_map": self.total.error_map.to_dict(),
            "n_samples": len(self.samples),
            "warnings": list(self.warnings),
            "samples": [sample.to_dict() for sample in self.samples],
        }


def evaluate(
    loaded: LoadedModel,
    samples: Iterable[tuple[Sample, ArrayLike | None]],
    *,
    bands: bool = True,
    train: SampleList | None = None,
) -> Evaluation:
    """Predict each sample and compare.

    Parameters
    ----------
    samples : with each its k points (n, 3) in fractions of the reciprocal vectors, or None for a mesh.
    bands : whether to compare eigenvalues too, at no more than 40 of the k points, evenly chosen.
    train : the training set, to which the trivial models of :mod:`hamnet.training.baselines` are fitted.

    Raises :class:`hamnet.errors.ModelError` for samples of a kind that the model was not trained on.
    """
    results: list[SampleErrors] = []
    warnings: list[str] = []
    labels = zip(loaded.model.basis.labels, loaded.model.moment_scale, strict=True)
    magnetic = [label for label, scale in labels if scale > 0]
    cells = None if train is None else fit_cells(train, magnetic)
    for sample, k_frac in samples:
        check_sample(loaded, sample)
        assert sample.hamiltonian is not None
        pairs = renumbered(sample.hamiltonian.pairs, sample.basis, loaded.model.basis)
        found = check_structure(loaded, sample.structure) + check_pairs(loaded, sample.structure, pairs)
        warnings += [f"{sample.name}: {text}" for text in found]
        predicted = predict_operator(loaded, sample.structure, pairs)
        predicted = replace(predicted, basis=sample.basis, pairs=sample.hamiltonian.pairs)
        results.append(compare(predicted, sample, k_frac=k_frac, bands=bands, cells=cells, magnetic=magnetic))
    total = SampleErrors("all")
    for result in results:
        total.join(result)
    total.bands = _joined(r.bands for r in results)
    for key in _BASELINES:
        joined = _joined(r.baseline_bands.get(key) for r in results)
        if joined is not None:
            total.baseline_bands[key] = joined
    if total.bands is None and results:
        total.no_bands = results[0].no_bands
    return Evaluation(total, tuple(results), tuple(warnings))


def _joined(parts: Iterable[BandErrors | None]) -> BandErrors | None:
    found = [part for part in parts if part is not None and part.n_states]
    n = sum(part.n_states for part in found)
    if not n:
        return None
    return BandErrors(
        mean_mev=sum(p.mean_mev * p.n_states for p in found) / n,
        max_mev=max(p.max_mev for p in found),
        mean_aligned_mev=sum(p.mean_aligned_mev * p.n_states for p in found) / n,
        max_aligned_mev=max(p.max_aligned_mev for p in found),
        n_states=n,
    )


def compare(
    predicted: BlockOperator,
    sample: Sample,
    *,
    k_frac: ArrayLike | None = None,
    bands: bool = True,
    cells: Sequence[CellFit] | None = None,
    magnetic: Collection[str] = (),
) -> SampleErrors:
    """Errors of `predicted` against the sample's own Hamiltonian, on the same pairs.

    Parameters
    ----------
    cells : what the trivial models know of the training set. magnetic : labels of the species whose moments count.
    """
    true = sample.hamiltonian
    assert true is not None
    difference = predicted - true
    errors = SampleErrors(sample.name)
    if sample.overlap is not None:
        _add_aligned(errors, difference, sample.overlap.with_pairs(true.pairs))
    lengths = np.linalg.norm(true.pairs.vectors(sample.structure.cell, sample.structure.positions), axis=1)
    bins = np.where(true.pairs.is_self, -1, np.floor(lengths / _BIN_ANG)).astype(int)
    for group, d, h in zip(true.pairs.groups, difference.blocks, true.blocks, strict=True):
        errors.total.add(d)
        names = sorted((true.basis[group.row_species].label, true.basis[group.col_species].label))
        errors.by_pair.setdefault("-".join(names), ErrorSums()).add(d)
        for key in np.unique(bins[group.pairs]).tolist():
            here = torch.as_tensor(np.flatnonzero(bins[group.pairs] == key))
            errors.by_distance.setdefault(key, ErrorSums()).add(d[here])
            errors.sizes.setdefault(key, ErrorSums()).add(h[here])
            errors.pairs_by_distance[key] = errors.pairs_by_distance.get(key, 0) + len(here)
    errors.error_map.add(difference, sample.structure, magnetic)
    trivial, errors.no_baseline = _trivial_models(sample, cells)
    for name, operator in trivial.items():
        sums = errors.baselines.setdefault(name, ErrorSums())
        for d in (operator - true).blocks:
            sums.add(d)
    if not bands:
        errors.no_bands = "not asked for"
    elif sample.overlap is None:
        errors.no_bands = "the sample has no overlap"
    else:
        del trivial["zero"]  # no bands come of it
        _add_bands(errors, predicted, trivial, sample, sample.overlap, k_frac)
    return errors


def _trivial_models(sample: Sample, cells: Sequence[CellFit] | None) -> tuple[dict[str, BlockOperator], dict[str, str]]:
    """What trivial models give for the sample, and why others give nothing."""
    h = sample.operator("hamiltonian")
    found, missing = {"zero": h * 0, "zero_magnetism": zero_magnetism(h)}, {}
    for name, model in (("mean_block", mean_block), ("linear_in_moments", linear_in_moments)):
        if cells is None:
            missing[name] = "no training set was named"
            continue
        try:
            found[name] = model(cells, sample)
        except StructureError as error:
            missing[name] = error.found
    return found, missing


def zero_magnetism(hamiltonian: BlockOperator) -> BlockOperator:
    """H with its spin-free part kept and everything else zero: what a perfect non-magnetic model would give."""
    if hamiltonian.n_spin == 1:
        return hamiltonian
    keep = torch.zeros(hamiltonian.n_spin, 1, 1)
    keep[0] = 1
    return hamiltonian.map(lambda block: block * keep.to(block.dtype))


def _add_aligned(errors: SampleErrors, difference: BlockOperator, overlap: BlockOperator) -> None:
    """Errors of H + μS, with the μ that makes ΔH + μS smallest in the least-squares sense over all stored elements."""
    product = square = 0.0
    for d, s in zip(difference.blocks, overlap.blocks, strict=True):
        product += float((d[:, 0].real * s[:, 0]).sum())
        square += float((s**2).sum())
    shift = -product / square
    errors.mu_shift_mev = shift * MEV_PER_EV
    for d, s in zip(difference.blocks, overlap.blocks, strict=True):
        aligned = d.clone()
        aligned[:, 0] += shift * s[:, 0]
        errors.aligned.add(aligned)


def _add_bands(
    errors: SampleErrors,
    predicted: BlockOperator,
    trivial: Mapping[str, BlockOperator],
    sample: Sample,
    overlap: BlockOperator,
    k_frac: ArrayLike | None,
) -> None:
    k_frac = evaluation_mesh(sample.structure) if k_frac is None else np.asarray(k_frac, dtype=np.float64)
    k_frac = k_frac[:: -(-len(k_frac) // _MOST_K)]
    errors.overlap_min = overlap_min_eigenvalue(overlap, k_frac)
    if sample.fermi_energy_ev is None:
        errors.no_bands = "the sample has no Fermi energy"
        return
    true = eigenvalues(sample.operator("hamiltonian"), overlap, k_frac)
    inside = np.abs(true - sample.fermi_energy_ev) <= _WINDOW_EV
    if not inside.any():
        errors.no_bands = f"no state within {_WINDOW_EV:g} eV of the Fermi energy"
        return

    def band_errors(h: BlockOperator) -> BandErrors:
        difference = (eigenvalues(h, overlap, k_frac) - true)[inside] * MEV_PER_EV
        raw, aligned = np.abs(difference), np.abs(difference - difference.mean())
        return BandErrors(
            mean_mev=float(raw.mean()),
            max_mev=float(raw.max()),
            mean_aligned_mev=float(aligned.mean()),
            max_aligned_mev=float(aligned.max()),
            n_states=raw.size,
        )

    errors.bands = band_errors(predicted)
    errors.baseline_bands = {name: band_errors(h) for name, h in trivial.items()}


def evaluation_mesh(structure: Structure) -> NDArray[np.float64]:
    """(n, 3) Γ-centred mesh with about 0.4 1/Å between points, one point along a vector without neighbours beyond.

    Points along b_i are counted from the height of the cell, so that slabs with vacuum get one point across.
    """
    heights = 1 / np.linalg.norm(np.linalg.inv(structure.cell), axis=0)
    counts = np.where(structure.pbc, np.maximum(1, np.rint(2 * np.pi / heights / _MESH_SPACING_PER_ANG)), 1).astype(int)
    axes = [np.arange(n) / n for n in counts]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
