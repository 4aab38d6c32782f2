"""The device and the process group of a run."""

from __future__ import annotations

import os

import torch
from composer.utils import dist


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


def join_ranks(device: torch.device) -> None:
    """Form the process group, if a launcher started several ranks."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.initialize_dist("gpu" if device.type == "cuda" else "cpu")
