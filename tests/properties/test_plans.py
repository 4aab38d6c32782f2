"""What every plan of an epoch keeps to, and what every resume of it gives."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mixsize.algorithms.regime.plan import (
    check_plannable,
    plan_epoch,
    plan_evaluation,
    plan_length,
    plan_sizes,
)
from mixsize.algorithms.regime.progression import Phase, Progression
from mixsize.algorithms.regime.quasi_random import QuasiRandom
from mixsize.algorithms.regime.regime import Base, Choice, Regime
from mixsize.ffcv_loaders.pipeline.planned import PlannedDataset

from .for_all import for_all, made, spoilt

NAMED = re.compile(r"images|num_samples|world_size|rank|seed|epoch|batch|size_px")
whole = st.integers(0, 2**63)


@st.composite
def regimes(draw) -> Regime:
    """Any table of whole batches; in half of the cases up to four ranks share each evenly."""
    fits = draw(st.booleans())
    sizes = draw(st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True))
    weights = draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    batches = st.integers(1, 8).map(lambda dozens: 12 * dozens) if fits else st.integers(1, 96)
    rows = [
        Choice(size, draw(batches), draw(st.integers(1, 4)), round(weight / sum(weights), 7))
        for size, weight in zip(sizes, weights, strict=True)
    ]
    draws = draw(st.sampled_from(["step", "epoch"]))
    return Regime.from_choices(Base(32, 48), rows, share_of=draw(st.sampled_from(["samples", "steps"])), draw=draws)


@st.composite
def files(draw, num_samples: int) -> QuasiRandom | None:
    """Where samples lie in a file, in pages of unequal numbers, in any order; or None for a random order."""
    if draw(st.booleans()):
        return None
    pages = draw(st.integers(1, min(9, num_samples)))
    page_of = np.sort(np.random.default_rng(draw(st.integers(0, 99))).integers(0, pages, num_samples))
    starts = np.arange(pages, dtype=np.int64) * 2**23
    return QuasiRandom(page_of, starts, 2**23, draw(st.integers(1, pages)))


@st.composite
def cases(draw):
    regime, num_samples = draw(regimes()), draw(st.integers(1, 3000))
    return regime, num_samples, draw(files(num_samples))


class _Served(PlannedDataset):
    """Serves the plan's own samples as its batches."""

    def serve(self, plan, first_step):
        for index in range(first_step, len(plan)):
            yield plan[index], plan[index].samples, plan[index].size_px


@for_all(
    120,
    8_000,
    case=cases(),
    seed=st.one_of(st.integers(0, 2**32), whole),
    epoch=st.integers(0, 10**6 - 1),
    world_size=st.integers(1, 4),
)
def test_every_plan_keeps_to_its_regime_on_every_rank(case, seed, epoch, world_size):
    regime, num_samples, quasi_random = case
    if made(lambda: check_plannable(regime, num_samples, 0, world_size) or True, NAMED) is None:
        return
    plans = [plan_epoch(regime, num_samples, seed, epoch, rank, world_size, quasi_random) for rank in range(world_size)]
    for plan in plans:
        assert len(plan) == plan_length(regime, num_samples, seed, epoch) >= 1
        for name in ("size_px", "batch_size", "duplicates"):
            np.testing.assert_array_equal(getattr(plan, name), getattr(plans[0], name))
        assert [len(step.samples) for step in plan] == plan.batch_size.tolist()
    drawn = np.concatenate([plan.samples for plan in plans])
    assert len(np.unique(drawn)) == len(drawn) <= num_samples
    assert drawn.max() < num_samples
    allowed = {(c.size_px, c.batch_size, c.duplicates) for c in regime.choices}
    shapes = [(s.size_px, s.batch_size * world_size, s.duplicates) for s in plans[0]]
    assert set(shapes) <= allowed
    assert plans[0].max_step_pixels * world_size <= regime.max_step_pixels
    if regime.draw == "epoch":
        assert len(set(shapes)) == 1
    else:
        assert set(shapes) == allowed
        counts = dict(zip(allowed, (shapes.count(shape) for shape in allowed), strict=True))
        expected = regime.step_counts(num_samples)
        assert [counts[(c.size_px, c.batch_size, c.duplicates)] for c in regime.choices] == list(expected)
    # One rank alone draws the same batches.
    whole = plan_epoch(regime, num_samples, seed, epoch, quasi_random=quasi_random)
    for index, step in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([plan[index].samples for plan in plans]), step.samples)


