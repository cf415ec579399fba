"""Structures through an extended xyz file and back."""

from dataclasses import replace

import numpy as np
import pytest

from hamnet.cli.extxyz import write_extxyz
from hamnet.cli.structures import read_structure
from small_models import crystal


@pytest.mark.parametrize("labels", [("Ni", "Br", "Ni"), ("Ni_up", "Br", "Ni_down")])
def test_a_structure_comes_back_to_the_last_bit_with_its_labels(tmp_path, labels):
    written = replace(crystal(), labels=labels)
    write_extxyz(tmp_path / "cell.xyz", written, comment="three atoms")
    read = read_structure(tmp_path / "cell.xyz")
    assert read.labels == labels
    for name in ("cell", "positions", "moments", "numbers", "pbc"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
