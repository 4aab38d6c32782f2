"""A bank gives a network the statistics of each size, and is written and read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.algorithms.batchnorm.calibration import calibrate_batch_norm


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4))


def images_of(size, count=20):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(size)).split(5)


def bank_of(*sizes):
    bank = StatisticsBank()
    for size in sizes:
        assert bank.calibrate(network(), size, images_of(size)).samples == 20
    return bank


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def calibrated(size):
    model = network()
    calibrate_batch_norm(model, images_of(size))
    return {name: value for name, value in model.state_dict().items() if "running" in name}


def carries(model, statistics):
    return all(torch.equal(model.state_dict()[name], value) for name, value in statistics.items())


def test_a_network_carries_the_statistics_of_a_size_inside_the_context_and_its_own_afterwards():
    model, bank = network(), StatisticsBank()
    model.train()(torch.cat(images_of(8)))
    own = state_of(model)
    for size in (12, 8):
        bank.calibrate(model, size, images_of(size))
        assert same(state_of(model), own)
    assert bank.sizes == [8, 12]
    assert not carries(model, calibrated(8))
    with bank.use(model, 8) as kept:
        assert carries(model, calibrated(8))
        assert torch.equal(kept["1"][0], own["1.running_mean"])
        assert torch.equal(kept["1"][1], own["1.running_var"])
        with bank.use(model, 12):
            assert carries(model, calibrated(12))
        assert carries(model, calibrated(8))
    assert same(state_of(model), own)
    with pytest.raises(KeyError), bank.use(model, 8):
        raise KeyError
    assert same(state_of(model), own)
    bank.load_into(model, 12)
    assert carries(model, calibrated(12))


def test_a_missing_size_is_answered_with_those_that_there_are():
    with pytest.raises(ValueError, match="for 200 px; it has none"):
        StatisticsBank()[200]
    bank = bank_of(8, 12)
    with pytest.raises(ValueError, match="for 10 px; it has 8 px, 12 px"), bank.use(network(), 10):
        pass
    with pytest.raises(ValueError, match="size_px is 0"):
        bank.calibrate(network(), 0, images_of(8))


def test_a_file_holds_the_bank_that_was_saved(tmp_path):
    bank, path = bank_of(8, 12), tmp_path / "bn.pt"
    path.write_text("an older file")
    bank.save(path)
    loaded = StatisticsBank.load(path)
    assert loaded.sizes == [8, 12]
    for size in (8, 12):
        for name, statistics in bank[size].items():
            assert torch.equal(loaded[size][name].mean, statistics.mean)
            assert torch.equal(loaded[size][name].var, statistics.var)
            assert loaded[size][name].count == statistics.count


def test_a_write_that_fails_keeps_the_older_file(tmp_path, monkeypatch):
    bank, path = bank_of(8), tmp_path / "bn.pt"
    bank.save(path)
    before = path.read_bytes()

    def full_disk(state, file):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        bank.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["bn.pt"]


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(FileNotFoundError):
        StatisticsBank.load(path)
    for content in (b"", b"not a file of torch", b"PK\x03\x04broken"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.pt is not a file of batch-norm statistics"):
            StatisticsBank.load(path)
    torch.save(network().state_dict(), path)
    with pytest.raises(ValueError, match=r"x\.pt is not a file of .*'sizes'"):
        StatisticsBank.load(path)


def _change(state, how):
    layer = state["sizes"]["8"]["1"]
    if how == "sizes":
        state["sizes"] = [8]
    elif how == "size":
        state["sizes"]["x"] = {}
    elif how == "field":
        del layer["count"]
    elif how == "vector":
        layer["mean"] = torch.zeros(5, 1)
    else:
        layer["var"] = torch.zeros(4)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("sizes", "has no attribute 'items'"),
        ("size", "'x' is not a size in pixels"),
        ("field", "'count'"),
        ("vector", r"mean \(5, 1\) and a variance \(5,\)"),
        ("shapes", r"mean \(5,\) and a variance \(4,\)"),
    ],
)
def test_a_damaged_state_is_refused_and_the_bank_stays(how, words):
    state = bank_of(8).state_dict()
    _change(state, how)
    bank = bank_of(12)
    with pytest.raises(ValueError, match=f"not a state of StatisticsBank: .*{words}"):
        bank.load_state_dict(state)
    assert bank.sizes == [12]
