"""``mixsize bench gradients``: a run's gradients over its own images, and the rows of the paper's table 2."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from mixsize.algorithms import compare_gradients
from mixsize.bench.pages.tables import TABLES
from mixsize.bench.paper import gradients
from mixsize.cli import main
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.network import create_network
from mixsize.recipes.models.weights import sha256


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Path:
    """The folder of a run of two epochs that kept both checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    argv = [
        "train", "demo", f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", "evaluation.sizes=[16]",
        "evaluation.every_epochs=2", "regime.base.batch_size=256", "max_duration=2ep", "progress_bar=false",
        f"output.folder={folder}", "output.keep_checkpoints=0",
    ]  # fmt: skip
    assert main(argv) == 0
    return folder / "demo"


def test_a_run_gives_the_papers_rows_with_a_column_for_each_checkpoint(run, tmp_path, capsys):
    out = tmp_path / "result.json"
    options = ["--every-checkpoint", "--batches", "3", "--batch-size", "32", "--out", str(out)]
    assert main(["bench", "gradients", str(run), *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    result = json.loads(out.read_text())
    # The demo's base is 16 px; 3/4 of it is 12.
    assert (result["sizes_px"], result["batches"], result["batch_size"]) == ([16, 12], 3, 32)
    first, second = result["checkpoints"]
    assert [column["epoch"] for column in (first, second)] == [1, 2]
    assert second["sha256"] == sha256(next((run / "checkpoints").glob("ep2-*.pt")))
    assert first["between_sizes"][0]["sizes_px"] == [16, 12]
    assert (first["between_sizes"][0]["pairs"], first["between_images"][0]["pairs"]) == (3, 2)
    assert first["variance"] != second["variance"]
    # The same images cut alike at another size are more alike than other images.
    assert first["between_sizes"][0]["mean"] > first["between_images"][0]["mean"]
    assert "same images, 16 and 12 px" in printed
    assert "the paper's table 2 (ResNet-44, CIFAR-10" in printed
    table = TABLES["gradients"]({**result, "checkpoints": [first, second]})
    assert [line.split(" | ")[0] for line in table.splitlines()[:7]] == [
        "| rank correlation", "| ---", "| same images, 16 and 12 px", "| different images, 16 px",
        "| different images, 12 px", "| variance, 16 px", "| variance, 12 px",
    ]  # fmt: skip
    assert table.startswith("| rank correlation | epoch 1 | epoch 2 |\n")


def test_each_size_sees_the_same_images_and_each_batch_others(run):
    job = gradients.build_job(run, sizes_px=[8, 24, 16], batches=5, batch_size=64)
    assert job.sizes_px == [24, 16, 8]
    found = list(gradients.same_images(job))
    assert len(found) == 5
    for batch in found:
        assert {size: tuple(images.shape) for size, (images, _) in batch.items()} == {
            size: (64, 3, size, size) for size in (24, 16, 8)
        }
        # Shrinking the larger view averages it, as the smaller one does of the stored image.
        means = torch.stack([images.mean((1, 2, 3)) for images, _ in batch.values()])
        assert torch.corrcoef(means).min() > 0.98
    pixels = torch.cat([batch[8][0] for batch in found]).flatten(1)
    assert len(pixels.unique(dim=0)) == len(pixels)


def test_the_result_is_that_of_the_trained_weights_and_the_recipes_loss(run):
    job = gradients.build_job(run, ["loss.label_smoothing=0.3"], batches=2, batch_size=16)
    (column,) = gradients.measure(job)["checkpoints"]
    assert (column["checkpoint"], column["epoch"]) == ("model.safetensors", None)
    plain = gradients.build_job(run, batches=2, batch_size=16)
    assert gradients.measure(plain)["checkpoints"][0]["variance"] != column["variance"]
    network = gradients.trained_network(job.recipe, job.weights[0], 10)

    def smoothed(outputs, labels):
        target = 0.7 * torch.nn.functional.one_hot(labels, 10) + 0.3 / 10
        return -(target * outputs.log_softmax(1)).sum(1).mean()

    expected = compare_gradients(network, gradients.same_images(job), job.sizes_px, smoothed)
    assert column["variance"][0]["value"] == pytest.approx(expected.variance[16], rel=1e-3)


def test_weights_from_elsewhere_are_measured_under_a_named_recipe(digits, tmp_path):
    items = ["demo", f"data.train={digits}/train.beton"]
    torch.save(create_network(compose(items).model, 10).state_dict(), tmp_path / "weights.pt")
    job = gradients.build_job(tmp_path / "weights.pt", items, sizes_px=[16], batches=2, batch_size=8)
    result = gradients.measure(job)
    head, rows = gradients.table_rows(result)
    assert head == ["rank correlation", "weights.pt"]
    assert [row[0] for row in rows] == ["different images, 16 px", "variance, 16 px"]
    # One pair of batches has no spread.
    assert re.fullmatch(r"-?\d\.\d{3}", rows[0][1])


@pytest.mark.parametrize(
    ("base_px", "stride_px", "sizes"), [(32, 4, [32, 24]), (224, 32, [224, 160]), (32, 32, [32, 32]), (16, 4, [16, 12])]
)
def test_the_smaller_size_is_three_quarters_of_the_base_to_the_networks_stride(base_px, stride_px, sizes):
    assert gradients._default_sizes(base_px, stride_px) == sizes


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--batches", "1"], "--batches is 1; it must be at least 2"),
        (["--batch-size", "1"], "--batch-size is 1; it must be at least 2"),
        (["--batches", "50", "--batch-size", "100"], "50 batches of 100 take 5,000 images and"),
        (["data.train=/nowhere.beton"], "/nowhere.beton"),
    ],
)
def test_mistakes_are_named(run, argv, words, capsys):
    assert main(["bench", "gradients", str(run), *argv]) == 2
    assert words in capsys.readouterr().err


def test_a_file_of_weights_has_no_further_checkpoints(run, tmp_path, capsys):
    for given in (run / "model.safetensors", tmp_path):
        assert main(["bench", "gradients", str(given), "--every-checkpoint"]) == 2
        assert "has no checkpoints in checkpoints/" in capsys.readouterr().err
