"""``mixsize eval``: its accuracies, its files and its errors; on two ranks in ``tests/test_launcher.py``."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from mixsize.cli import main
from mixsize.ffcv_loaders import Resize
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.loader import EvalLoader
from mixsize.recipes.commands import eval_plot, eval_report, evaluate
from mixsize.recipes.commands.arguments import parse_sizes
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.network import create_network

SIZES = [8, 12, 16]


@pytest.fixture(scope="module")
def items(digits, tmp_path_factory) -> list[str]:
    """The demo's recipe, on this session's files."""
    folder = tmp_path_factory.mktemp("runs")
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton"]
    return ["demo", *data, f"output.folder={folder}", "progress_bar=false", f"evaluation.sizes={SIZES}"]


@pytest.fixture(scope="module")
def run(items) -> Path:
    """The folder of a short run of the demo at 8, 12, 16 and 20 px."""
    argv = ["train", *items, "regime/digits_bplus", "max_duration=20ba"]
    assert main(argv) == 0
    return Path(items[3].partition("=")[2]) / "demo"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """Weights of an untrained network, in timm's form, without a recipe."""
    torch.manual_seed(0)
    network = create_network(compose(["demo"]).model, 10)
    file = tmp_path_factory.mktemp("foreign") / "resnet.pth.tar"
    torch.save({"state_dict": network.state_dict()}, file)
    return file


def evaluated(folder: Path, *argv: object) -> eval_report.EvalRecord:
    assert main(["eval", *map(str, argv), "--out", str(folder)]) == 0
    (path,) = folder.glob("*.json")
    return eval_report.read_record(path)


def test_a_run_is_evaluated_as_its_training_evaluated_it(run, digits, tmp_path):
    """Composer's Trainer and torchmetrics found the same at the end of training."""
    record = evaluated(tmp_path, run)
    trained = json.loads((run / "record.json").read_text())
    assert [row.size_px for row in record.sizes] == SIZES
    for row in record.sizes:
        assert row.own.top1 == pytest.approx(trained["accuracy"][str(row.size_px)], abs=1e-6)
        assert row.own.loss == pytest.approx(trained["loss"][str(row.size_px)], rel=1e-5)
        assert row.own.top5 > row.own.top1
        assert row.calibrated.loss != row.own.loss
        # 1437 training images in whole batches of 256.
        assert row.calibration_images == 1280
    assert record.trained_sizes_px == [8, 12, 16, 20]
    assert (record.name, record.checkpoint, record.images) == ("demo", "model.safetensors", 360)
    assert record.calibration_batches == 200
    trained_with = compose([str(run / "recipe.yaml")]).model_dump(mode="json")
    calibration = {"batches": 200, "when": "last", "transform": "train"}
    # The training file's mean and deviation, as the run keeps them with its weights.
    info = Beton.open(digits / "train.beton").info
    data = {**trained_with["data"], "mean": list(info.mean), "std": list(info.std), "normalization": "network"}
    evaluation = {**trained_with["evaluation"], "interpolation": "bilinear"}
    assert record.recipe == {**trained_with, "data": data, "evaluation": evaluation, "calibration": calibration}


def test_classes_are_told_apart_and_the_worst_are_printed_first(run, tmp_path, capsys):
    record = evaluated(tmp_path, run, "--per-class")
    trained = json.loads((run / "record.json").read_text())
    assert record.class_images == trained["class_images"]
    assert {str(row.size_px): row.own.class_hits for row in record.sizes} == trained["class_hits"]
    for row in record.sizes:
        assert sum(row.calibrated.class_hits) == round(360 * row.calibrated.top1)
    lines = capsys.readouterr().out.partition("Top-1 by class at 16 px, %: all classes")[2].splitlines()
    base = next(row for row in record.sizes if row.size_px == 16)
    counts = zip(base.own.class_hits, base.calibrated.class_hits, record.class_images.values(), strict=True)
    order = sorted(range(10), key=[(own + calibrated) / images for own, calibrated, images in counts].__getitem__)
    rows = [line.replace("│", " ").split() for line in lines if line.startswith("│")][:10]
    assert [row[0] for row in rows] == [str(label) for label in order]
    assert rows[0][1] == str(record.class_images[rows[0][0]])
    assert rows[0][2] == f"{100 * base.own.class_hits[order[0]] / record.class_images[rows[0][0]]:.2f}"
    plain = evaluated(tmp_path / "plain", run, "--sizes", "16", "--no-calibrate")
    assert (plain.class_images, plain.sizes[0].own.class_hits) == ({}, [])


