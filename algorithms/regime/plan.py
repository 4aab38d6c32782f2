"""Epoch plans: the shape and the samples of every step.

A plan is a pure function of (regime, number of images, seed, epoch, rank, world size). It is made before the epoch's
first batch: a loader can prefetch, and a run can resume at any step without replaying the earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mixsize.algorithms.regime.checks import MAX_SAMPLES, MAX_SIZE_PX, check_count
from mixsize.algorithms.regime.drawing import ORDER, SHAPES, check_epoch, choices_of_epochs, draw_left_out, generator_of
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.quasi_random import QuasiRandom
from mixsize.algorithms.regime.regime import Regime


@dataclass(frozen=True)
class Step:
    """One optimisation step on one rank.

    Args:
        size_px: image side S in pixels.
        batch_size: distinct images B on this rank.
        duplicates: augmented copies D of each image.
        samples: the images' indices in the data set, shape ``(B,)``.

    Example:
        >>> step = plan_epoch(Regime.fixed(Base(32, 64, duplicates=2)), num_samples=1000, seed=0, epoch=0)[0]
        >>> step.size_px, len(step.samples), step.num_images
        (32, 64, 128)
    """

    size_px: int
    batch_size: int
    duplicates: int
    samples: np.ndarray

    @property
    def num_images(self) -> int:
        """Images in this rank's batch, duplicates counted."""
        return self.batch_size * self.duplicates


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The steps of one epoch on one rank.

    Args:
        epoch: which epoch, from 0.
        world_size: ranks that share the epoch.
        size_px: image side at each step, shape ``(steps,)``.
        batch_size: distinct images at each step on this rank, shape ``(steps,)``.
        duplicates: augmented copies at each step, shape ``(steps,)``.
        samples: this rank's image indices, step after step, shape ``(sum of batch_size,)``.
        pages: of a quasi-random order, the file's pages in the order in which this rank reads them; else None.

    Attributes:
        offsets: index in ``samples`` at which each step starts, and their number, shape ``(steps + 1,)``.

    Example:
        >>> plan = plan_epoch(Regime.fixed(Base(32, 64)), num_samples=1000, seed=0, epoch=0)
        >>> len(plan), plan.step_at(128)
        (15, 2)
    """

    epoch: int
    world_size: int
    size_px: np.ndarray
    batch_size: np.ndarray
    duplicates: np.ndarray
    samples: np.ndarray
    pages: np.ndarray | None = None
    offsets: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", np.concatenate([[0], np.cumsum(self.batch_size, dtype=np.int64)]))
        assert self.offsets[-1] == len(self.samples)
        for array in (self.size_px, self.batch_size, self.duplicates, self.samples, self.offsets):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.size_px)

    def __getitem__(self, step: int) -> Step:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} is outside this epoch's {len(self)} steps")
        return Step(
            int(self.size_px[step]),
            int(self.batch_size[step]),
            int(self.duplicates[step]),
            self.samples[self.offsets[step] : self.offsets[step + 1]],
        )

    def __iter__(self) -> Iterator[Step]:
        return (self[step] for step in range(len(self)))

    @property
    def max_step_pixels(self) -> int:
        """Pixels of this rank's largest batch."""
        return int((self.size_px.astype(np.int64) ** 2 * self.batch_size * self.duplicates).max(initial=0))

    def step_at(self, num_samples: int) -> int:
        """The step that follows after ``num_samples`` distinct images, over all ranks.

        Raises:
            ValueError: ``num_samples`` falls inside a step.
        """
        done = self.offsets * self.world_size
        step = int(np.searchsorted(done, num_samples))
        if step > len(self) or done[step] != num_samples:
            raise ValueError(
                f"{num_samples} samples into epoch {self.epoch} is not the start of a step of this plan; "
                "the run was counted under another regime, or its samples were counted with their duplicates"
            )
        return step


