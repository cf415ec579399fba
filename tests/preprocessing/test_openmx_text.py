"""Input text and printed files of OpenMX: what is taken from them, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hamnet.errors import ReaderError
from openmx_records import find, run_file, with_text
from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.openmx_input import InputText
from preprocessing.readers.openmx_output import read_band, read_out, read_std
from preprocessing.readers.openmx_units import BOHR_ANG
from preprocessing.readers.protocol import ReadOptions, Run

READER = OpenMXReader()
SPECIES = "<Definition.of.Atomic.Species\n {}\nDefinition.of.Atomic.Species>\n"


def text(content: str) -> InputText:
    return InputText(content, Path("x.scfout"), "embedded input text")


@pytest.fixture
def folder(tracked, tmp_path) -> Callable[[str], Path]:
    """A copy of a tracked run that the test may change."""
    return lambda name: Path(shutil.copytree(tracked(f"openmx/{name}"), tmp_path / name))


def read(path: Path, **options) -> Run:
    return READER.read(path, ReadOptions(**options))


def edit(path: Path, old: str, new: str) -> None:
    """Replace one passage of a printed file."""
    content = path.read_text()
    assert content.count(old) >= 1
    path.write_text(content.replace(old, new))


def edit_input(folder: Path, old: str, new: str) -> None:
    """Replace one passage of the embedded input."""
    path = run_file(folder)
    data = path.read_bytes()
    content = (folder / "openmx.dat").read_text()
    assert old in content
    path.write_bytes(with_text(data, content.replace(old, new)))


# -- input text ------------------------------------------------------------------------------------------------------


def test_keywords_ignore_case_comments_and_space():
    content = text("# scf.XcType LDA\n  SCF.XCTYPE   GGA-PBE # really\nscf.xctype LSDA\nscf.SpinOrbit.Coupling ON\n")
    assert content.word("scf.XcType", "?") == "GGA-PBE"
    assert content.flag("scf.spinorbit.coupling")
    assert not content.flag("scf.Hubbard.U")
    assert content.number("scf.maxIter", 40) == 40


def test_values_of_the_wrong_kind_name_file_and_keyword():
    content = text("scf.maxIter many\nscf.Kgrid 4 4\nscf.Hubbard.U perhaps\nscf.criterion nan\n<open\n 1\n")
    for ask, key in (
        (lambda: content.number("scf.maxIter", 1), "scf.maxIter"),
        (lambda: content.integers("scf.Kgrid", [1, 1, 1]), "scf.Kgrid"),
        (lambda: content.flag("scf.Hubbard.U"), "scf.Hubbard.U"),
        (lambda: content.number("scf.criterion", 1), "scf.criterion"),
        (lambda: content.block("open"), "open"),
        (lambda: content.block("missing"), "missing"),
    ):
        with pytest.raises(ReaderError, match=rf"x\.scfout, embedded input text, {key}"):
            ask()


def test_orbital_set_gives_shells_in_file_order():
    (species,) = text(SPECIES.format("Fe1 Fe5.5H-s3p2d2f1 Fe_PBE19H")).species()
    assert (species.label, species.number, species.source) == ("Fe1", 26, "Fe5.5H-s3p2d2f1 Fe_PBE19H")
    assert species.degrees == (0, 0, 0, 1, 1, 2, 2, 3)
    assert [s.zeta for s in species.shells] == [0, 1, 2, 0, 1, 0, 1, 0]
    assert species.cutoff_ang == pytest.approx(5.5 * BOHR_ANG)
    assert species.n_orbitals == 3 + 6 + 10 + 7


def test_empty_atoms_have_number_zero():
    (species,) = text(SPECIES.format("E E7.0-s2p2 E")).species()
    assert species.number == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Ni Ni6.0S-s2p2g1 Ni_PBE19S", "g orbitals"),
        ("Si Si7.0-s4>2p4>2 Si_PBE19", "contracted sets"),
        ("Si Si7.0-p1s1 Si_PBE19", "order s, p, d, f"),
        ("Si Si7.0 Si_PBE19", "a name like"),
        ("Xx Xx7.0-s1 Xx_PBE19", "chemical symbol"),
        ("Si Si7.0-s1", "label, orbital set and pseudopotential"),
        ("Si Si7.0-s1 A\n Si Si7.0-s2 A", "each label once"),
    ],
)
def test_orbital_sets_that_are_not_understood_are_refused(row, message):
    with pytest.raises(ReaderError, match=message):
        text(SPECIES.format(row)).species()


def test_orbital_optimisation_is_refused():
    with pytest.raises(ReaderError, match=r"orbitalOpt\.Method off"):
        text("orbitalOpt.Method species\n" + SPECIES.format("Si Si7.0-s1 A")).species()


def test_initial_moment_of_a_minority_atom_points_against_its_angles():
    rows = "<Atoms.SpeciesAndCoordinates\n{}\nAtoms.SpeciesAndCoordinates>\n"
    block = rows.format("1 A 0 0 0 3.0 5.0 90.0 0.0 0 0 1 off\n2 A 0 0 0 5.0 3.0 90.0 90.0 0 0 0 off")
    atoms = text(block).atoms(2, ("A",), angles=True)
    np.testing.assert_allclose(atoms.initial_moments, [[-2, 0, 0], [0, 2, 0]], atol=1e-15)
    assert atoms.constrained.tolist() == [True, False]
    # In a collinear run the eighth word is a switch, not an angle.
    collinear = text(rows.format("1 A 0 0 0 3.0 5.0 on")).atoms(1, ("A",), angles=False)
    np.testing.assert_allclose(collinear.initial_moments, [[0, 0, -2]], atol=1e-15)
    assert not collinear.constrained.any()


def test_text_with_other_orbitals_or_atoms_than_the_matrices_is_refused(folder):
    run = folder("nibr2_1x1_nc")
    edit_input(run, "Ni6.0S-s2p2d1", "Ni6.0S-s2p2d2")
    with pytest.raises(ReaderError, match=r"atom 1 \(Ni, .*\) with 18 orbitals; expected 13, as in record Total"):
        read(run)
    edit_input(run, " 3 Br", " # 3 Br")
    with pytest.raises(ReaderError, match="2 atoms; expected 3"):
        read(run)


def test_valence_is_unknown_where_occupations_do_not_give_the_electrons(folder):
    run = folder("nibr2_v40_collinear")
    assert [s.valence for s in read(run).sample.basis.species] == [16, 7]
    edit_input(run, "9.0 7.0", "9.0 6.0")
    assert [s.valence for s in read(run).sample.basis.species] == [None, None]
    edit_input(run, "scf.XcType", "scf.system.charge 1.0\nscf.XcType")
    assert [s.valence for s in read(run).sample.basis.species] == [None, None]


def test_terms_that_stay_in_h_are_recorded(folder):
    run = folder("nibr2_v40_collinear")
    edit_input(run, "scf.XcType", "scf.Hubbard.U on\nscf.Electric.Field 0.0 0.0 0.5\nscf.XcType")
    assert read(run).sample.provenance["included_terms"] == ["hubbard_u", "electric_field"]


def test_settings_of_the_run_are_recorded(tracked):
    provenance = READER.read(tracked("openmx/nibr2_v38_nc"), ReadOptions()).sample.provenance
    assert provenance["settings"] == {
        "xc": "GGA-PBE",
        "k_grid": [7, 7, 1],
        "energy_cutoff_ry": 150.0,
        "electronic_temperature_k": pytest.approx(300.0),
        "criterion_ha": 1e-9,
        "max_steps": 120,
        "spin_orbit": False,
    }
    assert (provenance["code"], provenance["version"], provenance["file_version"]) == ("openmx", "3.8.5", 0)


def test_left_handed_cells_are_refused_with_the_remedy(folder):
    run = folder("nibr2_unpolarised")
    path = run_file(run)
    data = bytearray(path.read_bytes())
    for name, item, columns in (("tv", "<f8", None), ("rtv", "<f8", None), ("atv_ijk", "<i4", (0, 2, 1, 3))):
        record = find(bytes(data), name)
        table = np.frombuffer(bytes(data), item, record.size // int(item[2]), record.offset).reshape(-1, 4)
        changed = table[:, columns] if columns else table[[1, 0, 2]]
        data[record.offset : record.end] = np.ascontiguousarray(changed).tobytes()
    path.write_bytes(data)
    with pytest.raises(ReaderError, match=r"left-handed cell.*Exchange two lattice vectors"):
        read(run)


# -- constraint ------------------------------------------------------------------------------------------------------


def test_constraint_of_unverified_form_is_refused_unless_it_is_kept(folder):
    run = folder("nibr2_1x1_nc")
    edit_input(run, "scf.Constraint.NC.Spin on", "scf.Constraint.NC.Spin on2")
    with pytest.raises(ReaderError, match=r"scf\.Constraint\.NC\.Spin: mode 'on2'.*constraint=keep"):
        read(run)
    kept = read(run, constraint="keep").sample
    assert kept.constraint_field_ev is None
    assert any("unverified form kept" in w for w in kept.provenance["warnings"])


def test_targets_changed_after_the_run_are_noticed_by_the_printed_penalty(folder):
    run = folder("nibr2_1x1_nc")
    row = next(line for line in (run / "openmx.dat").read_text().splitlines() if line.startswith(" 1 Ni"))
    words = row.split()
    edit_input(run, row, row.replace(words[7], f"{float(words[7]) + 20:.4f}"))
    with pytest.raises(ReaderError, match=r"constraint energy .* Restore the targets"):
        read(run)


# -- printed files ---------------------------------------------------------------------------------------------------


def test_run_without_printed_files_is_not_called_converged(folder):
    run = folder("nibr2_1x1_nc")
    for name in ("nibr2.out", "openmx.std", "nibr2.Band"):
        (run / name).unlink()
    result = read(run)
    assert not result.converged
    assert result.convergence.startswith("not known")
    assert result.references == ()
    assert result.sample.provenance["version"] is None
    assert any("no nibr2.out" in w for w in result.sample.provenance["warnings"])


def test_run_that_stopped_above_the_criterion_is_not_converged(folder):
    run = folder("nibr2_v38_nc")  # release 3.8 does not say whether it got there
    assert read(run).converged
    edit(run / "openmx.std", "Criterion =   0.000000001000", "Criterion =   0.000000000001")
    result = read(run)
    assert not result.converged
    assert "criterion 1e-12 Ha" in result.convergence


def test_criterion_is_taken_from_the_input_without_standard_output(folder):
    run = folder("nibr2_v38_nc")
    (run / "openmx.std").unlink()
    assert read(run).converged
    edit_input(run, "scf.criterion 1.0e-09", "scf.criterion 1.0e-14")
    assert not read(run).converged


def test_release_that_says_not_achieved_is_believed(folder):
    run = folder("nibr2_1x1_nc")
    edit(run / "openmx.std", "The SCF was achieved at", "The SCF was not achieved at")
    assert not read(run).converged


def test_printed_files_of_another_run_are_refused(folder):
    run, other = folder("nibr2_1x1_nc"), folder("nibr2_v40_nc")
    for name in ("nibr2.out", "nibr2.Band"):
        own = (run / name).read_bytes()
        shutil.copy(other / name, run / name)
        with pytest.raises(ReaderError, match=rf"{name}: chemical potential .* different runs"):
            read(run)
        (run / name).write_bytes(own)
    # Standard output has no such number; that of another run is not used.
    shutil.copy(other / "openmx.std", run / "openmx.std")
    result = read(run)
    assert result.converged
    assert any("openmx.std: of another run" in w for w in result.sample.provenance["warnings"])
    assert f"{read_out(run / 'nibr2.out', 3, 3).n_steps} of" in result.convergence


def test_output_of_several_geometries_gives_the_last(folder, tmp_path):
    run, earlier = folder("nibr2_1x1_nc"), folder("nibr2_v40_nc")
    own, before = (run / "nibr2.out").read_text(), (earlier / "nibr2.out").read_text()
    start = "                  SCF history at MD= 1"
    joined = own.split(start)[0] + start + before.split(start)[1] + start + own.split(start)[1]
    (tmp_path / "joined.out").write_text(joined)
    both, single = read_out(tmp_path / "joined.out", 3, 3), read_out(run / "nibr2.out", 3, 3)
    assert both.total_energy_ha == single.total_energy_ha
    assert both.chemical_potential_ha == single.chemical_potential_ha
    assert both.n_steps == single.n_steps
    assert np.array_equal(both.moments, single.moments)
    assert np.array_equal(both.forces_ha_per_bohr, single.forces_ha_per_bohr)


def test_output_cut_off_before_its_results_leaves_them_out(folder):
    run = folder("nibr2_1x1_nc")
    content = (run / "nibr2.out").read_text()
    (run / "nibr2.out").write_text(content[: content.index("  Utot.")])
    result = read(run)
    assert result.sample.total_energy_ev is None
    assert result.printed_moments is None
    assert result.sample.forces_ev_per_ang is None
    assert any("incomplete" in w for w in result.sample.provenance["warnings"])


def test_standard_output_gives_the_last_step(tracked):
    std = read_std(tracked("openmx/nibr2_1x1_nc") / "openmx.std")
    out = read_out(tracked("openmx/nibr2_1x1_nc") / "nibr2.out", 3, 3)
    assert std is not None
    assert std.version == out.version == "3.9.23"
    assert std.n_steps == out.n_steps
    assert std.band_energy_ha == out.band_energy_ha
    assert std.energy_change_ha == pytest.approx(out.energy_change_ha, abs=2e-12)
    assert std.residue == pytest.approx(out.residue, abs=1e-12)
    assert (std.achieved, std.criterion_ha) == (True, 1e-9)
    assert read_std(tracked("openmx/nibr2_1x1_nc") / "openmx.dat") is None


def test_paths_of_one_point_are_left_out_of_the_bands(folder):
    run = folder("nibr2_unpolarised")
    lines = (run / "nibr2.Band").read_text().splitlines()
    before = read(run).references[0]
    # A fourth path of a single point, as the code writes it.
    lines[2] = "4"
    lines.insert(6, "1  0.0 0.0 0.0   0.5 0.0 0.0  G M")
    lines += ["29  -nan  -nan  -nan", " ".join(["nan"] * 29)]
    (run / "nibr2.Band").write_text("\n".join(lines) + "\n")
    result = read(run)
    assert np.array_equal(result.references[0].k_frac, before.k_frac)
    assert np.array_equal(result.references[0].energies_ev, before.energies_ev)
    assert any("1 paths of one point" in w for w in result.sample.provenance["warnings"])


def test_bands_of_another_dimension_or_length_are_refused(folder):
    run = folder("nibr2_unpolarised")
    with pytest.raises(ReaderError, match="29 states; expected 58"):
        read_band(run / "nibr2.Band", 58, 1)
    content = (run / "nibr2.Band").read_text()
    (run / "nibr2.Band").write_text(content[: len(content) // 2])
    with pytest.raises(ReaderError, match=r"line 7: \d+ numbers; expected 36 k-points"):
        read(run)


def test_spin_channels_of_collinear_bands_are_told_apart(tracked):
    bands = read_band(tracked("openmx/nibr2_v40_collinear") / "nibr2.Band", 29, 2)
    assert bands.energies_ha.shape == (36, 2, 29)
    assert np.abs(bands.energies_ha[:, 0] - bands.energies_ha[:, 1]).max() > 0.01
    assert (np.diff(bands.energies_ha, axis=2) >= 0).all()
