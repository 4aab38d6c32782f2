"""Runs that are killed by a real signal, and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from mixsize.cli import main

#: Runs the command line and sends itself a signal at a place: signal, place, then the arguments.
KILL = """
import os, signal, sys
from mixsize.cli import main
from mixsize.ffcv_loaders.loader import MixSizeLoader
from mixsize.recipes.callbacks import checkpoints

number, place = getattr(signal, sys.argv[1]), sys.argv[2]
iterate, save = MixSizeLoader.__iter__, checkpoints.save_checkpoint
steps = saves = 0


def iterating(self):
    global steps
    for batch in iterate(self):
        steps += 1
        if place == f"step {steps}":
            os.kill(os.getpid(), number)
        yield batch


def saving(state, filename):
    global saves
    saves += 1
    save(state, filename)
    if place == f"checkpoint {saves}":
        os.truncate(filename, 1000)
        os.kill(os.getpid(), number)


MixSizeLoader.__iter__, checkpoints.save_checkpoint = iterating, saving
sys.exit(main(sys.argv[3:]))
"""

#: Name of the run -> signal, place, exit code, and the checkpoint that is left.
PLACES = {
    "before": ("SIGINT", "step 3", 128 + signal.SIGINT, None),
    "between": ("SIGTERM", "step 7", 128 + signal.SIGTERM, "ep0-ba4.pt"),
    "while": ("SIGKILL", "checkpoint 2", -signal.SIGKILL, "ep0-ba4.pt"),
}


def train(digits, folder, name):
    return [
        "train", "demo", f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton",
        f"output.folder={folder}", f"name={name}", "regime/digits_bplus", "evaluation.sizes=[16]",
        "max_duration=10ba", "output.save_every=4ba", "calibration={batches: 2}", "progress_bar=false",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def killed(digits, tmp_path_factory):
    """A folder with a whole run and one for each kill, and the exit codes of these."""
    folder = tmp_path_factory.mktemp("killed")
    processes = {
        name: subprocess.Popen([sys.executable, "-c", KILL, kind, place, *train(digits, folder, name)])
        for name, (kind, place, _, _) in PLACES.items()
    }
    assert main(train(digits, folder, "whole")) == 0
    return folder, {name: process.wait(timeout=280) for name, process in processes.items()}


@pytest.mark.parametrize("name", PLACES)
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(digits, killed, name):
    folder, codes = killed
    _, _, code, checkpoint = PLACES[name]
    assert codes[name] == code
    assert not (folder / name / "record.json").exists()
    left = folder / name / "checkpoints"
    assert [path.name for path in left.glob("ep*.pt")] == ([checkpoint] if checkpoint else [])
    assert len(list(left.glob(".*.partial"))) == (name == "while")
    assert main(train(digits, folder, name)) == 0
    files = [folder / run / "model.safetensors" for run in (name, "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    records = [json.loads((folder / run / "record.json").read_text()) for run in (name, "whole")]
    for key in ("accuracy", "calibrated_accuracy", "loss", "sequence_crc"):
        assert records[0][key] == records[1][key]
    assert not list(left.glob(".*.partial"))
