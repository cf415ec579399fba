"""The sign of the constraint field, from the total energies of real direction-constrained runs."""

from __future__ import annotations

import numpy as np

from preprocessing.readers.openmx import OpenMXReader
from preprocessing.readers.protocol import ReadOptions


def test_constraint_field_is_minus_the_derivative_of_the_energy_by_the_moment(unpacked):
    """E(n) of ten runs of a 1×1 cell fits a quadratic form in the direction n to 1.5 µeV; its slope is the field.

    With E = E₀ + n·A·n, −dE/dn = Σ_A |m_A| b_A, both taken across n. The code's b_y carries a second-order error,
    hence the wide limits; a wrong sign would give −1.
    """
    reader, options = OpenMXReader(), ReadOptions(operators=frozenset())
    runs = [reader.read(folder, options).sample for folder in sorted(unpacked("openmx/nibr2_1x1").iterdir())]
    moments = np.array([run.structure.moments for run in runs])
    size = np.linalg.norm(moments, axis=-1)
    n = moments[:, 0] / size[:, :1]
    energy_mev = 1e3 * np.array([run.total_energy_ev for run in runs])
    forms = np.array(
        [np.diag([1, -1, 0]), np.diag([-1, -1, 2])]
        + [np.outer(*np.eye(3)[list(ab)]) + np.outer(*np.eye(3)[list(ab[::-1])]) for ab in ((0, 1), (0, 2), (1, 2))]
    )
    design = np.column_stack([np.ones(len(n)), np.einsum("ra,fab,rb->rf", n, forms, n)])
    parameters = np.linalg.lstsq(design, energy_mev)[0]
    assert np.abs(design @ parameters - energy_mev).max() < 1.5e-3

    def across(vectors):
        return vectors - (vectors * n).sum(axis=1, keepdims=True) * n

    slope = across(-2 * n @ np.einsum("f,fab->ab", parameters[1:], forms))
    field = across(1e3 * np.einsum("ra,rax->rx", size, np.array([run.constraint_field_ev for run in runs])))
    assert np.corrcoef(slope.ravel(), field.ravel())[0, 1] > 0.95
    assert 0.9 < (slope * field).sum() / (slope**2).sum() < 1.3
