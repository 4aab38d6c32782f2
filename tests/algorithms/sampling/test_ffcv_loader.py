"""FFCV's own ``Loader`` in a real Trainer: MixSizeSampling, ProgressiveResize and BNCalibrate."""

from __future__ import annotations

import threading
from itertools import islice

import numpy as np
import pytest
import torch
from composer import Callback, Evaluator, Trainer
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import nn

from mixsize.algorithms import Base, BNCalibrate, MixSizeSampling, Phase, Progression, ProgressiveResize, Regime

pytest.importorskip("ffcv")
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import (
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from ffcv.loader import Loader, OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.transforms import NormalizeImage, Squeeze, ToTensor, ToTorchImage

BATCH, STEPS = 64, 20
MIX = {20: 0.2, 16: 0.3, 12: 0.3, 8: 0.2}
GROWING = Progression(Base(16, BATCH), (Phase(8, 1), Phase(12, 1, lr_factor=0.5), Phase(16, 1, lr_factor=0.1)))


class FFCV:
    """Loaders of the digits, each compiled once. Its decoder stays within reach, as in FFCV's own training script."""

    def __init__(self, file, decoder, batch_size=BATCH, order=OrderOption.RANDOM):
        self.decoder = decoder
        image = [decoder, NormalizeImage(np.full(3, 78.0), np.full(3, 96.0), np.dtype(np.float32))]
        self.loader = Loader(
            str(file),
            batch_size=batch_size,
            num_workers=1,
            order=order,
            seed=3,
            # An epoch of 20 batches divides as the regimes below ask.
            indices=None if order == OrderOption.SEQUENTIAL else list(range(BATCH * STEPS)),
            pipelines={"image": [*image, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor(), Squeeze()]},
        )

    def at(self, size_px):
        """The loader from its first epoch on, at a side."""
        self.decoder.output_size = (size_px, size_px)
        self.loader.next_epoch = 0
        return self.loader


@pytest.fixture(scope="module")
def crops(digits) -> FFCV:
    """Random resized crops."""
    return FFCV(digits / "train.beton", RandomResizedCropRGBImageDecoder((16, 16)))


@pytest.fixture(scope="module")
def centres(digits) -> FFCV:
    """Training images, cropped as in evaluation."""
    return FFCV(digits / "train.beton", CenterCropRGBImageDecoder((16, 16), ratio=1.0))


@pytest.fixture(scope="module")
def stored(digits) -> Loader:
    """Images at the one size that the file has: this decoder has no output_size."""
    return FFCV(digits / "train.beton", SimpleRGBImageDecoder()).loader


@pytest.fixture(scope="module")
def evaluation(digits) -> Loader:
    """Two batches of the test images at 8 px."""
    decoder = CenterCropRGBImageDecoder((8, 8), ratio=1.0)
    return FFCV(digits / "test.beton", decoder, 180, OrderOption.SEQUENTIAL).loader


class Seen(Callback):
    """What the loader brought and what the network was given."""

    def __init__(self):
        self.decoded, self.given, self.labels, self.own = [], [], [], []

    def after_dataloader(self, state, logger):
        self.decoded.append(state.batch[0].shape[-1])
        self.labels.append(state.batch[1].clone())

    def before_forward(self, state, logger):
        self.given.append(tuple(state.batch[0].shape))

    def batch_end(self, state, logger):
        self.own.append(state.model.module[1].running_mean.clone())


class SGD(torch.optim.SGD):
    """Notes the learning rate that a step really uses."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.used = []

    def step(self, closure=None):
        self.used.append(self.param_groups[0]["lr"])
        return super().step(closure)


def trained(loader, algorithms, duration, *, save=None, **kwargs):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    model, seen = ComposerClassifier(module, num_classes=10), Seen()
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        optimizers=SGD(model.parameters(), lr=0.1),
        algorithms=algorithms,
        callbacks=[seen, *kwargs.pop("callbacks", ())],
        max_duration=duration,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
        seed=11,
        **kwargs,
    )
    trainer.fit()
    if save is not None:
        trainer.save_checkpoint(str(save))
    trainer.close()
    return trainer, seen


def left_running():
    """Closes FFCV's iterators that were left in mid-epoch, and counts them."""
    left = []
    for thread in threading.enumerate():
        if isinstance(thread, EpochIterator):
            # A closed iterator ends, and so does one that has served its last batch.
            thread.join(timeout=None if thread.terminate_event.is_set() else 1)
            if thread.is_alive():
                left.append(thread)
    for thread in left:
        thread.close()
    return len(left)


@pytest.fixture(autouse=True)
def _nothing_left_running():
    yield
    left_running()


@pytest.mark.parametrize("mode", ["B+", "D+"])
def test_steps_divide_among_sides_by_their_shares_in_whole_batches_without_duplicates(crops, mode):
    sampling, logged = MixSizeSampling(Regime.from_sizes(MIX, Base(16, BATCH), mode)), InMemoryLogger()
    trainer, seen = trained(crops.at(16), [sampling], "2ep", loggers=logged)
    epochs = [side for *_, side in seen.given[:STEPS]], [side for *_, side in seen.given[STEPS:]]
    for sides in epochs:
        assert {side: sides.count(side) for side in set(sides)} == {20: 4, 16: 6, 12: 6, 8: 4}
    assert epochs[0] != epochs[1]
    assert {images for images, *_ in seen.given} == {BATCH}
    assert sampling.shapes == {(20, BATCH, 1): 8, (16, BATCH, 1): 12, (12, BATCH, 1): 12, (8, BATCH, 1): 8}
    assert [value for _, value in logged.data["mixsize/duplicates"]] == [1] * 2 * STEPS
    assert int(trainer.state.timestamp.sample) == 2 * STEPS * BATCH
    # Before resizing: sides are only ever made smaller.
    assert set(seen.decoded) == {20}


def test_the_decoder_follows_the_phases_from_each_ones_first_batch_on(crops):
    trainer, seen = trained(crops.at(16), [ProgressiveResize(GROWING)], "3ep")
    sides = [8] * STEPS + [12] * STEPS + [16] * STEPS
    assert seen.decoded == sides
    assert [shape[-1] for shape in seen.given] == sides
    assert trainer.state.optimizers[0].used == pytest.approx([0.1] * STEPS + [0.05] * STEPS + [0.01] * STEPS)


def test_images_of_a_decoder_without_output_size_are_resized_on_the_device(stored):
    _, seen = trained(stored, [ProgressiveResize(GROWING)], "2ep")
    assert set(seen.decoded) == {8}
    assert [shape[-1] for shape in seen.given] == [8] * STEPS + [12] * STEPS


@pytest.mark.parametrize("resume", ["in an epoch", "between epochs", "between epochs, without spinning"])
def test_a_resumed_run_goes_on_with_its_sides_and_images(crops, tmp_path, resume):
    algorithms = MixSizeSampling(Regime.from_sizes(MIX, Base(16, BATCH), "B+")), ProgressiveResize(GROWING)
    spin = resume != "between epochs, without spinning"
    for algorithm in algorithms:
        file = tmp_path / f"{type(algorithm).__name__}.pt"
        _, whole = trained(crops.at(16), [algorithm], "2ep")
        _, first = trained(crops.at(16), [algorithm], "27ba" if resume == "in an epoch" else "1ep", save=file)
        loader = crops.at(16)
        if not spin:
            loader.next_epoch = 1
        left_running()
        _, second = trained(loader, [algorithm], "2ep", load_path=str(file), spin_dataloaders=spin)
        assert first.given + second.given == whole.given
        assert first.decoded + second.decoded == whole.decoded
        for ours, theirs in zip(first.labels + second.labels, whole.labels, strict=True):
            assert torch.equal(ours, theirs)
        # Composer starts each past epoch and leaves it.
        assert left_running() == (1 if spin else 0)


def test_each_size_is_evaluated_with_its_own_statistics_and_no_iterator_is_left_running(crops, centres, evaluation):
    class Watch(Callback):
        def __init__(self):
            self.carried = []

        def eval_batch_end(self, state, logger):
            norm = state.model.module[1]
            self.carried.append((norm.running_mean.clone(), norm.running_var.clone()))

    sampling = MixSizeSampling(Regime.from_sizes(MIX, Base(16, BATCH), "B+"))
    calibrate, watch = BNCalibrate(centres.at, num_batches=5), Watch()
    evaluator = Evaluator(label="eval_8px", dataloader=evaluation)
    trainer, seen = trained(crops.at(16), [sampling, calibrate], "2ep", eval_dataloader=[evaluator], callbacks=[watch])
    assert left_running() == 0
    assert len(watch.carried) == 4
    module = trainer.state.model.module
    # By numpy, from the same images through the first layer; weights are those of the second evaluation.
    with torch.no_grad():
        values = [
            module[0](images.clone()).transpose(0, 1).flatten(1).double() for images, _ in islice(centres.at(8), 5)
        ]
    values = torch.cat(values, dim=1).numpy()
    mean, var = watch.carried[-1]
    np.testing.assert_allclose(mean, values.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(var, values.var(axis=1, ddof=1), rtol=1e-4)
    assert torch.equal(module[1].running_mean, seen.own[-1])
    assert not torch.allclose(module[1].running_mean, mean, atol=1e-2)
    # The evaluation after the first epoch had others, and training went on with the network's own.
    assert not torch.equal(watch.carried[0][0], mean)
    assert calibrate.bank.sizes == [8]
