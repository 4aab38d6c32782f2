"""Write a trained network as timm and the Hugging Face Hub read it, with batch norm measured by size."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.recipes.build.devices import autocast
from mixsize.recipes.build.preparation import preparation_of
from mixsize.recipes.commands.evaluate import Job, build_job
from mixsize.recipes.models.hub_config import config_text
from mixsize.recipes.models.network import check_sizes
from mixsize.recipes.models.weights import save_weights
from mixsize.recipes.records.run_folder import CONFIG_FILE, STATISTICS_FILE, WEIGHTS_FILE
from mixsize.system.files import in_one_piece, write_text


def prepare(args: argparse.Namespace, sizes_px: Sequence[int]) -> Callable[[], int]:
    """Read and check everything; the function returned measures batch norm at the sizes and writes."""
    job = build_job(args.checkpoint, args.items, sizes_px=sizes_px, calibrate=args.calibrate)
    if args.onnx is not None:
        check_sizes(job.network, job.recipe.model.name, [args.onnx])

    def export() -> int:
        bank = _measured(job)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        # The folder takes its name when it is whole.
        with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
            whole = Path(folder) / args.out.name
            write_folder(whole, job, bank, args.onnx)
            whole.rename(args.out)
        for path in sorted(args.out.iterdir()):
            print(path)
        return 0

    return export


def write_folder(folder: Path, job: Job, bank: StatisticsBank, onnx_px: int | None) -> None:
    """Write weights, ``config.json``, batch-norm statistics and ONNX into a new folder.

    Args:
        folder: to make.
        job: has the network and its recipe.
        bank: statistics by size; left out where it is empty.
        onnx_px: image side of the ONNX file; None for no such file.
    """
    folder.mkdir()
    network = job.network.cpu()
    save_weights(network, folder / WEIGHTS_FILE)
    classes = job.images.info.classes if job.images.info else None
    write_text(folder / CONFIG_FILE, config_text(network, preparation_of(job.recipe), classes))
    if bank.sizes:
        bank.save(folder / STATISTICS_FILE)
    if onnx_px is not None:
        if onnx_px in bank:
            bank.load_into(network, onnx_px)
        write_onnx(network, onnx_px, folder / f"model-{onnx_px}.onnx")


def write_onnx(network: torch.nn.Module, size_px: int, path: Path) -> None:
    """Write a network as ONNX, from ``images`` ``(N, 3, S, S)``, N up to 65,536, to ``logits`` ``(N, classes)``."""
    images = torch.zeros(2, 3, size_px, size_px)
    batch = torch.export.Dim("batch", max=2**16)  # Without a bound, some networks' slices cannot be exported.
    with in_one_piece(path) as partial:
        program = torch.onnx.export(
            network.eval(), (images,), input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: batch},), dynamo=True, verbose=False,
        )  # fmt: skip
        assert program is not None
        program.save(str(partial))


def _measured(job: Job) -> StatisticsBank:
    bank = StatisticsBank()
    sizes = tqdm(job.calibration or {}, "batch norm", unit="size", disable=None if job.recipe.progress_bar else True)
    with autocast(job.device, job.recipe.precision):
        for size_px in sizes:
            assert job.calibration is not None
            bank.calibrate(job.network, size_px, job.calibration[size_px], max_batches=job.calibration_batches)
    return bank
