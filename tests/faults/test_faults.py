"""Faults that are really injected into training runs: what ends, with which words, and what is left."""

from __future__ import annotations

import signal

import pytest

PLACES = ("training", "evaluation", "calibration", "checkpointing", "recording")


def fault(what, outcome):
    return pytest.mark.fault(what, outcome)


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        pytest.param(
            kind,
            place,
            marks=fault(f"{kind} during {place}", "started again, it ends with the same weights, bit for bit"),
        )
        for place in PLACES
        for kind in (("SIGKILL", "SIGTERM") if place == "training" else ("SIGKILL",))
    ],
)
def test_a_killed_run_goes_on_to_the_same_end(runs, whole, kind, place):
    stopped = runs.start(f"{kind}:{place}")
    # Composer turns SIGTERM into an exit of its own.
    assert stopped.code in (-getattr(signal, kind), 128 + getattr(signal, kind)), stopped
    assert "record.json" not in runs.files()
    again = runs.start()
    assert again.code == 0, again
    assert runs.weights() == whole.weights()
    assert runs.record()["accuracy"] == whole.record()["accuracy"]
    assert runs.record()["calibrated_accuracy"] == whole.record()["calibrated_accuracy"]
    assert not [name for name in runs.files() if "partial" in name]


@fault("disk full while a checkpoint is written", "ends with OSError naming the file; goes on from the one before")
def test_a_disk_that_fills_up_during_a_checkpoint_leaves_the_one_before(runs, whole):
    # A checkpoint has 2.1 MB, the weights 1.1.
    size = (whole.folder / "runs/faulty/checkpoints").glob("*.pt").__next__().stat().st_size / 2**20
    first = runs.start("", "max_duration=8ba")
    assert first.code == 0, first
    for name in ("record.json", "model.safetensors"):
        (runs.folder / "runs/faulty" / name).unlink()
    before = runs.files()
    stopped = runs.start(f"disk:{size / 2}")
    assert stopped.code == 1, stopped
    assert "ep0-ba16.pt: the checkpoint cannot be written, the one before stays" in stopped.printed
    assert runs.files() == before
    again = runs.start()
    assert again.code == 0, again
    assert runs.weights() == whole.weights()


@fault("disk full while weights and record are written", "ends with OSError; no half a file is left")
def test_a_disk_that_fills_up_at_the_end_loses_nothing(runs, whole):
    weights = len(whole.weights()) / 2**20
    stopped = runs.start(f"disk:{weights / 2}", "output.save_every=never")
    assert stopped.code != 0, stopped
    assert "File too large" in stopped.printed
    assert not {"record.json", "model.safetensors"} & set(runs.files())


@fault("NaN or infinite loss", "ends with FloatingPointError naming step, shape and rate; the checkpoint is sound")
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_ends_the_run_with_its_step(runs, whole, value):
    stopped = runs.start(f"loss:{value}")
    assert stopped.code == 1, stopped
    assert "FloatingPointError: the loss of step 12, in epoch 0, at " in stopped.printed
    assert f"is {value}: training has diverged. The learning rate was" in stopped.printed
    assert [name for name in runs.files() if name.endswith(".pt")] == ["checkpoints/ep0-ba8.pt"]
    again = runs.start()
    assert again.code == 0, again
    assert runs.weights() == whole.weights()


@fault("weights become NaN", "ends with FloatingPointError before they are saved")
def test_broken_weights_are_not_saved(runs, whole):
    stopped = runs.start("weights:", "output.save_every=12ba")
    assert stopped.code == 1, stopped
    assert "ep0-ba12.pt is not written, as " in stopped.printed
    assert "is no longer finite: training has diverged; the checkpoint before stays the newest" in stopped.printed
    assert not [name for name in runs.files() if name.endswith(".pt")]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=fault(f"training file {how} during training", outcome))
        for how, outcome in (
            ("written to", "ends with BetonError naming the file, before a batch of it is used"),
            ("cut short", "ends with BetonError naming the file, before a batch of it is used"),
        )
    ],
)
def test_a_file_that_changes_under_a_run_ends_it(runs, how):
    stopped = runs.start(f"file:{how}@{runs.train}")
    assert stopped.code == 1, stopped
    assert f"BetonError: {runs.train}: was written to while it was read" in stopped.printed


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=fault(f"training file {how} during training", "goes on with the images it had"))
        for how in ("replaced", "removed")
    ],
)
def test_a_file_that_is_replaced_or_removed_is_read_to_the_end(runs, whole, how):
    finished = runs.start(f"file:{how}@{runs.train}", "calibration=null")
    assert finished.code == 0, finished
    assert runs.weights() == whole.weights()


@fault("decoding thread raises", "ends with its error")
def test_a_loader_thread_that_raises_ends_the_run_with_its_error(runs):
    stopped = runs.start("thread:")
    assert stopped.code == 1, stopped
    assert "MemoryError: no memory for another image" in stopped.printed


@fault("clock goes back an hour and forth two", "trains on to the same weights; seconds stay those that passed")
def test_a_clock_that_jumps_changes_no_weights_and_no_times(runs, whole):
    finished = runs.start("clock:")
    assert finished.code == 0, finished
    assert runs.weights() == whole.weights()
    assert 0 < runs.record()["seconds"]["training"] < 100
    assert all(0 < point["seconds"] < 100 for point in runs.record()["curve"])


@fault("Weights & Biases' process is killed", "trains on without it, to the same weights; said in the log")
def test_a_killed_logger_does_not_take_the_run_with_it(runs, whole):
    finished = runs.start("wandb:", "output.wandb.project=x", "output.wandb.mode=offline")
    assert finished.code == 0, finished
    assert "Weights & Biases has failed (" in finished.printed
    assert "the run goes on without it" in finished.printed
    assert runs.weights() == whole.weights()


@fault("Weights & Biases cannot be reached", "trains, with an offline run; said in the log")
def test_a_service_that_is_not_there_gets_an_offline_run(runs, whole):
    finished = runs.start("no service:", "output.wandb.project=x")
    assert finished.code == 0, finished
    assert "http://127.0.0.1:9 cannot be reached (" in finished.printed
    assert "the run is logged to disk; send it with wandb sync" in finished.printed
    assert list(runs.folder.glob("wandb/offline-run-*/*.wandb"))
    assert runs.weights() == whole.weights()
