"""Input, units, k points and main output of SIESTA: what follows from the text files alone."""

from __future__ import annotations

import numpy as np
import pytest

from hamnet.errors import ReaderError
from preprocessing.readers.protocol import ReadOptions
from preprocessing.readers.siesta import SiestaReader
from preprocessing.readers.siesta_bands import mesh_points
from preprocessing.readers.siesta_fdf import read_fdf
from preprocessing.readers.siesta_ions import read_ion
from preprocessing.readers.siesta_moments import initial_moments, is_single_diagonalisation
from preprocessing.readers.siesta_output import read_output
from preprocessing.readers.siesta_tables import read_kpoints, read_xv
from preprocessing.readers.siesta_units import CODATA_2018, LEGACY, choose_units
from siesta_runs import copied, read


@pytest.fixture(scope="module")
def small(tracked):
    folder = tracked("siesta/small")
    return lambda name: folder / name


def parse(tmp_path, text: str):
    path = tmp_path / "x.fdf"
    path.write_text(text)
    return read_fdf(path)


# -- fdf -------------------------------------------------------------------------------------------------------------


def test_keys_are_compared_without_case_and_separators(tmp_path):
    fdf = parse(tmp_path, "system_LABEL = fe # comment\nMesh.Cut-off: 250 Ry ; more\nDM.UseSaveDM\nMeshCutoff 3 Ry\n")
    assert fdf.label == "fe"
    assert fdf.number("MeshCutoff", default=0) == 250  # the first occurrence counts
    assert fdf.logical("dm_use_save_dm", default=False)
    assert fdf.text("nothing", default="d") == "d"


def test_includes_and_foreign_blocks_are_read_in_place(tmp_path):
    (tmp_path / "part.fdf").write_text("Spin none\n%block A\n 1 2\n%endblock A\nNetCharge 1.5\n")
    (tmp_path / "rows").write_text("# rows\n 7 8\n 9\n")
    fdf = parse(
        tmp_path,
        "NetCharge 0.5\n%include part.fdf\n%block B < rows\n%block A < part.fdf\nSpin < part.fdf\n"
        "%block c\n x !y\n%endblock\n",
    )
    assert fdf.text("Spin") == "none"
    assert fdf.number("NetCharge", default=0) == 0.5
    assert fdf.block("A") == ("1 2",)
    assert fdf.block("B") == ("7 8", "9")
    assert fdf.block("C") == ("x",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("%include gone.fdf\n", "no included file gone.fdf"),
        ("%block A\n 1\n", "block A without end"),
        ("%include x.fdf\n", "nested"),
    ],
)
def test_broken_input_is_told_with_its_place(tmp_path, text, told):
    with pytest.raises(ReaderError, match=told):
        parse(tmp_path, text)


def test_sisl_reads_the_same_values(small):
    sisl = pytest.importorskip("sisl")
    path = small("si_none_c00") / "si.fdf"
    ours, theirs = read_fdf(path), sisl.get_sile(path)
    assert ours.number("max_scf.iterations", default=0) == theirs.get("MaxSCFIterations")
    assert ours.number("PAO.EnergyShift", default=0) == theirs.get("PAO.EnergyShift", with_unit=True)[0]
    assert ours.logical("SaveHS", default=False) is theirs.get("SaveHS")
    assert [line.split() for line in ours.block("BandLines")] == [line.split() for line in theirs.get("BandLines")]


# -- prescribed moments ------------------------------------------------------------------------------------------------


@pytest.fixture
def ions(small):
    fe, pt = (read_ion(small("fept_soc_sym_base"), label) for label in ("Fe_fept_SOC", "Pt_fept_SOC"))
    return [fe, pt, fe]


def prescribed(tmp_path, ions, lines: str, n_spin: int):
    text = f"%block DM.InitSpin\n{lines}\n%endblock DM.InitSpin\n" if lines else "Spin polarized\n"
    return initial_moments(parse(tmp_path, text), ions, n_spin)


def test_largest_moment_follows_from_the_free_atom(ions):
    assert ions[0].largest_moment == pytest.approx(4.0)  # 4s2 3d6: the d shell lacks four
    assert ions[1].largest_moment == pytest.approx(2.0)  # 6s1 5d9


def test_initial_moments_are_vectors_with_angles_in_degrees(tmp_path, ions):
    moments, _ = prescribed(tmp_path, ions, "1 2.0 90 90\n-1 -3.0 0 0", 8)
    assert moments == pytest.approx(np.array([[0, 2, 0], [0, 0, 0], [0, 0, -3]]), abs=1e-12)


