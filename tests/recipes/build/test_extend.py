"""A run that has ended goes on when it is given more epochs, and is evaluated anew with other settings."""

from __future__ import annotations

import json
import math

import pytest

from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.recipes.build.resume import finished_record
from mixsize.recipes.build.trainer import build
from mixsize.recipes.commands.train import fit
from mixsize.recipes.config.compose import compose
from mixsize.recipes.records.run_record import EarlierLength, read_record

#: Five steps an epoch: 1437 // 256.
SHORT = ["regime.base.batch_size=256", "evaluation.sizes=[16]", "evaluation.every_epochs=1", "progress_bar=false"]
MIXED = ["regime.mode=B+", "regime.sizes={12: 0.4, 16: 0.6}"]
CONSTANT, COSINE = "schedule={name: constant}", "schedule={name: cosine}"


@pytest.fixture
def recipe(digits, tmp_path):
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={tmp_path}/runs"]
    return lambda *items: compose(["demo", *data, *SHORT, *items])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs/demo"


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    """What no handler of errors catches."""


def fit_until(run, steps):
    trained = run.trainer._train_batch

    def train_batch(*args):
        if int(run.trainer.state.timestamp.batch) == steps:
            raise Killed
        return trained(*args)

    run.trainer._train_batch = train_batch
    with pytest.raises(Killed):
        fit(run)


def rates_of(run):
    """The learning rate that the optimiser takes each step with."""
    rates = []
    (optimizer,) = run.trainer.state.optimizers
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    return rates


@pytest.mark.parametrize(
    "epochs",
    [0, pytest.param(0.5, marks=pytest.mark.soak), 1.5],
    ids=["whole", "stopped before a checkpoint", "stopped after one"],
)
def test_an_extended_run_is_the_longer_run_bit_for_bit(recipe, folder, epochs):
    """The schedule is constant; a kill of the extended run changes nothing either."""
    items = [CONSTANT, *MIXED, "output.log_batches=true", "smoothing={}", "output.save_every=1ep"]
    whole = fit(build(recipe(*items, "name=whole", "max_duration=3ep")))
    short = fit(build(recipe(*items, "max_duration=1ep")))
    left = {name: (folder / name).read_bytes() for name in ("record.json", "model.safetensors")}
    if epochs:
        fit_until(build(recipe(*items, "max_duration=3ep")), short.steps + round(epochs * short.steps))
        assert {name: (folder / name).read_bytes() for name in left} == left
        assert read_record(folder / "record.json") == short
    record = fit(build(recipe(*items, "max_duration=3ep")))
    for key in ("steps", "epochs", "samples", "pixels", "sequence_crc", "accuracy", "loss", "gradient_norms"):
        assert getattr(record, key) == getattr(whole, key)
    curves = [[point.model_dump(exclude={"seconds"}) for point in run.curve] for run in (record, whole)]
    assert curves[0] == curves[1]
    assert record.recipe["max_duration"] == "3ep"
    assert record.earlier_lengths == [EarlierLength(max_duration="1ep", steps=short.steps)]
    assert whole.earlier_lengths == []
    other = folder.with_name("whole")
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    batches = [(path / "batches-rank0.csv").read_text().splitlines() for path in (folder, other)]
    assert set(batches[0]) == set(batches[1])


def test_an_extended_cosine_goes_on_at_the_rate_of_the_longer_run(recipe, folder, capsys):
    items = [COSINE, "output.log_batches=true", "optimizer.lr=0.1"]
    short = build(recipe(*items, "max_duration=2ep"))
    rates = rates_of(short)
    fit(short)
    before = (folder / "batches-rank0.csv").read_text()
    longer = build(recipe(*items, "max_duration=4ep"))
    rates_after = rates_of(longer)
    capsys.readouterr()
    fit(longer)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])
    assert rates_after == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 20)) for step in range(10, 20)])
    line = (
        "max_duration was 2ep, is 4ep; from here on the learning rate is that of cosine over 4ep: "
        "it was 0.00245 at step 10, and is 0.05 at step 11\n"
    )
    assert capsys.readouterr().out.count(line) == 1
    fit(build(recipe(*items, "max_duration=4ep", "name=whole")))
    whole = (folder.with_name("whole") / "batches-rank0.csv").read_text()
    assert (folder / "batches-rank0.csv").read_text() == whole
    assert whole.startswith(before)


def test_the_curve_of_an_extended_run_keeps_the_end_of_the_shorter_one(recipe, folder):
    """The checkpoint at the end holds an evaluation with calibrated statistics, or was saved before it."""
    items = [CONSTANT, *MIXED, "calibration={batches: 1}"]
    for name, lengths in {"epochs": ("1ep", "2ep"), "steps": ("3ba", "5ba")}.items():
        first, second = (fit(build(recipe(*items, f"name={name}", f"max_duration={length}"))) for length in lengths)
        assert first.curve[-1].accuracy == first.accuracy != first.calibrated_accuracy
        assert second.curve[: len(first.curve)] == first.curve
        assert second.curve[-1].accuracy == second.accuracy
        assert second.curve[-1].train_loss != first.curve[-1].train_loss


