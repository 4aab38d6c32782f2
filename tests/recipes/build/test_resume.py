"""A stopped run goes on exactly; one that is another run is refused with what differs."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from mixsize.ffcv_loaders.loader import MixSizeLoader
from mixsize.recipes.build.resume import check_ranks, find_start
from mixsize.recipes.build.trainer import build
from mixsize.recipes.callbacks.checkpoints import Checkpoints
from mixsize.recipes.commands import train
from mixsize.recipes.commands.train import fit
from mixsize.recipes.config.compose import compose
from mixsize.recipes.records.run_folder import latest_checkpoint
from mixsize.system.machine import bfloat16_instructions

DROPOUT = ["model.name=resnet10t", "model.kwargs={drop_rate: 0.3, drop_path_rate: 0.3}", "regime.base.size_px=32"]


def recipe(digits, tmp_path, *items):
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={tmp_path}/runs"]
    return compose(["demo", *data, "progress_bar=false", "evaluation.sizes=[16]", *items])


class Killed(BaseException):
    """What no handler of errors catches."""


def stop_after(run, steps):
    """Train, and end without warning in the middle of a step."""
    trained = run.trainer._train_batch

    def train_batch(*args):
        if int(run.trainer.state.timestamp.batch) == steps:
            raise Killed
        return trained(*args)

    run.trainer._train_batch = train_batch
    with pytest.raises(Killed):
        fit(run)


def weights(path):
    return path.read_bytes()


# Strong augmentation, dropout, stochastic depth, momentum, smoothing and batches of two sizes; an epoch has 18 steps.
EVERYTHING = [
    *DROPOUT, "model.name=mobilenetv3_small_050", "model.kwargs={drop_rate: 0.3, drop_path_rate: 0.3}",
    "regime.mode=B+", "regime.sizes={32: 0.5, 64: 0.5}", "regime.base.batch_size=192", "max_duration=26ba",
    "evaluation.sizes=[32]", "evaluation.every_epochs=1", "smoothing={}", "output.save_every=4ba",
    "output.log_batches=true", "data.augment.policy=rand-m5-mstd0.5-inc1", "data.augment.magnitude={32: 3, 64: 6.5}",
    "data.augment.color_jitter=[0.3, 0.3, 0.3, 0.1]", "data.augment.erasing=0.25",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """The folder and the record of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "runs/demo", fit(build(recipe(digits, folder, *EVERYTHING)))


@pytest.mark.parametrize("stop", [11, 23], ids=["inside the first epoch", "inside the second"])
def test_a_run_stopped_anywhere_ends_with_the_same_weights_and_batches(digits, tmp_path, whole, stop):
    whole_folder, whole_record = whole
    stop_after(build(recipe(digits, tmp_path, *EVERYTHING)), stop)
    again = build(recipe(digits, tmp_path, *EVERYTHING))
    assert int(again.trainer.state.timestamp.batch) == stop // 4 * 4
    record = fit(again)
    for key in (
        "steps", "epochs", "samples", "distinct_samples", "pixels", "sequence_crc", "accuracy", "loss",
        "regime_digest", "plan_digest", "gradient_norms", "macs",
    ):  # fmt: skip
        assert getattr(record, key) == getattr(whole_record, key)
    curves = [[point.model_dump(exclude={"seconds"}) for point in run.curve] for run in (record, whole_record)]
    assert curves[0] == curves[1]
    assert [point.step for point in record.curve] == [18, 26]
    folder = tmp_path / "runs/demo"
    assert weights(folder / "model.safetensors") == weights(whole_folder / "model.safetensors")
    expected = (whole_folder / "batches-rank0.csv").read_text().splitlines()
    assert len(expected) == 27
    assert set((folder / "batches-rank0.csv").read_text().splitlines()) == set(expected)


@pytest.mark.skipif(not bfloat16_instructions(), reason="the processor has no bfloat16 instructions")
def test_a_run_in_bfloat16_stopped_in_mid_epoch_ends_with_the_same_weights(digits, tmp_path):
    items = ["regime.mode=B+", "regime.base={size_px: 16, batch_size: 16}", "regime.sizes={16: 0.5, 8: 0.5}"]
    items += ["precision=amp_bf16", "channels_last=true", "max_duration=30ba", "output.save_every=8ba"]
    items += ["calibration.batches=2", "model.kwargs.drop_rate=0.3"]
    expected = fit(build(recipe(digits, tmp_path, *items, "name=whole")))
    stop_after(build(recipe(digits, tmp_path, *items)), 18)
    again = build(recipe(digits, tmp_path, *items))
    assert int(again.trainer.state.timestamp.batch) == 16
    record = fit(again)
    for key in ("steps", "sequence_crc", "loss", "calibrated_accuracy"):
        assert getattr(record, key) == getattr(expected, key)
    for name in ("model.safetensors", "batch_norm.pt"):
        assert weights(tmp_path / "runs/demo" / name) == weights(tmp_path / "runs/whole" / name)


