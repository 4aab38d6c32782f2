"""Mixing, losses, optimisers, rates by step and clipping, as recipes train with them at mixed sizes."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from composer import Callback
from composer.algorithms import GradientClipping

from mixsize.algorithms.mixing.mixing import Mixing
from mixsize.algorithms.smoothing.grad_smoothing import GradSmoothing
from mixsize.recipes.build.trainer import build
from mixsize.recipes.commands.train import fit
from mixsize.recipes.config.compose import compose

NETWORK = "model={name: test_resnet, kwargs: {drop_path_rate: 0.2}}"
PHASES = "regime={mode: progressive, phases: [{size_px: 8, epochs: 1}, {size_px: 16, epochs: 1, lr_factor: 0.5}]}"


@pytest.fixture
def recipe(digits, tmp_path):
    def made(*items):
        data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={tmp_path}/runs"]
        small = [NETWORK, "regime.stride=1", "regime.base.batch_size=64", "evaluation.sizes=[16]"]
        return compose(["demo", *data, "progress_bar=false", "evaluation.every_epochs=9", *small, *items])

    return made


class Steps(Callback):
    """Batch and learning rate of each step, as the optimiser sees them, and the norm of its gradients."""

    def __init__(self, sampling):
        self._sampling = sampling
        self.batches, self.rates, self.logged, self.norms = [], [], [], []

    def fit_start(self, state, logger):
        (optimizer,) = state.optimizers

        def before(optimizer, args, kwargs):
            self.rates.append(optimizer.param_groups[0]["lr"])
            self.batches.append(self._sampling.last_shape[1])

        def after(optimizer, args, kwargs):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            self.norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())

        # Composer runs algorithms first: hooks of theirs stand before these.
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def batch_start(self, state, logger):
        self.logged.append(state.optimizers[0].param_groups[0]["lr"])


def steps_of(recipe):
    run = build(recipe)
    steps = Steps(run.sampling)
    run.trainer.state.callbacks.append(steps)
    fit(run)
    return run, steps


OPTIONS = {
    "mixing": ["regime/digits_dplus", "mixing={}", "loss.label_smoothing=0.1"],
    "bce": ["regime/digits_bplus", "mixing={mixup: 0.1}", "loss={name: bce, target_threshold: 0.2}"],
    "lamb": [
        "regime/digits_bplus",
        "optimizer={name: timm, opt: lamb, lr: 0.01, weight_decay: 0.02, lr_scaling: sqrt_by_step, clip_norm: 0.5}",
        "smoothing={}",
    ],
    "layers": [
        "regime/digits_dplus",
        "optimizer={name: adamw, lr: 0.003, weight_decay: 0.05, layer_decay: 0.75, clip_norm: 1.0}",
        "mixing={cutmix: 0.0}",
        "microbatch_images=50",
    ],
    "phases": [PHASES, "optimizer.lr_scaling=linear_by_step", "optimizer.clip_norm=2.0", "mixing={}"],
    "by pixels": [PHASES, "schedule={name: cosine, follows: pixels, warmup_epochs: 0.2}"],
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_run_resumed_in_its_middle_ends_with_the_same_weights_and_batches(recipe, tmp_path, options):
    items = [*options, "max_duration=30ba", "output.save_every=12ba", "output.keep_checkpoints=0"]
    made = recipe(*items, "regime.base.batch_size=24", "output.log_batches=true")
    whole = fit(build(made))
    assert math.isfinite(whole.loss["16"])
    folder = tmp_path / "runs/demo"
    kept = shutil.copytree(folder, tmp_path / "whole")
    for file in (folder / "checkpoints").iterdir():
        if "-ba12" not in file.name:
            file.unlink()
    for name in ("record.json", "model.safetensors", "batches-rank0.csv"):
        (folder / name).unlink()
    run = build(made)
    assert int(run.trainer.state.timestamp.batch) == 12
    assert fit(run).accuracy == whole.accuracy
    assert (folder / "model.safetensors").read_bytes() == (kept / "model.safetensors").read_bytes()
    lines = [(path / "batches-rank0.csv").read_text().splitlines() for path in (folder, kept)]
    assert lines[0] == [lines[1][0], *lines[1][13:]]


def test_the_rate_of_a_step_follows_its_batch_and_is_logged_as_it_is_applied(recipe):
    for rule, power in (("linear_by_step", 1.0), ("sqrt_by_step", 0.5)):
        items = ["regime/digits_bplus", "max_duration=12ba", "schedule={name: constant}", f"name={rule}"]
        _, steps = steps_of(recipe(*items, "optimizer.lr=0.01", f"optimizer.lr_scaling={rule}"))
        assert len(set(steps.batches)) >= 3
        assert steps.rates == pytest.approx([0.01 * (batch / 64) ** power for batch in steps.batches])
        assert steps.logged == steps.rates


def test_phases_take_rates_by_step_on_top_of_their_factor_and_their_schedule(recipe):
    items = [PHASES, "max_duration=2ep", "schedule={name: multistep, milestones: [1], factors: [0.1]}"]
    _, steps = steps_of(recipe(*items, "optimizer.lr=0.01", "optimizer.lr_scaling=sqrt_by_step"))
    # 256 images of 8 px: twice the base's rate; 64 of 16 px: the base's times the schedule's 0.1 and the phase's 0.5.
    assert set(steps.batches) == {256, 64}
    assert steps.rates == pytest.approx([{256: 0.02, 64: 0.0005}[batch] for batch in steps.batches])
    # The phase's factor is logged apart.
    assert steps.logged == pytest.approx([{256: 0.02, 64: 0.001}[batch] for batch in steps.batches])


def test_a_cosine_that_follows_pixels_falls_by_steps_of_equal_pixels(recipe):
    for name, follows in (("epochs", "epochs"), ("pixels", "pixels")):
        schedule = f"schedule={{name: cosine, warmup_epochs: 0.4, follows: {follows}}}"
        _, steps = steps_of(recipe(PHASES, "max_duration=2ep", schedule, "optimizer.lr=0.01", f"name={name}"))
        # 5 steps of 256 images of 8 px in the first epoch, 22 of 64 of 16 px in the second: all of 16,384 pixels.
        epochs = [step / 5 for step in range(5)] + [1 + step / 22 for step in range(22)]
        done = [2 * step / 27 for step in range(27)] if follows == "pixels" else epochs
        cosine = [(1 + math.cos(math.pi * max(0.0, at - 0.4) / 1.6)) / 2 for at in done]
        rates = [0.01 * min(1, at / 0.4) * part for at, part in zip(done, cosine, strict=True)]
        assert steps.logged == pytest.approx(rates)


def test_gradients_are_smoothed_before_they_are_clipped(recipe):
    run, steps = steps_of(recipe("max_duration=8ba", "smoothing={}", "optimizer.clip_norm=0.05"))
    kinds = [type(algorithm) for algorithm in run.trainer.state.algorithms]
    assert kinds.index(GradSmoothing) > kinds.index(GradientClipping)  # The last acts first.
    smoothing = next(one for one in run.trainer.state.algorithms if isinstance(one, GradSmoothing))
    assert smoothing.last is not None
    assert smoothing.last.grad_norm > 0.05  # Smoothing saw the norm before clipping, and so did its average.
    assert steps.norms == pytest.approx([0.05] * 8, rel=1e-3)
    _, free = steps_of(recipe("max_duration=8ba", "name=free"))
    assert min(free.norms) > 0.05


def test_alphas_and_smoothing_may_be_set_while_a_run_trains(recipe):
    run = build(recipe("max_duration=3ba", "mixing={mixup: 0.3, cutmix: 0.7, prob: 0.9, switch_prob: 0.2}"))
    (mixing,) = (one for one in run.trainer.state.algorithms if isinstance(one, Mixing))
    values = (mixing.num_classes, mixing.mixup, mixing.cutmix, mixing.prob, mixing.switch_prob)
    assert values == (10, 0.3, 0.7, 0.9, 0.2)
    seen = []

    class Curriculum(Callback):
        def batch_start(self, state, logger):
            images, labels = state.batch
            seen.append(labels.amax(1).min().item())
            outputs = torch.zeros(len(labels), 10)
            outputs[:, 0] = 5.0
            losses = []
            for smoothing in (0.0, 0.5):
                state.model._loss_fn.label_smoothing = smoothing
                losses.append(state.model.loss(outputs, (images, labels)).item())
            assert losses[0] != losses[1]

        def batch_end(self, state, logger):
            mixing.mixup = mixing.cutmix = 0.0

    run.trainer.state.callbacks.append(Curriculum())
    fit(run)
    assert seen[0] < 1
    assert seen[1:] == [1.0, 1.0]
