"""The ``mixsize`` command as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mixsize.cli import main


def test_plan_reproduces_the_papers_steps(capsys):
    for items, steps in (
        (["imagenet/resnet50", "regime/s144_bplus", "regime.rounding=pow2"], 169_000),
        (["cifar10/resnet44", "regime/s28_bplus", "regime.rounding=pow2"], 109_400),
        (["imagenet/efficientnet_b0", "regime/s144_bplus", "regime.rounding=pow2"], 376_000),
        (["imagenet/resnet50", "regime/s144_dplus"], 450_000),
    ):
        assert main(["plan", *items, "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["steps_total"] == pytest.approx(steps, rel=0.005)
    assert plan["mean_duplicates"] == pytest.approx(3.0)
    keys = {"steps_per_epoch", "mean_size_px", "mean_batch_size", "lr_scale", "pixels_per_epoch_ratio", "choices"}
    assert keys <= plan.keys()
    assert {"size_px", "batch_size", "duplicates", "share", "steps_per_epoch"} <= plan["choices"][0].keys()


def test_plan_prints_a_table(capsys):
    assert main(["plan", "cifar10/resnet20", "regime/s28_bplus"]) == 0
    out = capsys.readouterr().out
    assert "mean size  28 px" in out
    assert "steps in 200ep" in out


def test_plan_with_whole_epochs_at_one_size_adds_up_the_epochs_that_will_be_drawn(capsys):
    items = ["cifar10/resnet44", "regime/s28_bplus", "regime.draw=epoch", "max_duration=3ep"]
    assert main(["plan", *items, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    lengths = {50_000 // batch for batch in (41, 64, 114, 256)}
    assert plan["steps_total"] in {a + b + c for a in lengths for b in lengths for c in lengths}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["plan", "cifar10/resnet4"], "cifar10/resnet44"),
        (["plan", "cifar10/resnet44", "regime.mode=C"], "regime.mode"),
        (["plan", "cifar10/resnet44", "optimiser.lr=1"], "optimizer"),
        (["plan", "cifar10/resnet44", "regime/s28_bplus", "regime.sizes={0: 1.0}"], "regime.sizes"),
        (
            ["plan", "cifar10/resnet44", "regime/s28_bplus", "regime.base.batch_size=2", "regime.base.size_px=4"],
            "rounds",
        ),
        (["plan", "cifar10/resnet44", "data.train_images=null"], "data.train_images"),
        (["train", "demo", "data.train=/nowhere.beton"], "/nowhere.beton"),
        (["convert", "/nowhere", "out.beton"], "/nowhere"),
        (["bench", "regimes", "digit"], "did you mean digits"),
        (["bench", "regimes", "digits", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["bench", "regimes", "digits", "optimizer.lr=-1"], "suite digits, fixed: optimizer.lr"),
        (["bench", "regimes", "digits", "data.eval=/nowhere.beton"], "data.eval: /nowhere.beton is not there"),
        (["bench", "loader", "/nowhere.beton"], "/nowhere.beton"),
    ],
)
def test_mistakes_end_in_one_line_and_code_two(argv, words, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert "Traceback" not in captured.err


def test_recipes_are_listed(capsys):
    assert main(["recipes"]) == 0
    assert {"demo", "cifar10/resnet44", "regime/s144_bplus"} <= set(capsys.readouterr().out.split())


def test_help_does_not_wait_for_pytorch():
    code = (
        "import sys; from mixsize.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split()[-1] == "False"


@pytest.mark.data
def test_cifar_from_its_image_folder_trains(real_images, tmp_path, capsys):
    assert main(["convert", str(real_images / "cifar10"), str(tmp_path / "cifar10"), "--no-progress"]) == 0
    items = [
        "cifar10/resnet20",
        "regime/s28_bplus",
        f"data.train={tmp_path}/cifar10/train.beton",
        f"data.eval={tmp_path}/cifar10/test.beton",
        f"output.folder={tmp_path}/runs",
        "max_duration=5ba",
    ]
    assert main(["train", *items]) == 0
    record = json.loads((tmp_path / "runs/cifar10-resnet20/record.json").read_text())
    assert set(record["accuracy"]) == {"16", "24", "32", "40"}
