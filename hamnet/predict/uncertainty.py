"""How far a committee is to be trusted: measured on samples with known H, estimated for those without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hamnet.basis import Basis
from hamnet.blocks import BlockOperator, Pairs
from hamnet.calibration import PARTS, Agreement, Calibration, PairKinds, agreement, pair_kinds, rms_by_part
from hamnet.errors import HamnetError
from hamnet.models.guards import check_pairs, check_sample, check_structure, renumbered
from hamnet.models.hamiltonian import HamiltonianModel
from hamnet.models.irreps import ALGEBRAS, degree_index
from hamnet.sample import Sample
from hamnet.structure import Structure
from hamnet.units import MEV_PER_EV
from hamnet.verify import MomentResidual, NormalResidual, computed_moments, moment_residual

from .committee import Committee, mean_operator
from .prediction import prediction_pairs

__all__ = [
    "BlockErrors",
    "Examination",
    "StructureEstimate",
    "areas_of_pairs",
    "crystal_rms",
    "descriptor",
    "estimate_structure",
    "examine",
    "residual_of",
]

_ROWS = {1: (1, 0, 0), 2: (1, 1, 0), 4: (1, 3, 3)}
"""How often the parts of :data:`hamnet.calibration.PARTS` count in |ΔH|² summed over Pauli components."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockErrors:
    """Expected and true error of the blocks of one sample, eV.

    name : of the sample. spread_ev, expected_ev, true_ev : (n_pairs, 3) by part. area : (n_pairs,) elements of a block.
    """

    name: str
    pairs: PairKinds
    area: NDArray[np.int64]
    n_spin: int
    spread_ev: NDArray[np.float64]
    true_ev: NDArray[np.float64]
    expected_ev: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Examination:
    """A committee held against samples with known H.

    Attributes
    ----------
    committee : the one examined, with its calibration and its normal moments.
    samples : errors of each; the expected ones from factors that were fitted to the *other* samples.
    agreements : by (``onsite`` or ``offsite``, part), all samples together; empty with fewer than two samples.
    label_residuals, predicted_residuals : of each sample whose moments could be computed back.
    no_moments : why there are none, if there are none.
    warnings : where the models had to extrapolate.
    """

    committee: Committee
    samples: tuple[BlockErrors, ...]
    agreements: dict[tuple[str, str], Agreement]
    label_residuals: tuple[MomentResidual, ...]
    predicted_residuals: tuple[MomentResidual, ...]
    no_moments: str | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Keys as documented in ``docs/json.md``."""
        return {
            "n_members": len(self.committee.members),
            "n_samples": len(self.samples),
            "samples": [
                {
                    "name": s.name,
                    "expected_rmse_meV": crystal_rms(s.expected_ev, s.area, s.n_spin) * MEV_PER_EV,
                    "true_rmse_meV": crystal_rms(s.true_ev, s.area, s.n_spin) * MEV_PER_EV,
                }
                for s in self.samples
            ],
            "agreement": [
                {
                    "where": where,
                    "part": part,
                    "n_blocks": a.n_blocks,
                    "within_factor_2": a.within_factor_two,
                    "true_over_expected": a.rms_ratio,
                    "rank_correlation": a.rank_correlation,
                }
                for (where, part), a in self.agreements.items()
            ],
            "factors": None if self.committee.calibration is None else self.committee.calibration.to_dict(),
            "moments": {
                what: {
                    label: {
                        "n_atoms": n.n_atoms,
                        "size_min_muB": n.size_mub[0],
                        "size_max_muB": n.size_mub[1],
                        "angle_max_deg": n.angle_deg,
                    }
                    for label, n in NormalResidual.of(residuals).items()
                }
                if residuals
                else None
                for what, residuals in (("labels", self.label_residuals), ("predicted", self.predicted_residuals))
            },
            "moments_missing_because": self.no_moments,
            "warnings": list(self.warnings),
        }


@torch.no_grad()
def examine(committee: Committee, samples: Iterable[tuple[Sample, ArrayLike | None]]) -> Examination:
    """Predict samples with known H, which no member was trained on, and calibrate the committee on them.

    samples : with each the mesh (n_k, 3) on which moments are computed back from H, or None not to.

    Raises :class:`hamnet.errors.ModelError` for samples of a kind that the models were not trained on.
    """
    first = committee.first
    raw: list[tuple[str, PairKinds, NDArray, int, NDArray, NDArray]] = []
    labels: list[MomentResidual] = []
    predicted: list[MomentResidual] = []
    warnings: list[str] = []
    no_moments = None
    for sample, k_frac in samples:
        check_sample(first, sample)
        label = sample.operator("hamiltonian")
        pairs = renumbered(label.pairs, sample.basis, first.model.basis)
        label = replace(label, basis=first.model.basis, pairs=pairs)
        found = check_structure(first, sample.structure) + check_pairs(first, sample.structure, pairs)
        warnings += [f"{sample.name}: {text}" for text in found]
        mean, spread = mean_operator(committee, sample.structure, pairs)
        error = np.concatenate([rms_by_part(a - b) for a, b in zip(mean.blocks, label.blocks, strict=True)])
        raw.append(
            (
                sample.name,
                pair_kinds(sample.structure, pairs, mean.basis.labels),
                areas_of_pairs(pairs, mean.basis),
                mean.n_spin,
                spread,
                error,
            )
        )
        why = "not asked for" if k_frac is None else _why_no_moments(sample)
        no_moments = no_moments or why
        if why is None and k_frac is not None:
            labels.append(residual_of(committee, sample, label, k_frac))
            predicted.append(residual_of(committee, sample, mean, k_frac))
    if not raw:
        raise HamnetError("no samples", expected="samples with a Hamiltonian to compare with")
    triples = [(kinds, spread, error) for _, kinds, _, _, spread, error in raw]
    many = len(committee.members) > 1
    results = []
    for place, (name, kinds, area, n_spin, spread, error) in enumerate(raw):
        others = triples[:place] + triples[place + 1 :]
        expected = Calibration.fit(others or triples).expected_error(kinds, spread) if many else np.nan * spread
        results.append(BlockErrors(name, kinds, area, n_spin, spread, error, expected))
    return Examination(
        committee=replace(
            committee,
            calibration=Calibration.fit(triples) if many else None,
            normal=NormalResidual.of([*labels, *predicted]) if labels else {},
            samples=tuple(name for name, *_ in raw),
        ),
        samples=tuple(results),
        agreements=_agreements(results) if many and len(results) > 1 else {},
        label_residuals=tuple(labels),
        predicted_residuals=tuple(predicted),
        no_moments=no_moments if not labels else None,
        warnings=tuple(warnings),
    )


def _why_no_moments(sample: Sample) -> str | None:
    if sample.operator("hamiltonian").n_spin == 1:
        return f"{sample.name} has no spin"
    if sample.structure.moments is None:
        return f"{sample.name} has no moments"
    if sample.overlap is None:
        return f"{sample.name} has no overlap"
    return f"{sample.name} does not tell its number of electrons" if sample.n_electrons is None else None


def residual_of(
    committee: Committee, sample: Sample, hamiltonian: BlockOperator, k_frac: ArrayLike, *, temperature_k: float = 300.0
) -> MomentResidual:
    """The moments of `hamiltonian` against those of the sample's structure; k_frac (n_k, 3) is a whole mesh.

    Raises :class:`HamnetError` where moments, overlap or the number of electrons are missing.
    """
    why = _why_no_moments(sample)
    if why is not None:
        raise HamnetError(why, expected="what moments are computed from and compared with", remedy="give it")
    assert sample.structure.moments is not None
    assert sample.n_electrons is not None
    overlap = replace(sample.operator("overlap"), basis=hamiltonian.basis, pairs=hamiltonian.pairs)
    found = computed_moments(hamiltonian, overlap, k_frac, sample.n_electrons, temperature_k=temperature_k)
    labels = [hamiltonian.basis[int(s)].label for s in hamiltonian.pairs.species]
    return moment_residual(labels, sample.structure.moments, found.moments_mub, is_input=committee.is_input(labels))


def areas_of_pairs(pairs: Pairs, basis: Basis) -> NDArray[np.int64]:
    """(n_pairs,) elements of the block of each pair, of one Pauli component."""
    n_orbitals = basis.n_orbitals
    return n_orbitals[pairs.species[pairs.row]] * n_orbitals[pairs.species[pairs.col]]


def _agreements(samples: Sequence[BlockErrors]) -> dict[tuple[str, str], Agreement]:
    onsite = np.concatenate([s.pairs.onsite for s in samples])
    expected, true = (np.concatenate([getattr(s, name) for s in samples]) for name in ("expected_ev", "true_ev"))
    found = {
        (where, part): agreement(expected[here, column], true[here, column])
        for where, here in (("onsite", onsite), ("offsite", ~onsite))
        for column, part in enumerate(PARTS)
    }
    return {key: value for key, value in found.items() if value is not None}


def crystal_rms(by_pair: NDArray[np.float64], area: NDArray[np.int64], n_spin: int) -> float:
    """Root mean square of |ΔH_μ| over all elements of all Pauli blocks, from those of pairs (n_pairs, 3) by part."""
    counts = np.array(_ROWS[n_spin])
    square = (np.nan_to_num(by_pair) ** 2 @ counts) * area
    return float(np.sqrt(square.sum() / (area.sum() * n_spin)))


# -- structures without a known H --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class StructureEstimate:
    """What a committee thinks of a structure for which there is nothing but the structure.

    rms_ev : expected root mean square error over all elements of H; without a calibration the bare spread.
    worst_atom_ev : that of one atom, its on-site block and the rows of its bonds. worst_atom : which.
    descriptor : (d,) see :func:`descriptor`. warnings : where the models extrapolate.
    """

    rms_ev: float
    worst_atom_ev: float
    worst_atom: int
    descriptor: NDArray[np.float64]
    warnings: tuple[str, ...]


@torch.no_grad()
def estimate_structure(committee: Committee, structure: Structure) -> StructureEstimate:
    """Expected error of the prediction of `structure`, on the pairs of the models' basis.

    Raises as :func:`hamnet.predict.make_plan`.
    """
    first = committee.first
    warnings = check_structure(first, structure)
    pairs = prediction_pairs(first, structure, None)
    warnings += check_pairs(first, structure, pairs)
    mean, error = mean_operator(committee, structure, pairs)
    if committee.calibration is not None:
        error = committee.calibration.expected_error(pair_kinds(structure, pairs, mean.basis.labels), error)
    area, n_spin = areas_of_pairs(pairs, mean.basis), mean.n_spin
    square = (np.nan_to_num(error) ** 2 @ np.array(_ROWS[n_spin])) * area / n_spin
    by_atom = np.sqrt(np.bincount(pairs.row, square) / np.bincount(pairs.row, area))
    worst = int(by_atom.argmax())
    return StructureEstimate(
        crystal_rms(error, area, n_spin),
        float(by_atom[worst]),
        worst,
        descriptor(first.model, structure, pairs),
        tuple(warnings),
    )


@torch.no_grad()
def descriptor(model: HamiltonianModel, structure: Structure, pairs: Pairs) -> NDArray[np.float64]:
    """(d,) invariants of a structure, which crystals that the model sees alike have in common.

    Norms of the features of each atom, kind by kind (l, parity, spin irrep, channel), as mean and standard deviation
    over the atoms of each species; zeros for species that do not occur.
    """
    graph = model.graph([structure], [pairs])
    learned, field = model.unpacked(model.features(graph).double())
    device, n_spin_irreps = learned.device, ALGEBRAS[model.config.mode].n_irreps
    degree = degree_index(model.l_readout).to(device)
    irrep = torch.tensor(ALGEBRAS[model.config.mode].irrep_of, device=device)

    def summed(features: torch.Tensor) -> torch.Tensor:
        shape = (len(features), model.l_readout + 1, *features.shape[2:])
        return features.new_zeros(shape).index_add(1, degree, features**2)

    square = summed(learned)
    shape = (*square.shape[:3], n_spin_irreps, square.shape[4])
    square = square.new_zeros(shape).index_add(3, irrep, square)
    norms = torch.cat([square.flatten(1), summed(field).flatten(1)], dim=1).sqrt()
    parts = []
    for own in (norms[graph.species == s] for s in range(len(model.basis))):
        mean = own.mean(dim=0) if len(own) else norms.new_zeros(norms.shape[1])
        parts += [mean, own.std(dim=0, correction=0) if len(own) else mean]
    return torch.cat(parts).cpu().numpy()
