"""``mixsize plan``: what it prints, draws and refuses."""

from __future__ import annotations

import json

import pytest
import torch
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


# ---- data files


def test_the_images_and_classes_are_those_of_the_file(capsys, digits):
    out = printed(capsys, "demo", f"data.train={digits}/test.beton")
    assert f"images  360 in 10 classes of {digits}/test.beton" in out  # The recipe says 1,437.
    assert "steps per epoch  11" in out  # 360 // 32
    assert "evaluation images  not known; no file data/digits/test.beton" in out


def test_the_network_has_the_classes_of_the_file(capsys, photos):
    items = [
        "demo",
        "data.augment={name: resize}",
        "regime.base={size_px: 64, batch_size: 8}",
        f"data.train={photos}",
        "--json",
    ]
    plan = json.loads(printed(capsys, *items))
    assert plan["images"] == 24
    assert plan["data_files"] == {"train": str(photos), "eval": None}
    macs = [
        json.loads(printed(capsys, *items, f"model.num_classes={n}"))["choices"][0]["macs_per_image"] for n in (2, 3)
    ]
    assert plan["choices"][0]["macs_per_image"] == macs[0] == macs[1] - 64  # 64 features of the last layer


def test_without_the_file_the_images_are_the_recipes(capsys):
    out = printed(capsys, "demo")
    assert "images  1,437 by the recipe; no file data/digits/train.beton" in out
    assert main(["plan", "demo", "data.train_images=null"]) == 2
    assert "no file data/digits/train.beton, and data.train_images is not given" in capsys.readouterr().err


SHIFT = (
    "regime={mode: progressive, shift: {start: {16: 0.5, 24: 0.5}, end: {24: 0.5, 32: 0.5}, end_fraction: 1.0, "
    "stages: 50}, strengths: {dropout: [0.0, 0.4]}}"
)
SHIFTING = ["cifar10/resnet20", SHIFT, "model.kwargs.drop_rate=0.1", "max_duration=51ep", "schedule={name: constant}"]


def test_fifty_phases_are_printed_as_each_shape_once_and_some_of_the_phases(capsys):
    out = printed(capsys, *SHIFTING)
    assert "12 of 51 phases, shares of the sizes" in out
    assert len(out.splitlines()) < 70
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    # 64 images of 32 px, 114 of 24 px and 256 of 16 px; each half on the mean over the run, or a quarter
    assert [row[:4] for row in rows[:3]] == [
        ["32", "64", "1", "0.25"], ["24", "114", "1", "0.5"], ["16", "256", "1", "0.25"],
    ]  # fmt: skip
    # 20 px of .5 * (16^2 + 24^2) / 32^2 = .41 at the start; after 5 of 50 epochs .05 of 32 px and .45 of 16 px
    assert rows[3] == ["0", "20", "0.41x", "", "0.5", "0.5", "0"]
    assert rows[4] == ["5", "21", "0.44x", "0.05", "0.5", "0.45", "0.04"]
    assert rows[14] == ["50", "28", "0.78x", "0.5", "0.5", "", "0.4"]


def test_json_and_the_figure_hold_every_phase(capsys, tmp_path):
    plan = json.loads(printed(capsys, *SHIFTING, "--json"))
    assert len(plan["phases"]) == 51
    assert plan["phases"][25]["shares"] == {"32": 0.25, "24": 0.5, "16": 0.25}
    assert plan["phases"][25]["strengths"]["dropout"] == pytest.approx([0.2, 0.2])
    assert [row["size_px"] for row in plan["choices"]] == [32, 24, 16]
    assert plan["steps_total"] == round(sum(row["steps_total"] for row in plan["choices"]))
    axes = plot_plan(make_plan(compose(SHIFTING))).axes
    assert [ax.get_title() for ax in axes] == [
        "shares of the samples by epoch",
        "images of the run",
        "steps of the run",
    ]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["32 px", "24 px", "16 px"]


