"""ProgressiveResize in a real Trainer: sizes from the loader, rates, batch norm at transitions, resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from composer import Callback, Event, Trainer
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mixsize.algorithms import Base, EpochSchedule, Phase, Progression, ProgressiveResize, plan_epoch
from mixsize.algorithms.training.schedules import multistep
from mixsize.ffcv_loaders import MixSizeLoader, PadCrop, RandomResizedCrop

GROWING = Progression(Base(16, 64), (Phase(8, 1), Phase(12, 2, lr_factor=0.5), Phase(16, 1, lr_factor=0.1)))


class Seen(Callback):
    """What the network was given, at which rate, with which statistics."""

    def __init__(self):
        self.images, self.rates, self.means, self.modes, self.labels = [], [], [], [], []

    def before_forward(self, state, logger):
        norm = state.model.module[1]
        self.images.append(tuple(state.batch[0].shape))
        self.means.append(norm.running_mean.clone())
        self.modes.append(norm.training)
        self.labels.append(state.batch[1].clone())


class Rates(Callback):
    """Notes the learning rate at each event around and in the step of the last phase's last batch."""

    def run_event(self, event, state, logger):
        if event in (Event.BATCH_START, Event.BEFORE_TRAIN_BATCH, Event.AFTER_TRAIN_BATCH, Event.BATCH_END):
            self.seen = {**getattr(self, "seen", {}), event: state.optimizers[0].param_groups[0]["lr"]}


