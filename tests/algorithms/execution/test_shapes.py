"""Shapes that a regime trains on, and the visit to each before training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mixsize.algorithms.execution.visit import is_out_of_memory, visit_shapes
from mixsize.algorithms.regime.progression import Phase, Progression
from mixsize.algorithms.regime.regime import Base, Choice, Regime
from mixsize.algorithms.regime.shapes import InputShape, shapes_of


def network():
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    return nn.Sequential(*layers)


def test_a_regimes_shapes_are_counted_by_hand():
    regime = Regime.from_choices(
        Base(32, 64), [Choice(32, 64, 1, 0.5), Choice(16, 64, 4, 0.25), Choice(24, 96, 1, 0.25)]
    )
    assert shapes_of(regime) == ((256, 16), (64, 32), (96, 24))
    assert shapes_of(regime, ranks=2) == ((128, 16), (32, 32), (48, 24))


def test_shapes_of_microbatches_never_part_an_images_duplicates():
    regime = Regime.from_choices(Base(32, 64), [Choice(32, 64, 1, 0.5), Choice(16, 50, 4, 0.5)])
    # 64 in chunks of 30: 30, 30, 4. 200 views in chunks of 7 * 4 = 28: seven, and 4.
    expected = {(30, 32), (4, 32), (28, 16), (4, 16)}
    assert set(shapes_of(regime, microbatch_images=30)) == expected
    # Fewer than the duplicates of one image: one image at a time.
    assert (4, 16) in shapes_of(regime, microbatch_images=3)


def test_every_phase_has_its_shape():
    phases = Progression(Base(32, 64), (Phase(16, 1, 128), Phase(32, 2)))
    assert shapes_of(phases) == ((64, 32), (128, 16))


def test_each_shape_is_visited_once_and_nothing_of_it_stays():
    torch.manual_seed(3)
    model = network().train()
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    seen = []

    def step(images, labels):
        seen.append((tuple(images.shape), images.is_contiguous(memory_format=torch.channels_last)))
        assert labels.dtype == torch.int64
        F.cross_entropy(model(images), labels).backward()
        assert model[0].weight.grad is not None
        model.train()

    shapes = [InputShape(8, 16), InputShape(2, 24)]
    assert visit_shapes(step, model, shapes, channels_last=True) > 0
    assert seen == [((8, 3, 16, 16), True), ((2, 3, 24, 24), True)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert not model[0].training
    assert model[1].training


def test_a_shape_that_does_not_fit_is_named_and_nothing_of_the_others_stays():
    model = network().train()
    statistics = model[1].running_mean.clone()

    def step(images, labels):
        F.cross_entropy(model(images), labels).backward()

    # 1.2 PB of noise: more than any machine can address.
    with pytest.raises(
        ValueError, match=r"^1 images of 10000000 px do not fit into the memory of cpu: .*allocate"
    ) as raised:
        visit_shapes(step, model, [InputShape(2, 16), InputShape(1, 10_000_000)])
    assert is_out_of_memory(raised.value.__cause__)
    assert torch.equal(model[1].running_mean, statistics)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_another_error_is_not_taken_for_want_of_memory():
    def step(images, labels):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        visit_shapes(step, network(), [InputShape(2, 16)])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_want_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected
