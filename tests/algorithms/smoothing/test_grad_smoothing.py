"""Gradient smoothing against float64 NumPy, in a bare loop, in a real Trainer, and over two ranks."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.algorithms import GradientClipping
from composer.core import Algorithm, Event
from composer.loggers import WandBLogger
from composer.models import ComposerClassifier
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from mixsize.algorithms.smoothing.grad_smoothing import GradSmoothing
from mixsize.algorithms.smoothing.gradient_smoother import GradientSmoother, smooth_norm

RANKS_SCRIPT = Path(__file__).parent / "smoothing_ranks.py"
_spec = importlib.util.spec_from_file_location("smoothing_ranks", RANKS_SCRIPT)
ranks_script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ranks_script)


def recurrence(norms, alpha, eps, update):
    """The average after each step and the factor of each step, in Python's float64."""
    averages, factors = [], []
    for norm in norms:
        if not averages:
            averages.append(norm)
            factors.append(1.0)
            continue
        before = averages[-1]
        averages.append(alpha * before + (1 - alpha) * norm)
        factors.append({"before": averages[-1], "after": before}[update] / (norm + eps))
    return averages, factors


def norm64(gradients):
    return float(np.sqrt(sum(np.square(np.asarray(g, dtype=np.float64)).sum() for g in gradients)))


def parameters_with(*gradients):
    """Parameters that hold these gradients; None for none."""
    out = []
    for gradient in gradients:
        gradient = None if gradient is None else torch.as_tensor(gradient)
        out.append(nn.Parameter(torch.zeros(3) if gradient is None else torch.zeros_like(gradient)))
        out[-1].grad = None if gradient is None else gradient.clone()
    return out


def smooth_sequence(smoother, norms, key=None):
    """Smooth gradients of these norms one after the other; the steps as floats."""
    steps = [smoother.smooth(parameters_with([0.6 * norm, 0.8 * norm]), key=key) for norm in norms]
    return [tuple(float(value) for value in step) for step in steps]


# ---- the recurrence and the bare loop


def test_both_conventions_by_hand():
    # alpha 1/2, norms 2, 4, 1: averages 2, 3, 2
    before = smooth_sequence(GradientSmoother(alpha=0.5, eps=1e-12), [2.0, 4.0, 1.0])
    assert before == [pytest.approx(row) for row in ((2, 2, 1), (4, 3, 3 / 4), (1, 2, 2))]
    after = smooth_sequence(GradientSmoother(alpha=0.5, eps=1e-12, update="after"), [2.0, 4.0, 1.0])
    assert after == [pytest.approx(row) for row in ((2, 2, 1), (4, 3, 2 / 4), (1, 2, 3))]


def test_eps_is_added_to_the_denominator():
    smoother = GradientSmoother(alpha=0.5, eps=1.0)
    # norms 2, 4: average 3, factor 3 / (4 + 1)
    assert smooth_sequence(smoother, [2.0, 4.0])[1] == pytest.approx((4, 3, 0.6))


@pytest.mark.parametrize("update", ["before", "after"])
def test_the_first_step_leaves_gradients_bit_for_bit(update):
    gradients = torch.randn(100, generator=torch.Generator().manual_seed(0))
    parameters = parameters_with(gradients)
    step = GradientSmoother(update=update).smooth(parameters)
    assert torch.equal(parameters[0].grad, gradients)
    assert (float(step.factor), float(step.average)) == (1.0, float(step.grad_norm))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("update", ["before", "after"])
def test_a_norm_that_is_not_finite_changes_neither_gradients_nor_average(bad, update):
    disturbed, calm = GradientSmoother(update=update), GradientSmoother(update=update)
    broken = torch.tensor([1.0, bad, 3.0])
    for smoother, norms in ((disturbed, [bad, 2.0, bad, 5.0]), (calm, [2.0, 5.0])):
        for norm in norms:
            gradient = broken if norm is bad else torch.tensor([0.6, 0.8]) * norm
            parameters = parameters_with(gradient)
            step = smoother.smooth(parameters)
            if norm is bad:
                assert torch.equal(parameters[0].grad.isnan(), broken.isnan())
                assert torch.equal(parameters[0].grad.nan_to_num(7.0), broken.nan_to_num(7.0))
                assert float(step.factor) == 1.0
    assert disturbed.state_dict()["averages"] == calm.state_dict()["averages"]
    assert disturbed.steps == 4


