"""The GPU bench on the CPU: its arithmetic by hand, all of it on tiny shapes, stopped and taken up again."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mixsize.algorithms.regime.plan import plan_epoch
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.shapes import InputShape
from mixsize.bench.gpu import algorithms, loading, shapes
from mixsize.bench.gpu import step as gpu_step
from mixsize.bench.gpu.case import Setup, ratios, spread
from mixsize.bench.gpu.gpu import PARTS, measure
from mixsize.bench.gpu.tables import head_and_rows
from mixsize.bench.gpu.trace import busy_seconds, host_waits, launches, record_trace, union_length
from mixsize.bench.pages.tables import TABLES
from mixsize.cli import main
from mixsize.ffcv_loaders.conversion.convert import convert_splits
from mixsize.recipes.records.environment import environment

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL, LARGE = InputShape(32, 32), InputShape(8, 64)


# ---- arithmetic ----


def test_quartiles_of_five_are_the_second_and_the_fourth():
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0], 10) == {"median": 30.0, "low": 20.0, "high": 40.0, "n": 5}
    assert spread([7.0]) == {"median": 7.0, "low": 7.0, "high": 7.0, "n": 1}
    assert ratios([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == {"median": 3.0, "low": 2.5, "high": 3.5, "n": 3}


def test_cells_have_four_digits_and_missing_ones_are_empty():
    rows = [{"case": "a", "step_ms": spread([1234.56, 1234.56])}, {"case": "b", "gap": 0.012345, "launches": 1500}]
    head, cells = head_and_rows(rows)
    assert head == ["case", "step ms", "gap", "launches"]
    assert cells == [["a", "1,235 (1,235-1,235)", "", ""], ["b", "", "0.01235", "1500"]]


def test_the_union_counts_what_overlaps_once():
    # 0-4 and 3-6 make 6; 10-12 holds 11-11.5; 12-13 touches it.
    assert union_length([(3, 6), (10, 12), (0, 4), (11, 11.5), (12, 13)]) == 9


TRACE = [
    {"cat": "kernel", "name": "conv", "ts": 100.0, "dur": 40.0},
    {"cat": "kernel", "name": "norm", "ts": 130.0, "dur": 30.0},  # On another stream, a third of it beside the first.
    {"cat": "gpu_memcpy", "name": "Memcpy DtoH", "ts": 200.0, "dur": 10.0},
    {"cat": "gpu_user_annotation", "name": "Optimizer.step", "ts": 0.0, "dur": 1000.0},
    {"cat": "cpu_op", "name": "aten::conv2d", "ts": 0.0, "dur": 500.0},
    {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1.0, "dur": 2.0},
    {"cat": "cuda_driver", "name": "cuLaunchKernelEx", "ts": 4.0, "dur": 2.0},
    {"cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 7.0, "dur": 2.0},
    {"cat": "cuda_runtime", "name": "cudaMemcpyAsync", "ts": 9.0, "dur": 2.0},
    {"cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 12.0, "dur": 190.0},
    {"cat": "cuda_runtime", "name": "cudaDeviceSynchronize", "ts": 300.0, "dur": 1.0},
    {"cat": "cuda_runtime", "name": "cudaEventQuery", "ts": 400.0, "dur": 1.0},
    {"cat": "cuda_sync", "name": "Stream Synchronize", "ts": 12.0, "dur": 190.0},  # The device's view of the above.
    {"name": "process_name", "ph": "M"},
]


def test_a_trace_says_when_the_device_was_busy_and_where_the_host_waited():
    assert busy_seconds(TRACE, CUDA) == pytest.approx(70e-6)
    assert busy_seconds(TRACE, CPU) == pytest.approx(500e-6)
    assert (host_waits(TRACE), launches(TRACE)) == (2, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_trace_and_timers_are_understood():
    step = gpu_step.TrainingStep("test_resnet", CUDA, [SMALL])
    images, labels = gpu_step.noise_batches([SMALL], CUDA)[SMALL]
    step(images, labels)
    quiet = record_trace(lambda: step(images, labels, smooth=True), CUDA)
    waiting = record_trace(lambda: step(images, labels).item(), CUDA)
    assert host_waits(waiting) == host_waits(quiet) + 1
    assert launches(quiet) > 50
    (seconds,) = gpu_step.time_each([lambda: step(images, labels)], CUDA)
    assert 0 < busy_seconds(quiet, CUDA) < 10 * seconds


def test_synchronisations_at_a_fits_ends_cancel():
    # 7 at the ends of a fit, 2 a step.
    assert algorithms.waits_a_step({12: 7 + 2 * 12, 2: 7 + 2 * 2}) == 2


def test_work_is_timed_piece_by_piece_in_its_order(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu_step.time, "perf_counter", lambda: now[0])
    works = [lambda taken=taken: now.append(now.pop() + taken) for taken in (1.0, 4.0, 2.0)]
    assert gpu_step.time_each(works, CPU) == [1.0, 4.0, 2.0]


def test_the_price_weights_shapes_by_their_share_of_the_steps():
    alone = {LARGE: [2.0, 2.0], SMALL: [1.0, 1.0]}
    mixed = {LARGE: [2.2, 2.0], SMALL: [1.3, 1.0]}
    # (0.25 * 2.2 + 0.75 * 1.3) / (0.25 * 2 + 0.75 * 1) = 1.525 / 1.25
    assert shapes.prices(alone, mixed, {LARGE: 0.25, SMALL: 0.75}) == [pytest.approx(1.22), pytest.approx(1.0)]


def test_a_stall_at_one_step_of_a_shape_counts():
    assert shapes.mean_by_shape([LARGE, SMALL, LARGE], [1.0, 5.0, 4.0]) == {LARGE: 2.5, SMALL: 5.0}


def test_the_mix_is_drawn_by_the_regimes_shares():
    work = shapes.FULL
    shares = shapes.step_shares(work.regime)
    drawn = gpu_step.drawn_shapes(work.regime, work.images, epoch=1)
    # By pixels, the most first: 784 x 128^2 = 256 x 224^2, 1392 x 96^2, 192 x 256^2.
    assert {shape.size_px for shape in shares} == {224, 128, 96, 256}
    assert [shape.images for shape in shares][2:] == [1392, 192]
    assert sum(shares.values()) == pytest.approx(1)
    for shape, share in shares.items():
        assert drawn.count(shape) >= 2
        assert drawn.count(shape) / len(drawn) == pytest.approx(share, abs=0.02)
    assert drawn != gpu_step.drawn_shapes(work.regime, work.images, epoch=2)


def test_an_epochs_timed_pixels_are_those_of_the_paper():
    work = loading.FULL
    fixed, mixed = (loading.pixels_an_image(regime, work.images) for regime in work.regimes.values())
    assert fixed == 224**2
    # 0.463 of the baseline's, table 1; whole batches move it by less than two per cent.
    assert mixed / fixed == pytest.approx(0.463, rel=0.02)


def test_the_base_is_timed_although_it_is_no_size_of_the_regime():
    work = replace(shapes.DRY, regime=Regime.from_sizes({32: 1.0}, Base(64, 8), "B+"), rounds=1)
    rows = shapes.measure_budget("test_resnet", work, CPU)
    assert [(row["size_px"], row["images"], row["pixels/base"]) for row in rows] == [(64, 8, 1.0), (32, 32, 1.0)]
    assert rows[0]["time/base"]["median"] == 1.0


# ---- the command ----


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory) -> Path:
    """Digits as JPEGs."""
    folder = tmp_path_factory.mktemp("gpu")
    convert_splits("digits", folder, store="jpg", workers=1, progress=False)
    return folder / "train.beton"


@pytest.fixture
def dry_run(jpegs, tmp_path):
    """Runs the command; its result file is ``out``."""
    out = tmp_path / "out.json"

    def run(*argv):
        return main(["bench", "gpu", "--dry-run", "--images", str(jpegs), "--out", str(out), *argv])

    run.out = out
    return run


def test_a_dry_run_measures_every_part_and_the_next_start_repeats_nothing(dry_run, capsys):
    assert dry_run() == 0
    result = json.loads(dry_run.out.read_text())
    assert (result["suite"], result["dry_run"]) == ("gpu", True)
    assert [(part, case) for part, cases in result["parts"].items() for case in cases] == [
        ("shape_price", "test_resnet eager"),
        ("budget", "test_resnet"),
        ("algorithms", "test_resnet, all"),
        ("algorithms", "test_resnet, smoothing alone"),
        ("epoch", "test_resnet"),
        ("calibration", "test_resnet 32 px, 2 x 8"),
        ("kernel_gaps", "test_resnet eager, 4 x 32 px"),
    ]
    heads = {part: TABLES[f"gpu_{part}"](result).splitlines()[0] for part in PARTS}
    assert heads["shape_price"] == "| case | size px | images | step share | alone ms | mixed ms | mixed/alone |"
    assert heads["budget"] == "| case | size px | images | pixels/base | step ms | time/base |"
    assert heads["algorithms"] == (
        "| case | with ms | without ms | with/without | host syncs with | host syncs without |"
    )
    assert heads["epoch"] == (
        "| case | regime | pixels/fixed | jpegs images/s | jpegs speed-up | device images/s | device speed-up |"
    )
    assert heads["calibration"] == "| case | jpegs s | device s |"
    assert heads["kernel_gaps"] == "| case | step ms | busy ms | gap | launches | preparation s |"
    assert "say nothing about a GPU" in TABLES["gpu_budget"](result)
    # Figures that any machine gives.
    rows = {part: [row for case in cases.values() for row in case["rows"]] for part, cases in result["parts"].items()}
    assert [row["size_px"] for row in rows["shape_price"]] == [64, 32, "all"]
    assert sum(row.get("step_share", 0) for row in rows["shape_price"]) == pytest.approx(1)
    assert 0 <= rows["kernel_gaps"][0]["gap"] < 1
    # The first round is not counted.
    assert [row["jpegs_images/s"]["n"] for row in rows["epoch"]] == [loading.DRY.rounds] * 2

    capsys.readouterr()
    assert dry_run() == 0
    assert json.loads(dry_run.out.read_text())["parts"] == result["parts"]
    assert "budget: " not in capsys.readouterr().out


def test_a_case_that_fails_is_named_the_others_go_on_and_the_next_start_tries_it_again(capsys):
    ran, kept, parts, failing = [], [], {}, {"a"}

    def case(name):
        ran.append(name)
        if name in failing:
            raise RuntimeError("out of luck")
        return [{"figure": 1}]

    cases = {"part": {name: partial(case, name) for name in "ab"}}
    assert measure(cases, parts, lambda: kept.append(list(parts["part"])), Console()) == 1
    assert "failed: RuntimeError: out of luck" in capsys.readouterr().out
    assert list(parts["part"]) == ["b"]
    failing.clear()
    assert measure(cases, parts, lambda: kept.append(list(parts["part"])), Console(quiet=True)) == 0
    assert ran == ["a", "b", "a"]
    assert kept == [["b"], ["b", "a"]]
    assert parts["part"]["b"]["rows"] == [{"figure": 1}]


def test_a_file_with_fewer_images_than_an_epoch_is_read_several_times_over(jpegs):
    loader = loading.open_images(Setup(CPU, dry_run=True, images=jpegs))
    # 1,437 images in the file.
    plan = plan_epoch(Regime.fixed(Base(8, 1437)), 2 * 1437, 0, 0)
    first, second = (labels for _, labels in loading.serve(loader, plan))
    assert torch.equal(
        first.bincount() + second.bincount(), 2 * torch.tensor(loader.dataset.source.beton.labels).bincount()
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_a_dry_run_is_possible(capsys):
    assert main(["bench", "gpu"]) == 2
    assert "sees no GPU here; --dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["budgets"], "no part 'budgets'; the parts are shape_price, budget"),
        (["--images", "nowhere.beton"], "--images: no file nowhere.beton; write it with mixsize convert"),
        (["--images", "raw/train.beton"], "train.beton holds raw pixels; decoding is timed from JPEGs"),
    ],
)
def test_mistakes_are_named(argv, words, dry_run, digits, capsys):
    assert dry_run(*(word.replace("raw/", f"{digits}/") for word in argv)) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dry_run": False}, r"dry_run False \(here True\)"),
        ({"environment": {**environment(1).model_dump(), "torch": "1.0"}}, r"torch 1\.0 \(here 2"),
        ({"suite": "overhead"}, "not a result of mixsize bench gpu"),
    ],
)
def test_figures_of_other_machines_are_not_mixed(changes, words, dry_run, capsys):
    before = {"suite": "gpu", "dry_run": True, "environment": environment(1).model_dump(), "parts": {}}
    dry_run.out.write_text(json.dumps(before | changes))
    assert dry_run("budget") == 2
    assert re.search(f"{words}.*give another --out", capsys.readouterr().err)


def test_a_part_without_figures_has_no_table():
    with pytest.raises(ValueError, match="has no part budget"):
        TABLES["gpu_budget"]({"dry_run": False, "parts": {}})


def test_the_page_names_every_part():
    page = (Path(__file__).parents[3] / "bench/gpu/README.md").read_text(encoding="utf-8")
    assert [part for part in PARTS if f"`{part}`" not in page] == []
