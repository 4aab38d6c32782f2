"""Whatever a regime is asked to be, it is that within its rules, or the argument at fault is named."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from mixsize.algorithms.regime.progression import Phase, Progression
from mixsize.algorithms.regime.regime import Base, Choice, Regime

from .for_all import for_all, junk, made, spoilt

MODES = ["B+", "D+"]
ROUNDINGS = ["nearest", "pow2", "budget"]
#: What a message may speak of: the arguments by their names.
NAMED = re.compile(
    r"base\.|sizes? |sizes\b|share|mode|rounding|draw|batch_multiple|stride|the batch at|choices|phases|epoch|_px\b"
    r"|warmup_epochs|ramp|progression|num_samples|images"
)


def count(most: int, least: int = 1) -> st.SearchStrategy:
    """Whole numbers, numpy's among them, and some at the edge of 32 bits."""
    whole = st.integers(least, most)
    return st.one_of(whole, whole, whole.map(np.int32), st.sampled_from([2**31 - 1]))


def shares_of(weights: list[int], digits: int) -> list[float]:
    """Shares that sum to 1 as nearly as decimals that someone wrote down do."""
    return [round(weight / sum(weights), digits) for weight in weights]


faulty_distributions = st.dictionaries(
    st.one_of(st.integers(1, 99), junk.filter(lambda key: not isinstance(key, list))),
    st.one_of(st.floats(0, 1), junk),
    max_size=3,
)


