import numpy as np
import pytest

from mixsize.algorithms.regime.plan import plan_epoch
from mixsize.algorithms.regime.quasi_random import QuasiRandom
from mixsize.algorithms.regime.regime import Base, Regime

S28 = Regime.from_sizes("s28", Base(32, 64), "B+", batch_multiple=4)
# 100 pages of 50 samples, in the order of the file.
PAGES = QuasiRandom(np.repeat(np.arange(100, dtype=np.int32), 50), np.arange(100) * 4096, 4096, window=20)


def test_a_window_holds_the_samples_of_its_pages_and_no_others():
    plan = plan_epoch(S28, 5_000, 3, 0, quasi_random=PAGES)
    pages = PAGES.page_of[plan.samples]
    for window in range(4):  # Of the last, some samples fall out with what does not fill a batch.
        of_window = plan.samples[window * 1_000 : (window + 1) * 1_000]
        shown = set(PAGES.page_of[of_window[256:-256]])  # A batch may reach over either end.
        assert shown <= set(plan.pages[window * 20 : (window + 1) * 20])
        assert len(set(of_window)) == 1_000
    assert len(set(pages)) == 100


def test_samples_of_a_window_are_mixed():
    """Of 20 pages, a batch of 40 drawn at random shows 20 * (1 - 0.95 ** 40) = 17.4 on average."""
    plan = plan_epoch(S28, 5_000, 3, 0, quasi_random=PAGES)
    shown = [len(set(PAGES.page_of[step.samples])) for step in plan if step.batch_size == 40]
    assert 16 < np.mean(shown) < 19.5


def test_epochs_come_to_the_pages_in_another_order():
    first, second = (plan_epoch(S28, 5_000, 3, epoch, quasi_random=PAGES) for epoch in range(2))
    assert sorted(first.pages) == sorted(second.pages) == list(range(100))
    assert list(first.pages) != list(second.pages)


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_has_the_same_batches_each_rank_on_its_own_pages(ranks):
    whole = plan_epoch(S28, 5_000, 3, 1, quasi_random=PAGES)
    parts = [plan_epoch(S28, 5_000, 3, 1, rank, ranks, PAGES) for rank in range(ranks)]
    for step, *of_ranks in zip(whole, *parts, strict=True):
        assert sorted(step.samples) == sorted(np.concatenate([part.samples for part in of_ranks]))
    assert sorted(np.concatenate([part.pages for part in parts])) == list(range(100))
    for part in parts:
        own = np.isin(PAGES.page_of[part.samples], part.pages)
        # Drawn at random, 1 / ranks of them would be; batches have unlike numbers of samples from each page.
        assert own.mean() > 0.75


def test_shapes_do_not_depend_on_the_order():
    plain, paged = plan_epoch(S28, 5_000, 3, 1), plan_epoch(S28, 5_000, 3, 1, quasi_random=PAGES)
    assert np.array_equal(plain.size_px, paged.size_px)
    assert np.array_equal(plain.batch_size, paged.batch_size)


def test_more_ranks_than_pages_in_a_window_are_served():
    few = QuasiRandom(np.repeat(np.arange(2, dtype=np.int32), 2_500), np.arange(2) * 4096, 4096, window=1)
    parts = [plan_epoch(S28, 5_000, 3, 0, rank, 4, few) for rank in range(4)]
    assert sorted(np.concatenate([part.pages for part in parts])) == [0, 1]
    assert len(set(np.concatenate([part.samples for part in parts]))) == sum(len(part.samples) for part in parts)
