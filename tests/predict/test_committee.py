"""Committees: exact symmetry of the mean, invariance of the spread, files, kills; on random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hamnet.blocks import BlockOperator
from hamnet.calibration import rms_by_part
from hamnet.errors import ModelError, StoreError
from hamnet.models.io import load_model
from hamnet.neighbours import basis_pairs
from hamnet.predict import predict_operator, predict_to_file
from hamnet.predict.committee import Committee, join_models, load_committee, mean_operator, save_committee
from hamnet.predict.committee_job import predict_committee_to_file, write_uncertainty
from hamnet.predict.uncertainty import areas_of_pairs, crystal_rms, descriptor, estimate_structure, examine
from hamnet.sample import Sample
from hamnet.store import SampleSet
from hamnet.symmetry import rotate, time_reverse
from small_models import BASIS, ROTATION, crystal, model_overlap, random_operator

SIZES = ({}, {"hidden": 3}, {"channels": 4})
"""Networks of different size for models that differ."""


@pytest.fixture(scope="module")
def files(model_file) -> list[Path]:
    return [model_file("soc", **size) for size in SIZES]


@pytest.fixture(scope="module")
def committee(files) -> Committee:
    return join_models([load_model(file) for file in files])


@pytest.fixture(scope="module")
def calibrated(committee) -> Committee:
    """Calibrated on a random label: no good one, but it has factors."""
    return examine(committee, [(_labelled("one"), None), (_labelled("two", seed=4), None)]).committee


def _labelled(name: str, *, seed: int = 3) -> Sample:
    structure = crystal()
    return Sample(
        name,
        structure,
        BASIS,
        model_overlap(structure),
        random_operator(structure, BASIS, 4, seed=seed),
        n_electrons=11.0,
        spin_orbit=True,
        provenance={"code": "openmx"},
    )


def _mean(committee: Committee, structure) -> tuple[BlockOperator, np.ndarray]:
    return mean_operator(committee, structure, basis_pairs(structure, BASIS))


def test_mean_is_that_of_the_members_and_spread_their_standard_deviation(committee: Committee):
    structure = crystal()
    pairs = basis_pairs(structure, BASIS)
    mean, spread = _mean(committee, structure)
    members = [predict_operator(member, structure, pairs) for member in committee.members]
    for group, block, *own in zip(pairs.groups, mean.blocks, *(m.blocks for m in members), strict=True):
        x = np.stack([member.numpy() for member in own])
        assert block.numpy() == pytest.approx(x.mean(axis=0))
        width = x[:, :, 1:].real.var(axis=0, ddof=1).mean(axis=(1, 2, 3))
        assert spread[group.pairs, 1] ** 2 == pytest.approx(width)


@pytest.mark.parametrize("operation", [ROTATION, -ROTATION, -np.eye(3)], ids=["rotation", "rotoinversion", "inversion"])
def test_mean_turns_with_structure_and_moments_and_the_spread_stays(committee: Committee, operation):
    structure = crystal()
    mean, spread = _mean(committee, structure)
    turned, turned_spread = _mean(committee, structure.rotated(operation))
    assert turned.max_abs_difference(rotate(mean, operation)) < 1e-10
    # Sorted, since an inversion turns the lattice vectors over and with them the order of the pairs.
    assert np.abs(np.sort(turned_spread, axis=0) - np.sort(spread, axis=0)).max() < 1e-10
    assert np.abs(spread).max() > 1e-3


def test_flipped_moments_give_the_time_reversed_mean_and_the_same_spread(committee: Committee):
    structure = crystal()
    assert structure.moments is not None
    mean, spread = _mean(committee, structure)
    flipped, same = _mean(committee, structure.with_moments(-structure.moments))
    assert flipped.max_abs_difference(time_reverse(mean)) < 1e-10
    assert np.abs(same - spread).max() < 1e-10


def test_descriptor_is_invariant_and_sees_a_turned_moment(committee: Committee):
    structure = crystal()
    assert structure.moments is not None
    model = committee.first.model

    def of(s):
        return descriptor(model, s, basis_pairs(s, BASIS))

    mine = of(structure)
    assert of(structure.rotated(-ROTATION)) == pytest.approx(mine, abs=1e-9)
    assert of(structure.permuted([2, 1, 0])) == pytest.approx(mine, abs=1e-9)
    moved = structure.moments.copy()
    moved[0] = -moved[0]
    assert np.abs(of(structure.with_moments(moved)) - mine).max() > 1e-4


def test_set_of_a_committee_holds_mean_and_overlap_and_the_report_the_spread(calibrated: Committee, tmp_path: Path):
    sample = _labelled("source")
    report = predict_committee_to_file(calibrated, sample.structure, tmp_path / "mean.h5", source=sample)
    mean, spread = mean_operator(calibrated, sample.structure, sample.pairs)
    with SampleSet(tmp_path / "mean.h5") as samples:
        written = samples[0]
        assert samples.names == ("mean",)
    assert written.operator("hamiltonian").max_abs_difference(mean) < 1e-12
    assert written.operator("overlap").max_abs_difference(sample.operator("overlap")) == 0
    assert report.spread_ev == pytest.approx(spread, abs=1e-12)
    assert calibrated.calibration is not None
    assert report.expected_ev == pytest.approx(calibrated.calibration.expected_error(report.kinds, spread))
    assert written.n_electrons == sample.n_electrons
    assert written.provenance["committee"] == [member.checksum for member in calibrated.members]
    assert [path.name for path in tmp_path.iterdir()] == ["mean.h5"]
    with np.load(write_uncertainty(tmp_path / "u.npz", report)) as arrays:
        assert arrays["spread_soc_meV"] == pytest.approx(1e3 * spread[:, 2])
        assert arrays["shift"].shape == (len(sample.pairs), 3)


def test_members_that_a_killed_call_has_finished_are_not_computed_again(committee: Committee, tmp_path: Path):
    structure, path = crystal(), tmp_path / "h.h5"
    other = structure.with_moments(2 * structure.moments)  # type: ignore[operator]
    folder = tmp_path / "h.h5.members"
    folder.mkdir()
    first, second = (folder / f"{n}_{m.checksum[:12]}.h5" for n, m in enumerate(committee.members[:2]))
    predict_to_file(committee.members[0], structure, first, name="h")
    predict_to_file(committee.members[1], other, second, name="h")  # left by a call for another texture
    computed: list[int] = []
    predict_committee_to_file(committee, structure, path, on_member=computed.append)
    assert computed == [1, 2]
    with SampleSet(path) as samples:
        assert samples[0].operator("hamiltonian").max_abs_difference(_mean(committee, structure)[0]) < 1e-12
    assert not folder.exists()


def test_files_that_are_no_sets_are_not_replaced_and_nothing_is_computed_for_them(committee: Committee, tmp_path: Path):
    (tmp_path / "notes.h5").write_text("mine", encoding="utf-8")
    computed: list[int] = []
    for path in (tmp_path / "notes.h5", tmp_path / "no" / "folder.h5"):
        with pytest.raises(StoreError):
            predict_committee_to_file(committee, crystal(), path, on_member=computed.append)
    assert computed == []
    assert [p.name for p in tmp_path.iterdir()] == ["notes.h5"]


def test_estimate_of_a_structure_is_the_expected_error_of_its_prediction(calibrated: Committee, tmp_path: Path):
    structure = crystal()
    report = predict_committee_to_file(calibrated, structure, tmp_path / "h.h5")
    found = estimate_structure(calibrated, structure)
    assert report.expected_ev is not None
    assert found.rms_ev == pytest.approx(report.rms_ev(report.expected_ev))
    assert found.worst_atom_ev >= found.rms_ev * (1 - 1e-12)


def test_error_of_a_crystal_is_the_root_mean_square_over_all_its_elements(committee: Committee):
    operator = random_operator(crystal(), BASIS, 4, seed=8)
    by_pair = np.concatenate([rms_by_part(block) for block in operator.blocks])
    every = np.concatenate([block.numpy().ravel() for block in operator.blocks])
    assert crystal_rms(by_pair, areas_of_pairs(operator.pairs, BASIS), 4) == pytest.approx(
        np.sqrt((np.abs(every) ** 2).mean())
    )


def test_examination_measures_true_errors_and_the_moments_that_are_normal(committee: Committee):
    sample = _labelled("one")
    mesh = np.array([[0, 0, 0], [0.5, 0, 0]])
    found = examine(committee, [(sample, mesh), (_labelled("two", seed=4), None)])
    mean, _ = mean_operator(committee, sample.structure, sample.pairs)
    difference = mean - sample.operator("hamiltonian")
    every = np.concatenate([block.numpy().ravel() for block in difference.blocks])
    row = found.to_dict()["samples"][0]
    assert row["true_rmse_meV"] == pytest.approx(1e3 * np.sqrt((np.abs(every) ** 2).mean()))
    assert set(found.agreements) == {(w, p) for w in ("onsite", "offsite") for p in ("spin_free", "exchange", "soc")}
    assert len(found.label_residuals) == 1
    assert found.committee.normal["Ni"].n_atoms == 4  # two atoms, of the label and of the prediction
    assert "Br" in found.committee.normal  # its moment is given
    assert found.committee.samples == ("one", "two")


def test_one_model_has_no_factors_but_knows_what_moments_are_normal(committee: Committee):
    alone = join_models(committee.members[:1])
    found = examine(alone, [(_labelled("one"), np.zeros((1, 3)))])
    assert found.committee.calibration is None
    assert found.agreements == {}
    assert found.committee.normal


def test_committee_survives_its_file_and_a_move_with_its_members(calibrated: Committee, tmp_path: Path):
    home = tmp_path / "a"
    home.mkdir()
    for number, member in enumerate(calibrated.members):
        shutil.copy(member.path, home / f"{number}.safetensors")
    copies = join_models([load_model(home / f"{n}.safetensors") for n in range(len(SIZES))])
    whole = Committee(copies.members, calibrated.calibration, calibrated.normal, calibrated.samples)
    save_committee(home / "committee.json", whole, notes={})
    moved = home.rename(tmp_path / "b")
    again = load_committee(moved / "committee.json")
    assert [m.checksum for m in again.members] == [m.checksum for m in calibrated.members]
    assert again.calibration == calibrated.calibration
    assert again.normal == calibrated.normal
    assert again.samples == calibrated.samples


def test_a_model_alone_is_a_committee_of_one(files):
    alone = load_committee(files[0])
    assert len(alone.members) == 1
    assert alone.calibration is None


def test_models_that_do_not_belong_together_are_refused(files, model_file):
    with pytest.raises(ModelError, match="same model twice"):
        join_models([load_model(files[0]), load_model(files[0])])
    with pytest.raises(ModelError, match="another mode"):
        join_models([load_model(files[0]), load_model(model_file("spin-group"))])


def test_a_member_that_was_trained_anew_and_damaged_files_are_refused(committee: Committee, files, tmp_path: Path):
    path = tmp_path / "committee.json"
    save_committee(path, committee, notes={})
    content = json.loads(path.read_text(encoding="utf-8"))

    def refused(match: str, **changes) -> None:
        path.write_text(json.dumps(content | changes), encoding="utf-8")
        with pytest.raises(ModelError, match=match):
            load_committee(path)

    refused("another model than when", members=[content["members"][0] | {"sha256": "0"}])
    refused("no such file", members=[{"file": "lost.safetensors", "sha256": "0"}])
    refused("something else", format="other")
    refused("format version 99", format_version=99)
    refused("no members", members=[])
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be read"):
        load_committee(path)
    with pytest.raises(ModelError, match="no such file"):
        load_committee(tmp_path / "none.json")
