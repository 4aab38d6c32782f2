"""Composer's algorithms and callbacks trained at mixed sizes with duplicates, stopped in the middle and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from composer.core import Algorithm, Event

from mixsize.algorithms.averaging.model_ema import ModelEMA
from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.algorithms.batchnorm.bn_calibrate import BNCalibrate
from mixsize.cli import main
from mixsize.recipes.build.trainer import build
from mixsize.recipes.commands.eval_report import read_record
from mixsize.recipes.commands.train import fit
from mixsize.recipes.config.compose import compose
from mixsize.recipes.config.composer_table import ALGORITHMS, CALLBACKS
from mixsize.recipes.models.inference import load_at_size
from mixsize.recipes.models.weights import read_weights
from mixsize.recipes.records.run_folder import latest_checkpoint

#: Those that resume, in two runs: of training steps, and of the network.
STEPS = {
    "ema": {"half_life": "3ba"},
    "gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 0.5},
    "cutout": {"length": 0.25},
}
NETWORK = {
    "blurpool": {"min_channels": 8},
    "squeeze_excite": {"min_channels": 16, "latent_channels": 4},
    "factorize": {"min_channels": 32, "latent_channels": 0.25},
    "weight_standardization": {},
    "swa": {"swa_start": "0.2dur", "swa_end": "0.8dur", "update_interval": "2ba"},
}
#: They only train.
NOT_RESUMED = {"sam": {}, "layer_freezing": {"freeze_start": 0.0}}
#: They need mixed precision, which takes a GPU; tests/recipes/models/test_surgery.py makes their networks.
ON_GPU = {"low_precision_layernorm", "low_precision_groupnorm"}

QUIET = {
    "activation_monitor": {"interval": "10ba"},
    "early_stopper": {"monitor": "CrossEntropy", "dataloader_label": "eval_16px", "patience": "9ep"},
    "image_visualizer": {"interval": "3ba"},
    "lr_monitor": {},
    "nan_monitor": {},
    "optimizer_monitor": {"batch_log_interval": 3},
    "runtime_estimator": {},
    "speed_monitor": {"window_size": 3},
    "system_metrics_monitor": {},
    "threshold_stopper": {"monitor": "MulticlassAccuracy", "dataloader_label": "eval_16px", "threshold": 2.0},
}
#: They warn without a GPU.
GPU_CALLBACKS = {"memory_monitor", "memory_snapshot", "oom_observer"}


def recipe(digits, folder, algorithms, *items):
    return compose([
        "demo", f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", "progress_bar=false",
        f"output.folder={folder}/runs", "model.name=resnet10t", "regime.base={size_px: 32, batch_size: 12}",
        "model.kwargs={channels: [8, 16, 16, 32], stem_width: 8, drop_rate: 0.2}", "regime.mode=D+", "regime.stride=8",
        "regime.sizes={32: 0.4, 24: 0.3, 16: 0.3}", "evaluation.sizes=[16, 32]", "calibration={batches: 2}",
        "max_duration=9ba", "output.save_every=5ba", "output.log_batches=true",
        *(f"algorithms.{name}={arguments}" for name, arguments in algorithms.items()), *items,
    ])  # fmt: skip


class Killed(BaseException):
    """What no handler of errors catches."""


class StopBefore(Algorithm):
    """Ends the process in the middle of a step, as far as the run is concerned."""

    def __init__(self, step):
        self.step = step

    def match(self, event, state):
        return event == Event.BEFORE_FORWARD and int(state.timestamp.batch) == self.step

    def apply(self, event, state, logger):
        raise Killed


def stop_before(run, step):
    run.trainer.state.algorithms = [*run.trainer.state.algorithms, StopBefore(step)]
    with pytest.raises(Killed):
        fit(run)


@pytest.fixture(scope="module", params=["steps", "network"])
def whole(request, digits, tmp_path_factory):
    """Algorithms, the folder that has their runs, and the record of a run that nothing stopped."""
    algorithms = {"steps": STEPS, "network": NETWORK}[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return algorithms, folder, fit(build(recipe(digits, folder, algorithms, "smoothing={}")))


def test_every_algorithm_and_callback_that_may_be_used_is_trained_here():
    usable = {name for name, part in ALGORITHMS.items() if part.verdict != "refused"}
    assert {*STEPS, *NETWORK, *NOT_RESUMED, *ON_GPU} == usable
    assert {*NOT_RESUMED} == {name for name in usable if not ALGORITHMS[name].resumes}
    assert {*QUIET, *GPU_CALLBACKS} == {name for name, part in CALLBACKS.items() if part.verdict != "refused"}


def test_a_run_stopped_in_the_middle_ends_with_the_same_weights_statistics_and_batches(digits, tmp_path, whole):
    algorithms, folder, record = whole
    assert len({row.size_px for row in record.shapes}) > 1
    assert max(row.duplicates for row in record.shapes) > 1
    stop_before(build(recipe(digits, tmp_path, algorithms, "smoothing={}")), 7)
    run = build(recipe(digits, tmp_path, algorithms, "smoothing={}"))
    assert int(run.trainer.state.timestamp.batch) == 5
    again = fit(run)
    for key in ("accuracy", "calibrated_accuracy", "loss", "sequence_crc", "weights", "gradient_norms", "macs"):
        assert getattr(again, key) == getattr(record, key)
    for file in ("model.safetensors", "batches-rank0.csv"):
        mine, theirs = ((one / "runs/demo" / file).read_bytes() for one in (tmp_path, folder))
        assert sorted(set(mine.splitlines())) == sorted(set(theirs.splitlines()))
    banks = [StatisticsBank.load(one / "runs/demo/batch_norm.pt") for one in (tmp_path, folder)]
    for size_px in (16, 32):
        for name, layer in banks[0][size_px].items():
            assert torch.equal(layer.mean, banks[1][size_px][name].mean)


def test_the_weights_of_a_run_are_evaluated_again_and_predict(whole, digits):
    _, folder, record = whole
    run = folder / "runs/demo"
    assert main(["eval", str(run), "--sizes", "16,32", "--out", "found"]) == 0
    rows = read_record(Path("found/model.json")).sizes
    for row in rows:
        assert row.own.top1 == pytest.approx(record.accuracy[str(row.size_px)])
        assert row.calibrated.top1 == pytest.approx(record.calibrated_accuracy[str(row.size_px)])
    network, _ = load_at_size(run, 32)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_timm_is_given_the_average_and_no_network_that_it_does_not_have(whole, capsys):
    algorithms, folder, _ = whole
    run, out = folder / "runs/demo", folder / "exported"
    code = main(["export", str(run), "--no-calibrate", "--out", str(out)])
    if "blurpool" in algorithms:
        assert code == 2
        assert "timm has no network with the layers that algorithms.blurpool" in capsys.readouterr().err
        assert not out.exists()
        return
    assert code == 0
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_the_average_is_what_is_evaluated_saved_and_read_from_a_checkpoint(digits, tmp_path, whole):
    algorithms, folder, record = whole
    averaged = "ema" in algorithms
    assert record.weights == ("averaged" if averaged else "last")
    run = folder / "runs/demo"
    checkpoint = latest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    saved, of_training = (torch.load(checkpoint, weights_only=False)["state"][key] for key in ("algorithms", "model"))
    final, last = read_weights(run / "model.safetensors"), of_training["module.fc.weight"]
    assert torch.equal(read_weights(checkpoint)["fc.weight"], final["fc.weight"])
    assert torch.equal(final["fc.weight"], last) is not averaged
    if averaged:
        kept = dict(saved)["ModelEMA"]["weights"]
        assert kept.keys() == final.keys()
        for name, tensor in kept.items():
            assert torch.equal(tensor, final[name]), name


def test_an_average_that_has_not_begun_leaves_the_last_weights(digits, tmp_path):
    items = ["max_duration=3ba", "calibration=null"]
    record = fit(build(recipe(digits, tmp_path, {"ema": {"ema_start": "5ba"}}, *items)))
    assert record.weights == "last"
    plain = fit(build(recipe(digits, tmp_path, {}, *items, "name=plain")))
    assert plain.accuracy == record.accuracy


@pytest.mark.parametrize("name", NOT_RESUMED)
def test_an_algorithm_that_no_checkpoint_holds_trains_without_checkpoints(digits, tmp_path, name):
    items = ["output.save_every=never", "calibration=null", "evaluation.sizes=[16]", "regime.base.batch_size=400"]
    length = {"sam": "2ba", "layer_freezing": "2ep"}[name]  # Layers freeze between epochs.
    run = build(recipe(digits, tmp_path, {name: NOT_RESUMED[name]}, *items, f"max_duration={length}"))
    if name == "layer_freezing":
        first = next(run.trainer.state.model.module.parameters())
        fit(run)
        assert not first.requires_grad
    else:
        assert type(run.trainer.state.optimizers[0]).__name__ == "SAMOptimizer"
        assert fit(run).steps == 2


def test_callbacks_are_attached_and_keep_the_weights_as_they_are(digits, tmp_path):
    items = ["max_duration=4ba", "calibration=null"]
    callbacks = [f"callbacks.{name}={arguments}" for name, arguments in QUIET.items()]
    run = build(recipe(digits, tmp_path, {}, *items, *callbacks))
    names = {type(one).__name__ for one in run.trainer.state.callbacks}
    assert {"SpeedMonitor", "LRMonitor", "EarlyStopper"} <= names
    record = fit(run)
    plain = fit(build(recipe(digits, tmp_path, {}, *items, "name=plain")))
    assert (record.accuracy, record.loss) == (plain.accuracy, plain.loss)
    # They may change from one start to the next.
    build(recipe(digits, tmp_path, {}, *items, "max_duration=6ba"))


def test_at_a_step_the_plan_is_compared_the_step_seeded_and_then_the_batch_changed(digits, tmp_path):
    run = build(recipe(digits, tmp_path, STEPS, "smoothing={}"))
    engine, algorithms = run.trainer.engine, run.trainer.state.algorithms

    def order(event):
        state = run.trainer.state
        return [type(one).__name__ for one in engine._compile([a for a in algorithms if a.match(event, state)], event)]

    after = order(Event.AFTER_DATALOADER)
    assert after.index("MixSizeSampling") < after.index("CutOut")
    assert after.index("StepSeed") < after.index("CutOut")
    assert order(Event.AFTER_TRAIN_BATCH) == ["GradSmoothing", "GradientClipping"]
    listed = [type(one) for one in algorithms]
    assert listed.index(BNCalibrate) < listed.index(ModelEMA)  # It restores first after a broken evaluation.


def test_gradients_are_clipped_after_they_are_smoothed(digits, tmp_path):
    largest = []

    class Largest(Algorithm):
        def match(self, event, state):
            return event == Event.BATCH_END

        def apply(self, event, state, logger):
            largest.append(max(float(p.grad.abs().max()) for p in state.model.parameters()))

    clipping = {"gradient_clipping": {"clipping_type": "value", "clipping_threshold": 0.01}}
    run = build(recipe(digits, tmp_path, clipping, "smoothing={}", "max_duration=6ba", "calibration=null"))
    run.trainer.state.algorithms = [*run.trainer.state.algorithms, Largest()]
    fit(run)
    # Smoothing clipped gradients would scale some of them up.
    assert largest == pytest.approx([0.01] * 6, rel=1e-5)
