"""MixSizeSampling in a real Trainer: shapes, clock, lengths, microbatches, resume."""

from __future__ import annotations

import pytest
import torch
from composer import Callback, Trainer
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mixsize.algorithms import Base, EpochSchedule, MixSizeSampling, Regime, plan_epoch
from mixsize.algorithms.sampling.resizing import resize_batch
from mixsize.algorithms.training.schedules import multistep
from mixsize.ffcv_loaders import MixSizeLoader, PadCrop

MIX = {20: 0.2, 16: 0.3, 12: 0.3, 8: 0.2}
B_PLUS = Regime.from_sizes(MIX, Base(16, 32), "B+")
D_PLUS = Regime.from_sizes(MIX, Base(16, 32), "D+")
BY_EPOCH = Regime.from_sizes({16: 0.5, 8: 0.5}, Base(16, 64), "B+", draw="epoch")


class Seen(Callback):
    """Records what the network was really given."""

    def __init__(self):
        self.images, self.steps, self.rates = [], [], []

    def before_forward(self, state, logger):
        self.images.append(tuple(state.batch[0].shape))

    def before_train_batch(self, state, logger):
        self.rates.append((int(state.timestamp.epoch), state.optimizers[0].param_groups[0]["lr"]))

    def batch_end(self, state, logger):
        self.steps.append((state.batch[0].shape[-1], state.batch[1].clone()))


def network():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    return ComposerClassifier(module, num_classes=10)


def loader_for(digits, regime=B_PLUS, seed=3):
    return MixSizeLoader(digits / "train.beton", regime, augment=PadCrop(1), seed=seed, num_workers=1, device="cpu")


def trainer_for(loader, duration, *, algorithms=None, callbacks=(), model=None, **kwargs):
    model = network() if model is None else model
    return Trainer(
        model=model,
        train_dataloader=loader.data_spec() if isinstance(loader, MixSizeLoader) else loader,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        algorithms=[MixSizeSampling()] if algorithms is None else algorithms,
        callbacks=list(callbacks),
        max_duration=duration,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
        seed=11,
        **kwargs,
    )


@pytest.mark.parametrize("regime", [B_PLUS, D_PLUS], ids=["B+", "D+"])
def test_the_network_sees_each_planned_batch_whole_and_time_counts_distinct_images(digits, regime):
    seen, logged = Seen(), InMemoryLogger()
    sampling = MixSizeSampling()
    trainer = trainer_for(loader_for(digits, regime), "2ep", algorithms=[sampling], callbacks=[seen], loggers=logged)
    trainer.fit()
    plans = [plan_epoch(regime, 1437, 3, epoch) for epoch in range(2)]
    planned = [step for plan in plans for step in plan]
    assert seen.images == [(step.batch_size * step.duplicates, 3, step.size_px, step.size_px) for step in planned]
    assert int(trainer.state.timestamp.sample) == sum(step.batch_size for step in planned)
    assert int(trainer.state.timestamp.batch) == len(planned)
    for key, name in (("size_px", "size_px"), ("batch_size", "batch_size"), ("duplicates", "duplicates")):
        values = [value for _, value in logged.data[f"mixsize/{key}"]]
        assert values == [getattr(step, name) for step in planned]
    shares = {key: rows[-1][1] for key, rows in logged.data.items() if key.startswith("mixsize/sample_share/")}
    assert shares == pytest.approx({f"mixsize/sample_share/{size}px": share for size, share in MIX.items()}, abs=0.03)
    assert sum(sampling.shapes.values()) == len(planned)
    trainer.close()


def test_the_algorithm_binds_its_own_regime_before_the_first_batch(digits):
    seen = Seen()
    loader = loader_for(digits, Regime.fixed(Base(16, 32)))
    trainer = trainer_for(loader, "1ep", algorithms=[MixSizeSampling(D_PLUS)], callbacks=[seen])
    trainer.fit()
    assert seen.images == [(s.num_images, 3, s.size_px, s.size_px) for s in plan_epoch(D_PLUS, 1437, 3, 0)]
    trainer.close()


def test_a_loader_given_to_fit_is_bound_too(digits):
    seen = Seen()
    model = network()
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        algorithms=[MixSizeSampling(B_PLUS)],
        callbacks=[seen],
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
    )
    trainer.fit(train_dataloader=loader_for(digits, Regime.fixed(Base(16, 32))).data_spec(), duration="1ep")
    assert seen.images == [(s.num_images, 3, s.size_px, s.size_px) for s in plan_epoch(B_PLUS, 1437, 3, 0)]
    trainer.close()


