"""Which of how many processes this is, and its part of the machine."""

from __future__ import annotations

import os

import torch


def process_rank() -> tuple[int, int]:
    """This process's (rank, number of ranks): the process group's, else the launcher's, else (0, 1)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def default_threads() -> int:
    """The cores this process may use, shared out among the ranks of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
