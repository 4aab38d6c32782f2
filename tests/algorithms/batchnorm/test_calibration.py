"""Pooled batch-norm statistics against numpy and hand calculations; what is restored; banks; two ranks."""

from __future__ import annotations

import copy
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d, DropPath, FrozenBatchNormAct2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from mixsize.algorithms.batchnorm.calibration import calibrate_batch_norm, load_statistics, measure_batch_norm
from mixsize.algorithms.batchnorm.layers import batch_norm_layers
from mixsize.algorithms.batchnorm.pooling import LayerStatistics


class Branches(nn.Module):
    """Three batch-norm layers that see no other's output (raw, a, b), and one that does (last)."""

    def __init__(self):
        super().__init__()
        self.raw = nn.BatchNorm2d(3)
        self.conv_a, self.a = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv_b, self.b = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4, momentum=None)
        self.last = nn.BatchNorm1d(12)

    def forward(self, images):
        parts = (self.raw(images), self.a(self.conv_a(images)).relu(), self.b(self.conv_b(images)).relu())
        return self.last(torch.cat([part.mean((2, 3)) for part in parts], 1))


def network(seed=0):
    torch.manual_seed(seed)
    return Branches()


def images_like(count, size=8, seed=0):
    """Images whose brightness differs from one to the next, as those of different classes do."""
    generator = torch.Generator().manual_seed(seed)
    shades = torch.randn(count, 3, 1, 1, generator=generator) * 2 + 3
    return shades + torch.randn(count, 3, size, size, generator=generator)


def expected_first_layers(model, groups):
    """Mean and unbiased variance of what the first layers are given, by numpy in float64."""
    model = copy.deepcopy(model).double()
    inputs = {"raw": lambda x: x, "a": model.conv_a, "b": model.conv_b}
    found = {}
    with torch.no_grad():
        for name, layer in inputs.items():
            values = [layer(group.double()).transpose(0, 1).flatten(1).numpy() for group in groups]
            values = np.concatenate(values, axis=1)
            found[name] = values.mean(axis=1), values.var(axis=1, ddof=1)
    return found


def relative_error(measured, expected):
    return float((np.abs(measured.double().numpy() - expected) / np.abs(expected)).max())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=8), st.integers(0, 1000))
def test_any_split_into_unequal_batches_gives_the_statistics_of_one_big_batch(sizes, seed):
    model, images = network(seed), images_like(sum(sizes), seed=seed)
    result = calibrate_batch_norm(model, images.split(sizes))
    assert (result.batches_used, result.samples) == (len(sizes), sum(sizes))
    for name, (mean, var) in expected_first_layers(model, [images]).items():
        layer = getattr(model, name)
        assert relative_error(layer.running_var, var) < 1e-5
        assert np.abs(layer.running_mean.numpy() - mean).max() < 1e-5 * np.sqrt(var.max())


def test_batches_of_different_image_sizes_weigh_by_their_values():
    model, groups = network(), [images_like(4, 8), images_like(3, 12, seed=1), images_like(6, 6, seed=2) + 2]
    result = calibrate_batch_norm(model, groups)
    for name, (mean, var) in expected_first_layers(model, groups).items():
        assert relative_error(getattr(model, name).running_var, var) < 1e-5
        assert relative_error(getattr(model, name).running_mean, mean) < 1e-4
    assert result.statistics["raw"].count == 4 * 64 + 3 * 144 + 6 * 36
    assert result.statistics["last"].count == 13


def test_the_spread_between_batches_counts():
    layer = nn.BatchNorm1d(1)
    result = calibrate_batch_norm(layer, [torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [4.0], [2.0], [4.0]])])
    # Means 0 and 3 of 2 and 4 values, variances 1 and 1: mean 12/6; variance 1 + (2 * 2**2 + 4 * 1**2) / 6 = 3.
    statistics = result.statistics[""]
    assert (statistics.mean.item(), statistics.var.item(), statistics.count) == (pytest.approx(2), pytest.approx(3), 6)
    assert layer.running_mean.item() == pytest.approx(2)
    assert layer.running_var.item() == pytest.approx(3 * 6 / 5)


