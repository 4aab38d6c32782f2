"""Mixed precision on a CPU: where it is refused, and that everything of a run takes it where it is not."""

from __future__ import annotations

import json

import pytest
import torch

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.cli import main
from mixsize.recipes.build.devices import check_precision
from mixsize.recipes.build.trainer import build
from mixsize.recipes.commands.evaluate import build_job, measure
from mixsize.recipes.commands.train import fit
from mixsize.recipes.config.compose import compose
from mixsize.system import machine

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TINY = ["max_duration=4ba", "evaluation.sizes=[8,16]", "output.save_every=never"]

needs_bfloat16 = pytest.mark.skipif(
    not machine.bfloat16_instructions(), reason=f"the processor has none of {', '.join(machine.BFLOAT16)}"
)


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """Sets the instructions that the kernel lists."""

    def lists(*names):
        (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu sse2 {' '.join(names)}\n")
        monkeypatch.setattr(machine, "PROCESSOR", tmp_path / "cpuinfo")

    return lists


def recipe(digits, tmp_path, *items):
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={tmp_path}/runs"]
    return compose(["demo", *data, "progress_bar=false", *items])


def test_bfloat16_takes_a_gpu_or_a_processor_that_has_it(processor):
    processor("avx512f", "avx512_fp16")
    words = (
        r"precision: amp_bf16 needs a GPU or a processor with one of amx_bf16, avx512_bf16, bf16, and this runs on a "
        r"CPU that lists none of them; give precision=fp32"
    )
    with pytest.raises(ValueError, match=f"^{words}$"):
        check_precision(CPU, "amp_bf16")
    for precision in ("fp32", "amp_bf16", "amp_fp16"):
        check_precision(GPU, precision)
    check_precision(CPU, "fp32")
    for instructions in machine.BFLOAT16:
        processor(instructions)
        check_precision(CPU, "amp_bf16")
        with pytest.raises(ValueError, match=r"precision: amp_fp16 needs a GPU, .* give precision=fp32"):
            check_precision(CPU, "amp_fp16")


def test_training_and_evaluation_are_refused_before_a_file_is_written(digits, tmp_path, processor, capsys):
    processor("avx2")
    with pytest.raises(ValueError, match=r"precision: amp_bf16 needs a GPU or a processor"):
        build(recipe(digits, tmp_path, "precision=amp_bf16"))
    assert not (tmp_path / "runs").exists()
    fit(build(recipe(digits, tmp_path, *TINY)))
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "runs/demo"), "precision=amp_bf16", "--out", str(tmp_path / "out")]) == 2
    assert "precision: amp_bf16 needs a GPU or a processor" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_below_the_networks_stride_is_refused(digits, tmp_path, processor):
    processor("amx_bf16")
    items = ["model={name: resnet10t, kwargs: {zero_init_last: false}}", "regime.stride=16", "regime.base.size_px=16"]
    build(recipe(digits, tmp_path, *items))
    words = r"precision: amp_bf16 on a CPU cannot train at 16 px, below the network's stride of 32; give precision=fp32"
    with pytest.raises(ValueError, match=words):
        build(recipe(digits, tmp_path, *items, "precision=amp_bf16"))


@needs_bfloat16
@pytest.mark.parametrize(
    "items",
    [
        ["execution.preflight=true", "calibration={batches: 2}", "channels_last=true", "regime/digits_bplus"],
        [
            "regime.mode=progressive",
            "regime.phases=[{size_px: 8, epochs: 1}, {size_px: 16, epochs: 1}]",
            "regime.batch_norm=reset",
            "regime.reset_batches=2",
            "regime.base.batch_size=256",
            "max_duration=2ep",
        ],
    ],
    ids=["visit, training, evaluation and calibration", "reset of statistics"],
)
def test_every_pass_of_a_run_is_in_bfloat16_and_its_loss_in_float32(digits, tmp_path, items):
    run = build(recipe(digits, tmp_path, *TINY, "precision=amp_bf16", *items))
    network, passes, losses = run.trainer.state.model.module, set(), []

    def note(layer, inputs, output):
        if output.device.type == "cpu":  # Costs are counted on no device.
            passes.add((layer.training, output.dtype))

    network.conv1.register_forward_hook(note)
    lost = run.trainer.state.model.loss
    run.trainer.state.model.loss = lambda outputs, batch: losses.append(lost(outputs, batch)) or losses[-1]
    record = fit(run)
    assert passes == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert {loss.dtype for loss in losses} == {torch.float32}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert record.recipe["precision"] == "amp_bf16"


@needs_bfloat16
def test_the_losses_of_a_run_in_bfloat16_stay_beside_those_in_float32(digits, tmp_path):
    items = ["max_duration=2ep", "schedule={name: constant}", "optimizer.lr=0.02", "model.kwargs.zero_init_last=false"]
    items += ["regime.base={size_px: 8, batch_size: 64}", "evaluation={sizes: [8], every_epochs: 1}"]
    whole, half = (
        fit(build(recipe(digits, tmp_path, *items, f"precision={name}", f"name={name}", "output.save_every=never")))
        for name in ("fp32", "amp_bf16")
    )
    losses = [[point.train_loss for point in record.curve] for record in (whole, half)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    # It learns, so that the comparison is one of training.
    assert losses[0][-1] < 0.7 * losses[0][0]


@needs_bfloat16
def test_an_evaluation_and_an_export_repeat_a_runs_own_figures(digits, tmp_path):
    fit(build(recipe(digits, tmp_path, *TINY, "precision=amp_bf16", "calibration={batches: 3}")))
    folder = tmp_path / "runs/demo"
    record = json.loads((folder / "record.json").read_text())
    found = measure(build_job(folder, sizes_px=[8, 16]))
    assert {str(row.size_px): row.own.loss for row in found.sizes} == pytest.approx(record["loss"], rel=1e-6)
    calibrated = {str(row.size_px): row.calibrated.top1 for row in found.sizes}
    assert calibrated == pytest.approx(record["calibrated_accuracy"])
    assert main(["export", str(folder), "--sizes", "8,16", "--out", str(tmp_path / "out")]) == 0
    banks = [StatisticsBank.load(place / "batch_norm.pt").state_dict()["sizes"] for place in (folder, tmp_path / "out")]
    flat = [torch.cat([layer["mean"] for layer in bank["8"].values()]) for bank in banks]
    assert torch.equal(*flat)
