"""Result files: JSON with the measurements, the time, the hardware and the versions."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import torch

from mixsize.recipes.records.environment import environment
from mixsize.system.files import write_json


def result_path(suite: str, folder: Path = Path("bench/results")) -> Path:
    """Path of a new result file, named after suite, hardware, PyTorch's version and date."""
    found = environment(1)
    hardware = found.gpu or found.cpu
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    day = datetime.date.today().isoformat()
    return folder / f"{suite}-{slug}-{found.cores}c-torch{torch.__version__.split('+')[0]}-{day}.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read a result file."""
    return json.loads(path.read_text(encoding="utf-8"))


def keep_result(path: Path | None, suite: str, result: dict[str, Any]) -> Path:
    """Write a result to a file, by default ``result_path(suite)``, and print its path; returns the path."""
    file = path or result_path(suite)
    write_result(file, suite, result)
    print(f"result: {file}")
    return file


def write_result(path: Path, suite: str, result: dict[str, Any]) -> None:
    """Write a result with its date and environment, atomically."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_json(path, {"suite": suite, "measured": now, "environment": environment(1).model_dump(), **result})
