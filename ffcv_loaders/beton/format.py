"""The parts of a ``.beton`` file: the format of FFCV 1.0.2, version 2. ``docs/file-format.md`` describes it.

Numbers are little-endian. The parts follow each other as in the file; pages of samples lie between metadata and table.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

VERSION = 2
#: A page has a power of two of bytes, in this range.
MIN_PAGE_SIZE, MAX_PAGE_SIZE = 1 << 21, 1 << 31

#: At the file's start.
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
#: One for each field, behind the header.
DESCRIPTOR = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
#: One for each stretch of bytes that belongs to a sample, from ``alloc_table_ptr`` to the file's end.
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

#: Types of fields. 255 stands for a type that FFCV's user made; only its maker knows the length of its metadata.
FLOAT, INT, IMAGE, BYTES, ARRAY, JSON, TENSOR = range(7)
#: Modes of an image.
JPEG, RAW = 0, 1

_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_BYTES = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_POINTER = np.dtype("<u8")
#: What a sample's row holds for a field of each type.
METADATA = {
    FLOAT: np.dtype("<f8"),
    INT: np.dtype("<i8"),
    IMAGE: _IMAGE,
    BYTES: _BYTES,
    ARRAY: _POINTER,
    JSON: _BYTES,
    TENSOR: _POINTER,
}


def row_type(type_ids: Iterable[int]) -> np.dtype:
    """Type of a sample's row of metadata, behind the descriptors, for fields of these types; columns f0, f1 and so on.

    Numbers and pointers stand at multiples of 8 bytes; images, bytes and JSON follow without a gap.
    """
    return np.dtype([(f"f{field}", METADATA[type_id]) for field, type_id in enumerate(type_ids)], align=True)


def align(offset: int, unit: int) -> int:
    """The first multiple of ``unit`` from ``offset`` on."""
    return -(-offset // unit) * unit
