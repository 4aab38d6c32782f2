"""Result files: JSON with figures, the machine, the date and the versions."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import torch

from mixsize.recipes.records.environment import environment
from mixsize.system.files import write_json


def result_path(suite: str, folder: Path = Path("bench/results")) -> Path:
    """A file name from suite, hardware, PyTorch's version and date."""
    found = environment(1)
    hardware = found.gpu or found.cpu
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    day = datetime.date.today().isoformat()
    return folder / f"{suite}-{slug}-{found.cores}c-torch{torch.__version__.split('+')[0]}-{day}.json"


def keep_result(path: Path | None, suite: str, result: dict[str, Any]) -> Path:
    """Write a result to ``path``, by default to :func:`result_path`, and print where; returns the file."""
    file = path or result_path(suite)
    write_result(file, suite, result)
    print(f"result: {file}")
    return file


def write_result(path: Path, suite: str, result: dict[str, Any]) -> None:
    """Write a result with its environment, in one piece."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_json(path, {"suite": suite, "measured": now, "environment": environment(1).model_dump(), **result})
