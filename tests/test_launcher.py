"""Several ranks, started by Composer's launcher."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from mixsize.cli import main
from mixsize.ffcv_loaders.conversion.encode import Encoding
from mixsize.ffcv_loaders.conversion.sources import open_digits
from mixsize.ffcv_loaders.conversion.writer import write_beton
from mixsize.recipes.commands.eval_report import read_record
from mixsize.recipes.commands.evaluate import build_job, measure

LAUNCHER = [sys.executable, "-m", "composer.cli.launcher"]
SECONDS = 280
#: Trains, evaluates, and trains twice more, at last with a fault on rank one: four command lines in the same two
#: processes.
FOUR = """
import json, os, sys
from mixsize.cli import main
from mixsize.ffcv_loaders.loader import MixSizeLoader

train, evaluate, odd, failing = json.loads(sys.argv[1])
assert main(train) == 0
assert main(evaluate) == 0
assert main(odd) == 0
iterate = MixSizeLoader.__iter__


def failing_iterator(self):
    for index, batch in enumerate(iterate(self)):
        if index == 2 and os.environ["RANK"] == "1":
            raise OSError("the disk under rank one is gone")
        yield batch


MixSizeLoader.__iter__ = failing_iterator
sys.exit(main(failing))
"""


def train(digits, folder, *more):
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={folder}"]
    items = ["regime/digits_dplus", "max_duration=4ba", "evaluation.sizes=[8,16]", "progress_bar=false"]
    items += ["mixing={}", "optimizer.lr_scaling=sqrt_by_step", "optimizer.clip_norm=1.0"]
    return ["train", "demo", *data, *items, *more]


def evaluate(folder):
    batches = ["evaluation.batch_size=77", "--sizes", "8,16", "--calibration-batches", "4"]
    return ["eval", f"{folder}/demo", *batches, "--out", f"{folder}/eval"]


def start(command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process):
    output, _ = process.communicate(timeout=SECONDS)
    return process.returncode, output


def record_of(folder):
    record = json.loads((folder / "demo/record.json").read_text())
    for row in record["shapes"]:
        row.pop("seconds")
    return record


def assert_same_run(left, right):
    for key in ("shapes", "sequence_crc", "samples", "steps"):
        assert left[key] == right[key]


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory):
    """The folder of a run and its evaluation in one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert main(train(digits, folder)) == 0
    assert main(evaluate(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def pair(digits, tmp_path_factory):
    """The folder of the same on two ranks, of a run on 11 test images, of one that failed, the exit code and output."""
    folder = tmp_path_factory.mktemp("pair")
    script = folder / "four.py"
    script.write_text(FOUR)
    test = open_digits("test")
    few = replace(test, pixels=test.pixels[:11], labels=test.labels[:11])
    write_beton(few, folder / "few.beton", Encoding(store="raw"), workers=1, progress=False)
    odd = ["name=odd", f"data.eval={folder}/few.beton", "evaluation.batch_size=2", "max_duration=1ba"]
    commands = [train(digits, folder), evaluate(folder), train(digits, folder, *odd)]
    commands += [train(digits, folder, "name=failing")]
    code, output = finish(start([*LAUNCHER, "-n", "2", str(script), json.dumps(commands)]))
    return folder, code, output


def test_two_ranks_train_on_the_same_shapes_as_one(alone, pair):
    folder, _, output = pair
    assert (folder / "demo/record.json").exists(), output
    assert "2 ranks trained on the same shapes" in output
    together = record_of(folder)
    assert together["environment"]["ranks"] == 2
    assert_same_run(together, record_of(alone))


def test_two_ranks_evaluate_each_image_once(pair, tmp_path):
    """360 images on 2 ranks in batches of 38 at most, against the same weights on one rank."""
    folder, _, output = pair
    assert output.count("top-5 %") == 1, output
    two = read_record(folder / "eval/model.json")
    assert main([*evaluate(folder)[:-1], str(tmp_path)]) == 0
    one, trained = read_record(tmp_path / "model.json"), record_of(folder)
    assert (one.environment["ranks"], two.environment["ranks"]) == (1, 2)
    for single, together in zip(one.sizes, two.sizes, strict=True):
        assert together.own.top1 == single.own.top1
        assert together.own.top5 == single.own.top5
        assert together.own.loss == pytest.approx(single.own.loss, rel=1e-5)
        # Both ranks evaluated with the statistics of rank zero, which the weights hold, at the end of training as well.
        assert trained["loss"][str(together.size_px)] == pytest.approx(together.own.loss, rel=1e-5)
        # Each rank normalises by its half of a batch, so that statistics behind the first layer differ a little.
        assert (single.calibration_images, together.calibration_images) == (4 * 77, 4 * 76)
        assert together.calibrated is not None
        assert single.calibrated is not None
        assert together.calibrated.loss == pytest.approx(single.calibrated.loss, rel=0.05)


def test_ranks_with_one_image_a_batch_evaluate_an_odd_number_of_images(pair):
    """11 images: 5 batches on both ranks, one of them of 2 images."""
    folder, _, output = pair
    assert (folder / "odd/record.json").exists(), output
    recorded = json.loads((folder / "odd/record.json").read_text())
    alone = measure(build_job(folder / "odd", sizes_px=[8, 16], calibrate=False))
    assert [row.own.top1 for row in alone.sizes] == pytest.approx([recorded["accuracy"][size] for size in ("8", "16")])
    assert [row.own.loss for row in alone.sizes] == pytest.approx([recorded["loss"][size] for size in ("8", "16")])


def test_a_rank_that_fails_ends_the_run_with_its_own_error_on_the_screen(pair):
    folder, code, output = pair
    assert code != 0
    assert "OSError: the disk under rank one is gone" in output
    assert not (folder / "failing/record.json").exists()


@pytest.mark.soak  # Four processes for Composer's own way of joining nodes.
def test_two_nodes_train_on_the_same_shapes_as_one(digits, tmp_path, alone):
    """Two launchers, each with one rank, that find each other by address and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = []
    for node in (1, 0):
        where = ["--world_size", "2", "--node_rank", str(node), "--base_rank", str(node)]
        where += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
        nodes.append(start([*LAUNCHER, "-n", "1", *where, "-m", "mixsize", *train(digits, tmp_path)]))
    for node in nodes:
        code, output = finish(node)
        assert code == 0, output
    assert_same_run(record_of(tmp_path), record_of(alone))


@pytest.mark.soak  # Three processes; in one, tests/test_cli.py shows that a mistake is one line.
def test_a_mistake_ends_all_ranks_without_a_traceback(digits, tmp_path):
    code, output = finish(start([*LAUNCHER, "-n", "2", "-m", "mixsize", *train(digits, tmp_path, "optimizer.lr=-1")]))
    assert code != 0
    assert "error: optimizer.lr: must be greater than 0" in output
    assert "Traceback" not in output
