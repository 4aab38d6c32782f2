"""Runs that are killed by a real signal, and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from mixsize.cli import main

#: Imports and compiles once, then runs the command line in a fork for each kill: [[signal, place, arguments], ...].
KILLS = """
import json, os, signal, sys
from composer.utils import get_composer_env_dict
from mixsize.cli import main
from mixsize.recipes.callbacks import checkpoints
from mixsize.recipes.commands import train
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.ffcv_loaders.decode.augment import PadCrop, Resize
from mixsize.ffcv_loaders.loader import EvalLoader, MixSizeLoader

images, kills = sys.argv[1], json.loads(sys.argv[2])
get_composer_env_dict()
list(MixSizeLoader(images, Regime.fixed(Base(16, 100)), augment=PadCrop(1), device="cpu"))
list(EvalLoader(images, 16, 100, augment=Resize(), device="cpu"))
iterate, save = MixSizeLoader.__iter__, checkpoints.save_checkpoint


def arm(number, place):
    steps, saves = 0, 0

    def iterating(self):
        nonlocal steps
        for batch in iterate(self):
            steps += 1
            if place == f"step {steps}":
                os.kill(os.getpid(), number)
            yield batch

    def saving(state, filename):
        nonlocal saves
        saves += 1
        save(state, filename)
        if place == f"checkpoint {saves}":
            os.truncate(filename, 1000)
            os.kill(os.getpid(), number)

    MixSizeLoader.__iter__, checkpoints.save_checkpoint = iterating, saving


codes = []
for name, place, arguments in kills:
    child = os.fork()
    if not child:
        try:
            arm(getattr(signal, name), place)
            main(arguments)
        except SystemExit as end:
            os._exit(end.code)
        except BaseException:
            os._exit(99)
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
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
    kills = [[kind, place, train(digits, folder, name)] for name, (kind, place, _, _) in PLACES.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_THREADING_LAYER": "workqueue"}
    done = subprocess.run(
        [sys.executable, "-c", KILLS, digits / "train.beton", json.dumps(kills)],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert main(train(digits, folder, "whole")) == 0
    return folder, dict(zip(PLACES, json.loads(done.stdout.splitlines()[-1]), strict=True))


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
