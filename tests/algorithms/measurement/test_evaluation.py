"""Accuracy over sizes: counted by hand, however the images are batched and shared out, and the network left alone."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from mixsize.algorithms import calibrate_batch_norm, evaluate, evaluate_sizes

# Outputs of seven classes for four images, and the rank of each image's own class: 1, 5, 6 and 1.
OUTPUTS = torch.tensor(
    [
        [9.0, 1, 2, 3, 4, 5, 6],
        [9.0, 1, 2, 3, 7, 5, 8],
        [9.0, 8, 7, 6, 5, 4, 3],
        [0.0, 0, 0, 0, 0, 0, 2],
    ]
)
LABELS = torch.tensor([0, 3, 5, 6])


class Shown(nn.Module):
    """Gives its images, (N, K, 1, 1), as outputs."""

    def forward(self, images):
        return images.flatten(1)


def batches(outputs, labels, *sizes):
    return list(zip(outputs[:, :, None, None].split(list(sizes)), labels.split(list(sizes)), strict=True))


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6)
    )


def images_at(size_px, seed, count=12, shift=0.0):
    generator = torch.Generator().manual_seed(seed * 1000 + size_px)
    images = torch.randn(count, 3, size_px, size_px, generator=generator) * size_px / 8 + shift
    return list(zip(images.split(5), torch.randint(0, 6, (count,), generator=generator).split(5), strict=True))


def test_hits_and_loss_are_those_counted_by_hand():
    score = evaluate(Shown(), batches(OUTPUTS, LABELS, 4))
    assert (score.images, score.hits, score.hits_in_five) == (4, 2, 3)
    assert (score.top1, score.top5) == (0.5, 0.75)
    # Seven equal outputs cost log 7, the last image log(6 + e^2) - 2.
    pair = evaluate(Shown(), batches(torch.stack([torch.ones(7), OUTPUTS[3]]), torch.tensor([2, 6]), 2))
    assert pair.loss == pytest.approx((math.log(7) + math.log(6 + math.e**2) - 2) / 2, abs=1e-6)


def test_classes_are_counted_apart_where_their_number_is_given():
    # A second image of class 5, which is missed as the first is.
    outputs, labels = torch.cat([OUTPUTS, OUTPUTS[2:3]]), torch.cat([LABELS, torch.tensor([5])])
    score = evaluate(Shown(), batches(outputs, labels, 2, 3), num_classes=7)
    assert score.class_images == (1, 0, 0, 1, 0, 2, 1)
    assert score.class_hits == (1, 0, 0, 0, 0, 0, 1)
    plain = evaluate(Shown(), batches(outputs, labels, 5))
    assert (plain.class_images, plain.class_hits) == ((), ())
    (row,) = evaluate_sizes(Shown(), lambda size_px: batches(outputs, labels, 5), [8], num_classes=7)
    assert row.own == score


def test_top_five_is_left_out_where_there_are_no_more_than_five_classes():
    score = evaluate(Shown(), batches(OUTPUTS[:, :5], torch.tensor([0, 4, 1, 2]), 4))
    assert score.hits_in_five is None
    assert score.top5 is None
    assert score.hits == 1


def test_every_image_counts_once_however_they_are_batched():
    generator = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(23, 9, generator=generator), torch.randint(0, 9, (23,), generator=generator)
    whole = evaluate(Shown(), batches(outputs, labels, 23))
    for sizes in ([1] * 23, [10, 10, 3], [7, 7, 7, 2]):
        score = evaluate(Shown(), batches(outputs, labels, *sizes))
        assert (score.images, score.hits, score.hits_in_five) == (23, whole.hits, whole.hits_in_five)
        assert score.loss == pytest.approx(whole.loss, rel=1e-6)


def test_loss_is_computed_in_float32_whatever_the_outputs_are():
    outputs = torch.zeros(3, 10)
    score = evaluate(Shown(), batches(outputs.bfloat16(), torch.tensor([0, 1, 2]), 3))
    assert score.loss == pytest.approx(math.log(10), abs=1e-6)


def test_a_network_is_evaluated_without_dropout_and_has_its_training_flags_back():
    network = nn.Sequential(nn.Dropout(0.9), Shown())
    network.train()
    network[1].eval()
    random_state = torch.get_rng_state()
    assert evaluate(network, batches(OUTPUTS, LABELS, 2, 2)).hits == 2
    assert [module.training for module in network.modules()] == [True, True, False]
    assert torch.equal(random_state, torch.get_rng_state())


def test_calibrated_scores_are_those_of_a_network_calibrated_at_that_size():
    network = small_network()
    rows = list(
        evaluate_sizes(
            network,
            lambda size_px: images_at(size_px, seed=1),
            [16, 8],
            calibration_loader_for=lambda size_px: images_at(size_px, seed=2, shift=1.0),
            calibration_batches=2,
        )
    )
    assert [row.size_px for row in rows] == [16, 8]
    for row in rows:
        assert row.calibration_images == 10
        assert row.own == evaluate(network, images_at(row.size_px, seed=1))
        other = copy.deepcopy(network)
        calibrate_batch_norm(other, images_at(row.size_px, seed=2, shift=1.0), max_batches=2)
        assert row.calibrated == evaluate(other, images_at(row.size_px, seed=1))
        assert row.calibrated.loss != pytest.approx(row.own.loss, rel=1e-3)


def test_a_network_has_its_weights_and_statistics_back_after_each_size():
    network = small_network()
    before = copy.deepcopy(network.state_dict())
    rows = evaluate_sizes(
        network,
        lambda size_px: images_at(size_px, seed=1),
        [8, 16],
        calibration_loader_for=lambda size_px: images_at(size_px, seed=2),
    )
    for _ in rows:
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_size_is_evaluated_when_it_is_asked_for():
    opened = []

    def loader_for(size_px):
        opened.append(size_px)
        return images_at(size_px, seed=1)

    rows = evaluate_sizes(small_network(), loader_for, [8, 16])
    assert next(rows).size_px == 8
    assert opened == [8]
    assert next(rows).calibrated is None
    assert opened == [8, 16]


def test_what_cannot_be_evaluated_is_refused():
    with pytest.raises(ValueError, match="no image"):
        evaluate(Shown(), [])
    with pytest.raises(ValueError, match="a batch is a Tensor; it must be a tuple or list"):
        evaluate(Shown(), [torch.zeros(2, 3)])
    with pytest.raises(ValueError, match=r"gives \(2, 3, 4, 4\) for 2 labels; expected \(2, classes\)"):
        evaluate(nn.Identity(), [(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long))])
    for sizes, words in (([], "sizes_px is empty"), ([8, 0], "sizes_px holds 0")):
        with pytest.raises(ValueError, match=words):
            evaluate_sizes(small_network(), images_at, sizes)
    with pytest.raises(ValueError, match="calibration_batches is 0"):
        evaluate_sizes(small_network(), images_at, [8], calibration_batches=0)
    with pytest.raises(ValueError, match="Shown has no batch-norm layer"):
        evaluate_sizes(Shown(), images_at, [8], calibration_loader_for=images_at)


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from dataclasses import astuple
from mixsize.algorithms import evaluate
from torch import nn

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
outputs, labels = torch.load(f"{folder}/data.pt")
part = slice(0, 14) if rank == 0 else slice(14, 23)
batches = list(zip(outputs[part, :, None, None].split(4), labels[part].split(4)))
network = nn.Flatten()
found = {
    "together": astuple(evaluate(network, batches, num_classes=9)),
    "alone": astuple(evaluate(network, batches, across_ranks=False)),
    "idle": astuple(evaluate(network, batches if rank == 0 else [], num_classes=9)),
}
torch.save(found, f"{folder}/out{rank}.pt")
"""


