"""The device, the precision and the process group of a run."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch

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


def check_precision(device: torch.device, precision: str) -> None:
    """Refuse mixed precision on a CPU, which Composer does not train in.

    Raises:
        ValueError: the message says what to give instead.
    """
    if device.type == "cpu" and precision != "fp32":
        raise ValueError(f"precision: {precision} needs a GPU, and this runs on the CPU; give precision=fp32")


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """A context in which a network runs in a recipe's ``precision``."""
    dtype = {"fp32": None, "amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def join_ranks(device: torch.device) -> None:
    """Form the process group, if a launcher started several ranks; Composer's Trainer uses it."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or torch.distributed.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_RANKS_TIMEOUT)
