"""Facts about the images, and checksums, that the converter adds to FFCV's own format."""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from mixsize.ffcv_loaders.beton.levels import check_denominators

MAX_SIDE = 65_535

_POINTER_FORMAT = 1
# Files without levels keep the first format, so that every version reads them.
_FORMAT, _FORMAT_WITH_LEVELS = 1, 2


@dataclass(frozen=True)
class StoredLevel:
    """Images and bytes that a file holds on one level.

    Attributes:
        denominator: 1 for the full images, else that of a level of :mod:`~mixsize.ffcv_loaders.beton.levels`.
        images: images that have a copy of their own on this level.
        num_bytes: length of those copies in all.
    """

    denominator: int
    images: int
    num_bytes: int


@dataclass(frozen=True)
class BetonInfo:
    """Facts about a file's images, kept inside the file.

    Attributes:
        classes: class names; a sample's label is an index into them.
        counts: images of each class, in the order of ``classes``.
        mean: mean of each channel (R, G, B) over all pixels of all images, on the scale 0..1.
        std: standard deviation (of the population) of the same pixels, on the scale 0..1.
        min_size: smallest height and smallest width in pixels; they may come from different images.
        max_size: largest height and largest width in pixels; they may come from different images.
        source: kind of source, such as ``"image folder"`` or ``"CIFAR-10"``; never a path.
        skipped: names, relative to the source, of images that were left out.
        levels: images and bytes on each level, the full images first; empty for a file of full images alone.

    Raises:
        ValueError: a value is of the wrong type, out of range, or contradicts another.

    Example:
        >>> info = Beton.open("train.beton").info
        >>> info.classes, info.counts
        (('cat', 'dog'), (4, 4))
    """

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    min_size: tuple[int, int]
    max_size: tuple[int, int]
    source: str
    skipped: tuple[str, ...] = ()
    levels: tuple[StoredLevel, ...] = ()

    def __post_init__(self) -> None:
        _require_strings("classes", self.classes)
        _require_strings("skipped", self.skipped)
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError("classes is empty or names a class twice")
        if not isinstance(self.source, str) or not self.source:
            raise ValueError(f"source is {self.source!r}, not a text")
        _require_integers("counts", self.counts, len(self.classes), 0, 2**63 - 1)
        _require_integers("min_size", self.min_size, 2, 1, MAX_SIDE)
        _require_integers("max_size", self.max_size, 2, 1, MAX_SIDE)
        if any(low > high for low, high in zip(self.min_size, self.max_size, strict=True)):
            raise ValueError(f"min_size {self.min_size} is above max_size {self.max_size}")
        _require_unit_interval("mean", self.mean)
        _require_unit_interval("std", self.std)
        _require_levels(self.levels, sum(self.counts))

    @property
    def denominators(self) -> tuple[int, ...]:
        """Denominators of the levels below the full images."""
        return tuple(level.denominator for level in self.levels[1:])

    def to_json(self) -> str:
        """One line of JSON, keys sorted, ASCII only; equal values give equal text."""
        values = asdict(self) | {"format": _FORMAT_WITH_LEVELS if self.levels else _FORMAT}
        if not self.levels:
            del values["levels"]
        return json.dumps(values, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> BetonInfo:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: not JSON, a missing or unknown key, or a value that the class refuses.
        """
        try:
            values = json.loads(text)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        version = values.pop("format", None)
        if version not in (_FORMAT, _FORMAT_WITH_LEVELS):
            readable = f"{_FORMAT} and {_FORMAT_WITH_LEVELS}"
            raise ValueError(f"format is {version!r}, this version of mixsize reads {readable}")
        known = {field.name for field in fields(cls)} - ({"levels"} if version == _FORMAT else set())
        if set(values) != known:
            raise ValueError(f"keys missing: {sorted(known - set(values))}, unknown: {sorted(set(values) - known)}")
        if version == _FORMAT_WITH_LEVELS:
            values["levels"] = _levels_from_json(values["levels"])
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**arguments)


def _levels_from_json(rows: object) -> tuple[StoredLevel, ...]:
    keys = {field.name for field in fields(StoredLevel)}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) == keys for row in rows) or not rows:
        raise ValueError(f"levels is {rows!r}, not a list of objects with {', '.join(sorted(keys))}")
    return tuple(StoredLevel(**row) for row in rows)


def _require_strings(key: str, values: object) -> None:
    if not isinstance(values, tuple) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key} is not a list of texts")


def _require_integers(key: str, values: Any, length: int, low: int, high: int) -> None:
    whole = isinstance(values, tuple) and all(type(value) is int and low <= value <= high for value in values)
    if not whole or len(values) != length:
        raise ValueError(f"{key} is {values!r}, not {length} integers of {low}..{high}")


def _require_unit_interval(key: str, values: Any) -> None:
    real = isinstance(values, tuple) and all(type(value) in (int, float) for value in values)
    if not real or len(values) != 3 or not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
        raise ValueError(f"{key} is {values!r}, not three numbers of 0..1")


def _require_levels(levels: tuple[StoredLevel, ...], total: int) -> None:
    if not levels:
        return
    full, *smaller = levels
    check_denominators([level.denominator for level in smaller])
    if len(levels) == 1 or full.denominator != 1 or full.images != total:
        raise ValueError(f"levels begin with {full!r}, not with all {total} full images and a level below them")
    for level in levels:
        _require_integers("images of a level", (level.images,), 1, 0, total)
        _require_integers("bytes of a level", (level.num_bytes,), 1, 0, 2**63 - 1)


@dataclass(frozen=True)
class InfoPointer:
    """Where a file's :class:`BetonInfo` stands, kept at the start of the image field's ``arguments``.

    Attributes:
        ptr: offset of the JSON in the file, in bytes.
        size: its length in bytes.
        info_crc: its CRC-32.
        index_crc: CRC-32 of the file's index, see :func:`index_checksum`.
    """

    ptr: int
    size: int
    info_crc: int
    index_crc: int = 0

    _STRUCT = struct.Struct("<8sIIQQI")
    _MAGIC = b"mixsize\0"

    def pack(self) -> bytes:
        """The bytes to place at the start of ``arguments``."""
        return self._STRUCT.pack(self._MAGIC, _POINTER_FORMAT, self.index_crc, self.ptr, self.size, self.info_crc)

    @classmethod
    def unpack(cls, arguments: bytes) -> InfoPointer | None:
        """Read a pointer back; None where ``arguments`` is blank, as FFCV's own writer leaves it.

        Raises:
            ValueError: the bytes are neither blank nor a pointer of a known version.
        """
        if not any(arguments):
            return None
        magic, version, index_crc, ptr, size, info_crc = cls._STRUCT.unpack_from(arguments)
        if magic != cls._MAGIC or version != _POINTER_FORMAT:
            raise ValueError("the image field's arguments are damaged, or written by a version this one does not know")
        return cls(ptr=ptr, size=size, info_crc=info_crc, index_crc=index_crc)


def write_pointer(descriptor: np.ndarray, pointer: InfoPointer) -> None:
    """Place ``pointer`` in one field descriptor (a ``FieldDescType`` record), in place."""
    packed = pointer.pack()
    descriptor["arguments"][: len(packed)] = np.frombuffer(packed, np.uint8)


def index_checksum(header: np.ndarray, descriptors: np.ndarray, metadata: np.ndarray, table: np.ndarray) -> int:
    """CRC-32 over header, field descriptors, metadata rows and allocation table, in that order.

    The descriptors must hold a pointer whose ``index_crc`` is 0: the checksum cannot cover itself.
    """
    checksum = 0
    for part in (header, descriptors, metadata, table):
        checksum = zlib.crc32(np.ascontiguousarray(part).tobytes(), checksum)
    return checksum
