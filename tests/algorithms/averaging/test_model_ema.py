"""``ModelEMA`` in a Trainer, against averages worked out by hand and Composer's own."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from composer import Algorithm, Evaluator, Event, Trainer
from composer.algorithms import EMA
from composer.models import ComposerClassifier

from mixsize import BNCalibrate, EvalLoader, MixSizeLoader, MixSizeSampling, ModelEMA, PadCrop, Regime, Resize
from mixsize.algorithms.regime.regime import Base
from mixsize.algorithms.training.step_seed import StepSeed

REGIME = Regime.from_sizes({16: 0.5, 8: 0.5}, Base(16, 32), "B+")


class Weights(Algorithm):
    """Keeps the network's tensors, after each step and inside of each evaluation."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.evaluated: list[dict[str, torch.Tensor]] = []

    def match(self, event, state):
        return event in (Event.BATCH_END, Event.EVAL_BATCH_END)

    def apply(self, event, state, logger):
        kept = self.steps if event == Event.BATCH_END else self.evaluated
        kept.append(tensors(state.model.module))


def tensors(network):
    # Not its state dictionary, which has the network's own statistics during a calibrated evaluation.
    return {name: one.detach().clone() for name, one in (*network.named_parameters(), *network.named_buffers())}


def build(digits, average, duration="4ba", load_path=None, calibration=None):
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=10, channels=(8, 8, 16, 16), stem_width=8)
    model = ComposerClassifier(network, num_classes=10)
    weights = Weights()
    algorithms = [StepSeed(), MixSizeSampling(), *([calibration] if calibration else []), average, weights]
    trainer = Trainer(
        model=model,
        train_dataloader=MixSizeLoader(
            digits / "train.beton", REGIME, augment=PadCrop(1), seed=3, num_workers=1, device="cpu"
        ).data_spec(),
        eval_dataloader=Evaluator(
            label="eval_8px",
            dataloader=EvalLoader(digits / "test.beton", 8, 360, augment=Resize(), num_workers=1, device="cpu"),
            metric_names=["MulticlassAccuracy"],
        ),
        eval_interval="2ba",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        algorithms=algorithms,
        max_duration=duration,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
        seed=11,
        load_path=load_path,
        load_ignore_keys=["rng"],
    )
    return trainer, weights


def images(digits, size_px):
    regime = Regime.fixed(Base(size_px, 64))
    return MixSizeLoader(digits / "train.beton", regime, augment=Resize(), seed=3, num_workers=1, device="cpu")


def calibrated_by(digits, batches):
    return BNCalibrate(partial(images, digits), num_batches=batches)


def same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_an_evaluation_sees_the_average_worked_out_by_hand_and_training_goes_on_from_its_own_weights(digits):
    trainer, weights = build(digits, ModelEMA(half_life="2ba"))
    trainer.fit()
    plain, unaveraged = build(digits, ModelEMA(half_life="2ba", ema_start="5ba"))
    plain.fit()
    same(weights.steps[3], unaveraged.steps[3])  # Averaging changes nothing of training.
    same(unaveraged.evaluated[1], unaveraged.steps[3])
    keep = 0.5**0.5
    expected = {name: tensor.double() for name, tensor in weights.steps[0].items()}
    for step in (1, 2, 3):
        for name, tensor in weights.steps[step].items():
            expected[name] = keep * expected[name] + (1 - keep) * tensor.double()
        if step != 2:
            for name, tensor in weights.evaluated[step // 2].items():
                if tensor.is_floating_point():
                    torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    counted = [name for name in expected if name.endswith("num_batches_tracked")]
    assert {int(weights.evaluated[1][name]) for name in counted} == {4}
    same(tensors(trainer.state.model.module), weights.steps[3])


def test_weights_are_those_of_composers_own_average(digits):
    times = {"half_life": "3ba", "update_interval": "2ba"}
    ours, theirs = build(digits, ModelEMA(**times)), build(digits, EMA(**times))
    for trainer, _ in (ours, theirs):
        trainer.fit()
    for name, tensor in ours[1].evaluated[1].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, theirs[1].evaluated[1][name], rtol=1e-5, atol=1e-6)


