"""The moments of a Hamiltonian, from DFT's own and from closed forms; and what they tell about impossible inputs."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hamnet.basis import Basis, Shell, SpeciesBasis
from hamnet.blocks import BlockOperator, Pairs
from hamnet.errors import HamnetError, SolverError
from hamnet.models.io import LoadedModel, load_model
from hamnet.predict import predict
from hamnet.sample import Sample
from hamnet.units import BOLTZMANN_EV_PER_K
from hamnet.verify import ComputedMoments, NormalResidual, computed_moments, moment_residual, unusual_atoms
from postprocess.kmesh import k_mesh
from preprocessing.readers import read_run
from preprocessing.readers.protocol import ReadOptions, Run

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "nibr2"


@pytest.fixture(scope="module")
def nibr2(tmp_path_factory) -> Path:
    """Folder with direction-constrained OpenMX runs of NiBr2."""
    folder = tmp_path_factory.mktemp("nibr2")
    for name in ("nibr2_2x1", "nibr2_2x2"):
        with tarfile.open(EXAMPLE / f"{name}.tar.xz") as tar:
            tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(EXAMPLE / "model" / "model.safetensors")


def _read(path: Path) -> Run:
    return read_run(path, ReadOptions())


def _mesh(sample: Sample):
    """The mesh of the run, which both codes centre at Γ."""
    settings = sample.provenance["settings"]
    return k_mesh(settings.get("k_grid") or [int(row[i]) for i, row in enumerate(settings["k_mesh"])]).k_frac


def _moments(sample: Sample, hamiltonian: BlockOperator) -> ComputedMoments:
    assert sample.n_electrons is not None
    return computed_moments(hamiltonian, sample.operator("overlap"), _mesh(sample), sample.n_electrons)


def _sizes(vectors):
    return np.linalg.norm(vectors, axis=1)


@pytest.mark.parametrize(
    "run",
    [
        "openmx/nibr2_1x1_nc",
        "openmx/nibr2_v40_collinear",
        "siesta/small/fe_bcc_nc_a060",
        "siesta/small/fe_collinear_c00",
    ],
)
def test_stored_hamiltonian_has_the_moments_and_charges_of_its_own_density_matrix(run: str, tracked):
    archive = run if run.startswith("openmx") else "siesta/small"
    read = _read(tracked(archive) / run.removeprefix(archive).strip("/"))
    found = _moments(read.sample, read.stored_hamiltonian)
    assert np.abs(found.moments_mub - read.sample.computed_moments).max() < 2e-6
    assert np.abs(found.charges - read.sample.charges).max() < 2e-6
    assert found.charges.sum() == pytest.approx(read.sample.n_electrons)


def test_penalty_of_a_constrained_run_holds_moments_that_turn_without_it_by_the_torque(nibr2: Path):
    """With it H has the moments of the run; without it they keep their size and turn in proportion to the field."""
    angles, fields = [], []
    for name in ("nibr2_2x1/r00", "nibr2_2x1/r01", "nibr2_2x1/r02", "nibr2_2x2/tetra"):
        run = _read(nibr2 / name)
        sample = run.sample
        assert sample.structure.moments is not None
        assert np.abs(_moments(sample, run.stored_hamiltonian).moments_mub - sample.structure.moments).max() < 1e-8
        nickel = sample.structure.numbers == 28
        found = _moments(sample, sample.operator("hamiltonian")).moments_mub
        residual = moment_residual(sample.structure.labels, sample.structure.moments, found, is_input=nickel)
        assert np.abs(residual.size_mub).max() < 2e-3
        angles.append(residual.angle_deg[nickel])
        fields.append(_sizes(sample.constraint_field_ev)[nickel])
    angle, field = np.concatenate(angles), np.concatenate(fields)
    assert angle.max() > 1.5
    # tan(angle) = field / B with the exchange field B of Ni, a property of the atom.
    exchange_ev = field / np.tan(np.radians(angle))
    assert exchange_ev == pytest.approx(np.full(len(angle), 0.81), rel=0.06)


def test_predicted_hamiltonian_of_a_possible_state_has_its_moments(nibr2: Path, model: LoadedModel):
    sample = _read(nibr2 / "nibr2_2x2" / "spiral").sample
    nickel = sample.structure.numbers == 28
    found = _moments(sample, predict(model, sample.structure, source=sample).sample.operator("hamiltonian"))
    residual = moment_residual(sample.structure.labels, sample.structure.moments, found.moments_mub, is_input=nickel)
    assert residual.compared.all()  # the run gives the moments that it induces on Br, too
    assert np.abs(residual.size_mub).max() < 0.015
    assert np.nanmax(residual.angle_deg[nickel]) < 0.5


@pytest.mark.parametrize("factor", [2.0, 1.2, 0.8, 0.5])
def test_moments_of_a_size_that_nickel_cannot_have_are_seen(nibr2: Path, model: LoadedModel, factor: float):
    """Whatever is asked for, the states of Ni²⁺ have about 1.3 μ_B."""
    sample = _read(nibr2 / "nibr2_2x2" / "spiral").sample
    nickel = sample.structure.numbers == 28
    asked = factor * sample.structure.moments * nickel[:, None]  # type: ignore[operator]
    predicted = predict(model, sample.structure.with_moments(asked), source=sample).sample
    found = _moments(sample, predicted.operator("hamiltonian")).moments_mub
    residual = moment_residual(sample.structure.labels, asked, found, is_input=nickel)
    assert (np.abs(residual.size_mub[nickel]) > 0.2).all()
    normal = {"Ni": NormalResidual((-0.001, 0.01), 2.0, 8)}
    assert np.array_equal(unusual_atoms(residual, normal), nickel)


def test_moment_on_an_atom_that_carries_none_is_seen_and_an_absent_one_is_not_compared(nibr2, model: LoadedModel):
    sample = _read(nibr2 / "nibr2_2x2" / "spiral").sample
    nickel = sample.structure.numbers == 28
    asked = sample.structure.moments * nickel[:, None]  # type: ignore[operator]
    bromine = int(np.flatnonzero(~nickel)[0])
    asked[bromine] = [1.0, 0, 0]
    predicted = predict(model, sample.structure.with_moments(asked), source=sample).sample
    found = _moments(sample, predicted.operator("hamiltonian")).moments_mub
    residual = moment_residual(sample.structure.labels, asked, found, is_input=nickel)
    assert np.array_equal(np.flatnonzero(residual.compared & ~nickel), [bromine])
    assert residual.size_mub[bromine] < -0.8
    normal = {"Ni": NormalResidual((-0.001, 0.01), 2.0, 8)}
    assert np.flatnonzero(unusual_atoms(residual, normal)).tolist() == [bromine]


def test_hamiltonian_of_the_reversed_moments_contradicts_the_given_ones(nibr2: Path):
    """A sign lost between two conventions gives half a turn; H itself is one of a possible state."""
    sample = _read(nibr2 / "nibr2_2x1" / "r00").sample
    nickel = sample.structure.numbers == 28
    found = _moments(sample, sample.operator("hamiltonian")).moments_mub
    residual = moment_residual(sample.structure.labels, -sample.structure.moments, found, is_input=nickel)  # type: ignore[operator]
    assert residual.angle_deg[nickel].min() > 178
    assert unusual_atoms(residual, {"Ni": NormalResidual((0.0, 0.001), 2.0, 2)})[nickel].all()


def _spin_in_a_field(field_ev: np.ndarray) -> tuple[BlockOperator, BlockOperator]:
    basis = Basis((SpeciesBasis("X", 1, (Shell(0, 0, 1.0),)),))
    pairs, _ = Pairs.build([0], [0], [0], [[0, 0, 0]])
    h = torch.tensor(np.concatenate([[0.3], -field_ev]), dtype=torch.complex128).reshape(1, 4, 1, 1)
    return BlockOperator(basis, pairs, (h,)), BlockOperator(basis, pairs, (torch.ones(1, 1, 1, 1).double(),))


@pytest.mark.parametrize("temperature_k", [100.0, 300.0, 2000.0])
def test_free_spin_in_a_field_follows_the_closed_form(temperature_k: float):
    """H = ε − B·σ with one electron: m = B̂ tanh(B/2kT) μ_B, and μ = ε."""
    field = np.array([0.02, -0.05, 0.03])
    size = np.linalg.norm(field)
    found = computed_moments(*_spin_in_a_field(field), [[0, 0, 0]], 1.0, temperature_k=temperature_k)
    expected = field / size * np.tanh(size / (2 * BOLTZMANN_EV_PER_K * temperature_k))
    assert found.moments_mub[0] == pytest.approx(expected, abs=1e-12)
    assert found.chemical_potential_ev == pytest.approx(0.3, abs=1e-12)
    assert found.charges[0] == pytest.approx(1)


def test_more_electrons_than_states_and_hamiltonians_without_spin_are_refused():
    h, s = _spin_in_a_field(np.array([0, 0, 0.1]))
    with pytest.raises(SolverError, match="3 electrons for 2 states"):
        computed_moments(h, s, [[0, 0, 0]], 3)
    with pytest.raises(HamnetError, match="without spin"):
        computed_moments(s, s, [[0, 0, 0]], 1)


def test_residual_tells_size_and_angle_and_skips_what_means_nothing():
    given = [[0, 0, 2.0], [1.0, 0, 0], [0, 0, 0], [0, 0, 0]]
    found = [[0, 0, 1.5], [0, 1.2, 0], [0, 0, 0.1], [0.2, 0, 0]]
    residual = moment_residual(("A", "A", "A", "B"), given, found, is_input=[True, True, True, False])
    assert residual.compared.tolist() == [True, True, True, False]
    assert residual.size_mub[:3] == pytest.approx([-0.5, 0.2, 0.1])
    assert residual.angle_deg[:2] == pytest.approx([0, 90])
    assert np.isnan(residual.angle_deg[2:]).all()
    assert np.isnan(residual.size_mub[3])


def test_normal_residuals_of_one_step_runs_are_those_of_their_species():
    """Where labels themselves relax by 1 μ_B, a prediction that does so is no surprise, one that does not is one."""
    usual = moment_residual(("Fe", "Fe"), [[0, 0, 3.0], [0, 2.8, 0]], [[0, 0, 1.9], [0, 1.75, 0]], is_input=[1, 1])
    normal = NormalResidual.of([usual])
    assert normal["Fe"].size_mub == pytest.approx((-1.1, -1.05))
    assert normal["Fe"].n_atoms == 2
    same = moment_residual(("Fe",), [[2.9, 0, 0]], [[1.82, 0, 0]], is_input=[1])
    kept = moment_residual(("Fe",), [[2.9, 0, 0]], [[2.9, 0, 0]], is_input=[1])
    assert not unusual_atoms(same, normal).any()
    assert unusual_atoms(kept, normal).all()