def test_statistics_that_are_not_finite_are_replaced():
    layer = nn.BatchNorm1d(1)
    layer.running_mean.fill_(torch.nan)
    layer.running_var.fill_(torch.inf)
    calibrate_batch_norm(layer, [torch.tensor([[1.0], [3.0]])])
    assert (layer.running_mean.item(), layer.running_var.item()) == (pytest.approx(2), pytest.approx(2))


def test_one_batch_gives_every_layer_what_a_training_pass_leaves_behind():
    model, images = network(), images_like(16)
    calibrate_batch_norm(model, [images])
    reference = network().train()
    for layer in batch_norm_layers(reference).values():
        layer.momentum = 1.0
    reference(images)
    for name, layer in batch_norm_layers(reference).items():
        torch.testing.assert_close(model.get_submodule(name).running_mean, layer.running_mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(model.get_submodule(name).running_var, layer.running_var, rtol=1e-6, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", ["float", "half"])
def test_a_mean_far_above_the_deviation_loses_no_variance(dtype, memory_format, weights):
    generator = torch.Generator().manual_seed(0)
    images = (1000 + torch.randn(48, 4, 16, 16, generator=generator)).to(dtype).to(memory_format=memory_format)
    layer = nn.BatchNorm2d(4)
    if weights == "half":
        layer = layer.to(dtype)
    result = measure_batch_norm(layer, images.split([7, 20, 21]))
    values = images.double().transpose(0, 1).flatten(1).numpy()
    assert relative_error(result.statistics[""].mean, values.mean(axis=1)) < 1e-6
    assert relative_error(result.statistics[""].var, values.var(axis=1)) < 1e-3
    single_pass = (images.float() ** 2).mean((0, 2, 3)) - images.float().mean((0, 2, 3)) ** 2
    assert relative_error(single_pass, values.var(axis=1)) > 3e-3  # The case would catch it.


def test_autocast_statistics_lie_close_to_full_precision():
    model, images = network(), images_like(24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = measure_batch_norm(model, images.split(8))
    full = measure_batch_norm(model, images.split(8))
    for name, statistics in full.statistics.items():
        assert half.statistics[name].mean.dtype == torch.float32
        torch.testing.assert_close(half.statistics[name].var, statistics.var, rtol=0.03, atol=0)


def snapshot(model):
    layers = batch_norm_layers(model)
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "grads": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "momentum": [layer.momentum for layer in layers.values()],
        "buffers": [[id(b) for b in layer.buffers()] for layer in layers.values()],
        "hooks": sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()),
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()),  # noqa: NPY002
    }


def assert_same(before, after, moved=()):
    assert before["state"].keys() == after["state"].keys()
    for name, value in before["state"].items():
        assert torch.equal(value, after["state"][name]) or name in moved, name
    assert before["grads"].keys() == after["grads"].keys()
    assert all(torch.equal(grad, after["grads"][name]) for name, grad in before["grads"].items())
    for key in ("requires_grad", "training", "momentum", "buffers", "hooks"):
        assert before[key] == after[key], key
    assert torch.equal(before["random"][0], after["random"][0])
    assert before["random"][1] == after["random"][1]
    assert np.array_equal(before["random"][2], after["random"][2])


def lived_in_network():
    """One with gradients, counted batches, a frozen layer and mixed flags."""
    model = network().train()
    model(images_like(8)).square().sum().backward()
    model.conv_b.requires_grad_(False)
    model.a.eval()
    return model


def drawing(batches, fail_at=None):
    """Batches from a loader that draws from every global generator."""
    for number, batch in enumerate(batches):
        if number == fail_at:
            raise OSError("disk on fire")
        torch.rand(3), random.random(), np.random.rand(3)  # noqa: NPY002
        yield batch


def test_only_the_running_statistics_change():
    model = lived_in_network()
    before = snapshot(model)
    calibrate_batch_norm(model, drawing(images_like(24).split(6)))
    after = snapshot(model)
    moved = [f"{name}.{kind}" for name in ("raw", "a", "b", "last") for kind in ("running_mean", "running_var")]
    assert_same(before, after, moved)
    for name in moved:
        assert not torch.equal(before["state"][name], after["state"][name]), name