def test_plus_and_minus_are_the_largest_moment_and_sizes_are_limited_to_it(tmp_path, ions):
    moments, how = prescribed(tmp_path, ions, "1 +\n2 - 90 0\n3 9.5", 4)
    assert moments == pytest.approx(np.array([[0, 0, 4], [-2, 0, 0], [0, 0, 4]]), abs=1e-12)
    assert "1 sizes limited" in how


def test_angles_have_no_meaning_in_collinear_runs(tmp_path, ions):
    moments, _ = prescribed(tmp_path, ions, "1 2.0 180 0", 2)
    assert moments.tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 0]]


def test_without_block_all_moments_are_the_largest_along_z(tmp_path, ions):
    assert prescribed(tmp_path, ions, "", 8)[0][:, 2].tolist() == [4, 2, 4]
    fdf = parse(tmp_path, "DM.InitSpin.AF T\n")
    assert initial_moments(fdf, ions, 2)[0][:, 2].tolist() == [4, -2, 4]


@pytest.mark.parametrize("line", ["1", "1 2.0 30", "4 1.0", "0 1.0", "x 1.0", "1 up"])
def test_unreadable_moments_are_told(tmp_path, ions, line):
    with pytest.raises(ReaderError, match=r"DM\.InitSpin"):
        prescribed(tmp_path, ions, line, 8)


# -- which moments H belongs to ---------------------------------------------------------------------------------------


def change_output(folder, *replacements):
    path = next(p for p in folder.iterdir() if p.suffix == ".out")
    text = path.read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


NOT_CONVERGED = ("SCF cycle converged after", "SCF_NOT_CONV: after")


def test_unconverged_step_with_density_mixing_still_belongs_to_the_prescribed_moments(small, tmp_path):
    folder = copied(small("fept_soc_sym_base"), tmp_path)
    change_output(folder, NOT_CONVERGED)
    run = SiestaReader().read(folder, ReadOptions())
    assert run.sample.provenance["choices"]["moments"]["value"] == "initial"
    assert run.converged


def test_unconverged_step_with_hamiltonian_mixing_does_not(small, tmp_path):
    folder = copied(small("fept_soc_sym_base"), tmp_path)
    change_output(folder, NOT_CONVERGED, ("= density-matrix", "= Hamiltonian"))
    run = SiestaReader().read(folder, ReadOptions())
    assert run.sample.provenance["choices"]["moments"]["value"] == "density"
    assert not run.converged
    assert any("unconverged" in warning for warning in run.sample.provenance["warnings"])


def test_step_from_a_saved_density_has_no_prescribed_moments(small, tmp_path):
    folder = copied(small("fept_soc_sym_base"), tmp_path)
    change_output(
        folder, ("DM filled with atomic data (user-defined):", "Attempting to read DM from file... Succeeded...")
    )
    assert SiestaReader().read(folder, ReadOptions()).sample.provenance["choices"]["moments"]["value"] == "density"
    with pytest.raises(ReaderError, match=r"DM\.UseSaveDM F"):
        SiestaReader().read(folder, ReadOptions(moments="initial"))


def test_unconverged_self_consistency_is_told(small, tmp_path):
    folder = copied(small("fe_collinear_c00"), tmp_path)
    change_output(folder, NOT_CONVERGED)
    run = SiestaReader().read(folder, ReadOptions())
    assert not run.converged
    assert "not converged after 36 SCF steps" in run.convergence


def test_main_output_tells_steps_start_energy_and_settings(small):
    output = read_output(small("fe_collinear_c00") / "fe.out", 2, n_spin=2)
    assert (output.steps, output.converged, output.start, output.mixed) == (36, True, "given", "density")
    assert output.residue == pytest.approx(9.812e-7)
    assert output.tolerance == 1e-6
    assert output.total_energy_ev == -1564.263695
    assert output.k_mesh.tolist() == [[5, 0, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0]]
    assert output.populations.charges.tolist() == [8.0, 8.0]
    assert not is_single_diagonalisation(output)


def test_populations_are_put_into_atom_order(small):
    output = read_output(small("fept_soc_2x1x1_c01") / "fept.out", 4, n_spin=8)
    assert output.populations.charges.sum() == pytest.approx(36, abs=3e-5)
    assert output.populations.charges[0] > 9 > output.populations.charges[1]
    with pytest.raises(ReaderError, match="Mulliken"):
        read_output(small("fept_soc_2x1x1_c01") / "fept.out", 3, n_spin=8)


