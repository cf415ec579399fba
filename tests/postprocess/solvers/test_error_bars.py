"""Error bars of levels: those of random errors, those of a real model against DFT, and soft states named."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch

from hamnet.blocks import BlockOperator
from hamnet.calibration import rms_by_part
from hamnet.eigen import eigenvalues
from hamnet.errors import HamnetError, StoreError
from hamnet.models.io import load_model
from hamnet.predict import predict
from hamnet.predict.committee_job import write_uncertainty
from hamnet.supercell import tile_operator, tile_structure
from hamnet.training.evaluate import compare
from postprocess.solvers.error_bars import bond_errors, ghost_states, ghost_warning, level_errors, read_pair_errors
from postprocess.solvers.pencil import SparsePencil
from postprocess.solvers.states import States
from preprocessing.readers import read_run
from tight_binding import operator, structure_of

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "nibr2"
K = np.array([[0.13, 0.21, 0.0], [0.5, 0.0, 0.0]])


def _states(pencil: SparsePencil, k_frac, channel: int = 0) -> States:
    """All states of one k, from dense matrices."""
    energies, c = scipy.linalg.eigh(*pencil.at(k_frac, channel).dense())
    softness = (np.abs(c) ** 2).sum(axis=0)
    return States(np.asarray(k_frac), channel, -1e3, 1e3, 0, energies, softness, 0.0, 0, 0, vectors=c)


def _random_error(hamiltonian: BlockOperator, sizes: np.ndarray, rng: np.random.Generator) -> BlockOperator:
    """Hermitian, independent elements, their root mean squares given by pair and part; real on the spin-free part."""
    blocks = []
    for group, block in zip(hamiltonian.pairs.groups, hamiltonian.blocks, strict=True):
        drawn = rng.normal(size=block.shape) + 1j * rng.normal(size=block.shape)
        spin_free, exchange, soc = sizes[group.pairs].T[:, :, None, None, None]
        drawn[:, :1] = drawn[:, :1].real * spin_free
        drawn[:, 1:] = drawn[:, 1:].real * exchange + 1j * drawn[:, 1:].imag * soc
        blocks.append(torch.from_numpy(np.sqrt(2) * drawn).to(torch.complex128))
    return replace(hamiltonian, blocks=tuple(blocks)).symmetrised()


@pytest.mark.parametrize("parts", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.3, 0.2, 0.1)])
def test_random_errors_move_levels_by_their_error_bars(layer, parts):
    sample = layer("nibr2_1x1_nc")
    h, s = sample.hamiltonian, sample.overlap
    rng = np.random.default_rng(0)
    sizes = 1e-3 * np.array(parts) * rng.uniform(0.5, 2, (len(h.pairs), 1))
    pencil = SparsePencil(h, s)
    states = _states(pencil, K[0])
    told = level_errors(states, pencil, bond_errors(sample.structure, h.pairs, sizes, 4))
    moved = []
    for _ in range(60):
        change = SparsePencil(_random_error(h, sizes, rng), s).at(K[0]).h
        moved.append(np.einsum("in,in->n", states.vectors.conj(), change @ states.vectors).real)
    true = np.sqrt(np.mean(np.square(moved), axis=0))
    # Elements on the diagonal are real and count double where one orbital of one atom makes a state.
    assert np.sqrt((true**2).mean() / (told**2).mean()) == pytest.approx(1, abs=0.25)
    assert np.median(true / told) == pytest.approx(1, abs=0.25)
    assert np.corrcoef(np.log(true), np.log(told))[0, 1] > 0.9


@pytest.mark.parametrize("name", ["nibr2_1x1_nc", "nibr2_v40_collinear", "nibr2_unpolarised"])
def test_error_bars_do_not_shrink_with_the_supercell(layer, name):
    """The same error on equal bonds: a tiled cell has the levels and the errors of its primitive cell."""
    sample, matrix = layer(name), np.diag([2, 1, 1])
    h, s = sample.hamiltonian, sample.overlap
    big_h, big_s = (tile_operator(o, matrix) for o in (h, s))
    found = []
    for structure, operators, k_frac in (
        (sample.structure, (h, s), [K[0], K[0] + [0.5, 0, 0]]),
        (tile_structure(sample.structure, matrix), (big_h, big_s), [K[0] * [2, 1, 1]]),
    ):
        pencil = SparsePencil(*operators)
        bonds = bond_errors(structure, operators[0].pairs, 1e-3, h.n_spin)
        states = [_states(pencil, k) for k in k_frac]
        energies = np.concatenate([state.energies_ev for state in states])
        errors = np.concatenate([level_errors(state, pencil, bonds) for state in states])
        found.append((energies, errors))
    order = [np.argsort(energies) for energies, _ in found]
    levels, errors = (
        [values[o] for values, o in zip(column, order, strict=True)] for column in zip(*found, strict=True)
    )
    assert np.allclose(*levels, atol=1e-8)
    alone = np.concatenate([[True], np.diff(levels[0]) > 1e-3]) & np.concatenate([np.diff(levels[0]) > 1e-3, [True]])
    assert alone.sum() > 20
    assert np.allclose(errors[0][alone], errors[1][alone], rtol=1e-4)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """DFT and predicted H of two states of the 2×2 cell that the model was not trained on."""
    folder = tmp_path_factory.mktemp("nibr2")
    with tarfile.open(EXAMPLE / "nibr2_2x2.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    model = load_model(EXAMPLE / "model" / "model.safetensors")
    result = {}
    for name in ("spiral", "tetra"):
        sample = read_run(folder / "nibr2_2x2" / name).sample
        result[name] = sample, predict(model, sample.structure, source=sample).sample.operator("hamiltonian")
    return result


def _errors_near_fermi(sample, hamiltonian, errors) -> tuple[np.ndarray, np.ndarray]:
    """True errors of levels within 2 eV of the Fermi energy, less their mean, and those told."""
    pencil = SparsePencil(hamiltonian, sample.operator("overlap"))
    bonds = bond_errors(sample.structure, hamiltonian.pairs, errors, hamiltonian.n_spin)
    dft = eigenvalues(sample.operator("hamiltonian"), sample.operator("overlap"), K)[:, 0]
    true, told = [], []
    for k, levels in zip(K, dft, strict=True):
        states = _states(pencil, k)
        here = np.abs(levels - sample.fermi_energy_ev) < 2
        true.append((states.energies_ev - levels)[here])
        told.append(level_errors(states, pencil, bonds)[here])
    true = np.concatenate(true)
    return true - true.mean(), np.concatenate(told)


@pytest.mark.parametrize("name", ["spiral", "tetra"])
@pytest.mark.parametrize("source", ["own blocks", "distances of the other", "one number of the other"])
def test_error_bars_of_a_prediction_are_those_against_dft_within_a_factor_of_two(predicted, tmp_path, name, source):
    sample, hamiltonian = predicted[name]
    other = predicted[{"spiral": "tetra", "tetra": "spiral"}[name]]
    if source == "own blocks":
        label = sample.operator("hamiltonian")
        errors = np.concatenate([rms_by_part(a - b) for a, b in zip(hamiltonian.blocks, label.blocks, strict=True)])
    else:
        table = compare(other[1], other[0], bands=False).to_dict()
        file = tmp_path / "evaluation.json"
        file.write_text(json.dumps(table))
        errors, what = read_pair_errors(file, sample.structure, hamiltonian.pairs)
        assert what == "errors by distance of evaluation.json"
        if source.startswith("one number"):
            errors = table["rmse_spinor_meV"] / 1000
    true, told = _errors_near_fermi(sample, hamiltonian, errors)
    assert len(true) > 50
    assert 0.5 < np.sqrt((told**2).mean() / (true**2).mean()) < 2
    # One number knows nothing of which blocks are the worse ones: its bars are too small for some states.
    assert (np.abs(true) < 2 * told).mean() > (0.7 if source.startswith("one number") else 0.85)


def test_errors_of_a_committee_are_read_pair_by_pair_in_any_order(layer, tmp_path):
    sample = layer("nibr2_1x1_nc")
    pairs = sample.hamiltonian.pairs
    rng = np.random.default_rng(1)
    wanted = rng.uniform(size=(len(pairs), 3))
    order = rng.permutation(len(pairs))
    report = SimpleNamespace(
        row=pairs.row[order], col=pairs.col[order], shift=pairs.shift[order], length_ang=np.zeros(len(pairs)),
        spread_ev=wanted[order] / 3, expected_ev=wanted[order],
    )  # fmt: skip
    file = write_uncertainty(tmp_path / "h_uncertainty.npz", report)
    found, what = read_pair_errors(file, sample.structure, pairs)
    assert np.allclose(found, wanted, rtol=1e-12)
    assert what == "expected errors of h_uncertainty.npz"
    report.expected_ev = None
    found, what = read_pair_errors(write_uncertainty(file, report), sample.structure, pairs)
    assert np.allclose(found, wanted / 3, rtol=1e-12)
    assert "without calibration" in what
    report.shift = report.shift + 1
    with pytest.raises(StoreError, match=r"not the .* of H"):
        read_pair_errors(write_uncertainty(file, report), sample.structure, pairs)


def test_files_without_errors_and_impossible_errors_are_refused(layer, tmp_path):
    sample = layer("nibr2_1x1_nc")
    pairs = sample.hamiltonian.pairs
    for text in ("{}", "no JSON", '{"mae_by_distance": []}', '{"mae_by_distance": [{"to_ang": 1}]}', "[1]"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(StoreError, match="no errors of H"):
            read_pair_errors(tmp_path / "x.json", sample.structure, pairs)
    (tmp_path / "x.npz").write_text("no archive")
    for name in ("x.npz", "absent.json"):
        with pytest.raises(StoreError, match="no errors of H"):
            read_pair_errors(tmp_path / name, sample.structure, pairs)
    with pytest.raises(HamnetError, match="0 or more"):
        bond_errors(sample.structure, pairs, -1.0, 4)
    with pytest.raises(HamnetError, match="shape"):
        bond_errors(sample.structure, pairs, np.zeros((3, 3)), 4)


def test_ghost_of_two_nearly_equal_orbitals_is_named_with_its_energy():
    """Two orbitals of overlap 1 − δ have a state with κ = 1/δ, which an error of H throws anywhere."""
    near = 0.998
    structure = structure_of(np.diag([20.0, 20, 20]), [(0, 0, 0), (0.01, 0, 0), (0.5, 0, 0), (0.5, 0.5, 0)])
    bonds = {(a, a, (0, 0, 0)): 1.0 for a in range(4)}
    s = operator(structure, bonds | {(0, 1, (0, 0, 0)): near})
    energies = {(a, a, (0, 0, 0)): e for a, e in enumerate((-5.0, -5.0, -4.0, -3.0))}
    h = operator(structure, energies | {(0, 1, (0, 0, 0)): -5.0 * near - 0.004})
    states = _states(SparsePencil(h, s), [0, 0, 0])
    ghost = ghost_states(states.softness)
    assert ghost.sum() == 1
    assert states.softness[ghost] == pytest.approx(1 / (1 - near))
    text = ghost_warning([states])
    assert text is not None
    assert text.startswith("1 of 4 states lie in soft directions of the overlap")
    assert f"500 at {states.energies_ev[ghost][0]:.4f} eV" in text
    assert "Nothing was removed" in text
    assert ghost_warning([states], threshold=1000) is None


def test_no_state_of_a_real_crystal_near_its_fermi_level_is_called_a_ghost(layer):
    sample = layer("nibr2_1x1_nc")
    states = _states(SparsePencil(sample.hamiltonian, sample.overlap), K[0])
    here = np.abs(states.energies_ev - sample.fermi_energy_ev) < 5
    assert here.sum() > 20
    window = replace(states, energies_ev=states.energies_ev[here], softness=states.softness[here])
    assert ghost_warning([window]) is None
    assert not ghost_states(np.full(3, np.nan)).any()
    with pytest.raises(HamnetError, match="positive factor"):
        ghost_states(states.softness, threshold=0)