def test_a_checkpoint_of_a_run_is_the_run_at_that_time(run, tmp_path):
    (checkpoint,) = (run / "checkpoints").glob("ep*.pt")
    whole = evaluated(tmp_path / "run", run, "--sizes", "16", "--no-calibrate")
    (tmp_path / "latest.pt").symlink_to(checkpoint)
    part = evaluated(
        tmp_path / "latest", tmp_path / "latest.pt", run / "recipe.yaml", "--sizes", "16", "--no-calibrate"
    )
    assert part.sizes[0].own == whole.sizes[0].own
    assert part.checkpoint == checkpoint.name
    assert part.sha256 != whole.sha256
    # The recipe was named, not found with the run.
    assert (whole.trained_sizes_px, part.trained_sizes_px) == ([8, 12, 16, 20], [])


def test_each_image_is_counted_once_where_batches_do_not_divide_them(run, digits, tmp_path):
    """360 images in batches of at most 77, against a plain loop over them one by one."""
    record = evaluated(tmp_path, run, "evaluation.batch_size=77", "--sizes", "12", "--no-calibrate")
    job = evaluate.build_job(run, sizes_px=[12], calibrate=False)
    info = compose([str(run / "recipe.yaml")]).data
    assert (info.mean, info.normalization) == (None, "file")
    mean, std = (getattr(Beton.open(digits / "train.beton").info, name) for name in ("mean", "std"))
    network = job.network.eval()
    loader = EvalLoader(digits / "test.beton", 12, 1, augment=Resize(), mean=mean, std=std, device="cpu")
    with torch.no_grad():
        hits = [int(network(images).argmax() == labels) for images, labels in loader]
    assert len(hits) == 360
    assert record.sizes[0].own.top1 == sum(hits) / 360
    assert record.images == 360


def test_images_are_normalised_as_those_of_training_are(run):
    job = evaluate.build_job(run, sizes_px=[8])
    evaluation, training = (loaders[8].dataset.source for loaders in (job.loaders, job.calibration))
    assert evaluation.beton.info.mean != training.beton.info.mean
    pixels = torch.full((1, 2, 2, 3), 100, dtype=torch.uint8)
    staged = [source.stager.stage(pixels, None).images for source in (evaluation, training)]
    assert torch.equal(*staged)


def test_files_say_the_same_as_the_record(run, tmp_path, capsys):
    record = evaluated(tmp_path, run, "--sizes", "8,32", "--calibration-batches", "2")
    with open(tmp_path / "model.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["size_px"], row["batch_norm"]) for row in rows] == [
        ("8", "own statistics"), ("8", "calibrated"), ("32", "own statistics"), ("32", "calibrated"),
    ]  # fmt: skip
    assert float(rows[3]["top1"]) == record.sizes[1].calibrated.top1
    assert float(rows[3]["loss"]) == record.sizes[1].calibrated.loss
    # 3x3 convolutions on 32 px: the first, 6 of 16 channels, then 1 + 5 each of 32 on 16 px and of 64 on 8 px.
    convolutions = (
        9 * 32**2 * (3 * 16 + 6 * 16**2) + 9 * 16**2 * (16 * 32 + 5 * 32**2) + 9 * 8**2 * (32 * 64 + 5 * 64**2)
    )
    assert int(rows[2]["macs"]) == record.sizes[1].macs == convolutions + 64 * 10
    out = capsys.readouterr().out
    assert "top-5 %" in out
    assert f"{100 * record.sizes[0].own.top1:.2f}" in out
    image = imread(tmp_path / "model.png")
    assert image.shape[1] > 1000
    assert image.std() > 0.05
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".csv", ".png"}


def row(size_px, own, calibrated=None):
    def accuracy(top1):
        return eval_report.Accuracy(top1=top1, top5=None, loss=None)

    calibrated = accuracy(calibrated) if calibrated else None
    return eval_report.SizeRow(
        size_px=size_px, macs=size_px**2 * 1000, own=accuracy(own), calibrated=calibrated, calibration_images=0
    )


def record_of(name, rows, trained=(), batches=None, sha256="0" * 64):
    return eval_report.EvalRecord(
        record_version=1, measured="2026-01-01T00:00:00+00:00", name=name, checkpoint="model.safetensors",
        sha256=sha256, recipe={}, trained_sizes_px=list(trained), images=10, data="0", calibration_batches=batches,
        seconds=1.0, sizes=rows, environment={},
    )  # fmt: skip