def test_measuring_changes_nothing():
    model = lived_in_network()
    before = snapshot(model)
    measure_batch_norm(model, drawing(images_like(24).split(6)))
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("where", ["batches", "forward"])
def test_an_exception_in_the_middle_leaves_nothing_behind(where):
    model = lived_in_network()
    batches = images_like(24).split(6)
    if where == "forward":
        batches = (*batches[:2], torch.zeros(6, 4, 8, 8))
    before = snapshot(model)
    with pytest.raises((OSError, RuntimeError)):
        calibrate_batch_norm(model, drawing(batches, fail_at=2 if where == "batches" else None))
    assert_same(before, snapshot(model))


def test_no_graph_is_built():
    class Probe(nn.BatchNorm2d):
        def forward(self, images):
            assert not torch.is_grad_enabled()
            return super().forward(images)

    calibrate_batch_norm(Probe(3), [images_like(4)])
    assert torch.is_grad_enabled()


def test_dropout_and_stochastic_depth_are_off():
    def make(drop):
        torch.manual_seed(0)
        act = BatchNormAct2d(4, drop_layer=(lambda: nn.Dropout(0.9)) if drop else None)
        path = DropPath(0.9) if drop else nn.Identity()
        return nn.Sequential(
            nn.Dropout(0.9 if drop else 0), nn.Conv2d(3, 4, 3), act, path, nn.BatchNorm2d(4)
        ).train()  # fmt: skip

    images = images_like(24)
    dropping, plain = make(True), make(False)
    calibrate_batch_norm(dropping, images.split(8))
    calibrate_batch_norm(plain, images.split(8))
    for index in (2, 4):
        assert torch.equal(dropping[index].running_mean, plain[index].running_mean)
        assert torch.equal(dropping[index].running_var, plain[index].running_var)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.after = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images):
        return self.after(self.norm(images) + self.norm(2 * images[..., ::2] + 5).mean())


def test_a_layer_used_twice_pools_both_uses():
    model, images = Twice(), images_like(14)
    result = calibrate_batch_norm(model, images.split([5, 9]))
    values = [images.double(), 2 * images[..., ::2].double() + 5]
    values = np.concatenate([value.transpose(0, 1).flatten(1).numpy() for value in values], axis=1)
    assert relative_error(model.norm.running_var, values.var(axis=1, ddof=1)) < 1e-5
    assert relative_error(model.norm.running_mean, values.mean(axis=1)) < 1e-5
    assert result.statistics["norm"].count == values.shape[1]
    assert result.statistics["after"].count == 14 * 64


