"""Faults that are really injected into training runs: what ends, with which words, and what is left."""

from __future__ import annotations

import json
import signal

import pytest

from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.encode import Encoding
from mixsize.ffcv_loaders.conversion.sources import ArraySource, open_digits
from mixsize.ffcv_loaders.conversion.writer import write_beton

#: Places of a run, and the checkpoint that one which ends there leaves behind.
PLACES = {
    "training": "ep0-ba8.pt",
    "evaluation": "ep0-ba20.pt",
    "calibration": "ep0-ba20.pt",
    "checkpointing": "ep0-ba8.pt",
    "recording": "ep0-ba20.pt",
}
KINDS = ("SIGKILL", "SIGTERM")


def fault(what, outcome):
    return pytest.mark.fault(what, outcome)


def codes_of(kind):
    # Composer turns SIGTERM into an exit of its own.
    return -getattr(signal, kind), 128 + getattr(signal, kind)


def checkpoints(runs):
    return [name.removeprefix("checkpoints/") for name in runs.files() if name.startswith("checkpoints/ep")]


def assert_ends_like(runs, whole):
    """The weights, bit for bit, and what was measured of them."""
    assert runs.weights() == whole.weights()
    assert runs.record()["accuracy"] == whole.record()["accuracy"]
    assert runs.record()["calibrated_accuracy"] == whole.record()["calibrated_accuracy"]
    assert not [name for name in runs.files() if "partial" in name]


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        pytest.param(
            kind,
            place,
            marks=fault(f"{kind} during {place}", "started again, it ends with the same weights, bit for bit"),
        )
        for place in PLACES
        for kind in KINDS
    ],
)
def test_a_killed_run_goes_on_to_the_same_end(runs, whole, kind, place):
    stopped = runs.start(f"{kind}:{place}")
    assert stopped.code in codes_of(kind), stopped
    assert "record.json" not in runs.files()
    assert checkpoints(runs) == [PLACES[place]]
    again = runs.start()
    assert again.code == 0, again
    assert_ends_like(runs, whole)


#: What tells little beyond the others is left to a soak.
SOAKED = {
    (1, "SIGTERM", "evaluation"),
    (1, "SIGTERM", "calibration"),
    (1, "SIGTERM", "checkpointing"),
    (1, "SIGKILL", "checkpointing"),
    (0, "SIGTERM", "training"),
    (0, "SIGTERM", "checkpointing"),
    (0, "SIGKILL", "recording"),
}


@pytest.mark.parametrize(
    ("rank", "kind", "place"),
    [
        pytest.param(
            rank,
            kind,
            place,
            marks=[
                fault(
                    f"{kind} of rank {rank} of two during {place}",
                    "the other ends by itself, saying that it was left; started again, the weights are the same",
                ),
                *([pytest.mark.soak] if (rank, kind, place) in SOAKED else []),
            ],
        )
        for rank, places in (
            (1, ("training", "evaluation", "calibration", "checkpointing", "checkpointing's beginning")),
            (0, ("training", "checkpointing", "recording")),
        )
        for place in places
        for kind in KINDS
        # Where a signal is caught, an end before the write differs in nothing from one in training.
        if (kind, place) != ("SIGTERM", "checkpointing's beginning")
    ],
)
def test_a_rank_that_is_left_alone_ends_and_the_run_goes_on_to_the_same_end(runs, whole_pair, rank, kind, place):
    faults = ["", ""]
    faults[rank] = f"{kind}:{place}"
    stopped = runs.start_ranks(faults)
    assert stopped[rank].code in codes_of(kind), stopped
    left = stopped[1 - rank]
    assert left.code == 1, left
    assert "ConnectionError: another rank has ended, or does not answer, and its own output says why" in left.printed
    assert "the checkpoint cannot be written" not in left.printed
    assert "record.json" not in runs.files()
    again = runs.start_ranks(["", ""])
    assert [outcome.code for outcome in again] == [0, 0], again
    assert_ends_like(runs, whole_pair)


