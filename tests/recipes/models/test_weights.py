"""Weights from every kind of file they come in, and what is refused: other networks, damaged files, code."""

from __future__ import annotations

import argparse
import os
import pickle
from datetime import timedelta

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.torch_version import TorchVersion

from mixsize.recipes.config.schema import Model
from mixsize.recipes.models.network import create_network
from mixsize.recipes.models.weights import load_weights, read_weights, sha256
from mixsize.recipes.records.run_folder import find_recipe, find_weights


def network(classes=10, name="cifar_resnet20"):
    torch.manual_seed(classes)
    return create_network(Model(name=name), classes)


def named(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def training_state(state):
    """What Composer saves beside the weights, in its own types; the random state is numpy's array of uint32."""
    return {
        "state": {
            "model": named(state, "module."),
            "optimizers": {"SGD": {"state": {}, "param_groups": [{"lr": 0.1}]}},
            "algorithms": [("BNCalibrate", {"bank": {"sizes": {}}})],
            "timestamp": {"Timestamp": {"batch": 3, "total_wct": timedelta(seconds=3)}},
            "metadata": {"torch_version": TorchVersion("2.7.0")},
        },
        "rng": [{"numpy": np.random.RandomState(0).get_state(), "torch": torch.get_rng_state()}],
    }


WRAPPINGS = {
    "plain.pth": lambda state: state,
    "state_dict.tar": lambda state: {"state_dict": state, "epoch": 90, "args": argparse.Namespace(lr=0.1)},
    "model.pt": lambda state: {"model": state},
    "ddp.bin": lambda state: {"state_dict": named(state, "module.")},
    "compiled.pt": lambda state: named(state, "_orig_mod."),
    "compiled_ddp.pt": lambda state: named(state, "module._orig_mod."),
    "composer.pt": training_state,
    "composer_compiled.pt": lambda state: training_state(named(state, "_orig_mod.")),
}


@pytest.mark.parametrize("file", WRAPPINGS)
def test_every_wrapping_gives_the_same_weights(tmp_path, file):
    source = network()
    torch.save(WRAPPINGS[file](source.state_dict()), tmp_path / file)
    weights = read_weights(tmp_path / file)
    other = create_network(Model(name="cifar_resnet20"), 10)
    load_weights(other, weights, tmp_path / file, "cifar_resnet20")
    assert weights.keys() == source.state_dict().keys()
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in other.state_dict().items())


def test_safetensors_are_read(tmp_path):
    state = network().state_dict()
    save_file(state, tmp_path / "model.safetensors")
    weights = read_weights(tmp_path / "model.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in state.items())


def test_averaged_weights_come_first(tmp_path):
    plain, averaged = network().state_dict(), network(9).state_dict()
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "timm.pth")
    assert read_weights(tmp_path / "timm.pth")["fc.bias"].shape == (9,)


def test_weights_saved_before_batch_norm_had_counters_are_loaded(tmp_path):
    source = network()
    old = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    other = network(10)
    load_weights(other, {key: value + 1 for key, value in old.items()}, tmp_path / "old.pth", "cifar_resnet20")
    assert torch.equal(other.conv1.weight, source.conv1.weight + 1)


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, form):
    content, file = {"state_dict": network().state_dict(), "extra": Hostile(tmp_path / "ran")}, tmp_path / "bad.pt"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Hostile(tmp_path / "ran"), protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    words = r"bad\.pt holds more than weights: (posix|nt)\.mkdir, which could run code when loaded"
    with pytest.raises(ValueError, match=words):
        read_weights(file)
    assert not (tmp_path / "ran").exists()


def test_a_whole_network_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"holds more than weights: torch\.nn\.modules\.linear\.Linear"):
        read_weights(tmp_path / "whole.pt")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("empty.pt", b""),
        ("text.pt", b"hello world, this is no checkpoint"),
        ("text.safetensors", b"hello world, this is no checkpoint"),
        ("binary.pth", bytes(range(256)) * 8),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, file, content):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} (cannot be read as weights: \w+|is not a file of tensors)"):
        read_weights(tmp_path / file)