class Kinds(nn.Module):
    """One layer of each kind, all given the images (as sequences or volumes where they want such)."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm3d(3)
        self.plain = nn.BatchNorm2d(3, affine=False)
        self.act, self.sync = BatchNormAct2d(3), nn.SyncBatchNorm(3)
        self.exact = nn.BatchNorm2d(3, dtype=torch.float64)
        self.untracked = nn.BatchNorm2d(3, track_running_stats=False)
        self.frozen, self.frozen_act = FrozenBatchNorm2d(3), FrozenBatchNormAct2d(3)
        self.instance = nn.InstanceNorm2d(3, track_running_stats=True)
        self.unreached = nn.BatchNorm2d(3)
        self.unreached.running_mean.fill_(7)

    def forward(self, images):
        self.one(images.flatten(2))
        self.three(images.unflatten(3, (2, -1)))
        self.exact(images.double())
        for name in ("two", "plain", "act", "sync", "untracked", "frozen", "frozen_act", "instance"):
            getattr(self, name)(images)


def test_every_kind_of_layer_is_measured_or_left_alone():
    model, images = Kinds(), images_like(10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = calibrate_batch_norm(model, images.split([4, 6]))
    measured = ["one", "two", "three", "plain", "act", "sync", "exact"]
    assert sorted(result.statistics) == sorted([*measured, "unreached"])
    values = images.double().transpose(0, 1).flatten(1).numpy()
    for name in measured:
        assert relative_error(getattr(model, name).running_var, values.var(axis=1, ddof=1)) < 1e-5, name
    assert result.statistics["unreached"].count == 0
    for name, value in model.state_dict().items():
        if name.split(".")[0] not in measured:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("how", ["parallel", "compiled", "compiled in place"])
def test_wrapped_and_compiled_networks_are_measured_like_bare_ones_and_not_compiled_anew(how):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    images = images_like(12)
    expected = measure_batch_norm(network(), images.split(6)).statistics
    model = wrapped = network().eval()
    if how == "parallel":
        wrapped = nn.DataParallel(model)
    elif how == "compiled":
        wrapped = torch.compile(model, backend=backend)
    else:
        model.compile(backend=backend)
    wrapped(images)
    before = len(compiled)
    assert (before > 0) == (how != "parallel")
    found = calibrate_batch_norm(wrapped, images.split(6)).statistics
    assert len(compiled) == before
    for name, statistics in expected.items():
        assert torch.equal(found[name].mean, statistics.mean)
        assert torch.equal(found[name].var, statistics.var)
        assert torch.equal(model.get_submodule(name).running_mean, statistics.mean)


def test_images_are_a_batch_or_its_first_part():
    images = images_like(12).split(4)
    for wrap in (lambda x: x, lambda x: (x, torch.zeros(len(x))), lambda x: [x, 1]):
        assert calibrate_batch_norm(network(), map(wrap, images)).samples == 12
    with pytest.raises(ValueError, match="batch is of type dict; it must be a tensor"):
        calibrate_batch_norm(network(), [{"pixels": images[0]}])


def test_an_iterator_that_was_opened_for_a_calibration_is_closed_and_a_given_one_goes_on():
    class Images:
        def __iter__(self):
            self.opened = stream()
            return self.opened

    def stream():
        while True:
            yield images_like(4)

    images, given = Images(), stream()
    for batches in (images, given):
        assert calibrate_batch_norm(network(), batches, max_batches=2).batches_used == 2
    assert next(images.opened, None) is None
    assert next(given, None) is not None


def test_no_batch_beyond_max_batches_is_asked_for():
    def batches():
        for number in range(4):
            assert number < 3, "a fourth batch was decoded for nothing"
            yield images_like(2)

    assert calibrate_batch_norm(network(), batches(), max_batches=3).batches_used == 3


@pytest.mark.parametrize(
    ("model", "batches", "options", "words"),
    [
        (nn.GroupNorm(1, 3), [torch.zeros(2, 3, 4, 4)], {}, "GroupNorm has no batch-norm layer"),
        (nn.BatchNorm2d(3), [], {}, "no batch to calibrate"),
        (nn.BatchNorm2d(3), [], {"max_batches": 0}, "max_batches is 0"),
        (nn.ModuleList([nn.BatchNorm2d(3)]), [torch.zeros(1)], {}, "reached a batch-norm layer"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(model, batches, options, words):
    if isinstance(model, nn.ModuleList):
        model.forward = lambda images: images
    with pytest.raises(ValueError, match=words):
        calibrate_batch_norm(model, batches, **options)


def test_statistics_of_another_network_are_refused_by_the_layers_name_and_write_nothing():
    statistics = measure_batch_norm(network(), [images_like(4)]).statistics
    missing = {name: found for name, found in statistics.items() if name != "b"}
    foreign = {**statistics, "c": statistics["b"]}
    wide = {**statistics, "b": LayerStatistics(torch.zeros(9), torch.ones(9), 4)}
    for wrong, words in (
        (missing, "layer 'b' of the network is not in the statistics"),
        (foreign, "layer 'c' of the statistics is not in the network"),
        (wide, "layer 'b' has 4 channels; its statistics have 9"),
    ):
        model = network()
        before = snapshot(model)
        with pytest.raises(ValueError, match=words):
            load_statistics(model, wrong)
        assert_same(before, snapshot(model))


TWO_RANKS = """
import sys, torch
from torch import distributed as dist, nn
from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.algorithms.batchnorm.calibration import calibrate_batch_norm, measure_batch_norm

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)