class SGD(torch.optim.SGD):
    """Notes the learning rate that a step really uses."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.used = []

    def step(self, closure=None):
        self.used.append(self.param_groups[0]["lr"])
        return super().step(closure)


def trainer_for(digits, duration, *, progression=GROWING, augment=None, loader=None, schedule=None, **kwargs):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    model = ComposerClassifier(module, num_classes=10)
    if loader is None:
        augment = augment or PadCrop(1)
        loader = MixSizeLoader(
            digits / "train.beton", progression, augment=augment, seed=3, num_workers=1, device="cpu"
        ).data_spec()
    optimizer = SGD(model.parameters(), lr=0.1)
    load_path = kwargs.pop("load_path", None)
    seen = Seen()
    algorithms = [EpochSchedule(schedule)] if schedule else []
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        optimizers=optimizer,
        algorithms=[*algorithms, ProgressiveResize(progression, **kwargs)],
        callbacks=[seen],
        max_duration=duration,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
        load_path=load_path,
        seed=5,
    )
    return trainer, seen, optimizer


LENGTHS = [1437 // 256, 1437 // 114, 1437 // 114, 1437 // 64]  # 64 * 4, 64 * (16/12)^2 = 113.8, 64


def test_events_inside_a_steps_closure_see_the_rate_with_the_factor_and_those_around_it_without(digits):
    trainer, _, _ = trainer_for(digits, "4ep")
    trainer.state.callbacks.append(rates := Rates())
    trainer.fit()
    inside = {Event.BEFORE_TRAIN_BATCH: 0.01, Event.AFTER_TRAIN_BATCH: 0.01}
    assert rates.seen == pytest.approx({Event.BATCH_START: 0.1, **inside, Event.BATCH_END: 0.1})
    trainer.close()


def test_the_loader_serves_each_phases_size_with_the_budgets_batch(digits):
    trainer, seen, _ = trainer_for(digits, "4ep")
    trainer.fit()
    expected = [(256, 8)] * LENGTHS[0] + [(114, 12)] * 2 * LENGTHS[1] + [(64, 16)] * LENGTHS[3]
    assert [(shape[0], shape[-1]) for shape in seen.images] == expected
    trainer.close()


def test_rates_follow_the_phases_on_top_of_a_schedule_and_only_while_a_step_is_taken(digits):
    # The schedule falls to a tenth at epoch 3, just where the last phase asks for a tenth too. An optimiser whose base
    # class has been used before runs step hooks twice.
    torch.optim.SGD([torch.zeros(1)], lr=0.1)
    trainer, _, optimizer = trainer_for(digits, "4ep", schedule=multistep([3], [0.1]))
    trainer.fit()
    expected = [0.1] * LENGTHS[0] + [0.05] * 2 * LENGTHS[1] + [0.001] * LENGTHS[3]
    assert optimizer.used == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert not optimizer._optimizer_step_pre_hooks
    trainer.close()


def test_the_warm_up_rises_over_the_transitions_first_epoch(digits):
    progression = Progression(Base(16, 64), (Phase(8, 1), Phase(12, 2, lr_factor=0.5)), warmup_epochs=1)
    trainer, _, optimizer = trainer_for(digits, "3ep", progression=progression)
    trainer.fit()
    rising = [0.05 * (0.1 + 0.9 * step / LENGTHS[1]) for step in range(LENGTHS[1])]
    assert optimizer.used == pytest.approx([0.1] * LENGTHS[0] + rising + [0.05] * LENGTHS[1])
    trainer.close()


def test_reset_gives_batch_norm_the_statistics_of_the_new_size(digits):
    trainer, seen, _ = trainer_for(digits, "2ep", batch_norm="reset", reset_batches=100)
    kept, seen_kept, _ = trainer_for(digits, "2ep", batch_norm="keep")
    trainer.fit()
    kept.fit()
    first = LENGTHS[0]
    assert torch.equal(seen.means[first - 1], seen_kept.means[first - 1])
    assert not torch.equal(seen.means[first], seen_kept.means[first])
    # The first layer's pooled mean, from the epoch's own images through its convolution at the time.
    loader = MixSizeLoader(digits / "train.beton", GROWING, augment=PadCrop(1), seed=3, num_workers=1, device="cpu")
    loader.set_epoch(1)
    again, _, _ = trainer_for(digits, "1ep", batch_norm="keep")
    again.fit()
    with torch.no_grad():
        outputs = [again.state.model.module[0](images) for images, _ in loader]
    pooled = torch.cat([values.transpose(0, 1).flatten(1) for values in outputs], dim=1).mean(dim=1)
    torch.testing.assert_close(seen.means[first], pooled, rtol=1e-4, atol=1e-5)
    for one in (trainer, kept, again):
        one.close()


def test_freeze_holds_the_statistics_for_the_steps_asked_for(digits):
    steps = LENGTHS[1] + 3  # Longer than the phase's first epoch.
    trainer, seen, _ = trainer_for(digits, "4ep", batch_norm="freeze", freeze_steps=steps)
    trainer.fit()
    first = LENGTHS[0]
    last = first + 2 * LENGTHS[1]
    assert all(seen.modes[:first])
    assert not any(seen.modes[first : first + steps])
    assert all(seen.modes[first + steps : last])
    assert not any(seen.modes[last : last + steps])
    assert all(torch.equal(seen.means[first], mean) for mean in seen.means[first : first + steps])
    assert not torch.equal(seen.means[first], seen.means[first + steps + 1])
    trainer.close()


@pytest.mark.parametrize("stop", ["7ba", "1ep", "2ep", "30ba"])
def test_a_resumed_run_goes_on_in_its_phase(digits, tmp_path, stop):
    whole, seen_whole, optimizer_whole = trainer_for(digits, "4ep", batch_norm="reset")
    whole.fit()
    first, seen_first, _ = trainer_for(digits, stop, batch_norm="reset")
    first.fit()
    first.save_checkpoint(str(tmp_path / "checkpoint.pt"))
    first.close()
    second, seen_second, optimizer = trainer_for(
        digits, "4ep", batch_norm="reset", load_path=str(tmp_path / "checkpoint.pt")
    )
    second.fit()
    assert seen_first.images + seen_second.images == seen_whole.images
    for ours, theirs in zip(seen_first.labels + seen_second.labels, seen_whole.labels, strict=True):
        assert torch.equal(ours, theirs)
    # Loading makes PyTorch take one empty step, at a rate of 0, to create the momentum buffers.
    assert [rate for rate in optimizer.used if rate] == optimizer_whole.used[len(seen_first.images) :]
    for key, value in second.state.model.state_dict().items():
        assert torch.equal(value, whole.state.model.state_dict()[key]), key
    second.close()
    whole.close()


def test_crop_areas_change_with_the_phase(digits, monkeypatch):
    from mixsize.ffcv_loaders.pipeline import stream

    scales = []
    original = stream.draw_windows
    monkeypatch.setattr(
        stream, "draw_windows", lambda augment, *rest: (scales.append(augment.scale), original(augment, *rest))[1]
    )
    progression = Progression(Base(16, 64), (Phase(8, 1, crop_scale=(0.5, 1.0)), Phase(12, 1)))
    trainer, _, _ = trainer_for(digits, "2ep", progression=progression, augment=RandomResizedCrop((0.2, 1.0)))
    trainer.fit()
    assert scales == [(0.5, 1.0)] * LENGTHS[0] + [(0.2, 1.0)] * LENGTHS[1]
    trainer.close()
    with pytest.raises(ValueError, match="applies to RandomResizedCrop"):
        trainer_for(digits, "2ep", progression=progression, augment=PadCrop(1))


def test_other_loaders_batches_are_resized_to_the_phases_size(digits):
    data = TensorDataset(torch.randn(64, 3, 16, 16), torch.arange(64) % 10)
    trainer, seen, _ = trainer_for(digits, "4ep", loader=DataLoader(data, batch_size=16))
    trainer.fit()
    assert [shape[-1] for shape in seen.images] == [8] * 4 + [12] * 8 + [16] * 4
    trainer.close()
    with pytest.raises(ValueError, match=r"batch_norm is 'reset', .* a DataLoader, which does not plan"):
        trainer_for(digits, "4ep", loader=DataLoader(data, batch_size=16), batch_norm="reset")


def test_plans_of_a_progression_are_those_of_its_phases(digits):
    loader = MixSizeLoader(digits / "train.beton", GROWING, augment=PadCrop(1), seed=3, num_workers=1, device="cpu")
    for epoch in range(4):
        loader.set_epoch(epoch)
        plan = plan_epoch(GROWING.at_epoch(epoch), 1437, 3, epoch)
        np.testing.assert_array_equal(loader.dataset.plan().samples, plan.samples)
        assert len(loader) == LENGTHS[epoch]
    assert loader.batch_size == 256


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_norm": "drop"}, "batch_norm is 'drop'; it must be one of keep, reset, freeze"),
        ({"batch_norm": "freeze"}, "freeze_steps is 0"),
        ({"freeze_steps": 3}, "freeze_steps is 3"),
        ({"batch_norm": "reset", "reset_batches": 0}, "reset_batches is 0"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ProgressiveResize(GROWING, **options)