def test_two_ranks_find_what_one_process_finds(tmp_path):
    generator = torch.Generator().manual_seed(3)
    outputs, labels = torch.randn(23, 9, generator=generator), torch.randint(0, 9, (23,), generator=generator)
    torch.save((outputs, labels), tmp_path / "data.pt")
    command = [sys.executable, "-W", "error", "-c", TWO_RANKS]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    found = [torch.load(tmp_path / f"out{rank}.pt") for rank in range(2)]
    whole, *parts = (
        evaluate(nn.Flatten(), batches(outputs[part], labels[part], len(labels[part])), num_classes=9)
        for part in (slice(0, 23), slice(0, 14), slice(14, 23))
    )
    for rank in range(2):
        *counts, loss, class_images, class_hits = found[rank]["together"]
        assert counts == [whole.images, whole.hits, whole.hits_in_five]
        assert (class_images, class_hits) == (whole.class_images, whole.class_hits)
        assert loss == pytest.approx(whole.loss, rel=1e-6)
        assert found[rank]["alone"][:3] == (parts[rank].images, parts[rank].hits, parts[rank].hits_in_five)
        assert found[rank]["idle"][:3] == (parts[0].images, parts[0].hits, parts[0].hits_in_five)
        assert found[rank]["idle"][4:] == (parts[0].class_images, parts[0].class_hits)