def test_a_file_that_was_cut_short_is_named(tmp_path):
    torch.save(network().state_dict(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.pt cannot be read as weights: RuntimeError"):
        read_weights(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"net": {"w": torch.zeros(1)}, "epoch": 3}, "holds no weights under .*; its keys are net, epoch"),
        ({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, "holds no weights .*; its keys are a, b, c and 2 more"),
        ({}, "holds no weights .*; its keys are none"),
        ([torch.zeros(1)], "holds no dictionary of weights"),
        (torch.zeros(1), "holds no dictionary of weights"),
    ],
)
def test_a_file_without_weights_is_named(tmp_path, content, words):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=rf"odd\.pt {words}"):
        read_weights(tmp_path / "odd.pt")


def test_weights_for_another_number_of_classes_are_refused_with_the_way_out(tmp_path):
    words = (
        r"w\.pt was trained for 100 classes \(fc\.weight: \(100, 64\) in the file, \(10, 64\) in the network\).* "
        r"says 10; .*model\.num_classes=100"
    )
    with pytest.raises(ValueError, match=words):
        load_weights(network(10), network(100).state_dict(), tmp_path / "w.pt", "cifar_resnet20")


def test_weights_of_another_network_are_refused_with_the_keys_that_differ(tmp_path):
    target = network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = dict(before)
    state["stranger"] = state.pop("conv1.weight")
    state["bn1.weight"] = torch.zeros(3)
    state["fc.bias"] = torch.zeros(11)
    words = (
        r"w\.pt does not fit cifar_resnet20; missing: conv1\.weight; unexpected: stranger; of another shape: "
        r"bn1\.weight: \(3,\) in the file, \(16,\) in the network, fc\.bias: \(11,\) in the file, \(10,\) in the net"
    )
    with pytest.raises(ValueError, match=words):
        load_weights(target, state, tmp_path / "w.pt", "cifar_resnet20")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    with pytest.raises(ValueError, match=r"missing: .* and \d+ more; unexpected: .* and \d+ more"):
        load_weights(network(), network(name="wrn16_2").state_dict(), tmp_path / "w.pt", "cifar_resnet20")


def run_folder(tmp_path, *files):
    """Empty archives that pass for checkpoints, and a recipe, the first file the oldest."""
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/recipe.yaml").touch()
    for age, file in enumerate(reversed(files)):
        torch.save({}, tmp_path / "run" / file)
        os.utime(tmp_path / "run" / file, (1e9 - age, 1e9 - age))
    return tmp_path / "run"


def test_a_run_stands_for_its_last_weights(tmp_path):
    steps = ["checkpoints/ep9-ba90.pt", "checkpoints/ep10-ba100.pt"]
    ended = run_folder(tmp_path / "ended", *steps, "model.safetensors")
    assert find_weights(ended) == ended / "model.safetensors"
    stopped = run_folder(tmp_path / "stopped", *steps)
    assert find_weights(stopped) == stopped / "checkpoints/ep10-ba100.pt"
    extended = run_folder(tmp_path / "extended", "model.safetensors", "checkpoints/ep20-ba200.pt")
    assert find_weights(extended) == extended / "checkpoints/ep20-ba200.pt"
    moved = run_folder(tmp_path / "moved", "model.safetensors")
    assert find_weights(moved) == moved / "model.safetensors"
    empty = run_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor a checkpoint checkpoints/ep\*-ba\*\.pt"):
        find_weights(empty)
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        find_weights(tmp_path / "nowhere")


def test_a_recipe_is_found_beside_the_weights_and_one_folder_up(tmp_path, monkeypatch):
    run = run_folder(tmp_path, "model.safetensors", "checkpoints/ep1-ba10.pt")
    for file in ("model.safetensors", "checkpoints/ep1-ba10.pt"):
        assert find_recipe(run / file) == run / "recipe.yaml"
    (run / "deep/er").mkdir(parents=True)
    assert find_recipe(run / "deep/er/w.pt") is None
    monkeypatch.chdir(run / "checkpoints")
    assert find_recipe(find_weights(type(run)("ep1-ba10.pt"))) == run / "recipe.yaml"


def test_sha256_is_the_standards_example(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