class Sync(nn.SyncBatchNorm):
    '''What SyncBatchNorm does on a GPU, spelt out: normalise and track by the batches of all ranks as one.'''

    def forward(self, x):
        gathered = [None, None]
        dist.all_gather_object(gathered, x.transpose(0, 1).flatten(1).double())
        values = torch.cat(gathered, 1)
        mean, var = values.mean(1), values.var(1)
        self.running_mean.lerp_(mean.float(), self.momentum)
        self.running_var.lerp_(var.float(), self.momentum)
        biased = var * (values.shape[1] - 1) / values.shape[1]
        shape = (1, -1, 1, 1)
        return ((x.double() - mean.view(shape)) / (biased.view(shape) + self.eps).sqrt()).float()


def make(norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 4, 3), norm(4))


def batches(part):
    return torch.load(f"{folder}/{part}.pt")[rank]


out = {}
model = nn.parallel.DistributedDataParallel(make(nn.BatchNorm2d))
bank = StatisticsBank()
out["plain"] = bank.calibrate(model, 8, batches("plain"))
out["written"] = calibrate_batch_norm(model, batches("plain"))
out["model"] = model.module.state_dict()
out["alone"] = measure_batch_norm(model, batches("plain"), across_ranks=False)
out["sync"] = measure_batch_norm(make(Sync), batches("sync"))
try:
    measure_batch_norm(make(nn.SyncBatchNorm), batches("sync"))
except ValueError as error:
    out["cpu"] = str(error)
out = {key: value if isinstance(value, (dict, str)) else vars(value) for key, value in out.items()}
for value in out.values():
    if isinstance(value, dict) and "statistics" in value:
        value["statistics"] = {name: tuple(found) for name, found in value["statistics"].items()}
torch.save(out, f"{folder}/out{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The batches given to two gloo processes and what each of them found."""
    folder = tmp_path_factory.mktemp("ranks")
    parts = {
        "plain": (images_like(15, seed=1).split([4, 5, 6]), (images_like(11, seed=2) + 3).split([2, 9])),
        "sync": (images_like(18, seed=3).split([4, 8, 6]), (images_like(9, seed=4) - 2).split([2, 7])),
    }
    for name, part in parts.items():
        torch.save(part, folder / f"{name}.pt")
    command = [sys.executable, "-W", "error", "-c", TWO_RANKS]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder)], stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    return parts, [torch.load(folder / f"out{rank}.pt") for rank in range(2)]


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, (mean, var, count) in found.items():
        torch.testing.assert_close(mean, expected[name].mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(var, expected[name].var, rtol=1e-5, atol=0)
        assert count == expected[name].count


def test_ranks_with_different_numbers_of_batches_find_the_statistics_of_all_of_them(two_ranks):
    parts, found = two_ranks
    expected = measure_batch_norm(two_layers(), [*parts["plain"][0], *parts["plain"][1]])
    for rank in range(2):
        for key in ("plain", "written"):
            assert_close(found[rank][key]["statistics"], expected.statistics)
            assert found[rank][key]["samples"] == 26
            assert found[rank][key]["batches_used"] == (3, 2)[rank]
    for name, statistics in found[0]["plain"]["statistics"].items():
        assert torch.equal(statistics[0], found[1]["plain"]["statistics"][name][0])
        assert torch.equal(statistics[1], found[1]["plain"]["statistics"][name][1])
    for name, value in found[0]["model"].items():
        assert torch.equal(value, found[1]["model"][name]), name


def test_a_rank_may_calibrate_alone(two_ranks):
    parts, found = two_ranks
    for rank in range(2):
        alone = measure_batch_norm(two_layers(), parts["plain"][rank]).statistics
        assert_close(found[rank]["alone"]["statistics"], alone)


def test_synchronised_layers_count_each_value_once_and_stop_with_the_shortest_rank(two_ranks):
    parts, found = two_ranks
    together = [torch.cat(pair) for pair in zip(*parts["sync"], strict=False)]
    expected = measure_batch_norm(two_layers(), together)
    for rank in range(2):
        assert_close(found[rank]["sync"]["statistics"], expected.statistics)
        assert (found[rank]["sync"]["batches_used"], found[rank]["sync"]["samples"]) == (2, 21)
        assert "GPU" in found[rank]["cpu"]
