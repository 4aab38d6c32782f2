"""The device, the precision and the process group of a run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Literal

import torch

from mixsize.system.machine import BFLOAT16, bfloat16_instructions

Precision = Literal["fp32", "amp_bf16", "amp_fp16"]
#: What a network is autocast to.
DTYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}
_RANKS_TIMEOUT = timedelta(minutes=5)


def torch_device(name: str) -> torch.device:
    """Resolve a recipe's ``device`` on this machine and rank.

    Raises:
        ValueError: ``gpu`` on a machine without one.
    """
    available = torch.cuda.is_available()
    if name == "gpu" and not available:
        raise ValueError("device: gpu was asked for and PyTorch sees none; use device=cpu or device=auto")
    if name == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def check_precision(device: torch.device, precision: Precision) -> None:
    """Refuse float16 on a CPU, and bfloat16 on one that would emulate it.

    Raises:
        ValueError: the message says what is missing, and what to give instead.
    """
    if device.type != "cpu" or precision == "fp32":
        return
    if precision == "amp_fp16":
        raise ValueError("precision: amp_fp16 needs a GPU, and this runs on the CPU; give precision=fp32")
    if not bfloat16_instructions():
        raise ValueError(
            f"precision: {precision} needs a GPU or a processor with one of {', '.join(BFLOAT16)}, and this runs on a "
            "CPU that lists none of them; give precision=fp32"
        )


def check_trained_sizes(device: torch.device, precision: Precision, sizes_px: Iterable[int], stride_px: int) -> None:
    """Refuse to train in bfloat16 on a CPU at sizes below the network's stride.

    Where a convolution's stride is above its input's side, oneDNN (3.7.1, of PyTorch 2.7) leaves the gradients of
    weights that only meet padding unset: they have whatever the memory held.

    Raises:
        ValueError: names the smallest size.
    """
    smallest_px = min(sizes_px)
    if device.type == "cpu" and precision == "amp_bf16" and smallest_px < stride_px:
        raise ValueError(
            f"precision: amp_bf16 on a CPU cannot train at {smallest_px} px, below the network's stride of {stride_px}"
            "; give precision=fp32"
        )


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """A context in which a network runs in a recipe's ``precision``."""
    dtype = DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def trainer_precision(device: torch.device, precision: Precision) -> Precision:
    """The precision of Composer's Trainer: the recipe's, and fp32 on a CPU, where it knows no other.

    There ``EngineClassifier`` casts.
    """
    return "fp32" if device.type == "cpu" else precision


def join_ranks(device: torch.device) -> None:
    """Form the process group, if a launcher started several ranks; Composer's Trainer uses it."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or torch.distributed.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_RANKS_TIMEOUT)
