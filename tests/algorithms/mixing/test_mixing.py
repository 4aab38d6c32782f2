"""``Mixing`` in a real Trainer: which views are mixed, draws that follow from the step, microbatches, metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from composer import Callback, Trainer
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mixsize.algorithms import Base, Mixing, MixSizeSampling, Preflight, Regime, mix_batch
from mixsize.ffcv_loaders import MixSizeLoader, PadCrop

D_PLUS = Regime.from_sizes({16: 0.3, 12: 0.3, 8: 0.4}, Base(16, 32), "D+")


class Seen(Callback):
    """Keeps what each forward pass was given, and each batch before its division."""

    def __init__(self):
        self.batches, self.forward = [], []

    def after_dataloader(self, state, logger):
        self.batches.append(tuple(part.clone() for part in state.batch))

    def before_forward(self, state, logger):
        self.forward.append(tuple(part.clone() for part in state.batch))


def train(loader, steps, *algorithms, callbacks=(), **options):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    model = ComposerClassifier(network, num_classes=10, loss_fn=nn.functional.cross_entropy)
    seen = Seen()
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        algorithms=list(algorithms),
        callbacks=[seen, *callbacks],
        max_duration=f"{steps}ba",
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
        seed=11,
        **options,
    )
    trainer.fit()
    return trainer, seen


def digits_loader(digits, workers=1):
    options = {"augment": PadCrop(1), "seed": 3, "num_workers": workers, "device": "cpu"}
    return MixSizeLoader(digits / "train.beton", D_PLUS, **options)


def test_planned_batches_are_mixed_with_their_duplicates_and_the_draws_of_their_step(digits):
    _, plain = train(digits_loader(digits).data_spec(), 12, MixSizeSampling())
    _, mixed = train(digits_loader(digits).data_spec(), 12, MixSizeSampling(), Mixing(10, mixup=0.4, cutmix=1.0))
    plan = digits_loader(digits).plan()
    assert len({plan[step].duplicates for step in range(12)}) == 3
    for step in range(12):
        rng = np.random.default_rng(np.random.SeedSequence(11, spawn_key=(0, step, 0)))
        images, labels = plain.batches[step]
        expected = mix_batch(images, labels, rng, 10, plan[step].duplicates, mixup_alpha=0.4, cutmix_alpha=1.0)
        assert torch.equal(mixed.batches[step][0], expected[0])
        assert torch.equal(mixed.batches[step][1], expected[1])


def test_threads_and_a_resume_change_no_batch(digits, tmp_path):
    algorithms = [MixSizeSampling(), Mixing(10, mixup=0.4, cutmix=1.0)]
    whole, expected = train(digits_loader(digits).data_spec(), 50, *algorithms)
    assert int(whole.state.timestamp.epoch) == 1
    algorithms = [MixSizeSampling(), Mixing(10, mixup=0.4, cutmix=1.0)]
    stopped, _ = train(digits_loader(digits, workers=3).data_spec(), 20, *algorithms)
    stopped.save_checkpoint(str(tmp_path / "checkpoint.pt"))
    algorithms = [MixSizeSampling(), Mixing(10, mixup=0.4, cutmix=1.0)]
    checkpoint = str(tmp_path / "checkpoint.pt")
    resumed, found = train(digits_loader(digits).data_spec(), 50, *algorithms, load_path=checkpoint)
    assert len(found.batches) == 30
    for one, other in zip(found.batches, expected.batches[20:], strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    for name, tensor in whole.state.model.state_dict().items():
        assert torch.equal(tensor, resumed.state.model.state_dict()[name]), name


def test_microbatches_are_parts_of_the_mixed_batch(digits):
    mixing = [MixSizeSampling(), Preflight(), Mixing(10, mixup=0.4, cutmix=1.0)]
    _, seen = train(digits_loader(digits).data_spec(), 8, *mixing, device_train_microbatch_size=40)
    assert len(seen.forward) > 8
    for part in (0, 1):
        whole = torch.cat([batch[part].flatten() for batch in seen.batches])
        assert torch.equal(torch.cat([batch[part].flatten() for batch in seen.forward]), whole)


def test_any_loaders_batches_are_mixed_and_alphas_may_change_between_steps():
    labels = torch.arange(32) % 10
    data = DataLoader(TensorDataset(torch.rand(32, 3, 8, 8), labels), batch_size=8)
    mixing = Mixing(10, mixup=1.0, cutmix=0.0)

    class Curriculum(Callback):
        def batch_end(self, state, logger):
            mixing.mixup = 0.0

    _, seen = train(data, 3, mixing, callbacks=[Curriculum()])
    one_hot = nn.functional.one_hot(labels.view(4, 8), 10).float()
    assert not torch.equal(seen.batches[0][1], one_hot[0])
    assert torch.equal(seen.batches[1][1], one_hot[1])
    assert torch.equal(seen.batches[2][0], data.dataset.tensors[0][16:24])


def test_no_training_accuracy_of_mixed_images_is_reported():
    data = DataLoader(TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8)), batch_size=8)
    assert train(data, 1)[0].state.train_metric_values.keys() == {"MulticlassAccuracy"}
    assert train(data, 1, Mixing(10))[0].state.train_metric_values == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mixup": -0.1}, "mixup is -0.1; it must be at least 0"),
        ({"cutmix": float("nan")}, "cutmix is nan; it must be at least 0"),
        ({"prob": 1.5}, "prob is 1.5; it must be at least 0 and at most 1"),
        ({"switch_prob": -1}, "switch_prob is -1; it must be at least 0 and at most 1"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Mixing(10, **options)