# Sizes below the stride are for speed; the epochs of the phases become shorter.
SMALL = [
    *EVERYTHING[:5], "regime.stride=1", "regime.base.size_px=16", "regime.base.batch_size=128", "evaluation.sizes=[16]",
    "max_duration=3ep",
]  # fmt: skip
CURRICULA = {
    "phases of mixtures": "phases: [{sizes: {16: 0.75, 8: 0.25}, mode: D+, share_of: steps, epochs: 1, dropout: 0.5}, "
    "{sizes: {16: 0.5, 12: 0.5}, epochs: 1, drop_path: 0.1}, "
    "{sizes: {12: 0.5, 10: 0.5}, draw: epoch, epochs: 1, dropout: [0.1, 0.3]}]",
    "a shifting mixture": "shift: {start: {12: 1.0}, end: {20: 0.5, 16: 0.5}, end_fraction: 1.0, stages: 2}, "
    "strengths: {dropout: [0.0, 0.4], drop_path: [0.2, 0.0]}",
}


@pytest.mark.soak  # The ordinary run stops both in tests/algorithms/training/test_curriculum.py.
@pytest.mark.parametrize("name", CURRICULA)
def test_a_curriculum_stopped_in_an_epoch_ends_with_the_same_weights(digits, tmp_path, name):
    items = [*SMALL, f"regime={{mode: progressive, {CURRICULA[name]}}}", "schedule={name: constant}"]
    items += ["output.save_every=7ba", "output.log_batches=true"]
    whole = fit(build(recipe(digits, tmp_path, *items, "name=whole")))
    stop_after(build(recipe(digits, tmp_path, *items)), 8)
    again = build(recipe(digits, tmp_path, *items))
    assert int(again.trainer.state.timestamp.batch) == 7
    assert int(again.trainer.state.timestamp.batch_in_epoch) > 0
    record = fit(again)
    for key in ("steps", "samples", "pixels", "sequence_crc", "plan_digest", "accuracy", "loss"):
        assert getattr(record, key) == getattr(whole, key)
    assert len({row.size_px for row in record.shapes}) > 1
    assert weights(tmp_path / "runs/demo/model.safetensors") == weights(tmp_path / "runs/whole/model.safetensors")
    lines = [set((tmp_path / f"runs/{run}/batches-rank0.csv").read_text().splitlines()) for run in ("demo", "whole")]
    assert lines[0] == lines[1]


def test_strengths_are_part_of_what_a_stopped_run_keeps(digits, tmp_path):
    def items(dropout):
        return [*SMALL, f"regime={{mode: progressive, phases: [{{size_px: 8, epochs: 3, dropout: {dropout}}}]}}"]

    fit(build(recipe(digits, tmp_path, *items("[0.1, 0.2]"))))
    with pytest.raises(ValueError, match=r"a run of another recipe: regime\.phases was .*0\.3"):
        build(recipe(digits, tmp_path, *items("[0.1, 0.3]")))
    with pytest.raises(ValueError, match=r"is 4ep: regime\.phases has strengths that change up to the last epoch"):
        build(recipe(digits, tmp_path, *items("[0.1, 0.2]"), "max_duration=4ep"))


def test_going_on_decodes_nothing_that_came_before(digits, tmp_path, monkeypatch):
    items = ["max_duration=30ba", "output.save_every=20ba"]
    stop_after(build(recipe(digits, tmp_path, *items)), 25)
    run = build(recipe(digits, tmp_path, *items))
    served = []
    serve = type(run.loader.dataset).serve
    monkeypatch.setattr(
        type(run.loader.dataset), "serve", lambda self, plan, first: served.append(first) or serve(self, plan, first)
    )
    fit(run)
    assert served == [20]


