"""BNCalibrate in a real Trainer: whose statistics the network carries when, and what reaches a checkpoint."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from composer import Callback, Evaluator, Trainer
from composer.algorithms.warnings import NoEffectWarning
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import nn

from mixsize.algorithms import Base, Regime
from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.algorithms.batchnorm.bn_calibrate import BNCalibrate
from mixsize.algorithms.batchnorm.layers import batch_norm_layers
from mixsize.ffcv_loaders import EvalLoader, MixSizeLoader, PadCrop, Resize

SIZES = (8, 12)
MIX = Regime.from_sizes({16: 0.5, 8: 0.5}, Base(16, 64), "D+")  # 22 batches an epoch


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), norm(8), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(8, 8, 3, 1, 1), norm(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    return ComposerClassifier(module, num_classes=10)


def images_at(digits):
    """Where calibration images come from: shuffled training images at a size."""

    def loader_for(size_px):
        regime = Regime.fixed(Base(size_px, 96))
        return MixSizeLoader(digits / "train.beton", regime, augment=Resize(), seed=5, num_workers=1, device="cpu")

    return loader_for


def eval_loader(digits, size_px):
    return EvalLoader(digits / "test.beton", size_px, 180, augment=Resize(), num_workers=1, device="cpu")


def training_images(digits):
    return MixSizeLoader(
        digits / "train.beton", MIX, augment=PadCrop(1), seed=3, num_workers=1, device="cpu"
    ).data_spec()  # fmt: skip


def trainer_for(digits, algorithms, duration="1ep", *, model=None, interval="1ep", evaluators=None, **kwargs):
    model = network() if model is None else model
    if evaluators is None:
        evaluators = [Evaluator(label=f"eval_{size}px", dataloader=eval_loader(digits, size)) for size in SIZES]
    return Trainer(
        model=model,
        train_dataloader=training_images(digits),
        eval_dataloader=evaluators,
        eval_interval=interval,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        algorithms=algorithms,
        max_duration=duration,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
        seed=11,
        **kwargs,
    )


def carried(model):
    """Every batch-norm buffer of the network, as it is now."""
    return {name: value.clone() for name, value in model.module.named_buffers()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class Watch(Callback):
    """What the network carries around each evaluation, with what the evaluation must not find changed."""

    def __init__(self):
        self.before, self.during, self.after, self.saved, self.clean = [], [], [], [], []

    def eval_before_all(self, state, logger):
        self.own = carried(state.model)
        self.note(state)

    def note(self, state):
        self.batch, self.random = state.batch, torch.get_rng_state()

    def eval_start(self, state, logger):
        untouched = state.batch is self.batch and int(state.eval_timestamp.batch) == 0
        quiet = torch.equal(torch.get_rng_state(), self.random)
        self.clean.append(untouched and quiet and not any(module.training for module in state.model.modules()))
        self.before.append(self.own)

    def eval_batch_end(self, state, logger):
        self.during.append((state.dataloader_label, carried(state.model)))
        self.saved.append({name: value.clone() for name, value in state.get_model_state_dict().items()})

    def eval_end(self, state, logger):
        self.after.append(carried(state.model))
        self.note(state)


def first_layer_at(loader, module, batches):
    """Mean and unbiased variance of what the first batch-norm layer is given, by numpy in float64."""
    conv = nn.Conv2d(3, 8, 3, 2, 1).double()
    conv.load_state_dict(module[0].state_dict())
    with torch.no_grad():
        first = islice(loader, batches)
        values = [conv(images.double()).transpose(0, 1).flatten(1).numpy() for images, _ in first]
    values = np.concatenate(values, axis=1)
    return values.mean(axis=1), values.var(axis=1, ddof=1)


def test_each_evaluator_runs_with_its_own_sizes_statistics_and_the_network_gets_its_own_back(digits):
    watch, logged = Watch(), InMemoryLogger()
    calibrate = BNCalibrate(images_at(digits), num_batches=6)
    trainer = trainer_for(digits, [calibrate], "1ep", callbacks=[watch], loggers=logged)
    trainer.fit()
    model = trainer.state.model
    assert [label for label, _ in watch.during] == ["eval_8px"] * 2 + ["eval_12px"] * 2
    for label, found in watch.during:
        size = int(label.removeprefix("eval_").removesuffix("px"))
        mean, var = first_layer_at(images_at(digits)(size), model.module, 6)
        assert np.abs(found["1.running_mean"].numpy() - mean).max() < 1e-5
        assert np.abs(found["1.running_var"].numpy() / var - 1).max() < 1e-5
        with calibrate.bank.use(model.module, size):
            assert same(carried(model), found)
    assert not same(watch.during[0][1], watch.during[2][1])
    assert all(same(own, after) for own, after in zip(watch.before, watch.after, strict=True))
    assert same(carried(model), watch.before[0])
    assert not same(watch.during[0][1], watch.before[0])
    assert watch.clean == [True, True]
    for size in SIZES:
        assert [value for _, value in logged.data[f"calibration/eval_{size}px/batches"]] == [6]
        assert logged.data[f"calibration/eval_{size}px/seconds"][0][1] > 0
    trainer.close()


def test_the_reported_metrics_are_those_of_the_calibrated_network(digits):
    logged, calibrate = InMemoryLogger(), BNCalibrate(images_at(digits), num_batches=6)
    trainer = trainer_for(digits, [calibrate], loggers=logged)
    trainer.fit()
    module = trainer.state.model.module.eval()

    def loss(size):
        with torch.no_grad():
            pairs = [(module(images), labels) for images, labels in eval_loader(digits, size)]
            logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
            return nn.functional.cross_entropy(logits, labels).item()

    for size in SIZES:
        measured = float(logged.data[f"metrics/eval_{size}px/CrossEntropy"][-1][1])
        with calibrate.bank.use(module, size):
            assert measured == pytest.approx(loss(size), rel=1e-5)
        assert measured != pytest.approx(loss(size), rel=1e-4)
    trainer.close()


def test_training_goes_on_as_if_nothing_had_been_measured(digits):
    ends = []
    for algorithms in ([], [BNCalibrate(images_at(digits), num_batches=3)]):
        trainer = trainer_for(digits, algorithms, "2ep")
        trainer.fit()
        ends.append({name: value.clone() for name, value in trainer.state.model.state_dict().items()})
        trainer.close()
    assert same(*ends)


@pytest.mark.parametrize(
    ("when", "duration", "interval", "times"),
    [
        ("each", "2ep", "1ep", 2),
        ("last", "2ep", "1ep", 1),
        ("last", "2ep", "11ba", 1),  # the last one falls on the last batch, before its epoch counts
        ("last", "2ep", "30ba", 1),  # the last one comes after training
        ("last", "10ba", "5ba", 1),
        ("last", "30ba", "1ep", 1),
    ],
)
def test_the_last_evaluation_is_the_only_one_calibrated_where_asked(digits, when, duration, interval, times):
    logged, calibrate = InMemoryLogger(), BNCalibrate(images_at(digits), num_batches=1, when=when)
    trainer = trainer_for(digits, [calibrate], duration, interval=interval, loggers=logged)
    trainer.fit()
    rows = logged.data["calibration/eval_8px/batches"]
    assert len(rows) == times
    assert int(rows[-1][0].batch) == int(trainer.state.timestamp.batch)
    if when == "last":
        trainer.eval()
        assert len(logged.data["calibration/eval_8px/batches"]) == times + 1
    trainer.close()


def test_sizes_come_from_a_mapping_where_labels_do_not_say_them(digits):
    logged = InMemoryLogger()
    labels = {"small": 8, "raw": None}
    evaluators = [
        Evaluator(label=label, dataloader=eval_loader(digits, 8)) for label in (*labels, "eval_12px")
    ]  # fmt: skip
    asked = []

    def loader_for(size_px):
        asked.append(size_px)
        return images_at(digits)(size_px)

    calibrate = BNCalibrate(loader_for, num_batches=1, sizes=labels)
    trainer = trainer_for(digits, [calibrate], "1ba", evaluators=evaluators, loggers=logged)
    trainer.fit()
    assert asked == [8, 12]
    assert {key.split("/")[1] for key in logged.data if key.startswith("calibration/")} == {"small", "eval_12px"}
    trainer.close()


@pytest.mark.parametrize(
    ("label", "sizes", "words"),
    [
        ("validation", None, "label of evaluator 'validation' does not end in its image size"),
        ("eval_8px", {"eval_9px": 9}, "sizes lists the evaluator 'eval_9px'; the Trainer has 'eval_8px'"),
    ],
)
def test_evaluators_whose_size_is_not_known_are_refused_before_training(digits, label, sizes, words):
    evaluator = Evaluator(label=label, dataloader=eval_loader(digits, 8))
    trainer = trainer_for(digits, [BNCalibrate(images_at(digits), sizes=sizes)], evaluators=[evaluator])
    with pytest.raises(ValueError, match=words):
        trainer.fit()
    assert int(trainer.state.timestamp.batch) == 0
    trainer.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_batches": 0}, "num_batches is 0"),
        ({"when": "never"}, "when is 'never'"),
        ({"sizes": {"a": 0}}, r"sizes\['a'\] is 0"),
    ],
)
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        BNCalibrate(lambda size_px: [], **options)


def test_a_checkpoint_holds_the_networks_own_statistics_and_the_bank(digits, tmp_path):
    watch, calibrate = Watch(), BNCalibrate(images_at(digits), num_batches=2)
    trainer = trainer_for(digits, [calibrate], "1ep", callbacks=[watch])
    trainer.fit()
    for saved, own in zip(watch.saved, [watch.before[0]] * 4, strict=True):
        assert same({name: saved[f"module.{name}"] for name in own}, own)  # Taken in the middle of an evaluation.
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pt"))
    own = carried(trainer.state.model)
    trainer.close()

    states = dict(torch.load(tmp_path / "checkpoint.pt", weights_only=False)["state"]["algorithms"])
    file = io.BytesIO()
    torch.save(states["BNCalibrate"], file)
    file.seek(0)
    bank = StatisticsBank()
    bank.load_state_dict(torch.load(file, weights_only=True)["bank"])
    assert bank.sizes == list(SIZES)

    resumed = BNCalibrate(images_at(digits))
    trainer = trainer_for(digits, [resumed], "2ep", load_path=str(tmp_path / "checkpoint.pt"))
    assert same(carried(trainer.state.model), own)
    for size in SIZES:
        for name, statistics in calibrate.bank[size].items():
            assert torch.equal(resumed.bank[size][name].mean, statistics.mean)
            assert torch.equal(resumed.bank[size][name].var, statistics.var)
    trainer.close()


class FailsOnce:
    """Evaluation batches whose second one cannot be read the first time."""

    def __init__(self, loader):
        self.loader, self.failed = loader, False
        self.batch_size = loader.batch_size

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for number, batch in enumerate(self.loader):
            if number == 1 and not self.failed:
                self.failed = True
                raise OSError("disk on fire")
            yield batch


class AtBatchStart(Callback):
    def __init__(self):
        self.carried = []

    def batch_start(self, state, logger):
        self.carried.append(carried(state.model))


def test_an_evaluation_that_fails_leaves_nothing_behind(digits):
    watch, starts = Watch(), AtBatchStart()
    calibrate = BNCalibrate(images_at(digits), num_batches=2)
    broken = Evaluator(label="eval_8px", dataloader=FailsOnce(eval_loader(digits, 8)))
    trainer = trainer_for(digits, [calibrate], "4ba", interval="2ba", evaluators=[broken], callbacks=[watch, starts])
    with pytest.raises(OSError, match="on fire"):
        trainer.fit()
    own = watch.own
    assert not same(carried(trainer.state.model), own)
    saved = trainer.state.state_dict()["model"]
    assert same({name: saved[f"module.{name}"] for name in own}, own)
    trainer.fit(train_dataloader=training_images(digits))  # Composer itself would go on with the evaluator's length.
    assert same(starts.carried[2], own)
    assert same(watch.after[-1], watch.before[-1])
    assert int(trainer.state.timestamp.batch) == 4
    trainer.close()


def test_a_calibration_that_fails_leaves_nothing_behind(digits):
    watch = Watch()

    def loader_for(size_px):
        yield next(iter(images_at(digits)(size_px)))
        raise OSError("disk on fire")

    trainer = trainer_for(digits, [BNCalibrate(loader_for)], "2ba", callbacks=[watch])
    with pytest.raises(OSError, match="on fire"):
        trainer.fit()
    assert same(carried(trainer.state.model), watch.own)
    assert not any(layer._forward_pre_hooks for layer in batch_norm_layers(trainer.state.model.module).values())
    trainer.close()


def test_an_evaluation_by_itself_is_calibrated(digits):
    calibrate = BNCalibrate(images_at(digits), num_batches=2, when="last")
    trainer = trainer_for(digits, [calibrate])
    own = carried(trainer.state.model)
    trainer.eval()
    assert calibrate.bank.sizes == list(SIZES)
    assert same(carried(trainer.state.model), own)
    trainer.close()


def test_a_network_without_batch_norm_is_warned_of_and_evaluated_as_it_is(digits):
    def loader_for(size_px):
        raise AssertionError("there is nothing to calibrate")

    logged = InMemoryLogger()
    with pytest.warns(NoEffectWarning, match="Sequential has no batch-norm layer"):
        trainer = trainer_for(
            digits,
            [BNCalibrate(loader_for)],
            "2ba",
            model=network(lambda channels: nn.GroupNorm(2, channels)),
            loggers=logged,
        )
    trainer.fit()
    assert "metrics/eval_8px/MulticlassAccuracy" in logged.data
    assert not any(key.startswith("calibration/") for key in logged.data)
    trainer.close()


TWO_RANKS = """
import sys, torch
from composer import Callback, DataSpec, Evaluator, Trainer
from composer.models import ComposerClassifier
from mixsize.algorithms.batchnorm.bn_calibrate import BNCalibrate
from torch import nn