@fault("SIGKILL of one of two ranks of mixsize eval", "the other ends by itself, saying that it was left")
def test_a_rank_that_is_left_alone_by_an_evaluation_ends(runs, whole):
    out = runs.folder / "eval"
    argv = ["eval", f"{whole.folder}/runs/faulty", "--sizes", "8,16", "--no-calibrate", "--out", f"{out}"]
    left, killed = runs.run_ranks(["", "SIGKILL:evaluation"], argv)
    assert killed.code == -signal.SIGKILL, killed
    assert left.code == 1, left
    assert "ConnectionError: another rank has ended" in left.printed
    assert not out.exists()


@fault("decoding thread of one of two ranks raises", "that rank ends with its error, the other with its loss")
def test_a_loader_thread_of_one_rank_that_raises_ends_both(runs):
    left, raised = runs.start_ranks(["", "thread:"])
    assert raised.code == 1, raised
    assert raised.printed.endswith("MemoryError: no memory for another image\n")
    assert left.code == 1, left
    assert "ConnectionError: another rank has ended" in left.printed


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
    assert stopped.code == 1, stopped
    file = runs.folder / "runs/faulty/model.safetensors"
    assert f"OSError: {file}: cannot be written: Error while serializing: I/O error: File too large" in stopped.printed
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


@fault("NaN in the gradients, the loss finite", "ends a step later with FloatingPointError naming the step")
@pytest.mark.parametrize("smoothing", ["null", "{}"])
def test_gradients_that_are_no_numbers_end_the_run_with_their_step(runs, whole, smoothing):
    stopped = runs.start("gradients:12", f"smoothing={smoothing}")
    assert stopped.code == 1, stopped
    assert "FloatingPointError: the loss of step 13, in epoch 0, at " in stopped.printed
    assert "The gradients have not been finite since step 12. The learning rate was" in stopped.printed
    assert checkpoints(runs) == ["ep0-ba8.pt"]
    if smoothing == "null":
        again = runs.start("", f"smoothing={smoothing}")
        assert again.code == 0, again
        assert_ends_like(runs, whole)


@fault("NaN in the last step's gradients", "ends with FloatingPointError; no weights are written")
def test_weights_spoilt_by_the_last_step_are_not_saved(runs):
    stopped = runs.start("gradients:20", "output.save_every=never")
    assert stopped.code == 1, stopped
    assert (
        f"FloatingPointError: {runs.folder}/runs/faulty/model.safetensors is not written, as conv1." in stopped.printed
    )
    assert runs.files() == ["data.json", "recipe.yaml"]


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
            ("cut short while it is decoded", "ends with BetonError naming the file, before a batch of it is used"),
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


@fault("evaluation file missing", "one line naming it, before anything is written")
def test_a_missing_evaluation_file_is_told_at_once(runs):
    refused = runs.start("", f"data.eval={runs.folder}/none.beton")
    assert refused.code == 2, refused
    assert refused.printed == f"error: {runs.folder}/none.beton: cannot be read: No such file or directory\n"
    assert not (runs.folder / "runs").exists()


@fault("evaluation file removed before its first use", "goes on with the images it had")
def test_an_evaluation_file_that_is_removed_is_used_all_the_same(runs, whole, digits):
    file = runs.folder / "test.beton"
    file.write_bytes((digits / "test.beton").read_bytes())
    finished = runs.start(f"file:removed@{file}", f"data.eval={file}")
    assert finished.code == 0, finished
    assert not file.exists()
    assert_ends_like(runs, whole)


@fault("run's folder removed during training", "ends at the next checkpoint with OSError naming it")
def test_a_folder_that_is_removed_ends_the_run_at_its_next_checkpoint(runs):
    folder = runs.folder / "runs/faulty"
    stopped = runs.start(f"folder:{folder}")
    assert stopped.code == 1, stopped
    words = "FileNotFoundError: [Errno 2] the folder of the checkpoint was removed while the run went on: "
    assert f"{words}'{folder}/checkpoints/ep0-ba16.pt'" in stopped.printed
    assert not folder.exists()


