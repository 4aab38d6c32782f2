"""Preflight in a real Trainer."""

from __future__ import annotations

import pytest
import torch
from composer import Trainer
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mixsize.algorithms import Base, MixSizeSampling, Preflight, Regime
from mixsize.algorithms.execution import preflight as preflight_module
from mixsize.ffcv_loaders import MixSizeLoader, PadCrop

D_PLUS = Regime.from_sizes({16: 0.5, 8: 0.5}, Base(16, 32), "D+")


class Noting(nn.Conv2d):
    """Notes the shapes that it is given in training mode."""

    def __init__(self):
        super().__init__(3, 8, 3, 2, 1)
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return super().forward(images)


def model():
    torch.manual_seed(0)
    body = Noting(), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2)
    return ComposerClassifier(
        nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)), num_classes=10
    )


def trained(digits, algorithms, **kwargs):
    classifier = model()
    loader = MixSizeLoader(digits / "train.beton", D_PLUS, augment=PadCrop(1), seed=3, num_workers=1, device="cpu")
    trainer = Trainer(
        model=classifier,
        train_dataloader=loader.data_spec(),
        optimizers=torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9),
        algorithms=algorithms,
        max_duration="4ba",
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
        seed=11,
        **kwargs,
    )
    trainer.fit()
    return classifier.module


def test_every_shape_is_visited_before_the_first_step_and_training_is_as_without(digits):
    preflight = Preflight()
    visited = trained(digits, [MixSizeSampling(), preflight])
    # 16 px x 32, and 8 px x 32 with four views each, of as many pixels.
    assert visited[0].seen[:2] == [(128, 3, 8, 8), (32, 3, 16, 16)]
    plain = trained(digits, [MixSizeSampling()])
    assert visited[0].seen[2:] == plain[0].seen
    assert len(plain[0].seen) == 4
    for name, value in plain.state_dict().items():
        assert torch.equal(visited.state_dict()[name], value), name
    assert preflight.seconds > 0


def test_microbatches_are_what_is_visited(digits):
    visited = trained(digits, [MixSizeSampling(), Preflight()], device_train_microbatch_size=20)
    assert visited[0].seen[:4] == [(20, 3, 16, 16), (12, 3, 16, 16), (20, 3, 8, 8), (8, 3, 8, 8)]


def test_a_shape_that_does_not_fit_ends_the_run_before_its_first_step(digits, monkeypatch):
    class Small(Noting):
        def forward(self, images):
            if images.shape[-1] == 8:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
            return super().forward(images)

    monkeypatch.setitem(globals(), "Noting", Small)
    words = "^128 images of 8 px do not fit into the memory of cpu: CUDA out of memory. Tried to allocate 2.00 GiB.; tr"
    with pytest.raises(ValueError, match=words):
        trained(digits, [MixSizeSampling(), Preflight()])


def test_a_loader_whose_shapes_are_not_known_is_refused():
    classifier = model()
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64)), batch_size=4)
    trainer = Trainer(
        model=classifier,
        train_dataloader=loader,
        optimizers=torch.optim.SGD(classifier.parameters(), lr=0.1),
        algorithms=[Preflight()],
        max_duration="1ba",
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
    )
    with pytest.raises(
        ValueError, match="the shapes that a mixsize loader has planned; the train_dataloader is a DataL"
    ):
        trainer.fit()


def test_the_log_says_how_long_it_took(digits, caplog):
    with caplog.at_level("INFO", preflight_module.__name__):
        trained(digits, [MixSizeSampling(), Preflight()])
    assert "visited 2 shapes in" in caplog.text