def test_output_of_another_program_is_refused(tmp_path):
    (tmp_path / "x.out").write_text("Welcome to OpenMX\n")
    with pytest.raises(ReaderError, match="Siesta Version"):
        read_output(tmp_path / "x.out", 1, n_spin=1)


# -- units -------------------------------------------------------------------------------------------------------------


def test_units_follow_the_fermi_energy_where_it_is_in_both_and_else_the_release():
    assert choose_units("5.2.1", None, -3.0)[0] == CODATA_2018
    assert choose_units("master-post-4.1-268", None, -3.0)[0] == LEGACY
    assert choose_units("v4.1.5", None, None)[0] == LEGACY
    assert choose_units("5.2.1", -3.0 / 13.60580, -3.0)[0] == LEGACY  # built with the old values
    assert choose_units("4.1", -3.0 / 13.605693122994, -3.0)[0] == CODATA_2018
    assert choose_units("5.0", 1e-4, 1e-4 * 13.6058)[0] == CODATA_2018  # too small to tell
    with pytest.raises(ReaderError, match="Ry here"):
        choose_units("5.0", -3.1 / 13.60580, -3.0)


# -- k points ----------------------------------------------------------------------------------------------------------


def test_mesh_is_taken_only_if_it_agrees_with_the_printed_digits(small):
    folder = small("fept_soc_sym_base")
    k, cell = read_kpoints(folder / "fept.KP"), read_xv(folder / "fept.XV").cell
    right = np.column_stack([np.diag([4, 4, 3]), np.zeros(3)])
    wrong = np.column_stack([np.diag([4, 4, 5]), np.zeros(3)])
    shifted = right + np.array([[0, 0, 0, 0.5], [0, 0, 0, 0], [0, 0, 0, 0]])
    exact, name = mesh_points(k, cell, [("wrong", wrong), ("shifted", shifted), ("right", right)])
    assert name == "right"
    assert np.abs(exact @ np.diag([4, 4, 3]) - np.rint(exact @ np.diag([4, 4, 3]))).max() < 1e-14
    rounded, name = mesh_points(k, cell, [("wrong", wrong)])
    assert name == ""
    assert 0 < np.abs(rounded - exact).max() < 1e-6


def test_k_points_without_a_mesh_cost_precision(small, tmp_path):
    folder = copied(small("fe_bcc_nc_a060"), tmp_path)
    path = folder / "fe.fdf"
    path.write_text(path.read_text().replace("  5 0 0  0.0", "  3 0 0  0.0"))
    change_output(folder, ("siesta: k-grid:    5   0   0", "siesta: k-grid:    3   0   0"))
    reference = SiestaReader().read(folder, ReadOptions()).references[0]
    exact = read(small("fe_bcc_nc_a060")).references[0]
    assert reference.precision_ev > exact.precision_ev + 2e-5
    assert np.abs(reference.k_frac - exact.k_frac).max() < 1e-6


def test_band_path_of_another_input_is_refused(small, tmp_path):
    folder = copied(small("fe_bcc_nc_a060"), tmp_path)
    path = folder / "fe.fdf"
    text = path.read_text()
    path.write_text(text.replace("0.50000  0.50000  0.00000 M", "0.50000  0.40000  0.00000 M"))
    with pytest.raises(ReaderError, match="path"):
        SiestaReader().read(folder, ReadOptions())
    path.write_text(text.replace("  5  0.50000  0.50000", "  6  0.50000  0.50000"))
    with pytest.raises(ReaderError, match="k points"):
        SiestaReader().read(folder, ReadOptions())


def test_band_lines_in_units_of_pi_over_a_are_the_same_points(small, tmp_path):
    folder = copied(small("fe_bcc_nc_a060"), tmp_path)
    path = folder / "fe.fdf"
    text = path.read_text().replace("BandLinesScale ReciprocalLatticeVectors", "BandLinesScale pi/a")
    head, lines = text.split("%block BandLines\n")
    # Cubic: one reciprocal vector is 2π/a. The input has a = 1 Å.
    scaled = [
        " ".join([w[0], *(f"{float(x) * 2 / 2.87:.12f}" for x in w[1:4]), *w[4:]])
        for w in (line.split() for line in lines.splitlines()[:-1])
    ]
    path.write_text(head + "%block BandLines\n" + "\n".join(scaled) + "\n%endblock BandLines\n")
    changed = SiestaReader().read(folder, ReadOptions()).references[1]
    assert np.abs(changed.k_frac - read(small("fe_bcc_nc_a060")).references[1].k_frac).max() < 1e-9
