"""A rank whose partner is gone says so, and not only how its transport noticed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What gloo, whose errors have no class of their own, and NCCL say of a rank that is gone or does not answer.
_WORDS = re.compile(r"gloo.*(closed by peer|reset by peer|broken pipe|timed out)|remote process exit", re.IGNORECASE)


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error says that another rank cannot be reached, or not any more."""
    if isinstance(error, (torch.distributed.DistNetworkError, torch.distributed.DistStoreError)):
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Turn a transport's error into one that says what it means.

    Raises:
        ConnectionError: another rank has ended, or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        raise ConnectionError(
            "another rank has ended, or does not answer, and its own output says why; this one ends too. Noticed by: "
            f"{str(error).splitlines()[0]}"
        ) from error
