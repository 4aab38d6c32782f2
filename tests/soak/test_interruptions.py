"""A run killed at random moments ends as one that was left alone: the same batches, weights and accuracies."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mixsize.recipes.records.run_record import read_record

KILLS = 3
STEPS = 30
PATIENCE_SECONDS = 300
#: Keys of a record that do not depend on time.
OUTCOME = {
    "plan_digest", "sequence_crc", "steps", "epochs", "samples", "distinct_samples", "pixels", "accuracy", "loss",
    "calibrated_accuracy", "gradient_norms",
}  # fmt: skip


@pytest.mark.soak  # Five starts of the program; tests/faults kills a run at every place, in fewer processes.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_at_random_ends_as_if_it_had_not_been(digits, tmp_path, ranks):
    finish(start(digits, tmp_path, "whole", ranks))
    generator = random.Random(ranks)
    reached = -1
    for kill in range(KILLS):
        process = start(digits, tmp_path, "killed", ranks)
        # From where the last kill struck, so that the run gets on.
        target = min(STEPS - 2, reached + 1 + generator.randrange(STEPS // KILLS))
        wait_for_step(process, tmp_path / "killed", target)
        end(process, whole_group=kill % 2 == 0)
        reached = max(batches(tmp_path / "killed", 0))
    finish(start(digits, tmp_path, "killed", ranks))

    for rank in range(ranks):
        assert batches(tmp_path / "killed", rank) == batches(tmp_path / "whole", rank)
        assert sorted(batches(tmp_path / "whole", rank)) == list(range(STEPS))
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert outcome(killed) == outcome(whole)


def start(digits: Path, folder: Path, name: str, ranks: int) -> subprocess.Popen:
    train = [
        "train", "demo", "regime/digits_bplus", f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton",
        f"output.folder={folder}", f"name={name}", f"max_duration={STEPS}ba", "output.save_every=3ba",
        "output.log_batches=true", "evaluation.sizes=[8, 16]", "progress_bar=false",
    ]  # fmt: skip
    launcher = ["composer.cli.launcher", "-n", str(ranks), "-m"] if ranks > 1 else []
    command = [sys.executable, "-m", *launcher, "mixsize", *train]
    # In a session of its own, so that a kill of its group does not reach this process.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, env=environment)


def finish(process: subprocess.Popen) -> None:
    assert process.wait(PATIENCE_SECONDS) == 0


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while max(batches(folder, 0), default=-1) < step:
        assert process.poll() is None, f"the run ended before step {step}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def end(process: subprocess.Popen, whole_group: bool) -> None:
    """SIGKILL, for the launcher and all ranks or for one rank, after which the launcher must end the others."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if whole_group or not children:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(int(children[-1]), signal.SIGKILL)
    process.wait(PATIENCE_SECONDS)


def batches(folder: Path, rank: int) -> dict[int, str]:
    """Step -> checksum of its batch. A step that was trained on again must have had the same batch."""
    file = folder / f"batches-rank{rank}.csv"
    found: dict[int, str] = {}
    if file.exists():
        with open(file, newline="") as lines:
            for line in csv.DictReader(lines):
                assert found.setdefault(int(line["step"]), line["checksum"]) == line["checksum"]
    return found


def outcome(folder: Path) -> dict:
    record = read_record(folder / "record.json")
    shapes = [row.model_dump(exclude={"seconds"}) for row in record.shapes]
    curve = [point.model_dump(exclude={"seconds"}) for point in record.curve]
    return {**record.model_dump(include=OUTCOME), "shapes": shapes, "curve": curve}
