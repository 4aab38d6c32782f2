"""The combinations of versions that the tests have passed with. Needs the standard library alone."""

from __future__ import annotations

import re

#: Distribution -> version, and Python's, of each environment that the tests ran in. Two numbers of a version count.
TESTED: tuple[dict[str, str], ...] = (
    {
        "python": "3.11", "torch": "2.7", "torchvision": "0.22", "timm": "1.0", "numpy": "2.2", "mosaicml": "0.32",
        "wandb": "0.18",
    },
    {
        "python": "3.11", "torch": "2.15", "torchvision": "0.29", "timm": "1.0", "numpy": "2.4", "mosaicml": "0.32",
        "wandb": "0.31",
    },
    {
        "python": "3.10", "torch": "2.6", "torchvision": "0.21", "timm": "1.0", "numpy": "2.2", "mosaicml": "0.32",
        "wandb": "0.31",
    },
    {
        "python": "3.10", "torch": "2.7", "torchvision": "0.22", "timm": "1.0", "numpy": "2.2", "mosaicml": "0.32",
        "wandb": "0.31",
    },
    {
        "python": "3.10", "torch": "2.11", "torchvision": "0.26", "timm": "1.0", "numpy": "2.2", "mosaicml": "0.32",
        "wandb": "0.31",
    },
    {
        "python": "3.10", "torch": "2.14", "torchvision": "0.29", "timm": "1.0", "numpy": "2.2", "mosaicml": "0.32",
        "wandb": "0.31",
    },
    {
        "python": "3.13", "torch": "2.6", "torchvision": "0.21", "timm": "1.0", "numpy": "2.2", "mosaicml": "0.32",
        "wandb": "0.31",
    },
    {
        "python": "3.13", "torch": "2.7", "torchvision": "0.22", "timm": "1.0", "numpy": "2.2", "mosaicml": "0.32",
        "wandb": "0.31",
    },
    {
        "python": "3.14", "torch": "2.11", "torchvision": "0.26", "timm": "1.0", "numpy": "2.5", "mosaicml": "0.32",
        "wandb": "0.31",
    },
    {
        "python": "3.14", "torch": "2.15", "torchvision": "0.29", "timm": "1.0", "numpy": "2.5", "mosaicml": "0.32",
        "wandb": "0.31",
    },
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