def test_parameters_without_gradients_are_passed_over():
    smoother = GradientSmoother(alpha=0.5)
    assert smoother.smooth(parameters_with(None, None)) is None
    assert smoother.state_dict() == {"steps": 0, "averages": []}
    smoother.smooth(parameters_with(None, [3.0, 4.0]))
    parameters = parameters_with([6.0], None, [8.0])
    step = smoother.smooth(parameters)
    assert float(step.grad_norm) == pytest.approx(10.0)
    assert parameters[1].grad is None
    assert [float(p.grad) for p in parameters if p.grad is not None] == pytest.approx([4.5, 6.0])  # times 7.5 / 10
    assert smoother.smooth(parameters_with(None)) is None
    assert smoother.state_dict() == {"steps": 2, "averages": [[None, pytest.approx(7.5)]]}


def test_gradients_of_several_dtypes_make_one_norm_taken_in_float32_or_wider():
    smoother = GradientSmoother(alpha=0.5)
    many = torch.full((1000,), 3000.0, dtype=torch.float16)  # Norm 94,868: beyond float16.
    gradients = [many, torch.tensor([3e4], dtype=torch.float32), torch.tensor([4e4], dtype=torch.bfloat16)]
    expected = norm64(g.float() for g in gradients)
    assert float(smoother.smooth(parameters_with(*gradients)).grad_norm) == pytest.approx(expected, rel=1e-6)
    halves = parameters_with(*[g / 2 for g in gradients])
    assert float(smoother.smooth(halves).factor) == pytest.approx(1.5, rel=1e-6)
    for parameter, gradient in zip(halves, gradients, strict=True):
        assert parameter.grad.dtype == gradient.dtype
        torch.testing.assert_close(parameter.grad, gradient * 0.75, rtol=2**-7, atol=0)
    wide = GradientSmoother().smooth(parameters_with(torch.tensor([1e-9], dtype=torch.float64), [1.0]))
    assert wide.grad_norm.dtype == torch.float64


def test_a_large_factor_does_not_overflow_in_float16():
    smoother = GradientSmoother(alpha=0.5)
    smoother.smooth(parameters_with(torch.tensor([6e4], dtype=torch.float16)))
    tiny = parameters_with(torch.tensor([2**-20], dtype=torch.float16))
    step = smoother.smooth(tiny)
    assert float(step.factor) > torch.finfo(torch.float16).max
    assert math.isfinite(float(tiny[0].grad))


def test_sparse_gradients_are_smoothed_or_refused_before_anything_changes():
    embedding = nn.Embedding(10, 4, sparse=True)
    embedding(torch.tensor([1, 2, 2])).sum().backward()
    gradient = embedding.weight.grad
    assert gradient is not None
    dense = parameters_with([3.0, 4.0])
    smoother = GradientSmoother()
    try:
        torch._foreach_norm([gradient], 2)
    except NotImplementedError:  # PyTorch 2.7.
        pass
    else:
        step = smoother.smooth([*dense, *embedding.parameters()])
        assert step is not None
        # Row 1 holds 1, row 2 the sum of two: 3^2 + 4^2 + 4 * 1^2 + 4 * 2^2.
        assert float(step.grad_norm) == pytest.approx(math.sqrt(45))
        return
    with pytest.raises(ValueError, match=r"dense gradients, not torch\.sparse_coo"):
        smoother.smooth([*dense, *embedding.parameters()])
    assert smoother.state_dict() == {"steps": 0, "averages": []}


def test_each_key_has_its_own_average():
    smoother = GradientSmoother(alpha=0.5, eps=1e-12)
    small, large = [2.0, 4.0, 1.0], [20.0, 60.0, 30.0]
    rows = [
        (smooth_sequence(smoother, [a], 16)[0], smooth_sequence(smoother, [b], 32)[0])
        for a, b in zip(small, large, strict=True)
    ]
    assert [row[0] for row in rows] == smooth_sequence(GradientSmoother(alpha=0.5, eps=1e-12), small)
    assert [row[1] for row in rows] == smooth_sequence(GradientSmoother(alpha=0.5, eps=1e-12), large)
    assert sorted(smoother.state_dict()["averages"]) == [[16, pytest.approx(2)], [32, pytest.approx(35)]]


def test_state_is_plain_loads_weights_only_and_continues_exactly(tmp_path):
    norms = [2.0, 4.0, 1.0, 7.0]
    whole = GradientSmoother()
    expected = smooth_sequence(whole, norms)
    first = GradientSmoother()
    smooth_sequence(first, norms[:2])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = GradientSmoother()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert json.loads(json.dumps(second.state_dict())) == first.state_dict()
    assert smooth_sequence(second, norms[2:]) == expected[2:]
    assert second.state_dict() == whole.state_dict()