def plan_epoch(
    regime: Regime,
    num_samples: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    quasi_random: QuasiRandom | None = None,
) -> EpochPlan:
    """Draw an epoch.

    Every rank sees the same shape at the same step. Over all ranks each image is drawn at most once. Batches are whole:
    an incomplete one would be a shape of its own, and ranks could not share it. Images that fill no batch are left out,
    in turns, and never twice in a row.

    Args:
        regime: the triples to draw from.
        num_samples: images in the data set.
        seed: the run's seed, at least 0.
        epoch: from 0.
        rank: this process, from 0.
        world_size: number of ranks.
        quasi_random: order of the file's pages; by default images are drawn in random order.

    Returns:
        This rank's steps. Drawing takes about 9 bytes per image of the data set; the plan holds 4 bytes for each of the
        rank's own images.

    Raises:
        ValueError: too few images, more ranks than images, a batch that the ranks cannot share evenly, or a number out
            of range.

    Example:
        >>> regime = Regime.from_sizes({32: 0.5, 16: 0.5}, Base(size_px=32, batch_size=64), "B+")
        >>> plan = plan_epoch(regime, num_samples=50_000, seed=17, epoch=0, rank=0, world_size=2)
        >>> sorted({(step.size_px, step.batch_size) for step in plan})
        [(16, 128), (32, 32)]
    """
    _check_ranks(num_samples, rank, world_size)
    _check_divides(regime, world_size)
    choice_of_step = _draw_choices(regime, num_samples, seed, epoch)
    table = np.array([(c.size_px, c.batch_size, c.duplicates) for c in regime.choices], dtype=np.int32)
    size_px, batch_size, duplicates = np.ascontiguousarray(table[choice_of_step].T)

    left_out = draw_left_out(num_samples, num_samples - int(batch_size.sum(dtype=np.int64)), seed, epoch)
    order = np.delete(np.arange(num_samples, dtype=np.uint32 if num_samples <= 2**32 else np.uint64), left_out)
    generator = generator_of(seed, ORDER, epoch)
    generator.shuffle(order)
    pages = None
    if quasi_random is not None:
        pages = quasi_random.draw_pages(generator)
        order = quasi_random.gather(quasi_random.sort(order, pages), batch_size)
        pages = quasi_random.pages_of_rank(pages, rank, world_size)
    samples = _rank_part(order, batch_size, rank, world_size)
    return EpochPlan(epoch, world_size, size_px, batch_size // world_size, duplicates, samples, pages)


def check_plannable(regime: Regime | Progression, num_samples: int, rank: int = 0, world_size: int = 1) -> None:
    """Refuse a regime of which some epoch could not be drawn; much cheaper than drawing one.

    Raises:
        ValueError: as :func:`plan_epoch`.
    """
    _check_ranks(num_samples, rank, world_size)
    for part in regime.regimes:
        _check_divides(part, world_size)
        if part.draw == "step":
            part.step_counts(num_samples)
        else:
            for choice in part.choices:
                part.epoch_steps(choice, num_samples)


def plan_length(regime: Regime, num_samples: int, seed: int, epoch: int) -> int:
    """Steps of an epoch, without drawing its order."""
    if regime.draw == "step":
        return sum(regime.step_counts(num_samples))
    return regime.epoch_steps(regime.choices[_choice_of_epoch(regime.sample_shares, seed, epoch)], num_samples)


def plan_sizes(regime: Regime, num_steps: int, seed: int, epoch: int) -> np.ndarray:
    """Image sides for the steps of a loader that does not plan its batches.

    Such batches are equally large, so that a share of the samples is a share of the steps. Each side takes its share,
    rounded to whole steps, in random order, the same on every rank.

    Args:
        regime: only its sides and shares count.
        num_steps: length of the epoch.
        seed: the run's seed, at least 0.
        epoch: from 0.

    Returns:
        Sides in pixels, int32, shape ``(num_steps,)``.
    """
    sizes = np.array([choice.size_px for choice in regime.choices], dtype=np.int32)
    if regime.draw == "epoch":
        return np.full(num_steps, sizes[_choice_of_epoch(regime.shares, seed, epoch)])
    generator = generator_of(seed, SHAPES, epoch)
    quota = np.array(regime.shares) * num_steps
    counts = np.floor(quota + 1e-9).astype(np.int64)
    # Left-over steps go to sides at random, so that no side is short in every epoch.
    left = quota - counts
    if counts.sum() < num_steps:
        short = num_steps - int(counts.sum())
        chances = np.maximum(left, 0) + 1e-12
        counts[generator.choice(len(sizes), short, replace=False, p=chances / chances.sum())] += 1
    drawn = np.repeat(sizes, counts)
    generator.shuffle(drawn)
    return drawn


def plan_evaluation(num_samples: int, size_px: int, batch_size: int, rank: int = 0, world_size: int = 1) -> EpochPlan:
    """Every image once, in order, in the same number of batches on every rank.

    Args:
        num_samples: images in the data set.
        size_px: image side S in pixels.
        batch_size: images in a batch on one rank, at most. Where it is 1 and the ranks cannot share the images evenly,
            some ranks have one batch of 2.
        rank: this process, from 0.
        world_size: number of ranks.

    Raises:
        ValueError: a size or batch below 1, or more ranks than images.

    Example:
        >>> [step.batch_size for step in plan_evaluation(num_samples=10, size_px=224, batch_size=4)]
        [4, 3, 3]
    """
    _check_ranks(num_samples, rank, world_size)
    check_count("size_px", size_px, MAX_SIZE_PX)
    check_count("batch_size", batch_size)
    smallest_share, largest_share = num_samples // world_size, -(-num_samples // world_size)
    # Ranks meet in a collective after each batch: a rank with one batch fewer would cut the others short. An empty one
    # would fail in metrics.
    num_batches = min(-(-largest_share // batch_size), smallest_share)
    mine = np.array_split(np.arange(num_samples, dtype=np.uint32), world_size)[rank]
    sizes = np.array([len(part) for part in np.array_split(mine, num_batches)], dtype=np.int32)
    ones = np.ones(num_batches, dtype=np.int32)
    return EpochPlan(0, world_size, ones * size_px, sizes, ones, mine)


def _choice_of_epoch(shares: tuple[float, ...], seed: int, epoch: int) -> int:
    check_epoch(epoch)
    return int(choices_of_epochs(shares, epoch + 1, seed)[-1])


def _draw_choices(regime: Regime, num_samples: int, seed: int, epoch: int) -> np.ndarray:
    if regime.draw == "epoch":
        choice = _choice_of_epoch(regime.sample_shares, seed, epoch)
        return np.full(regime.epoch_steps(regime.choices[choice], num_samples), choice, dtype=np.int32)
    choices = np.repeat(np.arange(len(regime.choices), dtype=np.int32), regime.step_counts(num_samples))
    generator_of(seed, SHAPES, epoch).shuffle(choices)
    return choices


def _rank_part(order: np.ndarray, batch_size: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """The samples of the ``rank``-th of ``world_size`` parts of each global batch, batch after batch."""
    ends = np.cumsum(batch_size, dtype=np.int64)
    if world_size == 1:
        return order[: ends[-1]]
    mine = batch_size.astype(np.int64) // world_size
    starts = ends - batch_size + rank * mine
    within = np.arange(mine.sum()) - np.repeat(np.cumsum(mine) - mine, mine)
    return order[np.repeat(starts, mine) + within]


def _check_ranks(num_samples: int, rank: int, world_size: int) -> None:
    if num_samples == 0:
        raise ValueError("the data set holds 0 images; it must hold at least 1")
    check_count("num_samples", num_samples, MAX_SAMPLES)
    check_count("world_size", world_size)
    check_count("rank", rank, world_size - 1, least=0)
    if world_size > num_samples:
        raise ValueError(f"{world_size} ranks cannot share {num_samples} images; use at most {num_samples} ranks")


def _check_divides(regime: Regime, world_size: int) -> None:
    for choice in regime.choices:
        if choice.batch_size % world_size:
            raise ValueError(
                f"the batch of {choice.batch_size} images at {choice.size_px} px does not divide into {world_size} "
                f"ranks; set regime.batch_multiple to a multiple of {world_size}, or change the base batch"
            )
