"""Cases of the loader bench: fixed sizes, mixes and duplicates, in batches of about the same number of pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixsize.algorithms.regime.regime import Base, Choice, Regime

#: Batches that a loader prepares ahead, where it has such a setting.
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Setting:
    """The setting of all loaders under test.

    Attributes:
        data: ``.beton`` file with one stored resolution.
        levels_file: the same images with several, or None.
        images: the same images as files in class folders, or None.
        base: the step whose number of pixels every batch approaches.
        threads: number of decoding threads or worker processes, and of cores to run them on.
        epoch_images: distinct images in an epoch; fewer stored ones are read several times.
        pad_crop: cut views by pad-and-crop, as for CIFAR, instead of random resized crops.
    """

    data: Path
    levels_file: Path | None
    images: Path | None
    base: Base
    threads: int
    epoch_images: int
    pad_crop: bool


@dataclass(frozen=True)
class Case:
    """A regime to time.

    Attributes:
        name: ``128 px``, ``128 px, D = 3`` or ``s144``.
        regime: the size, batch and duplicates of its steps.
    """

    name: str
    regime: Regime

    @property
    def fixed(self) -> Choice | None:
        """The one triple of all its steps; None for a mix."""
        return self.regime.choices[0] if len(self.regime.choices) == 1 else None

    @property
    def plain(self) -> Choice | None:
        """The one triple of all its steps where it has no duplicates; loaders without plans can serve it."""
        return self.fixed if self.fixed is not None and self.fixed.duplicates == 1 else None


def make_cases(
    sizes: Iterable[int], mixes: Iterable[str], duplicates: Iterable[int], duplicates_size_px: int, setting: Setting
) -> tuple[Case, ...]:
    """Each size alone, each mix with B+ batches, and each number of duplicates at one size.

    Args:
        sizes: sides in pixels.
        mixes: names of :data:`~mixsize.algorithms.regime.regime.SIZE_DISTRIBUTIONS`.
        duplicates: views D of each image.
        duplicates_size_px: side at which duplicates are timed.
        setting: gives the base and the images of an epoch.

    Raises:
        ValueError: a repeated case, a value out of range, an unknown mix, or too few images in an epoch.
    """
    cases = [_fixed(size, 1, setting.base) for size in sizes]
    cases += [Case(name, Regime.from_sizes(name, setting.base, "B+")) for name in mixes]
    cases += [_fixed(duplicates_size_px, number, setting.base) for number in duplicates]
    if not cases:
        raise ValueError("nothing to time: give --sizes, --mixes or --duplicates")
    repeated = [name for name, n in Counter(case.name for case in cases).items() if n > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is asked for twice; give each size, mix and number of duplicates once")
    for case in cases:
        case.regime.step_counts(setting.epoch_images)
    return tuple(cases)


def _fixed(size_px: int, duplicates: int, base: Base) -> Case:
    alone = Regime.from_sizes({size_px: 1.0}, base, "B+")
    if duplicates == 1:
        return Case(f"{size_px} px", alone)
    if duplicates < 1:
        raise ValueError(f"--duplicates is {duplicates}; it must be at least 1")
    batch_size = max(1, round(alone.choices[0].batch_size / duplicates))
    regime = Regime.from_choices(base, [Choice(size_px, batch_size, duplicates, 1.0)])
    return Case(f"{size_px} px, D = {duplicates}", regime)


def mixed_sizes(case: Case, cases: Sequence[Case]) -> dict[str, float] | None:
    """The fixed cases of a mix's sizes, each with its share of the samples; None where one is not timed."""
    by_size = {other.plain.size_px: other.name for other in cases if other.plain is not None}
    sizes = [choice.size_px for choice in case.regime.choices]
    if not all(size in by_size for size in sizes):
        return None
    return {by_size[size]: share for size, share in zip(sizes, case.regime.sample_shares, strict=True)}