@for_all(
    60,
    4_000,
    case=cases(),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 1000),
    world_size=st.integers(1, 4),
    data=st.data(),
)
def test_a_resume_at_any_step_serves_the_tail_and_every_later_epoch(case, seed, epoch, world_size, data):
    regime, num_samples, quasi_random = case
    if made(lambda: check_plannable(regime, num_samples, 0, world_size) or True, NAMED) is None:
        return
    rank = data.draw(st.integers(0, world_size - 1))

    def dataset() -> _Served:
        return _Served(regime, seed, num_samples, "fingerprint", rank, world_size, quasi_random)

    left_alone = dataset()
    left_alone.set_epoch(epoch)
    assert left_alone.num_steps() == len(left_alone.plan())
    batches = [samples for samples, _ in left_alone]
    stop = data.draw(st.integers(0, len(batches)))
    done = sum(len(samples) for samples in batches[:stop]) * world_size
    before = dataset()
    before.set_epoch(epoch)
    for served, _ in zip(range(stop), before, strict=False):
        assert served < stop
    resumed = dataset()
    resumed.load_state_dict(before.state_dict(done, True))
    tail = [samples for samples, _ in resumed]
    assert len(tail) == len(batches) - stop
    for mine, theirs in zip(tail, batches[stop:], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    following = [[samples.tolist() for samples, _ in each] for each in (resumed, left_alone)]
    assert resumed.epoch == left_alone.epoch == epoch + 1
    assert following[0] == following[1]
    resumed.set_epoch(epoch)
    assert [samples.tolist() for samples, _ in resumed] == [samples.tolist() for samples in batches]
    if stop == len(batches):  # A Trainer that has counted the epoch as over gives no sample of the next.
        after = dataset()
        after.load_state_dict(before.state_dict(0, True))
        assert [samples.tolist() for samples, _ in after] == following[1]


@for_all(
    60,
    5_000,
    sizes=st.lists(st.tuples(st.integers(1, 64), st.integers(1, 4)), min_size=1, max_size=4),
    num_samples=st.integers(1, 2000),
    epoch=st.integers(0, 40),
)
def test_a_progressions_plan_is_that_of_its_phase(sizes, num_samples, epoch):
    progression = Progression(Base(32, 16), tuple(Phase(size, epochs, 16) for size, epochs in sizes))
    plan = made(lambda: plan_epoch(progression.at_epoch(epoch), num_samples, 0, epoch), NAMED)
    if plan is None:
        assert num_samples < 16
        return
    passed = [size for size, epochs in sizes for _ in range(epochs)]
    assert set(plan.size_px.tolist()) == {passed[min(epoch, len(passed) - 1)]}
    assert len(plan) == num_samples // 16


@for_all(60, 5_000, regime=regimes(), num_steps=st.integers(1, 5000), seed=whole, epoch=st.integers(0, 10**6 - 1))
def test_sizes_for_other_loaders_take_their_shares_of_the_steps(regime, num_steps, seed, epoch):
    sizes = plan_sizes(regime, num_steps, seed, epoch)
    assert len(sizes) == num_steps
    if regime.draw == "epoch":
        assert len(set(sizes.tolist())) == 1
        return
    for choice, share in zip(regime.choices, regime.shares, strict=True):
        assert abs(int((sizes == choice.size_px).sum()) - share * num_steps) <= 1 + 1e-6


@for_all(
    100,
    8_000,
    num_samples=st.integers(1, 400),
    batch_size=st.one_of(st.integers(1, 64), st.just(2**31 - 1)),
    world_size=st.integers(1, 8),
)
def test_an_evaluation_sees_every_image_once_in_as_many_batches_on_every_rank(num_samples, batch_size, world_size):
    ranks = range(world_size)
    plans = made(lambda: [plan_evaluation(num_samples, 8, batch_size, rank, world_size) for rank in ranks], NAMED)
    if plans is None:
        assert world_size > num_samples
        return
    assert len({len(plan) for plan in plans}) == 1
    np.testing.assert_array_equal(np.concatenate([plan.samples for plan in plans]), np.arange(num_samples))
    assert min(plan.batch_size.min() for plan in plans) >= 1
    alone = batch_size == 1 and num_samples % world_size > 0
    assert max(plan.batch_size.max() for plan in plans) <= (2 if alone else batch_size)


@st.composite
def plan_arguments(draw) -> dict[str, Any]:
    world_size = draw(st.integers(1, 4))
    return {
        "num_samples": draw(st.integers(12, 100)),
        "seed": draw(whole),
        "epoch": draw(st.integers(0, 10**6)),
        "rank": draw(st.integers(0, world_size - 1)),
        "world_size": world_size,
    }


@for_all(200, 10_000, arguments=spoilt(plan_arguments()))
def test_a_plan_of_any_numbers_is_drawn_or_names_the_one_at_fault(arguments):
    if isinstance(arguments["num_samples"], int) and arguments["num_samples"] > 100:
        arguments["num_samples"] *= -1  # Nobody's memory is to be filled here.
    plan = made(lambda: plan_epoch(Regime.fixed(Base(8, 12)), **arguments), NAMED)
    if plan is not None:
        assert len(plan) == arguments["num_samples"] // 12
        assert set(plan.batch_size.tolist()) == {12 // arguments["world_size"]}