rank, folder = int(sys.argv[1]), sys.argv[2]


def batches(count, size_px):
    generator = torch.Generator().manual_seed(size_px + 100 * rank)
    images = [torch.rand(6, 3, size_px, size_px, generator=generator) + rank for _ in range(count)]
    return [(batch, torch.zeros(6, dtype=torch.long)) for batch in images]


class Watch(Callback):
    def __init__(self):
        self.during, self.after = [], []

    def carried(self, state):
        assert state.is_model_ddp
        return {name: value.clone() for name, value in state.model.module.module.named_buffers()}

    def eval_before_all(self, state, logger):
        self.own = self.carried(state)

    def eval_batch_end(self, state, logger):
        self.during.append(self.carried(state))

    def eval_end(self, state, logger):
        self.after.append(self.carried(state))


torch.manual_seed(0)
module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
model, watch = ComposerClassifier(module, num_classes=2), Watch()
spec = lambda count, size_px: DataSpec(batches(count, size_px))
trainer = Trainer(
    model=model,
    train_dataloader=spec(4, 8),
    eval_dataloader=[
        Evaluator(label=f"{size}px", dataloader=spec(1, size), device_eval_microbatch_size=6) for size in (8, 12)
    ],
    optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
    algorithms=[BNCalibrate(lambda size_px: batches(3 + rank, size_px))],
    callbacks=[watch],
    max_duration="1ep",
    device="cpu",
    device_train_microbatch_size=6,
    progress_bar=False,
    auto_log_hparams=False,
)
trainer.fit()
torch.save(vars(watch), f"{folder}/{rank}.pt")
trainer.close()
"""


def test_ranks_evaluate_with_the_same_statistics_and_keep_their_own(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path)]
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [rank.communicate(timeout=150)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert not same(first["own"], second["own"])
    assert len(first["during"]) == len(second["during"]) == 2
    assert not same(*first["during"])
    for one, other in zip(first["during"], second["during"], strict=True):
        for kind in ("1.running_mean", "1.running_var"):
            assert torch.equal(one[kind], other[kind])
    for found in (first, second):
        assert len(found["after"]) == 2
        assert all(same(after, found["own"]) for after in found["after"])
