"""Properties that hold for all inputs of a kind: tried on some of them, and under the marker ``soak`` on thousands."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")

#: What nobody means.
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.sampled_from([0, -1, 65_536, 2**31, 2**32, 2**53, 2**63, 2**64]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(0, 3), max_size=3),
    st.tuples(st.floats(), st.floats()),
)

#: Seconds that a soak of one property may take.
_SOAK_TIMEOUT = 3600

#: Of what a property tries to make, this share is made at least: where all is refused, nothing else is tested.
_LEAST_MADE = 0.1
_attempts: list[bool] = []


def for_all(quick: int, soak: int, /, **strategies: SearchStrategy) -> Callable[[Callable[..., None]], Callable]:
    """Make a test of a property.

    Args:
        quick: inputs that an ordinary run tries, the same ones each time.
        soak: inputs that ``script/test -m soak`` tries, others each time.
        strategies: where the property's arguments come from.
    """
    counts = [
        pytest.param(quick, id="quick"),
        pytest.param(soak, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(_SOAK_TIMEOUT)]),
    ]

    def decorate(holds: Callable[..., None]) -> Callable:
        @pytest.mark.parametrize("examples", counts)
        def test(examples: int) -> None:
            chosen = settings(
                max_examples=examples,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                # An ordinary run says the same today and tomorrow; a soak looks further each time.
                derandomize=examples == quick,
                database=None,
            )
            _attempts.clear()
            chosen(given(**strategies)(holds))()
            assert sum(_attempts) >= _LEAST_MADE * len(_attempts), f"{sum(_attempts)} of {len(_attempts)} were made"

        test.__name__, test.__module__ = holds.__name__, holds.__module__
        return test

    return decorate


@st.composite
def spoilt(draw: Callable[[SearchStrategy], Any], arguments: SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    """Arguments, in half of the cases with junk in the place of one."""
    given_ones = dict(draw(arguments))
    if draw(st.booleans()):
        given_ones[draw(st.sampled_from(sorted(given_ones)))] = draw(junk)
    return given_ones


def made(make: Callable[[], T], named: re.Pattern[str]) -> T | None:
    """What ``make`` returns; None where it raises a ``ValueError``, which must name what it is about."""
    try:
        thing = make()
    except ValueError as error:
        message = str(error)
    else:
        _attempts.append(True)
        return thing
    _attempts.append(False)
    assert named.search(message), message
    return None