def test_the_plot_shows_accuracy_by_size_and_by_computation():
    mixed = record_of("mixed", [row(100, 0.5, 0.6), row(200, 0.7, 0.8)], trained=[100, 200], batches=3)
    fixed = record_of("fixed", [row(100, 0.3), row(200, 0.75)])
    figure = eval_plot.draw([mixed, fixed])
    by_size, by_macs = figure.axes
    assert (by_size.get_xlabel(), by_size.get_ylabel()) == ("image size, px", "top-1 accuracy, %")
    assert by_macs.get_xlabel() == "GMACs of one image's forward pass"
    assert by_macs.get_ylabel() == "top-1 accuracy, %"
    drawn = {line.get_label(): line for line in by_size.lines}
    assert list(drawn) == [
        "mixed, own statistics", "mixed, calibrated", "mixed, sizes trained at", "fixed, own statistics",
    ]  # fmt: skip
    for label, values in (
        ("mixed, own statistics", [50, 70]),
        ("mixed, calibrated", [60, 80]),
        ("fixed, own statistics", [30, 75]),
    ):
        assert list(drawn[label].get_xdata()) == [100, 200]
        assert list(drawn[label].get_ydata()) == pytest.approx(values)
    assert list(drawn["mixed, sizes trained at"].get_xdata()) == [100, 200]
    assert [list(line.get_xdata()) for line in by_macs.lines] == [[0.01, 0.04]] * 3
    assert (
        drawn["mixed, own statistics"].get_color()
        == drawn["mixed, calibrated"].get_color()
        != drawn["fixed, own statistics"].get_color()
    )
    assert drawn["mixed, own statistics"].get_linestyle() != drawn["mixed, calibrated"].get_linestyle()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(drawn)


def test_records_of_one_name_are_told_apart():
    same = [record_of("demo", [row(8, 0.5)], sha256=digit * 64) for digit in "ab"]
    labels = [line.get_label() for line in eval_plot.draw(same).axes[0].lines]
    assert labels == ["demo aaaaaa, own statistics", "demo bbbbbb, own statistics"]


def test_other_records_are_drawn_beside(run, tmp_path, monkeypatch, capsys):
    other = record_of("other", [row(8, 0.4), row(16, 0.9)])
    (tmp_path / "other.json").write_text(other.model_dump_json())
    drawn = []
    draw = eval_plot.draw
    monkeypatch.setattr(eval_plot, "draw", lambda records: drawn.extend(records) or draw(records))
    record = evaluated(tmp_path / "out", run, "--sizes", "16", "--no-calibrate", "--compare", tmp_path / "other.json")
    assert drawn == [record, other]
    assert "note: other was evaluated on other images than demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", "is not a record of mixsize eval: Invalid JSON"),
        ("{}", "is not a record of mixsize eval: record_version: Field required"),
        ('{"record_version": 2}', "is not a record of mixsize eval: record_version: Input should be 1"),
    ],
)
def test_another_kind_of_file_is_refused(run, tmp_path, capsys, text, words):
    (tmp_path / "odd.json").write_text(text)
    assert main(["eval", str(run), "--compare", str(tmp_path / "odd.json")]) == 2
    assert f"odd.json {words}" in capsys.readouterr().err