def test_the_weights_left_behind_open_in_timm(digits, tmp_path):
    fit(build(recipe(digits, tmp_path, *DROPOUT, "max_duration=1ba", "evaluation.sizes=[32]")))
    network = timm.create_model("resnet10t", num_classes=10, checkpoint_path=tmp_path / "runs/demo/model.safetensors")
    saved = torch.load(tmp_path / "runs/demo/checkpoints/ep0-ba1.pt", weights_only=False)["state"]["model"]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, saved[f"module.{name}"])


def test_a_finished_run_is_shown_and_not_repeated(digits, tmp_path, capsys, monkeypatch):
    items = ["demo", f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", "progress_bar=false"]
    items += [f"output.folder={tmp_path}/runs", "max_duration=2ba", "evaluation.sizes=[16]"]
    assert train.prepare(compose(items))() == 0
    before = (tmp_path / "runs/demo/record.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(train, "build", None)
        assert train.prepare(compose(items))() == 0
    assert "ended before" in capsys.readouterr().out
    assert train.prepare(compose([*items, "output.restart=true"]))() == 0
    after = json.loads((tmp_path / "runs/demo/record.json").read_text())
    assert after["accuracy"] == json.loads(before)["accuracy"]
    assert (tmp_path / "runs/demo/record.json").read_text() != before  # Other seconds.


def test_a_run_stopped_after_its_last_checkpoint_is_evaluated_alone(digits, tmp_path):
    items = ["max_duration=1ep", "regime.base.batch_size=256", "evaluation.every_epochs=1"]
    record = fit(build(recipe(digits, tmp_path, *items)))
    (tmp_path / "runs/demo/record.json").unlink()
    again = fit(build(recipe(digits, tmp_path, *items)))
    assert again.accuracy == record.accuracy
    # 1437 // 256 steps; the second evaluation at the end takes the place of the first.
    assert [point.step for point in again.curve] == [5]
    assert again.curve[0].train_loss == record.curve[0].train_loss


def test_what_differs_is_named_and_nothing_is_touched(digits, tmp_path):
    stop_after(build(recipe(digits, tmp_path, "max_duration=30ba", "output.save_every=5ba")), 12)
    left = sorted((path, path.read_bytes()) for path in (tmp_path / "runs").rglob("*") if path.is_file())
    for item, words in {
        "regime.base.batch_size=64": r"regime.base.batch_size was 32, is 64",
        "seed=18": "seed was 17, is 18",
        "optimizer.lr=0.5": "optimizer.lr was 0.05, is 0.5",
        "data.augment.padding=2": "data.augment.padding was 1, is 2",
    }.items():
        with pytest.raises(ValueError, match=rf"{words}; give another name \(name=\.\.\.\)$"):
            build(recipe(digits, tmp_path, "max_duration=30ba", item))
    with pytest.raises(ValueError, match=r"on other data: data was '\w+', is '\w+'; images was 1437, is 360"):
        build(recipe(digits, tmp_path, "max_duration=30ba", f"data.train={digits}/test.beton"))
    assert sorted((path, path.read_bytes()) for path in (tmp_path / "runs").rglob("*") if path.is_file()) == left


def test_what_does_not_decide_the_weights_may_change(digits, tmp_path):
    stop_after(build(recipe(digits, tmp_path, "max_duration=30ba", "output.save_every=5ba")), 12)
    changed = ["loader.batches_ahead=1", "loader.num_workers=1", "evaluation.every_epochs=2", "output.save_every=never"]
    run = build(recipe(digits, tmp_path, "max_duration=30ba", *changed))
    assert run.resumed.name == "ep0-ba10.pt"
    run.trainer.close()


def test_restart_removes_what_was_there_and_says_so(digits, tmp_path, capsys):
    stop_after(build(recipe(digits, tmp_path, "max_duration=30ba", "output.save_every=5ba")), 12)
    run = build(recipe(digits, tmp_path, "seed=18", "max_duration=30ba", "output.restart=true"))
    assert run.resumed is None
    assert not list((tmp_path / "runs/demo/checkpoints").glob("*"))
    removed = f"removed from {tmp_path}/runs/demo: config.json, data.json, recipe.yaml, checkpoints/ep0-ba10.pt\n"
    assert capsys.readouterr().out == f"output.restart: {removed}"
    # Its own recipe goes on with it.
    assert run.recipe.output.restart
    assert not compose([str(tmp_path / "runs/demo/recipe.yaml")]).output.restart
    run.trainer.close()


def test_ranks_that_cannot_share_the_batches_are_told_which_can(digits, tmp_path):
    stop_after(build(recipe(digits, tmp_path, "max_duration=30ba", "output.save_every=5ba")), 12)
    start = find_start(recipe(digits, tmp_path, "max_duration=30ba"), tmp_path / "runs/demo", 8)
    assert start.recipe.regime.batch_multiple == 1  # As the run began, on one rank.
    run = build(recipe(digits, tmp_path, "max_duration=30ba"))
    check_ranks(start, run.regime, 8)
    with pytest.raises(
        ValueError, match=r"batches of 32 images, which 3 ranks cannot share .* 1, 2, 4, 8, 16, 32 ranks"
    ):
        check_ranks(start, run.regime, 3)
    run.trainer.close()


def test_a_torn_checkpoint_is_passed_over(digits, tmp_path):
    items = ["max_duration=30ba", "output.save_every=5ba", "output.keep_checkpoints=0"]
    stop_after(build(recipe(digits, tmp_path, *items)), 17)
    folder = tmp_path / "runs/demo/checkpoints"
    assert sorted(path.name for path in folder.glob("*")) == ["ep0-ba10.pt", "ep0-ba15.pt", "ep0-ba5.pt"]
    newest = latest_checkpoint(folder)
    assert newest.name == "ep0-ba15.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert latest_checkpoint(folder).name == "ep0-ba10.pt"


def test_older_checkpoints_go_once_a_newer_one_is_whole(tmp_path):
    for name in ("ep0-ba5.pt", "ep0-ba10.pt", "ep1-ba100.pt", "mine.pt"):
        (tmp_path / name).touch()
    Checkpoints(tmp_path, "1ep", keep=2)._remove_older(tmp_path / "ep1-ba100.pt")
    assert {path.name for path in tmp_path.iterdir()} == {"ep0-ba10.pt", "ep1-ba100.pt", "mine.pt"}
    with pytest.raises(ValueError, match="keep is -1"):
        Checkpoints(tmp_path, "1ep", keep=-1)


def test_the_record_keeps_times_apart_over_all_starts(digits, tmp_path):
    items = ["max_duration=30ba", "output.save_every=5ba"]
    stop_after(build(recipe(digits, tmp_path, *items)), 17)
    run = build(recipe(digits, tmp_path, *items))
    before = run.times.seconds_so_far()
    assert before["steps"] > 0
    assert before["fit"] > before["steps"]
    record = fit(run)
    seconds = record.seconds
    assert seconds.steps > before["steps"]
    assert seconds.set_up > before["set_up"] > 0
    assert 0 < seconds.data_wait + seconds.steps <= seconds.training * 1.01
    assert seconds.fit > seconds.data_wait + seconds.steps + seconds.evaluation
    assert seconds.calibration == 0
    (row,) = record.shapes
    # Of the 30 steps, the first of either start are left out; together the rest cannot take longer than all.
    assert 0 < row.seconds * 28 <= seconds.steps


def test_a_resumed_run_on_another_number_of_ranks_has_the_same_images_in_the_same_steps(digits, tmp_path):
    """The loader's part: two ranks' batches at a step, joined, are those of one rank."""
    stop_after(build(recipe(digits, tmp_path, "max_duration=30ba", "output.save_every=5ba")), 12)
    path = latest_checkpoint(tmp_path / "runs/demo/checkpoints")
    state = torch.load(path, weights_only=False)["state"]["dataset_state"]["train"]
    whole = build(recipe(digits, tmp_path, "max_duration=30ba", "name=whole"))

    def rest(rank, ranks):
        source = whole.loader.dataset.source
        loader = MixSizeLoader(
            source.beton, whole.regime, augment=source.augment, seed=17, num_workers=1, rank=rank, world_size=ranks
        )
        loader.dataset.load_state_dict(state)
        return list(loader)

    alone, first, second = rest(0, 1), rest(0, 2), rest(1, 2)
    assert len(alone) == len(first) == 44 - 10
    for one, a, b in zip(alone, first, second, strict=True):
        assert torch.equal(one[0], torch.cat([a[0], b[0]]))
        assert torch.equal(one[1], torch.cat([a[1], b[1]]))
    whole.trainer.close()


def test_the_fixture_network_really_draws_random_numbers():
    """Else the tests of dropout above would show nothing."""
    network = timm.create_model("mobilenetv3_small_050", drop_rate=0.3, drop_path_rate=0.3).train()
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
