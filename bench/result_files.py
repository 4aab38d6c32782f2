"""Result files: JSON that says what was measured, where, when and with which versions."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import torch

from mixsize.recipes.records.environment import environment
from mixsize.system.files import write_json


def result_path(suite: str, folder: Path = Path("bench/results")) -> Path:
    """A name that carries suite, hardware, torch version and date."""
    found = environment(1)
    hardware = found.gpu or found.cpu
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    day = datetime.date.today().isoformat()
    return folder / f"{suite}-{slug}-{found.cores}c-torch{torch.__version__.split('+')[0]}-{day}.json"


def keep_result(path: Path | None, suite: str, result: dict[str, Any]) -> Path:
    """Write a result to a file, by default one that is named after it, and say where; returns the file."""
    file = path or result_path(suite)
    write_result(file, suite, result)
    print(f"result: {file}")
    return file


def write_result(path: Path, suite: str, result: dict[str, Any]) -> None:
    """Write a result with its environment, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_json(path, {"suite": suite, "measured": now, "environment": environment(1).model_dump(), **result})
