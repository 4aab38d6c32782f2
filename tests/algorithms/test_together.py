"""All algorithms in one Trainer, stopped in mid-epoch and resumed."""

from __future__ import annotations

import timm
import torch
from composer import Evaluator, Trainer
from composer.models import ComposerClassifier

import mixsize
from mixsize import (
    Base,
    BNCalibrate,
    EpochSchedule,
    EvalLoader,
    GradSmoothing,
    MixSizeLoader,
    PadCrop,
    Phase,
    Progression,
    ProgressiveResize,
    Regime,
    Resize,
)
from mixsize.algorithms.training.schedules import cosine

PHASES = Progression(Base(16, 64), (Phase(8, 1), Phase(12, 1, lr_factor=0.5), Phase(16, 1, lr_factor=0.2)))


def build(digits, duration, load_path=None):
    torch.manual_seed(0)
    model = ComposerClassifier(timm.create_model("resnet10t", num_classes=10), num_classes=10)
    options = {"seed": 3, "num_workers": 1, "device": "cpu"}
    loader = MixSizeLoader(digits / "train.beton", PHASES, augment=PadCrop(1), **options)
    evaluators = [
        Evaluator(
            label=f"eval_{size}px",
            dataloader=EvalLoader(digits / "test.beton", size, 120, augment=Resize(), num_workers=1, device="cpu"),
            metric_names=["MulticlassAccuracy"],
        )
        for size in (8, 16)
    ]

    def calibration_images(size_px):
        return MixSizeLoader(digits / "train.beton", Regime.fixed(Base(size_px, 64)), augment=Resize(), **options)

    algorithms = [
        ProgressiveResize(PHASES, batch_norm="freeze", freeze_steps=3),
        EpochSchedule(cosine(3)),
        GradSmoothing(log_interval=1),
        BNCalibrate(calibration_images, num_batches=2),
    ]
    return Trainer(
        model=model,
        train_dataloader=loader.data_spec(),
        eval_dataloader=evaluators,
        eval_interval="5ba",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        algorithms=algorithms,
        max_duration=duration,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
        seed=11,
        load_path=load_path,
    )


def states(trainer):
    return {type(algorithm).__name__: algorithm.state_dict() for algorithm in trainer.state.algorithms}


def assert_equal(left, right, place=""):
    assert type(left) is type(right), place
    if isinstance(left, dict):
        assert left.keys() == right.keys(), place
        for key in left:
            assert_equal(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), place
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal(a, b, f"{place}[{i}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), place
    else:
        assert left == right, place


def test_a_checkpoint_in_mid_epoch_restores_average_bank_phase_and_position(digits, tmp_path):
    whole = build(digits, "3ep")
    whole.fit()
    stopped = build(digits, "12ba")  # 5 steps of the first phase, 7 of the 12 of the second.
    stopped.fit()
    stopped.save_checkpoint(str(tmp_path / "checkpoint.pt"))
    saved = states(stopped)
    assert saved["GradSmoothing"]["steps"] == 12
    stopped.close()

    resumed = build(digits, "3ep", str(tmp_path / "checkpoint.pt"))
    restored = states(resumed)
    for name in ("GradSmoothing", "BNCalibrate", "ProgressiveResize"):
        assert_equal(restored[name], saved[name], name)
    resumed.fit()
    assert_equal(states(resumed)["GradSmoothing"], states(whole)["GradSmoothing"])
    assert_equal(states(resumed)["ProgressiveResize"], states(whole)["ProgressiveResize"])
    assert_equal(states(resumed)["BNCalibrate"], states(whole)["BNCalibrate"])
    assert_equal(dict(resumed.state.model.state_dict()), dict(whole.state.model.state_dict()))
    whole.close()
    resumed.close()


def test_public_names_stand_at_the_front():
    assert {"MixSizeSampling", "GradSmoothing", "BNCalibrate", "ProgressiveResize", "MixSizeLoader"} <= set(
        dir(mixsize)
    )
    for name in dir(mixsize):
        assert getattr(mixsize, name) is not None