@fault("output folder that must not be written to, or is a file", "one line naming it, before the first step")
@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("kept", "[Errno 13] Permission denied: '{}/kept/faulty'"),
        ("train.beton", "[Errno 20] Not a directory: '{}/train.beton/faulty/record.json'"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_told_before_training(runs, folder, words):
    (runs.folder / "kept").mkdir(mode=0o555)
    refused = runs.start("permissions:", f"output.folder={runs.folder}/{folder}")
    assert refused.code == 2, refused
    assert refused.printed == f"error: {words.format(runs.folder)}\n"


@fault("bits flipped in a .beton's JPEG", "ends with BetonError naming file and image if it no longer decodes")
def test_an_image_that_no_longer_decodes_is_named(runs):
    start = write_jpegs(runs.train)
    with open(runs.train, "r+b") as file:
        file.seek(start)
        file.write(b"\0\0")
    stopped = runs.start("", "regime/fixed", "calibration=null")
    assert stopped.code == 1, stopped
    assert f"BetonError: {runs.train}: image {SPOILT} does not decode as a JPEG: Not a JPEG file" in stopped.printed
    assert "the file is damaged: convert the images again" in stopped.printed


@fault(
    "bits flipped in a .beton's JPEG that still decodes", "trains on, with that picture damaged: JPEG has no checksum"
)
def test_an_image_that_decodes_to_another_picture_is_not_noticed(runs):
    start = write_jpegs(runs.train)
    with open(runs.train, "r+b") as file:
        file.seek(start)
        table = start + file.read(600).index(b"\xff\xdb") + 5  # The quantisation of the mean comes first.
        file.seek(table)
        (before,) = file.read(1)
        file.seek(table)
        file.write(bytes([before ^ 0x40]))
    finished = runs.start("", "regime/fixed", "calibration=null")
    assert finished.code == 0, finished


SPOILT = 150


def write_jpegs(path):
    """Put 200 digits, stored as JPEG, in the place of a file; returns where the spoilt one's bytes begin."""
    digits = open_digits("train")
    some = ArraySource(digits.pixels[:200], digits.labels[:200], digits.classes, digits.kind, digits.split)
    write_beton(some, path, Encoding("jpg"), overwrite=True, workers=1, progress=False)
    with Beton.open(path) as beton:
        return int(beton.data_ptr[SPOILT])


@fault("out of memory in a step, without a preflight", "ends with MemoryError naming step and shape")
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("training", "in step 12, in epoch 0, at 12 px x 57 x 1"),
        pytest.param("evaluation", "after step 20, with the batches of eval_8px", marks=pytest.mark.soak),
    ],
)
def test_a_shape_that_does_not_fit_is_named(runs, place, words):
    stopped = runs.start(f"memory:{place}", "execution.preflight=false")
    assert stopped.code == 1, stopped
    assert f"MemoryError: too little memory {words}: [enforce fail at " in stopped.printed
    assert "DefaultCPUAllocator: can't allocate memory" in stopped.printed


@fault("disk full while an evaluation is written", "ends with OSError naming the file; the older one stays")
def test_a_disk_that_fills_up_during_a_report_keeps_the_older_one(runs, whole, digits):
    run = whole.folder / "runs/faulty"
    out = runs.folder / "eval"
    argv = ["eval", f"{run}", "--sizes", "8,16", "--no-calibrate", "--out", f"{out}"]
    first = runs.run("", argv)
    assert first.code == 0, first
    names = {path.name for path in out.iterdir()}
    plot = (out / "model.png").read_bytes()
    # The record has 6 KB and the plot some 30.
    stopped = runs.run(f"disk:{len(plot) / 2 / 2**20}", [*argv[:3], "8", *argv[4:]])
    assert stopped.code == 1, stopped
    assert f"OSError: [Errno 27] cannot be written: File too large: '{out}/model.png'" in stopped.printed
    assert {path.name for path in out.iterdir()} == names
    assert (out / "model.png").read_bytes() == plot
    assert [row["size_px"] for row in json.loads((out / "model.json").read_text())["sizes"]] == [8]
