"""What the benchmarks of errors count: shares of blocks add up, and numbers are rounded as hardware does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_shares_of_all_kinds_of_blocks_add_up_to_the_shift_of_states(tmp_path):
    from band_errors import MODEL, run_folders, shifts  # type: ignore[import-not-found]

    from hamnet.cli.sources import load_source
    from hamnet.models.io import load_model
    from hamnet.predict import predict_operator

    model = load_model(MODEL)
    (folder,) = run_folders([], tmp_path)
    sample = load_source(folder).sample.with_basis(model.model.basis)
    predicted = predict_operator(model, sample.structure, sample.operator("hamiltonian").pairs)
    found = shifts(sample, predicted, 1)
    true, first_order = found.pop("true"), found.pop("all")
    assert len(found) == 10  # Br and Ni on-site, three kinds of pairs, spin-free and magnetic
    np.testing.assert_allclose(sum(found.values()), first_order, atol=1e-9)
    # Levels a few meV apart also mix, which first order leaves out, and which their sum does not feel.
    assert abs(first_order.mean() - true.mean()) < 0.05 * np.abs(true).mean()


def test_factors_of_products_are_rounded_to_the_nearest_number_of_their_kind():
    from precision import RoundedProducts  # type: ignore[import-not-found]

    a, b = torch.randn(2, 40, 40, generator=torch.Generator().manual_seed(0))
    with RoundedProducts(7):
        product = a @ b
    torch.testing.assert_close(product, a.bfloat16().float() @ b.bfloat16().float(), rtol=0, atol=1e-5)
    assert float((product - a @ b).abs().max()) > 1e-3
    with RoundedProducts(10):
        exact = a.double() @ b.double()
    torch.testing.assert_close(exact, a.double() @ b.double(), rtol=0, atol=0)
