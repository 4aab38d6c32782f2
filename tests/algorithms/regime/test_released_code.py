"""Sizes, batches, duplicates and shares against outputs of the paper's released code, recorded as numbers.

Source: ``mixsize_config`` and the regimes of ``models/resnet.py``, github.com/eladhoffer/convNet.pytorch at ebec93d.
"""

from __future__ import annotations

import pytest

from mixsize.algorithms.regime.regime import Base, Regime

#: (base side, base batch, base duplicates, mode) -> side -> (batch, duplicates). The code fits the batch of one device.
RELEASED = {
    (32, 64, 1, "B+"): {48: (28, 1), 40: (41, 1), 32: (64, 1), 24: (114, 1), 16: (256, 1)},
    (32, 64, 1, "D+"): {48: (28, 1), 40: (64, 1), 32: (64, 1), 24: (64, 2), 16: (64, 4)},
    (32, 64, 2, "B+"): {48: (28, 2), 40: (41, 2), 32: (64, 2), 24: (114, 2), 16: (256, 2)},
    (32, 64, 2, "D+"): {48: (64, 1), 40: (64, 1), 32: (64, 2), 24: (64, 4), 16: (64, 8)},
    (224, 64, 1, "B+"): {
        320: (31, 1), 288: (39, 1), 256: (49, 1), 224: (64, 1), 192: (87, 1), 160: (125, 1), 128: (196, 1), 96: (348, 1)
    },
    (224, 64, 1, "D+"): {
        320: (31, 1), 288: (64, 1), 256: (64, 1), 224: (64, 1), 192: (64, 1), 160: (64, 2), 128: (64, 3), 96: (64, 5)
    },
    (224, 256, 1, "B+"): {
        320: (125, 1), 288: (155, 1), 256: (196, 1), 224: (256, 1), 192: (348, 1), 160: (502, 1), 128: (784, 1),
        96: (1394, 1),
    },
    (224, 256, 1, "D+"): {
        320: (125, 1), 288: (256, 1), 256: (256, 1), 224: (256, 1), 192: (256, 1), 160: (256, 2), 128: (256, 3),
        96: (256, 5),
    },
    (224, 256, 2, "D+"): {
        320: (256, 1), 288: (256, 1), 256: (256, 2), 224: (256, 2), 192: (256, 3), 160: (256, 4), 128: (256, 6),
        96: (256, 11),
    },
}  # fmt: skip
#: Shares, batches and duplicates of its ImageNet regimes, on one device of 64 images.
SAMPLED_144_B_PLUS = [(0.1, 256, 49, 1), (0.1, 224, 64, 1), (0.6, 128, 196, 1), (0.2, 96, 348, 1)]
SAMPLED_224_D_PLUS = [
    (0.8 / 6, 320, 64, 1), (0.8 / 6, 288, 64, 1), (0.8 / 6, 256, 64, 2), (0.2, 224, 64, 2), (0.8 / 6, 192, 64, 3),
    (0.8 / 6, 160, 64, 4), (0.8 / 6, 128, 64, 6),
]  # fmt: skip


def rows(regime: Regime) -> list[tuple[float, int, int, int]]:
    """Largest side first."""
    ordered = sorted(regime.choices, key=lambda choice: -choice.size_px)
    return [(choice.share, choice.size_px, choice.batch_size, choice.duplicates) for choice in ordered]


@pytest.mark.parametrize("base", RELEASED)
def test_every_size_has_the_released_codes_batch_and_duplicates(base):
    size_px, batch_size, duplicates, mode = base
    shares = dict.fromkeys(RELEASED[base], 1 / len(RELEASED[base]))
    found = Regime.from_sizes(shares, Base(size_px, batch_size, duplicates), mode)
    assert {size: shape for _, size, *shape in rows(found)} == {s: list(shape) for s, shape in RELEASED[base].items()}


@pytest.mark.parametrize(
    ("sizes", "mode", "duplicates", "released"),
    [("s144", "B+", 1, SAMPLED_144_B_PLUS), ("s224", "D+", 2, SAMPLED_224_D_PLUS)],
)
def test_named_sizes_have_its_shares(sizes, mode, duplicates, released):
    found = rows(Regime.from_sizes(sizes, Base(224, 64, duplicates), mode, share_of="samples"))
    assert [row[1:] for row in found] == [row[1:] for row in released]
    assert [row[0] for row in found] == pytest.approx([row[0] for row in released])


def test_a_batch_that_shrinks_from_several_duplicates_has_its_pixels_in_single_views():
    """At 512 px of a base of 224 px, 256 images and 2 duplicates the released code takes 49 images twice."""
    shape = Regime.from_sizes({512: 1.0}, Base(224, 256, 2), "D+").choices[0]
    assert (shape.batch_size, shape.duplicates) == (2 * 49, 1)
