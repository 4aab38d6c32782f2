"""Phases and ramps, by hand."""

from __future__ import annotations

import pytest

from mixsize.algorithms.regime.progression import Phase, Progression
from mixsize.algorithms.regime.regime import Base

FASTAI = Progression(
    Base(224, 256),
    (Phase(128, 30, 512), Phase(192, 30, 256, 0.5), Phase(224, 30, 256, 0.1)),
    warmup_epochs=2,
)


def test_phases_follow_each_other_and_the_last_goes_on():
    sizes = [FASTAI.at_epoch(epoch).choices[0].size_px for epoch in (0, 29, 30, 59, 60, 89, 500)]
    assert sizes == [128, 128, 192, 192, 224, 224, 224]
    assert [FASTAI.at_epoch(epoch).choices[0].batch_size for epoch in (0, 30, 60)] == [512, 256, 256]
    assert FASTAI.starts == (0, 30, 60)
    assert FASTAI.max_images == 512


def test_batches_grow_at_small_sizes_by_the_budget():
    fitted = Progression(Base(224, 256), (Phase(112, 1), Phase(160, 1), Phase(224, 1)), batch_multiple=8)
    # 256 * 4; 256 * (224/160)^2 = 501.8 -> 504; 256
    assert [fitted.at_epoch(epoch).choices[0].batch_size for epoch in range(3)] == [1024, 504, 256]


def test_the_rate_drops_at_transitions_and_rises_again_over_the_warm_up():
    assert [FASTAI.lr_factor(position) for position in (0, 15, 29.99)] == [1, 1, 1]
    # a tenth of the phase's, half-way between that and the whole, the whole
    assert [FASTAI.lr_factor(position) for position in (30, 31, 32, 59)] == pytest.approx([0.05, 0.275, 0.5, 0.5])
    assert [FASTAI.lr_factor(position) for position in (60, 62)] == pytest.approx([0.01, 0.1])


def test_a_ramp_grows_in_a_line_rounded_to_the_stride():
    ramp = Progression.ramp(Base(192, 64), 160, 192, begin_epoch=2, end_epoch=6, step_px=16)
    sizes = [ramp.at_epoch(epoch).choices[0].size_px for epoch in range(8)]
    # 160 + 32 * (0, 0, 0, 1/4, 1/2, 3/4, 1) to multiples of 16: 168 is half-way and goes to the even one, 160
    assert sizes == [160, 160, 160, 160, 176, 192, 192, 192]


def test_crop_scales_belong_to_their_phase():
    cropped = Progression(Base(32, 8), (Phase(16, 1, crop_scale=(0.35, 1.0)), Phase(32, 1)))
    assert [cropped.crop_scale_at(epoch) for epoch in (0, 1)] == [(0.35, 1.0), None]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Progression(Base(32, 8), ()), "no phases"),
        (lambda: Progression(Base(32, 8), (Phase(32, 0),)), r"phases\[0\].epochs is 0"),
        (lambda: Progression(Base(32, 8), (Phase(32, 1), Phase(32, 1, lr_factor=0))), r"phases\[1\].lr_factor is 0"),
        (lambda: Progression(Base(32, 8), (Phase(32, 1, crop_scale=(0.5, 0.2)),)), r"phases\[0\].crop_scale is"),
        (lambda: Progression(Base(32, 8), (Phase(30, 1),), stride_px=4), "30 px is not a multiple"),
        (lambda: Progression(Base(32, 8), (Phase(0, 1),)), r"phases\[0\].size_px is 0"),
        (lambda: Progression(Base(32, 8), (Phase(32, 1, 0),)), "batch_size is 0"),
        (lambda: Progression(Base(32, 8), (Phase(256, 1),)), "rounds to 0"),
        (lambda: Progression(Base(32, 8), (Phase(32, 1),), warmup_epochs=-1), "warmup_epochs is -1"),
        (lambda: Progression.ramp(Base(32, 8), 16, 32, begin_epoch=3, end_epoch=3, step_px=4), "from epoch 3 to 3"),
        (lambda: Progression.ramp(Base(32, 8), 18, 32, begin_epoch=0, end_epoch=3, step_px=4), "18 px"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