@pytest.mark.parametrize("first", [22, 5])
def test_epochs_of_different_lengths_are_trained_whole_and_milestones_fall_at_their_starts(digits, first):
    seed = {22: 4, 5: 7}[first]
    plans = [plan_epoch(BY_EPOCH, 1437, seed, epoch) for epoch in range(6)]
    lengths = [len(plan) for plan in plans]  # 1437 // 64 at 16 px, 1437 // 256 at 8 px
    assert lengths[0] == first
    assert "22, 5, 22" in str(lengths)  # Epochs become shorter and longer again.
    seen = Seen()
    schedule = EpochSchedule(multistep([2, 5], [0.1, 0.01]))
    trainer = trainer_for(
        loader_for(digits, BY_EPOCH, seed), "6ep", algorithms=[MixSizeSampling(), schedule], callbacks=[seen]
    )
    trainer.fit()
    assert [size for size, _ in seen.steps] == [int(size) for plan in plans for size in plan.size_px]
    expected = [(epoch, 0.1 * (1, 0.1, 0.01)[(epoch >= 2) + (epoch >= 5)]) for epoch in range(6) for _ in plans[epoch]]
    assert [epoch for epoch, _ in seen.rates] == [epoch for epoch, _ in expected]
    assert [rate for _, rate in seen.rates] == pytest.approx([rate for _, rate in expected])
    trainer.close()


def test_microbatches_are_cut_only_when_asked_and_never_through_a_samples_duplicates(digits):
    seen = Seen()
    trainer = trainer_for(loader_for(digits, D_PLUS), "1ep", callbacks=[seen], device_train_microbatch_size=50)
    trainer.fit()
    sizes = []
    for step in plan_epoch(D_PLUS, 1437, 3, 0):
        chunk = 50 // step.duplicates * step.duplicates
        whole, rest = divmod(step.num_images, chunk)
        sizes += [chunk] * whole + [rest] * (rest > 0)
    assert [shape[0] for shape in seen.images] == sizes
    assert int(trainer.state.timestamp.sample) == sum(s.batch_size for s in plan_epoch(D_PLUS, 1437, 3, 0))
    trainer.close()


@pytest.mark.parametrize("regime", [D_PLUS, BY_EPOCH], ids=["D+", "by epoch"])
@pytest.mark.parametrize("stop", ["ba9", "ep1", "last"])
def test_a_run_resumed_from_a_checkpoint_takes_the_batches_it_would_have_had(digits, tmp_path, regime, stop):
    lengths = [len(plan_epoch(regime, 1437, 3, epoch)) for epoch in range(3)]
    at = {"ba9": 9, "ep1": lengths[0], "last": lengths[0] + lengths[1]}[stop]
    whole, first, second = Seen(), Seen(), Seen()
    trainer = trainer_for(loader_for(digits, regime), "3ep", callbacks=[whole])
    trainer.fit()
    weights = {key: value.clone() for key, value in trainer.state.model.state_dict().items()}
    trainer.close()

    duration = {"ba9": "9ba", "ep1": "1ep", "last": f"{at}ba"}[stop]
    trainer = trainer_for(loader_for(digits, regime), duration, callbacks=[first])
    trainer.fit()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pt"))
    trainer.close()
    sampling = MixSizeSampling()
    trainer = trainer_for(
        loader_for(digits, regime),
        "3ep",
        algorithms=[sampling],
        callbacks=[second],
        load_path=str(tmp_path / "checkpoint.pt"),
    )
    trainer.fit()
    assert len(first.steps) == at
    for (size, labels), (expected_size, expected) in zip(first.steps + second.steps, whole.steps, strict=True):
        assert size == expected_size
        assert torch.equal(labels, expected)
    for key, value in trainer.state.model.state_dict().items():
        assert torch.equal(value, weights[key]), key
    assert sum(sampling.shapes.values()) == sum(lengths)
    trainer.close()


def test_a_checkpoint_of_another_regime_is_refused(digits, tmp_path):
    trainer = trainer_for(loader_for(digits, B_PLUS), "3ba")
    trainer.fit()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pt"))
    trainer.close()
    trainer = trainer_for(loader_for(digits, D_PLUS), "1ep", load_path=str(tmp_path / "checkpoint.pt"))
    with pytest.raises(ValueError, match=r"another run: regime.choices was"):
        trainer.fit()
    trainer.close()