class NoHostReads(TorchDispatchMode):
    """Counts operators; raises on those that carry a value from a tensor into Python, or from Python into one."""

    forbidden = frozenset(
        {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "_to_copy", "lift", "lift_fresh"}
    )

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.forbidden:
            raise AssertionError(f"{function} makes host and device wait")
        self.operators.append(name)
        return function(*args, **(kwargs or {}))


def operators_of_a_step(count, update="before", state=None):
    generator = torch.Generator().manual_seed(0)
    smoother = GradientSmoother(update=update)
    if state is not None:
        smoother.load_state_dict(state)
    for _ in range(2):
        parameters = parameters_with(*torch.randn(count, 5, generator=generator))
        with NoHostReads() as mode:
            smoother.smooth(parameters)
    return mode.operators


@pytest.mark.parametrize("update", ["before", "after"])
def test_smoothing_moves_no_value_between_host_and_device(update):
    operators = operators_of_a_step(3, update, {"steps": 9, "averages": [[None, 2.0]]})
    assert "_foreach_mul_" in operators
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostReads():
        float(torch.ones(()))


def test_the_number_of_operators_does_not_grow_with_the_parameters():
    few, many = operators_of_a_step(2), operators_of_a_step(200)
    assert few == many
    assert few.count("_foreach_norm") == few.count("_foreach_mul_") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_smoothing_never_waits_for_the_gpu():
    generator = torch.Generator("cuda").manual_seed(0)
    smoother, reference = GradientSmoother(), GradientSmoother()
    smoother.load_state_dict({"steps": 1, "averages": [[None, 2.0]]})
    reference.load_state_dict({"steps": 1, "averages": [[None, 2.0]]})
    for _ in range(3):
        gradients = [torch.randn(shape, device="cuda", generator=generator) for shape in ((64, 3, 7, 7), (64,))]
        parameters = parameters_with(*gradients)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step = smoother.smooth(parameters)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = reference.smooth(parameters_with(*[g.cpu() for g in gradients]))
        assert float(step.factor) == pytest.approx(float(expected.factor), rel=1e-6)
        torch.testing.assert_close(parameters[0].grad, gradients[0] * step.factor)


def amp_steps(scaler, overflow_at=None):
    """Six steps as Composer takes them under AMP: the averages on the way, and the weights at the end."""
    images, labels = ranks_script.samples(60)[:]
    model = ranks_script.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    smoother, averages = GradientSmoother(alpha=0.5), []
    for step in range(6):
        part = slice(10 * step, 10 * step + 10)
        for overflow in [True, False] if step == overflow_at else [False]:
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(images[part]), labels[part])).backward()
            if overflow:
                model[0].weight.grad[0, 0, 0, 0] = math.inf
            scaler.unscale_(optimizer)
            smoother.smooth(model.parameters())
            scaler.step(optimizer)
            scaler.update()
            averages.append(smoother.state_dict()["averages"][0][1])
    return averages, list(model.parameters())


