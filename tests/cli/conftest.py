"""What tests of several verbs need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hamnet.sample import Sample
from hamnet.supercell import tile_operator, tile_structure


@pytest.fixture(scope="session")
def tile_sample() -> Callable[..., Sample]:
    """``tile_sample(sample, matrix, **changes)``: H and S of a sample on a supercell, nothing else that DFT said."""

    def tile(sample: Sample, matrix, **changes) -> Sample:
        assert sample.n_electrons is not None
        return replace(
            sample,
            structure=tile_structure(sample.structure, matrix),
            overlap=tile_operator(sample.operator("overlap"), matrix),
            hamiltonian=tile_operator(sample.operator("hamiltonian"), matrix),
            density=None,
            n_electrons=sample.n_electrons * round(np.linalg.det(matrix)),
            forces_ev_per_ang=None,
            constraint_field_ev=None,
            charges=None,
            computed_moments=None,
            **changes,
        )

    return tile
