"""Which crystals are computed together: each one once in an epoch, in an order fixed by the seed, in even batches."""

from __future__ import annotations

import numpy as np
import pytest

from hamnet.training.plan import EpochPlan, epoch_parts, packed, sliced


def plan(n: int = 20, **options) -> EpochPlan:
    return EpochPlan(np.full(n, 10), np.arange(1.0, n + 1), **options)


def samples_of(parts) -> list[int]:
    return [index for part in parts for index in part.indices if part.fraction > 0]


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            one = plan(seed=seed)
            one.set_epoch(epoch)
            orders[seed, epoch] = tuple(samples_of(one))
            assert tuple(samples_of(one)) == orders[seed, epoch]
            assert sorted(orders[seed, epoch]) == list(range(20))
    assert len(set(orders.values())) == 4
    assert samples_of(plan(seed=None)) == list(range(20))


def test_an_epoch_taken_up_in_the_middle_has_the_rest_of_its_parts_and_the_next_one_all():
    whole = plan(seed=3, batch_size=3)
    whole.set_epoch(4)
    expected = list(whole)
    again = plan(seed=3, batch_size=3)
    again.begin(4, part=2)
    again.set_epoch(4)  # as Lightning does before each epoch
    assert list(again) == expected[2:]
    assert len(again) == len(expected) == 7
    again.set_epoch(5)
    assert len(list(again)) == 7


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_out_the_steps_of_one_process(processes, accumulate):
    together = plan(seed=0, batch_size=processes * accumulate)
    split = [list(plan(seed=0, accumulate=accumulate, process=rank, processes=processes)) for rank in range(processes)]
    assert len({len(parts) for parts in split}) == 1
    for step, whole in enumerate(together):
        mine = slice(step * accumulate, (step + 1) * accumulate)
        parts = [part for of_process in split for part in of_process[mine]]
        assert sorted(samples_of(parts)) == sorted(whole.indices)
        assert sum(part.fraction for part in parts) == pytest.approx(whole.fraction)
        # Lightning averages over processes and accumulated batches: the mean of share · (mean of a part) must be the
        # mean over all elements, here of the number of the sample.
        weights = np.arange(1.0, 21)
        means = [np.average(part.indices, weights=weights[list(part.indices)]) for part in parts]
        found = sum(part.share * mean for part, mean in zip(parts, means, strict=True)) / (processes * accumulate)
        assert found == pytest.approx(np.average(whole.indices, weights=weights[list(whole.indices)]))


def test_a_process_without_a_batch_repeats_one_that_does_not_count():
    parts = epoch_parts([(0,), (1,), (2,)], np.ones(3), processes=2, accumulate=1)
    assert [part.share for part in parts[1]] == [1.0, 0.0]
    assert parts[1][1].fraction == 0
    assert parts[0][1].share == 2.0


def test_batches_by_pairs_keep_the_limit_and_are_even():
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 1000, 200)
    batches = packed(list(range(200)), sizes, 2000)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    totals = np.array([sizes[list(batch)].sum() for batch in batches])
    assert totals.max() <= 2000
    assert totals.min() > 0.75 * totals.max()
    assert len(batches) <= 1.2 * sizes.sum() / 2000


def test_all_epochs_by_pairs_have_as_many_batches_but_other_ones():
    sizes = np.random.default_rng(1).integers(300, 400, 50)
    one = EpochPlan(sizes, np.ones(50), batch_pairs=1000, seed=0)
    epochs = []
    for epoch in range(5):
        one.set_epoch(epoch)
        epochs.append(list(one))
        assert sorted(samples_of(epochs[-1])) == list(range(50))
    assert {len(parts) for parts in epochs} == {len(one)}
    assert len({tuple(part.indices for part in parts) for parts in epochs}) == 5


def test_the_last_slice_is_shorter():
    assert sliced([5, 6, 7], 2) == [(5, 6), (7,)]
