"""Which copy of an image each view is read from: a stored level, perhaps reduced while it is decoded, chosen by cost.

A *source* is a level of the file at 1/1, 1/2, 1/4 or 1/8 of its size, the ratios that libjpeg-turbo has fast transforms
for. A view may be read from any source in which its window still measures ``min_oversampling`` times the view's side,
along both axes; source 0, the full image, always serves. The cheapest one is taken, and views of one image share a
decode where that costs less than decoding twice.

The choice depends only on the image's stored sizes, the windows of its views and their side. ``image`` is always a
:class:`~mixsize.ffcv_loaders.beton.reader.Levels` of one image, whose arrays are of shape ``(L,)``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

from mixsize.ffcv_loaders.beton.reader import Levels
from mixsize.ffcv_loaders.decode.augment import FRAME_HEIGHT, FRAME_WIDTH, HEIGHT, LEFT, TOP, WIDTH

#: Ratios at which a level can be decoded: source ``s`` is level ``s // RATIOS`` at 1 / 2 ** (s % RATIOS).
RATIOS = 4

# Nanoseconds, by least squares over 10,000 crops of 300 ImageNet images and their copies on one core at 2.3 GHz
# (standard deviation 12 %); only their proportions matter. To set up a decode; for each byte of entropy-coded data down
# to the crop's last row; for each pixel transformed, counted before the reduction; for each pixel resized.
_OPEN = 5_000.0
_BYTE = 9.3
_PIXEL = (2.7, 1.6, 1.0, 0.1)
_RESIZE = 0.8

#: Columns of the needs of a view, or of a group of views that one decode serves: a part of the full image, in its
#: pixels; the area that is resized, in pixels of the full image, summed over the views; a bit for each source that
#: serves; 1 where source 0 must be decoded whole.
BEGIN_Y, END_Y, BEGIN_X, END_X, AREA, SERVES, WHOLE = range(7)
NEED = 7


class Groups(NamedTuple):
    """How the D views of one image share decodes.

    Attributes:
        needs: of each view, ``(D, NEED)``.
        joint: of each group, in the first rows; ``(D, NEED)``.
        group: each view's group, ``(D,)``.
    """

    needs: np.ndarray
    joint: np.ndarray
    group: np.ndarray


@numba.njit(nogil=True)
def empty_groups(duplicates):
    """Memory for the groups of one image after another."""
    return Groups(np.empty((duplicates, NEED)), np.empty((duplicates, NEED)), np.empty(duplicates, dtype=np.int64))


@numba.njit(nogil=True)
def levels_of(levels, sample):
    """One image's row of every level."""
    return Levels(
        levels.heights[:, sample],
        levels.widths[:, sample],
        levels.is_jpeg[:, sample],
        levels.data_ptr[:, sample],
        levels.data_size[:, sample],
    )


@numba.njit(nogil=True)
def shown_part(window, height, width, need):
    """Write to ``need`` which part of the full image a window shows, BEGIN_Y to AREA."""
    step_y = step_x = 1.0
    if window[FRAME_HEIGHT] > 0:
        # As OpenCV computes it: an edge of a pixel there must be one here too.
        step_y = 1.0 / (window[FRAME_HEIGHT] / height)
        step_x = 1.0 / (window[FRAME_WIDTH] / width)
    need[BEGIN_Y] = window[TOP] * step_y
    need[END_Y] = (window[TOP] + window[HEIGHT]) * step_y
    need[BEGIN_X] = window[LEFT] * step_x
    need[END_X] = (window[LEFT] + window[WIDTH]) * step_x
    need[AREA] = (need[END_Y] - need[BEGIN_Y]) * (need[END_X] - need[BEGIN_X])


@numba.njit(nogil=True)
def source_size(source, image):
    """Height and width of a source."""
    level, ratio = source // RATIOS, source % RATIOS
    return (image.heights[level] + (1 << ratio) - 1) >> ratio, (image.widths[level] + (1 << ratio) - 1) >> ratio