def test_weights_from_elsewhere_are_evaluated_under_a_recipe_that_is_named(items, foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Items may stand on either side of options; what the recipe starts from is not looked for.
    given = [*items[1:], "model.checkpoint=/nowhere.pt"]
    assert main(["eval", str(foreign), "demo", "--sizes", "8", "--no-calibrate", *given]) == 0
    record = eval_report.read_record(tmp_path / "eval/resnet.pth/resnet.pth.json")
    assert record.trained_sizes_px == []
    assert record.sizes[0].calibrated is None
    assert record.calibration_batches is None


def test_a_run_keeps_its_evaluation_in_its_folder(run):
    assert main(["eval", str(run), "--sizes", "8", "--no-calibrate"]) == 0
    assert {path.name for path in (run / "eval").iterdir()} == {"model.json", "model.csv", "model.png"}


def test_without_calibration_the_training_file_need_not_exist(items, foreign, tmp_path):
    given = ["data.train=/nowhere.beton", "data.mean=[0.3, 0.3, 0.3]", "data.std=[0.4, 0.4, 0.4]", "--sizes", "8"]
    from_file = [*items, "data.train=/nowhere.beton", "data.normalization=file"]
    record = evaluated(tmp_path, foreign, *items, *given, "--no-calibrate")
    assert record.sizes[0].own.top1 < 0.5
    with pytest.raises(ValueError, match=r"data\.train: no file /nowhere\.beton; it gives mean .* with data\.mean"):
        evaluate.build_job(foreign, from_file, calibrate=False)
    with pytest.raises(ValueError, match=r"no file /nowhere\.beton; it calibrates batch norm: .* --no-calibrate$"):
        evaluate.build_job(foreign, [*items, *given[:3]])


def test_a_network_without_batch_norm_is_evaluated_as_it_is(items, tmp_path, capsys):
    given = [*items, "model.name=vit_tiny_patch16_224", "model.kwargs={dynamic_img_size: true, depth: 1}"]
    torch.save(create_network(compose(given).model, 10).state_dict(), tmp_path / "vit.pt")
    record = evaluated(tmp_path / "out", tmp_path / "vit.pt", *given, "--sizes", "32")
    assert record.sizes[0].calibrated is None
    assert "vit_tiny_patch16_224 has no batch norm that keeps statistics" in capsys.readouterr().out


def test_centre_crops_are_evaluated_over_the_papers_sweep_unless_said_otherwise(items, foreign):
    job = evaluate.build_job(foreign, [*items, "data.eval_transform={name: center_crop}"], calibrate=False)
    # S = 224 + 32 m for m = -6..6.
    assert list(job.loaders) == [32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416]
    assert list(evaluate.build_job(foreign, items, calibrate=False).loaders) == SIZES


def test_batches_shrink_where_images_are_larger_than_the_recipes(items, foreign):
    """The recipe's largest size is 16 px: a batch of 256 there has 65,536 pixels, as 64 images of 32 px."""
    job = evaluate.build_job(foreign, items, sizes_px=[8, 16, 32, 320])
    assert {size: loader.batch_size for size, loader in job.loaders.items()} == {8: 180, 16: 180, 32: 60, 320: 1}
    assert {size: loader.batch_size for size, loader in job.calibration.items()} == {8: 256, 16: 256, 32: 64, 320: 2}


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("32:416:32", list(range(32, 448, 32))),
        ("160,224,288", [160, 224, 288]),
        ("288, 160", [160, 288]),
        ("16:24:4,48,20", [16, 20, 24, 48]),
        ("8:8:4", [8]),
    ],
)
def test_sizes_are_read(text, sizes):
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is neither a number of pixels nor START:STOP:STEP"),
        ("8,,16", "'' is neither"),
        ("8:16", "'8:16' is neither"),
        ("8:16:4:2", "'8:16:4:2' is neither"),
        ("-8", "'-8' is neither"),
        ("8.5", "'8.5' is neither"),
        ("0", "'0': needs START and STEP of at least 1"),
        ("8:16:0", "'8:16:0': needs START and STEP of at least 1"),
        ("16:8:4", "STOP >= START"),
        ("8:23:4", "'8:23:4' does not end in 23: write 8:20:4 or 8:24:4"),
    ],
)
def test_sizes_that_cannot_be_read_are_refused(run, capsys, text, words):
    with pytest.raises(SystemExit):
        main(["eval", str(run), f"--sizes={text}"])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["precision=amp_fp16"], "precision: amp_fp16 needs a GPU"),
        (["--sizes", "8", "--no-calibrate", "--calibration-batches", "3"], "has no effect without calibration"),
        (["--calibration-batches", "0"], "--calibration-batches is 0; it must be at least 1"),
        (["model.num_classes=12"], r"trained for 10 classes .* says 12"),
        (["model.name=wrn16_2"], r"model\.safetensors does not fit wrn16_2; missing"),
        (["evaluation.colour=3"], "evaluation.colour"),
        (["data.eval=/nowhere.beton"], "/nowhere.beton"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_evaluated(run, tmp_path, capsys, argv, words):
    assert main(["eval", str(run), *argv, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(words, error)
    assert not (tmp_path / "out").exists()


def test_a_size_that_the_network_cannot_take_is_refused(items, tmp_path):
    given = [*items, "model.name=vit_tiny_patch16_224", "model.kwargs={depth: 1}"]
    torch.save(create_network(compose(given).model, 10).state_dict(), tmp_path / "vit.pt")
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 takes 224 px only, not 192 px"):
        evaluate.build_job(tmp_path / "vit.pt", given, sizes_px=[192, 224])


def test_weights_without_a_recipe_ask_for_one(foreign):
    with pytest.raises(
        ValueError, match=r"no recipe\.yaml beside .*resnet\.pth\.tar or one folder up; give the recipe"
    ):
        evaluate.build_job(foreign)


def test_a_recipe_that_no_longer_reads_is_named(run, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    text = (run / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text + "left_over: 3\n")
    with pytest.raises(ValueError, match=r"left_over: unknown key \(in .*recipe\.yaml\)"):
        evaluate.build_job(tmp_path)