def test_calibration_measures_the_average_and_leaves_it_as_it_was(digits):
    trainer, weights = build(digits, ModelEMA(smoothing=0.8), calibration=calibrated_by(digits, 2))
    trainer.fit()
    plain, uncalibrated = build(digits, ModelEMA(smoothing=0.8))
    plain.fit()
    same(weights.steps[3], uncalibrated.steps[3])
    calibrated, own = weights.evaluated[1], uncalibrated.evaluated[1]
    assert torch.equal(calibrated["conv1.0.weight"], own["conv1.0.weight"])
    assert not torch.equal(calibrated["conv1.1.running_mean"], own["conv1.1.running_mean"])
    # Of the first layer of the averaged network, by hand.
    batches = [batch[0] for _, batch in zip(range(2), images(digits, 8), strict=False)]
    filters = own["conv1.0.weight"]
    outputs = torch.cat([torch.nn.functional.conv2d(batch, filters, stride=2, padding=1) for batch in batches])
    torch.testing.assert_close(calibrated["conv1.1.running_mean"], outputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    (average,) = (one for one in trainer.state.algorithms if isinstance(one, ModelEMA))
    same(average.state_dict()["weights"], own)


def test_a_checkpoint_restores_the_average_under_the_networks_own_names(digits, tmp_path):
    whole, weights = build(digits, ModelEMA(half_life="5ba"))
    whole.fit()
    stopped, _ = build(digits, ModelEMA(half_life="5ba"), "3ba")
    stopped.fit()
    stopped.save_checkpoint(str(tmp_path / "checkpoint.pt"))
    stopped.close()
    average = ModelEMA(half_life="5ba")
    resumed, again = build(digits, average, load_path=str(tmp_path / "checkpoint.pt"))
    saved = average.state_dict()["weights"]
    assert saved.keys() == resumed.state.model.module.state_dict().keys()
    resumed.eval()
    same(again.evaluated[0], saved)
    resumed.fit()
    same(again.steps[-1], weights.steps[-1])
    same(again.evaluated[-1], weights.evaluated[-1])


def test_the_step_after_a_broken_evaluation_has_the_weights_and_statistics_of_training(digits):
    class Broken(Algorithm):
        def match(self, event, state):
            return event == Event.EVAL_BATCH_END

        def apply(self, event, state, logger):
            raise KeyError("broken")

    trainer, weights = build(digits, ModelEMA(half_life="5ba"), calibration=calibrated_by(digits, 1))
    trainer.state.algorithms = [*trainer.state.algorithms, Broken()]
    with pytest.raises(KeyError, match="broken"):
        trainer.fit()
    assert not torch.equal(trainer.state.model.module.fc.weight, weights.steps[1]["fc.weight"])
    trainer.engine.run_event(Event.BATCH_START)
    same(tensors(trainer.state.model.module), weights.steps[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"half_life": "0ba"}, "half_life is 0ba; it must be at least 1"),
        ({"half_life": "2ba", "smoothing": 0.5}, "Only one of"),
        ({"smoothing": 1.0}, r"keep the fraction 1.0 of the average; .* must be in \(0, 1\)"),
        ({"half_life": "2ba", "update_interval": "1ep"}, "must match"),
        ({"half_life": "2sp"}, "Invalid time unit"),
        ({"half_life": "2ba", "update_interval": "0ba"}, "keep the fraction 1.0"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ModelEMA(**arguments)


def test_a_half_life_halves_what_an_update_finds():
    assert ModelEMA(half_life="100ba", update_interval="50ba").smoothing == pytest.approx(0.5**0.5)
    assert ModelEMA().smoothing == pytest.approx(0.5 ** (1 / 1000))
    assert ModelEMA(smoothing=0.9).smoothing == 0.9
