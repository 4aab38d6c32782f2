"""Draws of a plan, each a function of the run's seed."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mixsize.algorithms.regime.checks import MAX_EPOCHS, check_count

# Independent random streams: the first two differ by epoch, the others are drawn once for a run.
ORDER, SHAPES, EPOCH_SIZES, LEFT_OUT = range(4)
#: Compiled code takes seeds in 64 bits.
MAX_SEED = 2**64 - 1
#: Sizes of whole epochs take their shares over this many epochs.
_ROUND = 10


def generator_of(seed: int, stream: int, epoch: int) -> np.random.Generator:
    """A random stream of one epoch."""
    check_epoch(epoch)
    return _generator(seed, epoch, stream)


def check_epoch(epoch: int) -> None:
    """Refuse an epoch that a run cannot have.

    Raises:
        ValueError: names the epoch and the range.
    """
    check_count("epoch", epoch, MAX_EPOCHS - 1, least=0)


def draw_left_out(num_samples: int, count: int, seed: int, epoch: int) -> np.ndarray:
    """The images that an epoch leaves out, because they fill no batch.

    The images take turns: those left out of one epoch are in the next, and while their number stays the same, none is
    left out again before nearly all others were.

    Returns:
        Indices, shape ``(count,)``; ``count`` is at most half of ``num_samples``.
    """
    if count == 0:
        return np.empty(0, dtype=np.int64)
    # Even and odd epochs leave out of different halves of one order.
    halves = np.array_split(_generator(seed, LEFT_OUT).permutation(num_samples), 2)
    half = halves[epoch % 2]
    turn = np.arange(count, dtype=np.int64) + epoch // 2 * count
    return half[turn % len(half)]


def choices_of_epochs(shares: tuple[float, ...], num_epochs: int, seed: int) -> np.ndarray:
    """The choice of each epoch, if each epoch has one.

    In every ten epochs each choice comes up as often as its share says, in random order; fractions are carried on. The
    paper's appendix E, too, fixes the number of epochs of each size.

    Args:
        shares: of the epochs, one for each choice.
        num_epochs: length of the run; a longer run begins with the same choices.
        seed: the run's.

    Returns:
        Indices of choices, shape ``(num_epochs,)``.
    """
    assert 1 <= num_epochs <= MAX_EPOCHS
    length = max(64, 1 << (num_epochs - 1).bit_length())
    return _choices_of_epochs(shares, length, seed)[:num_epochs]


@lru_cache(maxsize=8)
def _choices_of_epochs(shares: tuple[float, ...], length: int, seed: int) -> np.ndarray:
    generator = _generator(seed, EPOCH_SIZES)
    due, rounds = np.zeros(len(shares)), []
    for _ in range(-(-length // _ROUND)):
        due += np.multiply(shares, _ROUND)
        drawn = []
        for _ in range(_ROUND):
            drawn.append(int(due.argmax()))
            due[drawn[-1]] -= 1
        rounds.append(drawn)
    choices = generator.permuted(rounds, axis=1).ravel()
    choices.setflags(write=False)
    return choices


def _generator(seed: int, *key: int) -> np.random.Generator:
    check_count("seed", seed, MAX_SEED, least=0)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