@numba.njit(nogil=True)
def position_in(source, position, sides):
    """A position along one axis of the full image, of sides[0] pixels, in a source's pixels."""
    return position * sides[source // RATIOS] / (sides[0] * (1 << source % RATIOS))


@numba.njit(nogil=True)
def crop_in(source, need, image):
    """First row, rows, first column and columns of a source that must be decoded for ``need``."""
    height, width = source_size(source, image)
    if source == 0:
        if need[WHOLE] > 0:
            return 0, height, 0, width
        top, bottom = math.floor(need[BEGIN_Y]), math.ceil(need[END_Y])
        left, right = math.floor(need[BEGIN_X]), math.ceil(need[END_X])
    else:
        # Resampling looks one pixel beyond those that the window touches.
        top = math.floor(position_in(source, need[BEGIN_Y], image.heights)) - 1
        bottom = math.floor(position_in(source, need[END_Y], image.heights)) + 2
        left = math.floor(position_in(source, need[BEGIN_X], image.widths)) - 1
        right = math.floor(position_in(source, need[END_X], image.widths)) + 2
    top, left = max(0, top), max(0, left)
    return top, min(height, bottom) - top, left, min(width, right) - left


@numba.njit(nogil=True)
def sources_that_serve(need, size_px, min_oversampling, image):
    """A bit for each source with enough pixels for a view of the part ``need`` of the full image."""
    serves, least = 1, min_oversampling * size_px
    height, width = image.heights[0], image.widths[0]
    inside = need[BEGIN_Y] >= 0 and need[BEGIN_X] >= 0 and need[END_Y] <= height and need[END_X] <= width
    if not inside or not image.is_jpeg[0]:
        return serves
    for level in range(len(image.heights)):
        if level > 0 and (image.data_ptr[level] == image.data_ptr[level - 1] or not image.is_jpeg[level]):
            continue
        for ratio in range(RATIOS):
            source = level * RATIOS + ratio
            rows = position_in(source, need[END_Y] - need[BEGIN_Y], image.heights)
            columns = position_in(source, need[END_X] - need[BEGIN_X], image.widths)
            if rows >= least and columns >= least:
                serves |= 1 << source
    return serves


@numba.njit(nogil=True)
def cost_of(source, need, image):
    """Nanoseconds, about, to decode from a source and to resize the views."""
    level, ratio = source // RATIOS, source % RATIOS
    top, rows, _, columns = crop_in(source, need, image)
    height, width = source_size(source, image)
    coded = image.data_size[level] * ((top + rows) / height)
    resized = need[AREA] * (height / image.heights[0]) * (width / image.widths[0])
    return _OPEN + _BYTE * coded + _PIXEL[ratio] * (rows * columns << 2 * ratio) + _RESIZE * resized


@numba.njit(nogil=True)
def cheapest(need, image):
    """The cheapest source that serves, and its cost; the first of those that cost the same."""
    best, least = 0, cost_of(0, need, image)
    for source in range(1, len(image.heights) * RATIOS):
        if int(need[SERVES]) >> source & 1:
            cost = cost_of(source, need, image)
            if cost < least:
                best, least = source, cost
    return best, least


@numba.njit(nogil=True)
def join(a, b, both):
    """Write to ``both`` the needs of two groups of views together."""
    both[BEGIN_Y], both[END_Y] = min(a[BEGIN_Y], b[BEGIN_Y]), max(a[END_Y], b[END_Y])
    both[BEGIN_X], both[END_X] = min(a[BEGIN_X], b[BEGIN_X]), max(a[END_X], b[END_X])
    both[AREA] = a[AREA] + b[AREA]
    both[SERVES] = int(a[SERVES]) & int(b[SERVES])
    both[WHOLE] = max(a[WHOLE], b[WHOLE])


@numba.njit(nogil=True)
def group_views(image, groups):
    """Join views of an image into groups, each read by one decode, as long as that lowers the cost.

    Args:
        image: its levels.
        groups: ``needs`` is read; ``joint`` and ``group`` are filled.

    Returns:
        The number of groups.
    """
    joint, group = groups.joint, groups.group
    views = count = len(groups.needs)
    joint[:] = groups.needs
    costs = np.empty(views)
    for view in range(views):
        group[view] = view
        costs[view] = cheapest(joint[view], image)[1]
    both = np.empty(NEED)
    while count > 1:
        saved, first, second = 0.0, 0, 0
        for a in range(count):
            for b in range(a + 1, count):
                join(joint[a], joint[b], both)
                gain = costs[a] + costs[b] - cheapest(both, image)[1]
                if gain > saved:
                    saved, first, second = gain, a, b
        if saved == 0.0:
            break
        count -= 1
        join(joint[first], joint[second], both)
        costs[first] = cheapest(both, image)[1]
        joint[first], joint[second], costs[second] = both, joint[count], costs[count]
        for view in range(views):
            if group[view] == second:
                group[view] = first
            elif group[view] == count:
                group[view] = second
    return count
