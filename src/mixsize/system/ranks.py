"""The rank of this process, and its share of the machine."""

from __future__ import annotations

import os

import torch

from mixsize.system.machine import cores_at_hand


def process_rank() -> tuple[int, int]:
    """This process's (rank, number of ranks): the process group's, else the launcher's, else (0, 1)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def default_threads() -> int:
    """The cores that this process may run on, divided by the ranks of this machine."""
    return max(1, cores_at_hand() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def share_cores() -> None:
    """Divide PyTorch's threads among the ranks of this machine, unless ``OMP_NUM_THREADS`` is set."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(default_threads())