def test_a_run_may_end_earlier_but_not_before_what_it_has_trained(recipe, folder):
    fit_until(build(recipe(COSINE, "max_duration=9ep", "output.save_every=7ba")), 12)
    before = files(folder)
    for length, least in {"1ep": "2ep", "6ba": "7ba"}.items():
        with pytest.raises(
            ValueError,
            match=rf"max_duration is {length}, and .*demo is beyond it: at epoch 1, step 7, after .* s of training; "
            rf"give at least {least}, or another name \(name=\.\.\.\)",
        ):
            build(recipe(COSINE, f"max_duration={length}"))
    assert files(folder) == before
    record = fit(build(recipe(COSINE, "max_duration=2ep")))
    assert record.steps == 10
    assert record.earlier_lengths == [EarlierLength(max_duration="9ep", steps=7)]


def test_seconds_count_like_epochs(recipe, folder, monkeypatch):
    def quarter_of_a_second(clock, state, logger):
        clock.seconds += 0.25

    monkeypatch.setattr(TrainingClock, "batch_end", quarter_of_a_second)
    items = [CONSTANT, "output.save_every=5ba"]
    record = fit(build(recipe(*items, "max_duration=1sec")))
    assert record.steps == 4
    with pytest.raises(ValueError, match=r"max_duration is 1ba, and .* is beyond it: at epoch"):
        build(recipe(*items, "max_duration=1ba"))
    assert fit(build(recipe(*items, "max_duration=2sec"))).steps == 8
    with pytest.raises(ValueError, match=r"max_duration is 1sec, and .* after 2\.0 s of training; give at least 2sec"):
        build(recipe(*items, "max_duration=1sec"))


def test_phases_that_follow_the_length_are_not_moved(recipe, folder):
    phases = "regime={mode: progressive, phases: [{size_px: 8, fraction: 0.5}, {size_px: 16, fraction: 0.5}]}"
    fit(build(recipe(phases, "max_duration=2ep")))
    before = files(folder)
    with pytest.raises(ValueError, match=r"max_duration was 2ep, is 4ep: regime.phases has fractions, which follow it"):
        build(recipe(phases, "max_duration=4ep"))
    assert files(folder) == before


def test_an_ended_run_without_checkpoints_is_never_overwritten(recipe, folder):
    items = ["output.save_every=never", "max_duration=1ep"]
    fit(build(recipe(*items)))
    before = files(folder)
    for item, words in {
        "max_duration=2ep": "max_duration is 2ep, but .* ended after 1ep and cannot go on: .*save_every was never",
        "seed=18": r"a run of another recipe: seed was 17, is 18; give another name \(name=\.\.\.\)",
        "evaluation.sizes=[8]": "cannot be evaluated anew here: .* mixsize eval .*demo evaluates its weights",
    }.items():
        with pytest.raises(ValueError, match=words):
            build(recipe(*items, item))
    assert files(folder) == before


def test_a_record_of_an_earlier_version_lacks_keys_that_have_their_defaults(recipe, folder):
    items = ["output.save_every=never", "max_duration=1ep", "data.augment.padding=2"]
    first = fit(build(recipe(*items)))
    file = folder / "record.json"
    written = json.loads(file.read_text())
    older = written["recipe"]
    for key in ("policy", "magnitude", "color_jitter", "erasing"):
        del older["data"]["augment"][key]
    del older["optimizer"]["clip_norm"], older["mixing"], older["algorithms"], older["regime"]["stride"]
    del older["loss"]["name"], older["evaluation"]["interpolation"]
    file.write_text(json.dumps(written))
    assert finished_record(recipe(*items), folder) == first.model_copy(update={"recipe": older})
    with pytest.raises(ValueError, match=r"another recipe: data\.augment\.erasing was 0\.0, is 0\.5; give"):
        build(recipe(*items, "data.augment.erasing=0.5"))
    # What is no recipe today is compared as it stands.
    older["data"]["augment"]["colour"] = older["data"]["augment"].pop("padding")
    file.write_text(json.dumps(written))
    assert finished_record(recipe(*items), folder) is None
    with pytest.raises(ValueError, match=r"another recipe: .*data\.augment\.colour was 2, is None"):
        build(recipe(*items))


def test_an_ended_run_is_evaluated_anew_with_other_settings(recipe, folder):
    first = fit(build(recipe("max_duration=1ep")))
    trained = (folder / "model.safetensors").read_bytes()
    assert finished_record(recipe("max_duration=1ep", "loader.num_workers=1"), folder) == first
    items = ["max_duration=1ep", "evaluation.sizes=[8,16]", "calibration={batches: 2}"]
    assert finished_record(recipe(*items), folder) is None
    second = fit(build(recipe(*items)))
    assert read_record(folder / "record.json") == second
    assert second.recipe["evaluation"]["sizes"] == [8, 16]
    assert second.recipe["calibration"]["batches"] == 2
    assert second.accuracy["16"] == first.accuracy["16"]
    assert set(second.calibrated_accuracy) == {"8", "16"}
    assert second.steps == first.steps
    assert (folder / "model.safetensors").read_bytes() == trained
    assert fit(build(recipe("max_duration=1ep"))).accuracy == first.accuracy  # Without the calibration again.