@st.composite
def regime_arguments(draw) -> dict[str, Any]:
    """Of a base, of a regime and of its epochs: most of them fit one another."""
    stride, multiple = draw(st.one_of(st.just(1), st.integers(1, 8))), draw(st.one_of(st.just(1), st.integers(1, 16)))
    least = draw(st.sampled_from([1, 3]))
    weights = draw(st.dictionaries(st.integers(1, 512 // stride), st.integers(1, 9), min_size=least, max_size=6))
    digits = draw(st.sampled_from([2, 6, 7, 7]))
    shares = shares_of(list(weights.values()), digits)
    fitted = {size * stride: share for size, share in zip(weights, shares, strict=True)}
    return {
        "base.size_px": draw(st.integers(1, 512)),
        "base.batch_size": draw(st.one_of(st.integers(1, 128).map(lambda batch: batch * multiple), count(2048))),
        "base.duplicates": draw(count(8)),
        "sizes": draw(st.sampled_from([fitted] * 6 + ["s28", "s144", "s208"]) | faulty_distributions),
        "mode": draw(st.sampled_from(MODES)),
        "share_of": draw(st.sampled_from(["samples", "steps"])),
        "rounding": draw(st.sampled_from(ROUNDINGS)),
        "draw": draw(st.sampled_from(["step", "epoch"])),
        "batch_multiple": multiple,
        "stride_px": stride,
        "images": draw(count(20_000)),
    }


@for_all(400, 20_000, arguments=spoilt(regime_arguments()))
def test_a_regime_of_any_arguments_keeps_its_rules_or_names_the_argument(arguments):
    images = arguments.pop("images")
    base_arguments = [arguments.pop(f"base.{name}") for name in ("size_px", "batch_size", "duplicates")]
    sizes, mode = arguments.pop("sizes"), arguments.pop("mode")
    base = made(lambda: Base(*base_arguments), NAMED)
    regime = base and made(lambda: Regime.from_sizes(sizes, base, mode, **arguments), NAMED)
    if regime is None:
        return
    assert [choice.size_px for choice in regime.choices] == sorted((c.size_px for c in regime.choices), reverse=True)
    if isinstance(sizes, dict):
        assert {choice.size_px: choice.share for choice in regime.choices} == sizes
    for shares in (regime.step_shares, regime.sample_shares):
        assert math.fsum(shares) == pytest.approx(1, abs=1e-12)
    for choice in regime.choices:
        assert choice.size_px % arguments["stride_px"] == 0
        assert choice.batch_size % arguments["batch_multiple"] == 0
        check_rounding(choice, base, mode, arguments["rounding"], arguments["batch_multiple"])
    assert re.fullmatch("[0-9a-f]{12}", regime.digest())
    counts = made(lambda: regime.step_counts(images), NAMED)
    if counts is not None:
        left = int(images) - sum(n * choice.batch_size for n, choice in zip(counts, regime.choices, strict=True))
        assert 0 <= left < sum(choice.batch_size for choice in regime.choices) + len(regime.choices)
        assert min(counts) >= 1


def check_rounding(choice: Choice, base: Base, mode: str, rounding: str, multiple: int) -> None:
    scale = Fraction(base.size_px, choice.size_px) ** 2
    near = Fraction(1, 10**9)
    if rounding == "budget":
        assert choice.pixels <= base.pixels
        assert choice.batch_size % 8 == 0
        if mode == "B+":
            one_more = choice.batch_size + math.lcm(8, multiple)
            assert choice.size_px**2 * one_more * choice.duplicates > base.pixels
    elif rounding == "pow2":
        kept, grown = (choice.duplicates, choice.batch_size), (base.duplicates, base.batch_size)
        if mode == "D+":
            kept, grown = kept[::-1], grown[::-1]
        assert kept[0] == grown[0]
        multiplier = Fraction(kept[1], grown[1])
        assert multiplier.denominator == 1
        assert multiplier.numerator.bit_count() == 1
        assert multiplier == 1 or multiplier / 2 < scale
        assert multiplier >= scale
    elif mode == "B+":
        assert choice.duplicates == base.duplicates
        exact = base.batch_size * scale
        assert abs(choice.batch_size - exact) <= Fraction(multiple, 2) + near * exact
    elif scale * base.duplicates < Fraction(1, 2) - near:
        assert choice.duplicates == 1
        exact = base.batch_size * base.duplicates * scale
        assert abs(choice.batch_size - exact) <= Fraction(multiple, 2) + near * exact
    else:
        assert choice.batch_size == base.batch_size
        exact = base.duplicates * scale
        assert abs(choice.duplicates - exact) <= Fraction(1, 2) + near * exact


@st.composite
def tables(draw) -> list[dict]:
    """Rows of a table that is good in half of the cases; in the others one value, or the shares' sum, is not."""
    sizes = draw(st.lists(st.integers(1, 512), max_size=3, unique=True))
    shares = draw(st.sampled_from([[[], [1], [0.5, 0.5], [0.25, 0.5, 0.25]][len(sizes)], [0.5] * len(sizes)]))
    rows = [
        {"size_px": size, "batch_size": draw(count(2048)), "duplicates": draw(count(8)), "share": share}
        for size, share in zip(sizes, shares, strict=True)
    ]
    if rows and draw(st.booleans()):
        number = draw(st.integers(0, len(rows) - 1))
        rows[number] = draw(spoilt(st.just(rows[number])))
    return rows


@for_all(
    300,
    10_000,
    rows=tables(),
    options=spoilt(
        st.fixed_dictionaries(
            {
                "share_of": st.sampled_from(["samples", "steps"]),
                "draw": st.sampled_from(["step", "epoch"]),
                "stride_px": st.just(1),
            }
        )
    ),
)
def test_a_table_of_any_rows_is_kept_or_names_the_row(rows, options):
    choices = [Choice(**row) for row in rows]

    def build(some: list[Choice]) -> Regime:
        return Regime.from_choices(Base(32, 64), some, **options)

    regime = made(lambda: build(choices), NAMED)
    if regime is None:
        with pytest.raises(ValueError, match=NAMED) as refusal:
            build(choices)
        place = re.match(r"choices\[(\d+)\](.*)", str(refusal.value), re.DOTALL)
        if place:  # The row that is named is refused in the same words when it stands alone.
            with pytest.raises(ValueError, match=re.escape(f"choices[0]{place[2]}")):
                build([choices[int(place[1])]])
        return
    assert regime.choices == tuple(choices)
    most = max(int(c.size_px) ** 2 * int(c.batch_size) * int(c.duplicates) for c in choices)
    assert regime.max_step_pixels == most
    assert re.fullmatch("[0-9a-f]{12}", regime.digest())


STRENGTHS = st.dictionaries(
    st.sampled_from(["magnitude", "mixup", "dropout"]), st.floats(0, 0.9) | st.tuples(st.floats(0, 0.9), st.just(0.5))
)
REST_OF_A_PHASE = {
    "epochs": st.integers(1, 50),
    "lr_factor": st.floats(0.01, 2),
    "crop_scale": st.one_of(st.none(), st.just((0.2, 1.0)), st.just([0.5, 0.5])),
    "strengths": STRENGTHS,
}
# Batches of a number that every batch_multiple below divides, but for some.
BATCHES = st.one_of(st.none(), st.integers(1, 40).map(lambda batch: 12 * batch), count(512))
ONE_SIZE = st.fixed_dictionaries({"size_px": st.integers(1, 256), "batch_size": BATCHES, **REST_OF_A_PHASE})
MIXTURES = st.fixed_dictionaries(
    {
        "size_px": st.sampled_from([{16: 0.5, 64: 0.5}, {96: 0.2, 32: 0.8}, {48: 1.0}, "s28"]),
        "mode": st.sampled_from(MODES),
        "share_of": st.sampled_from(["samples", "steps"]),
        "draw": st.sampled_from(["step", "epoch"]),
        **REST_OF_A_PHASE,
    }
)
PHASES = ONE_SIZE | MIXTURES


@for_all(
    100,
    10_000,
    rows=st.lists(
        st.one_of(PHASES, PHASES, PHASES, spoilt(PHASES)),
        max_size=4,
    ),
    options=spoilt(
        st.fixed_dictionaries(
            {
                "warmup_epochs": st.floats(0, 3),
                "rounding": st.sampled_from(ROUNDINGS),
                "batch_multiple": st.integers(1, 4),
                "stride_px": st.just(1),
            }
        )
    ),
    epoch=st.integers(0, 300),
)
def test_phases_of_any_kind_follow_one_another_or_one_is_named(rows, options, epoch):
    phases = tuple(Phase(**row) for row in rows)

    def build(some: tuple[Phase, ...]) -> Progression:
        return Progression(Base(64, 512), some, **options)

    progression = made(lambda: build(phases), NAMED)
    if progression is None:
        with pytest.raises(ValueError, match=NAMED) as refusal:
            build(phases)
        place = re.match(r"phases\[(\d+)\](.*)", str(refusal.value), re.DOTALL)
        if place:  # The phase that is named is refused in the same words when it stands alone.
            with pytest.raises(ValueError, match=re.escape(f"phases[0]{place[2]}")):
                build((phases[int(place[1])],))
        return
    passed = 0
    for phase in phases[:-1]:
        if epoch < passed + phase.epochs:
            break
        passed += phase.epochs
    else:
        phase = phases[-1]
    drawn = progression.at_epoch(epoch)
    if isinstance(phase.size_px, (str, dict)):
        alone = Regime.from_sizes(
            phase.size_px, Base(64, 512), phase.mode, share_of=phase.share_of, draw=phase.draw,
            rounding=progression.rounding, batch_multiple=progression.batch_multiple,
        )  # fmt: skip
        assert drawn == alone
    else:
        (choice,) = drawn.choices
        assert choice.size_px == phase.size_px
        assert phase.batch_size in (None, choice.batch_size)
    for name, value in phase.strengths.items():
        ends = value if isinstance(value, tuple) else (value, value)
        strength = progression.strength_at(name, epoch)
        assert strength is not None
        assert min(ends) - 1e-12 <= strength <= max(ends) + 1e-12
    assert progression.strength_at("drop_path", epoch) is None
    assert progression.crop_scale_at(epoch) == (None if phase.crop_scale is None else tuple(phase.crop_scale))
    assert 0 < progression.lr_factor(epoch) <= phase.lr_factor
    for start, begun in zip(progression.starts[1:], phases[1:], strict=True):
        tenth = 0.1 if progression.warmup_epochs else 1
        assert progression.lr_factor(start) == pytest.approx(tenth * begun.lr_factor)
    assert re.fullmatch("[0-9a-f]{12}", progression.digest())


def ramps(shortest: int) -> st.SearchStrategy[dict[str, int]]:
    """Arguments of a ramp over so many epochs at least."""
    return st.builds(
        lambda step_px, start, end, begin_epoch, length: {
            "start_px": step_px * start,
            "end_px": step_px * end,
            "begin_epoch": begin_epoch,
            "end_epoch": begin_epoch + length,
            "step_px": step_px,
        },
        st.integers(1, 8),
        st.integers(1, 40),
        st.integers(1, 40),
        st.integers(0, 50),
        st.integers(shortest, 200),
    )


@for_all(80, 5_000, good=ramps(1), faulty=spoilt(ramps(0)))
def test_a_ramp_between_any_ends_stays_between_them_or_names_what_is_wrong(good, faulty):
    check_ramp(Progression.ramp(Base(64, 4096), **good), **good)
    ramp = made(lambda: Progression.ramp(Base(64, 4096), **faulty), NAMED)
    if ramp is not None:
        check_ramp(ramp, **faulty)


@for_all(
    60,
    5_000,
    arguments=spoilt(
        st.fixed_dictionaries(
            {
                "start": st.sampled_from([{32: 1.0}, {16: 0.5, 32: 0.5}, "s28"]) | faulty_distributions,
                "end": st.sampled_from([{64: 1.0}, {32: 0.25, 64: 0.75}, {16: 0.1, 96: 0.9}]),
                "begin_epoch": st.integers(0, 50),
                "end_epoch": st.integers(51, 300) | st.just(10**6),
                "stages": st.integers(1, 40),
                "mode": st.sampled_from(MODES),
            }
        )
    ),
)
def test_a_shift_between_any_distributions_goes_from_one_to_the_other_in_a_line(arguments):
    def build(**some: Any) -> Progression:
        return Progression.shift(Base(64, 4096), **some)

    shift = made(lambda: build(**arguments), re.compile(f"{NAMED.pattern}|start|end|stages|shift"))
    if shift is None:
        return
    ends = [Regime.from_sizes(arguments[end], Base(64, 4096), arguments["mode"]) for end in ("start", "end")]
    first, last = ({c.size_px: share for c, share in zip(r.choices, r.shares, strict=True)} for r in ends)
    begin, end = arguments["begin_epoch"], arguments["end_epoch"]
    assert len(shift.phases) <= arguments["stages"] + 1
    for epoch in (0, begin, (begin + end) // 2, end - 1, end, end + 5):
        done = min(1.0, max(0, epoch - begin) / (end - begin))
        drawn = {choice.size_px: choice.share for choice in shift.at_epoch(epoch).choices}
        assert math.fsum(drawn.values()) == pytest.approx(1)
        for size in {*first, *last}:
            line = (1 - done) * first.get(size, 0) + done * last.get(size, 0)
            assert abs(drawn.get(size, 0) - line) <= 0.5 / arguments["stages"] + 1e-9
    assert {choice.size_px for choice in shift.at_epoch(end).choices} == set(last)


def check_ramp(ramp: Progression, start_px: int, end_px: int, begin_epoch: int, end_epoch: int, step_px: int) -> None:
    sizes = [regime.choices[0].size_px for regime in ramp.regimes]
    assert (sizes[0], sizes[-1]) == (start_px, end_px)
    assert sizes in (sorted(sizes), sorted(sizes, reverse=True))
    assert all(size % step_px == 0 for size in sizes)
    assert ramp.at_epoch(begin_epoch).choices[0].size_px == start_px
    assert ramp.at_epoch(end_epoch).choices[0].size_px == end_px


@pytest.mark.parametrize("mode", ["fixed", "table", "progressive"])
def test_a_mode_that_fits_nothing_to_sizes_is_refused(mode):
    with pytest.raises(ValueError, match=f"mode is '{mode}'; it must be one of B\\+, D\\+"):
        Regime.from_sizes("s28", Base(32, 64), mode)


@pytest.mark.parametrize("rounding", ["up", "", None, 2])
def test_an_unknown_rounding_is_refused(rounding):
    with pytest.raises(ValueError, match=r"rounding is .*; it must be one of nearest, pow2, budget"):
        Regime.from_sizes("s28", Base(32, 64), "B+", rounding=rounding)


def test_shares_of_few_decimals_are_drawn_by_epoch_and_fill_no_more_than_the_images():
    """Shares may miss 1 by a millionth; over many steps, and for numpy's generator, that is much."""
    for shares in ((0.3333333, 0.3333333, 0.3333333), (0.3333336, 0.3333336, 0.3333336)):
        for share_of in ("samples", "steps"):
            rows = [Choice(size, 1, 1, share) for size, share in zip((8, 16, 24), shares, strict=True)]
            regime = Regime.from_choices(Base(16, 1), rows, share_of=share_of)
            assert 29_999_996 <= sum(regime.step_counts(30_000_000)) <= 30_000_000
            np.random.default_rng(0).choice(3, p=regime.sample_shares)


def test_numpys_integers_make_the_regime_that_pythons_make():
    rows = [Choice(np.int64(32), np.int32(64), np.int8(1), np.float32(0.5)), Choice(16, 64, 4, 0.5)]
    regime = Regime.from_choices(Base(np.int32(32), np.uint8(64), np.int16(1)), rows)
    assert regime.digest() == Regime.from_choices(Base(32, 64), [Choice(32, 64, 1, 0.5), rows[1]]).digest()
    # 65,535 squared overflows 32 bits
    assert Base(np.int32(65_535), np.int32(2)).pixels == 65_535**2 * 2