def test_a_loader_without_its_data_spec_is_refused_once_it_miscounts(digits):
    trainer = trainer_for(loader_for(digits, D_PLUS), "1ep")
    trainer.close()
    bare = loader_for(digits, D_PLUS, seed=7)  # Begins with four duplicates.
    model = network()
    trainer = Trainer(
        model=model,
        train_dataloader=bare,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        algorithms=[MixSizeSampling()],
        max_duration="1ep",
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
    )
    with pytest.raises(ValueError, match=r"loader\.data_spec\(\)"):
        trainer.fit()
    trainer.close()


class Shapes(Seen):
    """Dictionary batches have no position 0."""

    def before_forward(self, state, logger):
        self.images.append(tuple(state.batch["pixels"].shape))

    def batch_end(self, state, logger):
        pass


def plain_loader(*, keys=None):
    data = TensorDataset(torch.randn(160, 3, 16, 16), torch.arange(160) % 10)
    collate = None
    if keys:

        def collate(rows):
            images, labels = torch.utils.data.default_collate(rows)
            return dict(zip(keys, (images, labels), strict=True))

    return DataLoader(data, batch_size=8, collate_fn=collate)


def test_any_loaders_batches_are_resized_on_the_device_to_sides_in_their_shares(caplog):
    seen = Seen()
    regime = Regime.from_sizes({16: 0.5, 12: 0.3, 8: 0.2}, Base(16, 8), "B+", share_of="steps")
    sampling = MixSizeSampling(regime)
    trainer = trainer_for(plain_loader(), "2ep", algorithms=[sampling], callbacks=[seen])
    with caplog.at_level("WARNING", logger="mixsize"):
        trainer.fit()
    assert sum("resized on the device" in message for message in caplog.messages) == 1
    sides = [shape[-1] for shape in seen.images]
    for epoch in (sides[:20], sides[20:]):
        assert {side: epoch.count(side) for side in set(epoch)} == {16: 10, 12: 6, 8: 4}
    assert sides[:20] != sides[20:]
    assert {shape[0] for shape in seen.images} == {8}
    assert sampling.shapes == {(16, 8, 1): 20, (12, 8, 1): 12, (8, 8, 1): 8}
    trainer.close()


def test_microbatches_of_any_loader_have_one_side_a_step():
    seen = Seen()
    regime = Regime.from_sizes({16: 0.5, 8: 0.5}, Base(16, 8), "B+", share_of="steps")
    trainer = trainer_for(
        plain_loader(), "1ep", algorithms=[MixSizeSampling(regime)], callbacks=[seen], device_train_microbatch_size=4
    )
    trainer.fit()
    sides = [shape[-1] for shape in seen.images]
    assert len(sides) == 40
    assert sides[::2] == sides[1::2]
    trainer.close()


def test_dictionary_batches_are_resized_by_their_key():
    class Model(ComposerClassifier):
        def forward(self, batch):
            return self.module(batch["pixels"])

        def loss(self, outputs, batch, *args, **kwargs):
            return nn.functional.cross_entropy(outputs, batch["labels"])

        def get_metrics(self, is_train):
            return {}

    seen = Shapes()
    regime = Regime.from_sizes({16: 0.5, 8: 0.5}, Base(16, 8), "B+", share_of="steps")
    model = Model(network().module, num_classes=10)
    trainer = trainer_for(
        plain_loader(keys=("pixels", "labels")),
        "1ep",
        algorithms=[MixSizeSampling(regime, input_key="pixels")],
        callbacks=[seen],
        model=model,
    )
    trainer.fit()
    assert sorted(shape[-1] for shape in seen.images) == [8] * 10 + [16] * 10
    trainer.close()


def test_resizing_averages_what_it_shrinks():
    stripes = torch.zeros(1, 1, 16, 16)
    stripes[..., ::2] = 1
    small = resize_batch(stripes, 4)
    # Nearest-neighbour sampling would pick 0 or 1; an antialiased filter sees both alike.
    assert small.shape == (1, 1, 4, 4)
    assert (small - 0.5).abs().max() < 0.1
    assert resize_batch(stripes, 16) is stripes


def test_a_loader_without_a_plan_needs_a_regime():
    with pytest.raises(ValueError, match="is a DataLoader, which has no regime of its own; give MixSizeSampling one"):
        trainer_for(plain_loader(), "1ep")


def test_a_batch_that_something_changed_on_its_way_is_caught(digits):
    loader = loader_for(digits)
    spec = loader.data_spec()
    spec.batch_transforms = lambda batch: (batch[0][..., ::2, ::2], batch[1])
    model = network()
    trainer = Trainer(
        model=model,
        train_dataloader=spec,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        algorithms=[MixSizeSampling()],
        max_duration="1ep",
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
    )
    with pytest.raises(RuntimeError, match="the plan says"):
        trainer.fit()
    trainer.close()
