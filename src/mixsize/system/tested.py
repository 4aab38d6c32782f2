"""The combinations of versions that the tests have passed with. Needs the standard library alone."""

from __future__ import annotations

import re

#: Distribution -> version, and Python's, of each environment that the tests ran in. Two numbers of a version count.
TESTED: tuple[dict[str, str], ...] = tuple(
    {"timm": "1.0", "mosaicml": "0.32", "python": python, "torch": torch, "torchvision": vision, "numpy": numpy,
     "wandb": wandb}
    for python, torch, vision, numpy, wandb in (
        ("3.10", "2.6", "0.21", "2.2", "0.31"),
        ("3.10", "2.7", "0.22", "2.2", "0.31"),
        ("3.10", "2.11", "0.26", "2.2", "0.31"),
        ("3.10", "2.14", "0.29", "2.2", "0.31"),
        ("3.11", "2.7", "0.22", "2.2", "0.18"),
        ("3.11", "2.15", "0.29", "2.4", "0.31"),
        ("3.13", "2.6", "0.21", "2.2", "0.31"),
        ("3.13", "2.7", "0.22", "2.2", "0.31"),
        ("3.14", "2.11", "0.26", "2.5", "0.31"),
        ("3.14", "2.15", "0.29", "2.5", "0.31"),
    )
)  # fmt: skip
#: The versions that tell combinations apart; the others are compared with the newest that was tested.
_TOLD_APART = ("python", "torch", "mosaicml")


def short(version: str) -> str:
    """The first two numbers of a version: ``2.15`` of ``2.15.0+cu132``."""
    return ".".join(re.findall(r"\d+", version)[:2])


def newer(version: str, other: str) -> bool:
    """Whether the first two numbers of a version are above those of another."""
    return _numbers(version) > _numbers(other)


def is_tested(versions: dict[str, str]) -> bool:
    """Whether Python, PyTorch and Composer were tested together in these versions; Composer may be absent."""
    told_apart = [(name, short(versions[name])) for name in _TOLD_APART if name in versions]
    return any(all(row.get(name) == version for name, version in told_apart) for row in TESTED)


def newest(distribution: str) -> str | None:
    """The newest version of a distribution that was tested; None where none was."""
    return max((row[distribution] for row in TESTED if distribution in row), key=_numbers, default=None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, short(version).split(".")))
