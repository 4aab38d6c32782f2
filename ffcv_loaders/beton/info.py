"""Facts about the images, and checksums, that the converter adds to FFCV's own format."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import from_json

from mixsize.ffcv_loaders.beton.levels import check_denominators

MAX_SIDE = 65_535

_POINTER_FORMAT = 1
# Files without levels keep the first format, so that every version reads them.
_FORMAT, _FORMAT_WITH_LEVELS = 1, 2

_CONFIG = ConfigDict(extra="forbid")
_Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_Side = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE)]
_Share = Annotated[float, Field(strict=True, ge=0, le=1)]
_Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, config=_CONFIG)
class StoredLevel:
    """Images and bytes that a file holds on one level.

    Attributes:
        denominator: 1 for the full images, else that of a level of :mod:`~mixsize.ffcv_loaders.beton.levels`.
        images: images that have a copy of their own on this level.
        num_bytes: length of those copies in all.
    """

    denominator: _Count
    images: _Count
    num_bytes: _Count


@dataclass(frozen=True, config=_CONFIG)
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

    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    counts: tuple[_Count, ...]
    mean: tuple[_Share, _Share, _Share]
    std: tuple[_Share, _Share, _Share]
    min_size: tuple[_Side, _Side]
    max_size: tuple[_Side, _Side]
    source: _Text
    skipped: tuple[str, ...] = ()
    levels: tuple[StoredLevel, ...] = ()

    def __post_init__(self) -> None:
        total = sum(self.counts)
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes names a class twice")
        if len(self.counts) != len(self.classes):
            raise ValueError(f"counts has {len(self.counts)} values, classes has {len(self.classes)}")
        if any(low > high for low, high in zip(self.min_size, self.max_size, strict=True)):
            raise ValueError(f"min_size {self.min_size} is above max_size {self.max_size}")
        check_denominators(self.denominators)
        if self.levels and (len(self.levels) == 1 or (self.levels[0].denominator, self.levels[0].images) != (1, total)):
            raise ValueError(f"levels is {self.levels}, not all {total} full images and a level below them")
        if any(level.images > total for level in self.levels):
            raise ValueError(f"levels is {self.levels}, more than {total} images on a level")

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
        values = from_json(text)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        version = values.pop("format", None)
        if version not in (_FORMAT, _FORMAT_WITH_LEVELS):
            readable = f"{_FORMAT} and {_FORMAT_WITH_LEVELS}"
            raise ValueError(f"format is {version!r}, this version of mixsize reads {readable}")
        if bool(values.get("levels")) != (version == _FORMAT_WITH_LEVELS):
            raise ValueError(f"levels is {values.get('levels')!r} in a block of format {version}")
        try:
            return cls(**values)
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
            raise ValueError("; ".join(wrong)) from None


@plain_dataclass(frozen=True)
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
    """Place ``pointer`` in one field descriptor (a ``DESCRIPTOR``), in place."""
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