def test_a_few_phases_with_strengths_are_printed_one_by_one(capsys):
    phases = "[{size_px: 16, epochs: 2, dropout: 0.1}, {size_px: 32, epochs: 1, dropout: [0.1, 0.3]}]"
    items = ["cifar10/resnet20", f"regime={{mode: progressive, phases: {phases}}}", "model.kwargs.drop_rate=0.1"]
    out = printed(capsys, *items, "max_duration=5ep", "schedule={name: constant}")
    assert "0 to 1" in out
    assert "2 to 4" in out
    assert "0.1 to 0.3" in out


PHASES = "regime={{mode: progressive, phases: [{{size_px: 8, epochs: 30}}, {{size_px: 16, epochs: 1}}]}}"


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (["data.train={photos}"], "data.train and data.eval have different classes"),
        (["model.num_classes=4"], "sample 4 has label 4, allowed are 0..3"),
        (
            ["data.train={photos}", "data.eval={photos}", "data.augment.policy=cifar10"],
            "need images of one stored size",
        ),
        (["data.augment.cutout_px=9"], "cutout_px is 9"),
        (["evaluation.sizes=[10]"], "evaluation.sizes: size 10 px is not a multiple of the stride 4"),
        (["regime.base.size_px=18"], "regime: size 18 px is not a multiple of the stride 4"),
        (["model.name=vit_tiny_patch16_224", "evaluation.sizes=[32]"], "takes 224 px only, not 16, 32 px"),
        (["model.name=resnett18"], "unknown timm model 'resnett18'"),
        (["model.checkpoint=/nowhere.pth"], "model.checkpoint: no file /nowhere.pth"),
        (["model.checkpoint={photos}"], "photos.beton is not a file of tensors and plain values"),
        (["model.checkpoint=other.pth"], "model.checkpoint: other.pth does not fit cifar_resnet20; missing: conv1"),
        (["regime.base.batch_size=2000"], "2000"),
        ([PHASES], "the phase at 16 px begins at epoch 30"),
        ([PHASES, "optimizer.lr_scaling=linear"], "optimizer.lr_scaling: linear needs one mean batch"),
        (
            ["optimizer.layer_decay=0.8"],
            "optimizer.layer_decay: timm does not say what the layers of a CifarResNet are",
        ),
        (["optimizer={{name: timm, opt: lam, lr: 0.1}}"], "optimizer.opt is 'lam'"),
        (["optimizer={{name: timm, opt: lamb, lr: 0.1, kwargs: {{betas: 0.9}}}}"], "optimizer.kwargs.betas is 0.9"),
        (["mixing={{mixup: 0.0, cutmix: 0.0}}"], "mixing: has no effect"),
        (
            ["regime={{mode: progressive, phases: [{{size_px: 8, epochs: 1, dropout: 0.1}}]}}"],
            "regime: the network has no dropout to set; make it with drop_rate above 0 (model.kwargs.drop_rate)",
        ),
        (
            [
                "regime={{mode: progressive, phases: [{{sizes: {{8: 0.5, 16: 0.5}}, epochs: 9}}, "
                "{{sizes: {{16: 0.5, 32: 0.5}}, epochs: 1}}]}}",
                "max_duration=4ep",
            ],
            "regime: the phase at 32 px and 16 px begins at epoch 9, which a run of max_duration 4ep does not reach",
        ),
        (
            ["regime={{mode: progressive, phases: [{{size_px: 8, epochs: 1, crop_scale: [0.5, 1.0]}}]}}"],
            "regime.phases.0.crop_scale: needs data.augment.name random_resized_crop, it is pad_crop",
        ),
        (
            ["max_duration=10ba", "schedule={{name: cosine, warmup_epochs: 5.0}}"],
            "schedule: warmup_epochs is 5.0; it must lie below",
        ),
    ],
)
def test_what_training_refuses_is_refused_in_the_same_words(items, words, digits, photos, capsys):
    files = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton"]
    items = ["demo", *files, *(item.format(photos=photos) for item in items)]
    torch.save({"fc.weight": torch.zeros(10, 64)}, "other.pth")
    said = []
    for command in ("plan", "train"):
        assert main([command, *items]) == 2
        said.append(capsys.readouterr().err)
    assert words in said[0]
    assert said[0] == said[1]


def test_batches_that_ranks_cannot_share_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(["plan", "demo", "regime.batch_multiple=1"]) == 2
    assert "32" in (said := capsys.readouterr().err)
    assert "3 ranks" in said
