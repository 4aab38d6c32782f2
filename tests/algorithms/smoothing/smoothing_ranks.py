"""Gradient smoothing on the ranks that launched this file: `composer -n 2 smoothing_ranks.py FOLDER`.

Writes FOLDER/rank{r}.json. The tests compare it with one process on the joined batches.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from composer import Trainer
from composer.core import Algorithm, Event
from composer.loggers import LoggerDestination
from composer.models import ComposerClassifier
from composer.utils import FSDP2Config, dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from mixsize.algorithms.smoothing.grad_smoothing import GradSmoothing
from mixsize.algorithms.smoothing.gradient_smoother import GradientSmoother

BATCH = 16
STEPS = 4
#: PyTorch 2.6's FSDP2 records an event on a stream, which streams of CPUs cannot.
FSDP2_ON_CPUS = torch.torch_version.TorchVersion(torch.__version__) >= "2.7"


class Rows(LoggerDestination):
    """Keeps what is logged under ``smoothing/``, with the step that it was logged under."""

    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step=None):
        rows = {key.removeprefix("smoothing/"): v for key, v in metrics.items() if key.startswith("smoothing/")}
        if rows:
            self.rows.append((step, rows))


def samples(count):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    return TensorDataset(images, torch.randint(0, 5, (count,), generator=generator))


def network():
    """Without batch norm, so that a batch may be cut; odd sizes, so that shards differ between ranks."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 7, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 1), nn.Linear(1, 5)
    )


class Squares(Algorithm):
    """Float64 squares of this rank's gradients, or parts of them, as they are when its turn comes."""

    def __init__(self):
        self.steps = []

    def match(self, event, state):
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event, state, logger):
        self.steps.append(square(state.model.parameters()))


def trained_by_composer(fsdp2=False):
    """STEPS steps on global batches of BATCH: rows, gradients before and after smoothing, weights at the end."""
    ranks = dist.get_world_size()
    data = samples(STEPS * BATCH)
    sampler = DistributedSampler(data, ranks, dist.get_global_rank(), shuffle=False) if ranks > 1 else None
    model = ComposerClassifier(network(), num_classes=5)
    model.module.fsdp_wrap_fn = lambda module: isinstance(module, nn.Linear)
    rows, before, after = Rows(), Squares(), Squares()
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(data, BATCH // ranks, sampler=sampler),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.5),
        algorithms=[after, GradSmoothing(alpha=0.5), before],  # Composer runs the last of the list first.
        loggers=[rows],
        max_duration="1ep",
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
        parallelism_config={"fsdp": FSDP2Config(state_dict_type="full")} if fsdp2 else None,
    )
    trainer.fit()
    assert all(isinstance(p.data, DTensor) == fsdp2 for p in trainer.state.model.parameters())
    weights = square(model.parameters(), of=lambda parameter: parameter.data)
    trainer.close()
    return {"rows": rows.rows, "before": before.steps, "after": after.steps, "weights": weights}


def smoothed_steps(model, extra):
    """Three steps on one batch, its loss scaled anew each time: norm, factor, and float64 squares of gradients.

    Squares are of this rank's parts of sharded gradients, and of whole ones; before and after smoothing.
    """
    images, labels = samples(BATCH)[:]
    smoother = GradientSmoother(alpha=0.5)
    steps = []
    for scale in (1.0, 3.0, 0.1):
        model.zero_grad()
        extra.grad = None
        loss = nn.functional.cross_entropy(model(images), labels) + extra.sum()
        (loss * scale).backward()
        parameters = [*model.parameters(), extra]
        parted = [p for p in parameters if isinstance(p.grad, DTensor)]
        whole = [p for p in parameters if not isinstance(p.grad, DTensor)]
        row = {"parts_before": square(parted), "whole_before": square(whole)}
        step = smoother.smooth(parameters)
        row |= {"parts_after": square(parted), "whole_after": square(whole)}
        steps.append({**row, "norm": float(step.grad_norm), "factor": float(step.factor)})
    return steps


def square(parameters, of=lambda parameter: parameter.grad):
    tensors = [of(p) for p in parameters if of(p) is not None]
    tensors = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(float(t.double().square().sum()) for t in tensors)


def plain_parameter():
    return nn.Parameter(torch.tensor([0.3, -0.2]))


def fsdp2_steps():
    model = network()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (2,)))
    # The convolution stays whole, and so does the extra parameter.
    assert {type(p.data) is DTensor for p in model.parameters()} == {True, False}
    return smoothed_steps(model, plain_parameter())


def main(folder):
    dist.initialize_dist("cpu")
    results = {"composer": trained_by_composer()}
    if FSDP2_ON_CPUS:
        results |= {"composer fsdp2": trained_by_composer(fsdp2=True), "fsdp2": fsdp2_steps()}
    (Path(folder) / f"rank{dist.get_global_rank()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
