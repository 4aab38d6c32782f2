"""Strengths in a Trainer: set before the first step of each epoch, also of a run that resumes in its middle."""

from __future__ import annotations

import pytest
import timm
import torch
from composer import Trainer
from composer.core import Algorithm, Callback, Event
from composer.models import ComposerClassifier
from timm.layers.drop import DropPath

from mixsize import (
    Base,
    Curriculum,
    MixSizeLoader,
    PadCrop,
    Phase,
    Progression,
    ProgressiveResize,
    StepSeed,
    attribute_setter,
    drop_path_setter,
    dropout_setter,
)

# 64 images of 16 px, or 114 of 12 px and 256 of 8 px; 1,437 images make 5 to 22 steps of them.
PHASES = Progression(
    Base(16, 64),
    (
        Phase({12: 0.5, 8: 0.5}, 2, strengths={"dropout": (0.1, 0.3), "drop_path": 0.05, "mixup": (0.0, 0.2)}),
        Phase({16: 0.5, 8: 0.5}, 1, mode="D+", strengths={"label_smoothing": 0.3}),
    ),
)
SHIFT = Progression.shift(
    Base(16, 64), {12: 0.5, 8: 0.5}, {16: 1.0}, begin_epoch=0, end_epoch=2, stages=2
).with_strengths({"drop_path": (0.0, 0.2), "mixup": (0.0, 0.4)})


class Mixing(Algorithm):
    """Stands in for Mixup: adds so much of a batch to itself, mirrored."""

    def __init__(self):
        self.mixup = 0.1

    def match(self, event, state):
        return event == Event.AFTER_DATALOADER

    def apply(self, event, state, logger):
        images, labels = state.batch
        state.batch = ((1 - self.mixup) * images + self.mixup * images.flip(3), labels)


class Loss:
    """Stands in for a loss whose smoothing is an attribute."""

    def __init__(self):
        self.label_smoothing = 0.0

    def __call__(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)


class Seen(Callback):
    """Notes the strengths that each step is taken with."""

    def __init__(self, network, loss, mixing):
        self.parts = network, loss, mixing
        self.values = []

    def before_forward(self, state, logger):
        network, loss, mixing = self.parts
        depth = max(module.drop_prob for module in network.modules() if isinstance(module, DropPath))
        strengths = (network.drop_rate, depth, mixing.mixup, loss.label_smoothing)
        self.values.append((int(state.timestamp.epoch), *(round(value, 9) for value in strengths)))


def trainer_for(digits, progression, duration, load_path=None):
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=10, drop_rate=0.2, drop_path_rate=0.1)
    loss, mixing = Loss(), Mixing()
    setters = {
        "dropout": dropout_setter(network),
        "drop_path": drop_path_setter(network),
        "mixup": attribute_setter(mixing, "mixup"),
        "label_smoothing": attribute_setter(loss, "label_smoothing"),
    }
    model = ComposerClassifier(network, num_classes=10, loss_fn=loss)
    loader = MixSizeLoader(digits / "train.beton", progression, augment=PadCrop(1), seed=3, num_workers=1, device="cpu")
    seen = Seen(network, loss, mixing)
    trainer = Trainer(
        model=model,
        train_dataloader=loader.data_spec(),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        algorithms=[StepSeed(), ProgressiveResize(progression), Curriculum(progression, setters), mixing],
        callbacks=[seen],
        max_duration=duration,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
        seed=11,
        load_path=load_path,
    )
    return trainer, seen


@pytest.mark.parametrize("progression", [PHASES, SHIFT], ids=["a mixture in each phase", "a shift"])
def test_a_run_that_resumes_in_an_epoch_is_the_run_that_nothing_stopped(progression, digits, tmp_path):
    whole, seen = trainer_for(digits, progression, "30ba")
    whole.fit()
    stopped, seen_before = trainer_for(digits, progression, "13ba")
    stopped.fit()
    stopped.save_checkpoint(str(tmp_path / "checkpoint.pt"))
    assert int(stopped.state.timestamp.batch_in_epoch) > 0
    stopped.close()
    resumed, seen_after = trainer_for(digits, progression, "30ba", str(tmp_path / "checkpoint.pt"))
    resumed.fit()
    assert seen_before.values + seen_after.values == seen.values
    assert len(seen.values) == 30
    weights = [dict(one.state.model.state_dict()) for one in (resumed, whole)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    whole.close()
    resumed.close()


def test_each_epoch_has_its_phases_values_and_what_a_phase_leaves_out_is_as_configured(digits):
    trainer, seen = trainer_for(digits, PHASES, "3ep")
    trainer.fit()
    assert sorted(set(seen.values)) == [
        (0, 0.1, 0.05, 0.0, 0.0),
        (1, 0.3, 0.05, 0.2, 0.0),
        (2, 0.2, 0.1, 0.1, 0.3),
    ]
    trainer.close()


def test_a_shifting_mixture_takes_the_rising_values_of_its_run(digits):
    trainer, seen = trainer_for(digits, SHIFT, "3ep")
    trainer.fit()
    assert sorted(set(seen.values)) == [(0, 0.2, 0.0, 0.0, 0.0), (1, 0.2, 0.1, 0.2, 0.0), (2, 0.2, 0.2, 0.4, 0.0)]
    trainer.close()


def test_a_run_with_other_strengths_does_not_go_on(digits):
    options = {"augment": PadCrop(1), "seed": 3, "num_workers": 1, "device": "cpu"}
    before = MixSizeLoader(digits / "train.beton", SHIFT, **options)
    for progression, goes_on in ((SHIFT, True), (SHIFT.with_strengths({"cutmix": 0.1}), False)):
        loader = MixSizeLoader(digits / "train.beton", progression, **options)
        loader.dataset.load_state_dict(before.dataset.state_dict(0))
        if goes_on:
            next(iter(loader))
        else:
            with pytest.raises(ValueError, match=r"the checkpoint belongs to another run: regime\.phases was"):
                next(iter(loader))


def test_a_strength_without_a_setter_is_refused_but_for_the_loaders():
    with pytest.raises(ValueError, match="the progression sets mixup, which has no setter"):
        Curriculum(SHIFT, {"drop_path": lambda value: None})
    Curriculum(Progression(Base(16, 64), (Phase(16, 1, strengths={"magnitude": 5}),)), {})
