"""Composer's launcher: several ranks, several nodes, ranks that fail and ranks that are killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

LAUNCHER = [sys.executable, "-m", "composer.cli.launcher"]
SECONDS = 280


def items(digits, tmp_path, *more):
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={tmp_path}/runs"]
    return ["demo", *data, "max_duration=4ba", "evaluation.sizes=[8,16]", "progress_bar=false", *more]


def start(command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process):
    output, _ = process.communicate(timeout=SECONDS)
    return process.returncode, output


def record_of(tmp_path, name):
    return json.loads((tmp_path / f"runs/{name}/record.json").read_text())


def assert_same_run(left, right):
    for key in ("shapes", "sequence_crc", "samples", "steps"):
        if key == "shapes":
            shapes = [[{k: v for k, v in row.items() if k != "seconds"} for row in run[key]] for run in (left, right)]
            assert shapes[0] == shapes[1]
        else:
            assert left[key] == right[key]


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "mixsize", "train", *items(digits, folder, "regime/digits_dplus")]
    code, output = finish(start(command))
    assert code == 0, output
    return record_of(folder, "demo")


def test_two_ranks_train_on_the_same_shapes_as_one(digits, tmp_path, alone):
    train = ["-m", "mixsize", "train", *items(digits, tmp_path, "regime/digits_dplus")]
    code, output = finish(start([*LAUNCHER, "-n", "2", *train]))
    assert code == 0, output
    assert "2 ranks trained on the same shapes" in output
    together = record_of(tmp_path, "demo")
    assert together["environment"]["ranks"] == 2
    assert_same_run(together, alone)


def test_two_nodes_train_on_the_same_shapes_as_one(digits, tmp_path, alone):
    """Two launchers, each with one rank, that find each other by address and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = []
    for node in (1, 0):
        where = ["--world_size", "2", "--node_rank", str(node), "--base_rank", str(node)]
        where += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
        train = ["-m", "mixsize", "train", *items(digits, tmp_path, "regime/digits_dplus", "loader.num_workers=1")]
        nodes.append(start([*LAUNCHER, "-n", "1", *where, *train]))
    for node in nodes:
        code, output = finish(node)
        assert code == 0, output
    assert_same_run(record_of(tmp_path, "demo"), alone)


FAILING = """
import os, sys
from mixsize import cli
from mixsize.ffcv_loaders.loader import MixSizeLoader

whole = MixSizeLoader.__iter__

def cut(self):
    for index, batch in enumerate(whole(self)):
        if index == 2 and os.environ["RANK"] == "1":
            raise OSError("the disk under rank one is gone")
        yield batch

MixSizeLoader.__iter__ = cut
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.fault("one of two ranks raises", "the run ends with that rank's error on the screen")
def test_a_rank_that_fails_ends_the_run_with_its_own_error_on_the_screen(digits, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    command = [*LAUNCHER, "-n", "2", str(tmp_path / "failing.py"), "train", *items(digits, tmp_path)]
    code, output = finish(start(command))
    assert code != 0
    assert "OSError: the disk under rank one is gone" in output
    assert not (tmp_path / "runs/demo/record.json").exists()


def test_a_mistake_is_told_once_by_each_rank_and_ends_the_run(digits, tmp_path):
    command = [*LAUNCHER, "-n", "2", "-m", "mixsize", "train", *items(digits, tmp_path, "optimizer.lr=-1")]
    code, output = finish(start(command))
    assert code != 0
    assert "error: optimizer.lr: must be greater than 0" in output
    assert "Traceback" not in output