def test_gradient_scaling_gives_the_same_steps():
    plain, weights = amp_steps(torch.amp.GradScaler("cpu", enabled=False))
    scaled, scaled_weights = amp_steps(torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2))
    assert scaled == pytest.approx(plain, rel=1e-5)
    for a, b in zip(weights, scaled_weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_an_overflow_is_skipped_and_the_run_goes_on_as_if_it_had_not_been():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    averages, weights = amp_steps(scaler, overflow_at=3)
    assert scaler.get_scale() == 2.0**9
    assert averages[3] == averages[2]
    plain, plain_weights = amp_steps(torch.amp.GradScaler("cpu", init_scale=2.0**10))
    assert averages[:3] + averages[4:] == pytest.approx(plain, rel=1e-5)
    for a, b in zip(weights, plain_weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# ---- in a Trainer


class Recorder(Algorithm):
    """Keeps a copy of the gradients as they are when its turn comes."""

    def __init__(self):
        self.steps = []

    def match(self, event, state):
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event, state, logger):
        self.steps.append([p.grad.clone() for p in state.model.parameters() if p.grad is not None])


class Alternating(Algorithm):
    """Gives odd batches every second pixel only, as a mixed-size loader would."""

    def match(self, event, state):
        return event == Event.AFTER_DATALOADER

    def apply(self, event, state, logger):
        images, labels = state.batch
        if int(state.timestamp.batch) % 2:
            state.batch = (images[..., ::2, ::2].clone(), labels)


def trainer_for(*algorithms, steps=6, duration="1ep", rows=None, optimizer=None, **kwargs):
    model = ComposerClassifier(ranks_script.network(), num_classes=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5) if optimizer is None else optimizer(model)
    return Trainer(
        model=model,
        train_dataloader=DataLoader(ranks_script.samples(16 * steps), 16),
        optimizers=optimizer,
        algorithms=list(algorithms),
        loggers=[ranks_script.Rows() if rows is None else rows],
        max_duration=duration,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
        seed=5,
        **kwargs,
    )


def fit(*algorithms, **kwargs):
    """Train; the weights at the end."""
    trainer = trainer_for(*algorithms, **kwargs)
    trainer.fit()
    weights = [p.detach().clone() for p in trainer.state.model.parameters()]
    trainer.close()
    return weights


@pytest.mark.parametrize("update", ["before", "after"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 0.9])
def test_a_trainers_gradients_follow_the_recurrence_evaluated_in_float64(update, alpha):
    raw, smoothed, rows = Recorder(), Recorder(), ranks_script.Rows()
    # Composer runs the last of the list first.
    fit(smoothed, GradSmoothing(alpha, update=update), raw, steps=25, rows=rows)
    norms = [norm64(gradients) for gradients in raw.steps]
    averages, factors = recurrence(norms, alpha, 1e-6, update)
    assert len(set(norms)) == 25
    assert [step for step, _ in rows.rows] == list(range(25))
    for name, expected in (("grad_norm", norms), ("average", averages), ("factor", factors)):
        np.testing.assert_allclose([row[name] for _, row in rows.rows], expected, rtol=1e-6)
    for before, after, factor in zip(raw.steps, smoothed.steps, factors, strict=True):
        for g, h in zip(before, after, strict=True):
            np.testing.assert_allclose(h.double(), g.double() * factor, rtol=1e-6)


def test_only_the_optimisers_parameters_count_in_all_their_groups():
    raw, smoothed, rows = Recorder(), Recorder(), ranks_script.Rows()

    def two_groups(model):
        *body, last_weight, _last_bias = model.parameters()
        return torch.optim.Adam([{"params": body, "lr": 0.01}, {"params": [last_weight], "lr": 0.1}])

    fit(smoothed, GradSmoothing(0.5), raw, rows=rows, optimizer=two_groups)
    norms = [norm64(gradients[:-1]) for gradients in raw.steps]
    np.testing.assert_allclose([row["grad_norm"] for _, row in rows.rows], norms, rtol=1e-6)
    for before, after in zip(raw.steps, smoothed.steps, strict=True):
        assert torch.equal(before[-1], after[-1])
    assert not torch.equal(raw.steps[1][0], smoothed.steps[1][0])


def test_microbatches_are_smoothed_once_and_like_the_whole_batch():
    whole, cut = ranks_script.Rows(), ranks_script.Rows()
    weights = fit(GradSmoothing(0.5), rows=whole)
    for a, b in zip(weights, fit(GradSmoothing(0.5), rows=cut, device_train_microbatch_size=5), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert [step for step, _ in cut.rows] == list(range(6))
    for (_, a), (_, b) in zip(whole.rows, cut.rows, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("listed", ["smoothing first", "clipping first"])
@pytest.mark.parametrize("order", ["before_clipping", "after_clipping", None])
def test_order_relative_to_clipping_holds_however_the_algorithms_are_listed(order, listed):
    raw, final, rows = Recorder(), Recorder(), ranks_script.Rows()
    pair = [GradSmoothing(0.5, order=order), GradientClipping("norm", 0.01)]
    if listed == "clipping first":
        pair.reverse()
    fit(final, *pair, raw, rows=rows)
    norms = [norm64(gradients) for gradients in raw.steps]
    assert min(norms) > 0.02
    smoothing_ran_first = order == "before_clipping" or (order is None and listed == "clipping first")
    expected = norms if smoothing_ran_first else [0.01] * 6
    np.testing.assert_allclose([row["grad_norm"] for _, row in rows.rows], expected, rtol=1e-3)
    np.testing.assert_allclose([norm64(gradients) for gradients in final.steps], 0.01, rtol=1e-3)


def test_each_image_side_has_its_own_average():
    rows = ranks_script.Rows()
    smoothing = GradSmoothing(0.5, per_size=True)
    fit(smoothing, Alternating(), steps=8, rows=rows)
    for parity in (0, 1):
        mine = [row for step, row in rows.rows if step % 2 == parity]
        averages, factors = recurrence([row["grad_norm"] for row in mine], 0.5, 1e-6, "before")
        np.testing.assert_allclose([row["average"] for row in mine], averages, rtol=1e-6)
        np.testing.assert_allclose([row["factor"] for row in mine], factors, rtol=1e-6)
    assert sorted(size for size, _ in smoothing.state_dict()["averages"]) == [4, 8]


def test_one_average_for_each_size_needs_images():
    with pytest.raises(ValueError, match=r"item 1 is images \(N, C, H, W\), not \(16,\)"):
        fit(GradSmoothing(per_size=True, input_key=1))


@pytest.mark.parametrize(("interval", "due"), [(1, [1, 2, 3, 4, 5, 6]), (4, [4, 6]), (50, [6])])
def test_values_are_transferred_once_an_interval_and_logged_under_their_own_steps(interval, due):
    class Timed(ranks_script.Rows):
        def batch_end(self, state, logger):
            seen.append(len(self.rows))

    seen, rows = [], Timed()
    fit(GradSmoothing(log_interval=interval), rows=rows)
    assert seen == [max((d for d in due if d <= step and d % interval == 0), default=0) for step in range(1, 7)]
    assert [step for step, _ in rows.rows] == list(range(6))
    assert all(isinstance(value, float) for _, row in rows.rows for value in row.values())


def test_wandb_is_given_rising_steps():
    class Rising(WandBLogger):
        def __init__(self):
            super().__init__()
            self.steps = []

        def log_hyperparameters(self, hyperparameters):
            pass

        def log_metrics(self, metrics, step=None):
            assert step >= max([0, *(s for s, _ in self.steps)])
            self.steps.append((step, metrics))

    rising = Rising()
    trainer = trainer_for(GradSmoothing(log_interval=4))
    trainer.logger.destinations = (*trainer.logger.destinations, rising)
    trainer.fit()
    trainer.close()
    # Steps 0 to 3 at the end of batch 3; 4 and 5 once the clock shows 6.
    assert [step for step, row in rising.steps if "smoothing/factor" in row] == [3, 6]


@pytest.mark.parametrize("per_size", [False, True])
def test_a_run_resumed_in_mid_epoch_continues_exactly_and_logs_every_step_once(tmp_path, per_size):
    def algorithms():
        return GradSmoothing(per_size=per_size), Alternating()

    whole, first, second = ranks_script.Rows(), ranks_script.Rows(), ranks_script.Rows()
    weights = fit(*algorithms(), steps=8, rows=whole)
    trainer = trainer_for(*algorithms(), steps=8, rows=first, save_folder=str(tmp_path), save_interval="3ba")
    trainer.fit(duration="3ba")
    assert [step for step, _ in first.rows] == [0, 1, 2]
    trainer.close()
    checkpoint = next(tmp_path.glob("*ba3*"))
    resumed = fit(*algorithms(), steps=8, rows=second, load_path=str(checkpoint))
    assert all(torch.equal(a, b) for a, b in zip(weights, resumed, strict=True))
    assert first.rows + second.rows == whole.rows


def test_a_checkpoint_logs_what_waits():
    rows = ranks_script.Rows()
    trainer = trainer_for(GradSmoothing(), rows=rows)

    class Checkpoint(Algorithm):
        def match(self, event, state):
            return event == Event.BATCH_CHECKPOINT and int(state.timestamp.batch) == 4

        def apply(self, event, state, logger):
            assert rows.rows == []
            trainer.state.state_dict()
            assert [step for step, _ in rows.rows] == [0, 1, 2, 3]

    trainer.state.algorithms.append(Checkpoint())
    trainer.fit()
    assert [step for step, _ in rows.rows] == list(range(6))
    trainer.close()


def test_averages_by_size_and_one_for_all_are_not_mixed_up():
    with pytest.raises(ValueError, match="saved with per_size=True, not False"):
        GradSmoothing().load_state_dict(GradSmoothing(per_size=True).state_dict())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GradSmoothing(alpha=1.0), r"alpha is 1.0; it must lie in \[0, 1\)"),
        (lambda: GradSmoothing(alpha=-0.1), "alpha is -0.1"),
        (lambda: GradSmoothing(alpha=math.nan), "alpha is nan"),
        (lambda: GradSmoothing(eps=0), "eps is 0; it must be above 0"),
        (lambda: GradSmoothing(eps=math.inf), "eps is inf"),
        (lambda: GradSmoothing(update="never"), "update is 'never'; it must be one of 'before', 'after'"),
        (lambda: GradSmoothing(order="first"), "order is 'first'; .*'before_clipping', 'after_clipping'"),
        (lambda: GradSmoothing(log_interval=0), "log_interval is 0; .*at least 1"),
        (lambda: GradSmoothing(log_interval=1.5), "log_interval is 1.5"),
    ],
)
def test_arguments_out_of_range_are_refused_by_value(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_repr_builds_an_equal_one():
    smoothing = GradSmoothing(0.5, 1e-3, "after", order=None, per_size=True, input_key="image", log_interval=7)
    assert repr(eval(repr(smoothing))) == repr(smoothing)
    assert "alpha=0.5" in repr(smoothing)
    assert repr(GradientSmoother()) == "GradientSmoother(alpha=0.9, eps=1e-06, update='before')"


def test_the_recurrence_takes_norms_directly():
    step = smooth_norm(torch.tensor(2.0), torch.tensor(1.0))
    assert [float(value) for value in step] == pytest.approx([2.0, 1.1, 0.55])


# ---- over two ranks


def test_fsdp1_is_refused_before_the_first_step():
    class Sharded(FullyShardedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.inner = module

        def forward(self, images):
            return self.inner(images)

    trainer = trainer_for(GradSmoothing())
    trainer.state.model.module = Sharded(trainer.state.model.module)
    with pytest.raises(ValueError, match="DDP or FSDP2, not FSDP1"):
        trainer.fit()
    assert int(trainer.state.timestamp.batch) == 0
    trainer.close()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    launcher = Path(sys.executable).parent / "composer"
    command = [launcher, "-n", "2", RANKS_SCRIPT, folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_ranks_agree_bit_for_bit_and_with_one_process_on_the_joined_batches(two_ranks):
    alone = json.loads(json.dumps(ranks_script.trained_by_composer()))
    assert two_ranks[0]["composer"] == two_ranks[1]["composer"]
    together = two_ranks[0]["composer"]
    assert together["weights"] == pytest.approx(alone["weights"], rel=1e-5)
    assert len(alone["rows"]) == ranks_script.STEPS
    for (step, row), (alone_step, alone_row) in zip(together["rows"], alone["rows"], strict=True):
        assert step == alone_step
        assert row == pytest.approx(alone_row, rel=1e-5)


@pytest.mark.skipif(not ranks_script.FSDP2_ON_CPUS, reason="FSDP2 of PyTorch 2.6 needs a GPU")
def test_a_trainers_shards_under_fsdp2_share_norm_and_factor(two_ranks):
    one, two = two_ranks[0]["composer fsdp2"], two_ranks[1]["composer fsdp2"]
    assert one["rows"] == two["rows"]
    norms = [math.sqrt(a + b) for a, b in zip(one["before"], two["before"], strict=True)]
    assert [row["grad_norm"] for _, row in one["rows"]] == pytest.approx(norms, rel=1e-6)
    _, factors = recurrence(norms, 0.5, 1e-6, "before")
    for rank in (one, two):
        expected = [before * factor**2 for before, factor in zip(rank["before"], factors, strict=True)]
        assert rank["after"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif(not ranks_script.FSDP2_ON_CPUS, reason="FSDP2 of PyTorch 2.6 needs a GPU")
def test_shards_share_the_norm_of_the_whole_and_one_factor(two_ranks):
    one, two = two_ranks[0]["fsdp2"], two_ranks[1]["fsdp2"]
    parts = [(a["parts_before"], b["parts_before"]) for a, b in zip(one, two, strict=True)]
    assert all(0 < a != b > 0 for a, b in parts)
    norms = [math.sqrt(a + b + row["whole_before"]) for (a, b), row in zip(parts, one, strict=True)]
    _, factors = recurrence(norms, 0.5, 1e-6, "before")
    assert factors[1] < 0.8 < 1.2 < factors[2]
    for rank in (one, two):
        assert [row["norm"] for row in rank] == pytest.approx(norms, rel=1e-6)
        assert [row["factor"] for row in rank] == pytest.approx(factors, rel=1e-6)
        for held in ("parts", "whole"):
            expected = [row[f"{held}_before"] * factor**2 for row, factor in zip(rank, factors, strict=True)]
            assert [row[f"{held}_after"] for row in rank] == pytest.approx(expected, rel=1e-5)
    assert [row["norm"] for row in one] == [row["norm"] for row in two]
