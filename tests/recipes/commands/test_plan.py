"""``mixsize plan``: what it prints, draws and refuses."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mixsize.cli import main
from mixsize.recipes.commands.plan import duration
from mixsize.recipes.config.compose import compose
from mixsize.recipes.planning.costs import make_plan
from mixsize.recipes.planning.plot import plot_plan

ITEMS = ["cifar10/resnet20", "regime/s28_bplus", "max_duration=3ep"]


def printed(capsys, *argv):
    assert main(["plan", *argv]) == 0
    return capsys.readouterr().out


def write_record(path, *shapes):
    """Write the record of a run with half a second a step at the shapes (size, batch), and return the path."""
    step = {"duplicates": 1, "steps": 20, "seconds": 0.5}
    rows = [{"size_px": size, "batch_size": batch, **step} for size, batch in shapes]
    here = {"python": "3", "torch": "2", "composer": "0", "timm": "1", "ffcv": "1", "cpu": "x", "cores": 2, "gpu": None}
    values = {"label": "x", "name": "x", "seed": 1, "recipe": {}, "shapes": rows, "environment": {**here, "ranks": 1}}
    path.write_text(json.dumps(values))
    return str(path)


def test_costs_are_printed_beside_what_is_drawn(capsys):
    out = printed(capsys, *ITEMS)
    # By hand, at 32 px: stem 442,368, stages 14,155,776 and twice 12,976,128, last layer 640: 40.55 million; times 64
    row = next(line for line in out.splitlines() if "0.04055" in line)
    assert "2.595" in row
    assert "702" in row  # 3 * 234 steps
    assert "GMACs of an epoch" in out
    assert "training time" not in out


def test_times_are_printed_when_there_are_any(capsys, tmp_path):
    shapes = [(40, 41), (32, 64), (24, 114), (16, 256)]
    out = printed(capsys, *ITEMS, "--times", write_record(tmp_path / "all.json", *shapes))
    assert "time of an epoch  5 min 24 s, training steps alone" in out  # 648 * 0.5 s
    assert "time of 3ep  16 min 12 s" in out
    assert "training time" in out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    out = printed(capsys, *ITEMS, "--times", write_record(tmp_path / "some.json", *shapes[:2]))
    assert "not known: no step was timed at 24 px x 114 x 1, 16 px x 256 x 1" in out
    assert "time of" not in out


def test_json_holds_costs_times_and_what_was_not_timed(capsys, tmp_path):
    record = write_record(tmp_path / "some.json", (32, 64))
    plan = json.loads(printed(capsys, *ITEMS, "--json", "--times", record))
    assert [row["seconds_per_step"] for row in plan["choices"]] == [None, 0.5, None, None]
    assert plan["seconds_total"] is None
    assert len(plan["untimed"]) == 3
    assert plan["choices"][1]["macs_per_step"] == 64 * plan["choices"][1]["macs_per_image"]
    assert plan["base"] == {"size_px": 32, "batch_size": 64, "duplicates": 1}


def test_a_plot_is_a_png_and_the_same_bytes_again(capsys, tmp_path):
    files = [tmp_path / "a.png", tmp_path / "folder/b.png"]
    for file in files:
        assert f"plot: {file}" in printed(capsys, *ITEMS, "--plot", str(file))
    with Image.open(files[0]) as image:
        assert image.format == "PNG"
    assert files[0].read_bytes() == files[1].read_bytes()


def bars(plot):
    return [round(bar.get_height()) for bar in plot.patches]


def test_bars_show_images_and_steps_of_an_epoch():
    images, steps = plot_plan(make_plan(compose(["cifar10/resnet20", "regime/s28_dplus"]))).axes
    assert [label.get_text() for label in steps.get_xticklabels()] == ["16", "24", "32", "40"]
    assert bars(steps) == [156, 234, 234, 156]
    # 64 images a step in 4, 2, 1 and 1 copies; then without their copies, in front
    assert bars(images) == [64 * n for n in (156 * 4, 234 * 2, 234, 156)] + [64 * n for n in (156, 234, 234, 156)]
    assert (images.get_title(), steps.get_title()) == ("images of an epoch", "steps of an epoch")


def test_phases_are_drawn_by_epoch():
    plan = make_plan(compose(["imagenet/resnet50", "regime/progressive"]))
    sizes, _, steps = plot_plan(plan).axes
    line = sizes.get_lines()[0]
    assert line.get_ydata().tolist() == [128] * 30 + [192] * 30 + [224] * 31
    assert line.get_xdata().tolist() == list(range(91))
    assert bars(steps) == [30 * 2502, 30 * 5004, 30 * 5004]
    assert steps.get_title() == "steps of the run"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "plan: give a recipe"),
        ([*ITEMS, "--times", "/nowhere.json"], "/nowhere.json"),
        ([*ITEMS, "--plot", "plan.pdf"], "--plot plan.pdf: the figure is a PNG"),
        ([*ITEMS, "--table"], "--table: takes no items"),
        (["--table", "--json"], "--table: takes no items and no other option"),
    ],
)
def test_mistakes_end_in_one_line(argv, words, capsys):
    assert main(["plan", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.01234, "0.0123 s"), (59, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min"),
     (7_500, "2 h 05 min"), (3_600_000, "1,000 h 00 min")],
)  # fmt: skip
def test_durations_read_as_people_say_them(seconds, words):
    assert duration(seconds) == words
