"""Open and check a ``.beton`` file: FFCV's data format, with the facts that the converter adds.

``docs/file-format.md`` describes the layout. Everything but the information block is FFCV's own format. The first bytes
of the image field's ``arguments``, which FFCV's ``RGBImageField`` does not read, give the block's place and checksum. A
stock FFCV reader therefore sees a plain file, and each level as an image field of its own.
"""

from __future__ import annotations

import os
import weakref
import zlib
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from mixsize.ffcv_loaders.beton.format import (
    ALLOCATION,
    DESCRIPTOR,
    HEADER,
    IMAGE,
    INT,
    JPEG,
    MAX_PAGE_SIZE,
    METADATA,
    MIN_PAGE_SIZE,
    RAW,
    VERSION,
    row_type,
)
from mixsize.ffcv_loaders.beton.info import BetonInfo, InfoPointer, index_checksum, write_pointer
from mixsize.ffcv_loaders.beton.levels import field_name, level_side

#: A Huffman code has at least one bit, and every 8 x 8 pixels of a JPEG's finest component take a code of their own.
MAX_PIXELS_PER_JPEG_BYTE = 8 * 64
#: More classes than any data set has; the network's last layer has a row for each.
MAX_CLASSES = 2**24


class BetonError(ValueError):
    """A ``.beton`` file that cannot be used; the message names the file.

    Example:
        >>> Beton.open("none.beton")
        Traceback (most recent call last):
        mixsize.ffcv_loaders.beton.reader.BetonError: none.beton: cannot be read: No such file or directory
    """


class Levels(NamedTuple):
    """Where every stored copy of every image is, and how large; arrays of shape ``(L, N)``, 33 bytes a level and image.

    Row 0 is the full image, each further row a smaller copy of it. An image without a copy of its own on a level
    repeats the row above, ``data_ptr`` included. Positions scale with the sides, without an offset: row ``y`` of the
    full image is row ``y * heights[l] / heights[0]`` of level ``l``. Compiled code takes it as it is.

    Attributes:
        heights: int64, pixels.
        widths: int64, pixels.
        is_jpeg: bool; True for JPEG bytes, False for raw ``(height, width, 3)`` uint8 RGB.
        data_ptr: uint64, offset of the bytes in the file.
        data_size: uint64, length of the bytes.
    """

    heights: np.ndarray
    widths: np.ndarray
    is_jpeg: np.ndarray
    data_ptr: np.ndarray
    data_size: np.ndarray

    @classmethod
    def empty(cls, num_levels: int, num_samples: int) -> Levels:
        """Arrays to fill."""
        types = (np.int64, np.int64, np.bool_, np.uint64, np.uint64)
        return cls(*(np.empty((num_levels, num_samples), dtype) for dtype in types))


class OpenFile:
    """A file that stays open as long as somebody holds this object.

    It is read with ``pread``, not through a memory map: where the file is cut short or its disk fails, a map ends the
    process with a signal.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # Not at the interpreter's exit: a decoding thread may still read.
        weakref.finalize(self, os.close, self.descriptor).atexit = False
        self._state = self._size_and_time()
        self.num_bytes = self._state[0]

    def _size_and_time(self) -> tuple[int, int]:
        found = os.fstat(self.descriptor)
        return found.st_size, found.st_mtime_ns

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from ``offset`` on; fewer than ``size`` where the file ends before."""
        return os.pread(self.descriptor, size, offset)

    def rows(self, offset: int, dtype: np.dtype, count: int, what: str) -> np.ndarray:
        """``count`` values of a type from ``offset`` on.

        Raises:
            BetonError: the file ends before; the message says in ``what``.
        """
        with open(self.descriptor, "rb", closefd=False) as file:
            file.seek(offset)
            found = np.fromfile(file, dtype, count)
        if len(found) < count:
            raise BetonError(f"{self.path}: is cut short in its {what}")
        return found

    def check_unchanged(self) -> None:
        """Check that the file is as long and as old as when it was opened.

        A file that is put in its place by renaming does no harm: the old one stays open.

        Raises:
            BetonError: the file was written to, or cut short.
        """
        if self._size_and_time() != self._state:
            raise BetonError(
                f"{self.path}: was written to while it was read; put a new file in its place by renaming instead, and "
                "start again"
            )


class Beton:
    """An open, checked ``.beton`` file.

    Attributes:
        path: the file.
        num_samples: number of images N.
        num_classes: number of classes: from ``info``, else the largest label plus one.
        levels: the stored copies of the images, ``(L, N)`` each.
        num_levels: number of levels L, at least 1.
        heights, widths, is_jpeg, data_ptr, data_size: the full images' row of ``levels``, ``(N,)`` each.
        labels: ``(N,)`` int64, each from 0 to 2**24 - 1.
        info: facts that the converter stored, or None for a file from FFCV's own writer.
        page_bytes: the file consists of pages of this length; a sample and its smaller copies lie within one page.

    All arrays are read-only. Made by :meth:`open`; usable as a context manager.

    Example:
        >>> with Beton.open("train.beton") as beton:
        ...     print(beton.num_samples, beton.num_classes)
        8 2
    """

    def __init__(
        self, file: OpenFile, levels: Levels, labels: np.ndarray, info: BetonInfo | None, page_bytes: int
    ) -> None:
        for values in (*levels, labels):
            values.setflags(write=False)
        self.path = file.path
        self.levels = levels
        self.num_levels = len(levels.heights)
        self.heights, self.widths, self.is_jpeg, self.data_ptr, self.data_size = (rows[0] for rows in levels)
        self.labels = labels
        self.info = info
        self.page_bytes = page_bytes
        self.num_samples = len(self.labels)
        self.num_classes = len(info.classes) if info else int(self.labels.max()) + 1
        self._file: OpenFile | None = file

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Beton:
        """Open ``path`` and check everything that can be checked without reading the samples.

        Raises:
            BetonError: the file is missing, unreadable, not a ``.beton`` file, cut short, damaged, has no samples, or
                lacks one image field (RGB image) and one label field (integer).
        """
        path = Path(path)
        try:
            file, index = _read_index(path)
        except OSError as error:
            raise BetonError(f"{path}: cannot be read: {error.strerror or error}") from error
        pointer = _read_pointer(path, index)
        info = None if pointer is None else _read_info(path, file, index, pointer)
        labels = _read_labels(path, index)
        levels = _read_levels(path, index, () if info is None else info.denominators)
        if info is not None:
            _check_info(path, info, labels, levels)
        return cls(file, levels, labels, info, int(index.header["page_size"]))

    @property
    def file(self) -> OpenFile:
        """The open file.

        Raises:
            BetonError: after :meth:`close`.
        """
        if self._file is None:
            raise BetonError(f"{self.path}: was closed")
        return self._file

    def stored(self, sample: int, level: int = 0) -> bytes:
        """The bytes of a sample's copy on a level: a JPEG file, or raw RGB pixels."""
        return self.file.read(int(self.levels.data_ptr[level, sample]), int(self.levels.data_size[level, sample]))

    def close(self) -> None:
        """Let go of the file; a loader that is reading it keeps it open until it ends."""
        self._file = None

    def __enter__(self) -> Beton:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that tell two data sets apart by their images' number, sizes, bytes and labels.

        Levels count: the same images give other pixels where a smaller copy of them is decoded.
        """
        smaller = (self.levels.heights[1:], self.levels.widths[1:], self.levels.data_size[1:])
        checksum = 0
        for values in (self.heights, self.widths, self.data_size, self.labels, *smaller):
            checksum = zlib.crc32(np.ascontiguousarray(values).tobytes(), checksum)
        return f"{checksum:08x}"

    def check_labels(self, num_classes: int) -> None:
        """Check that every label is one of ``num_classes`` classes.

        Raises:
            BetonError: names the first sample whose label is outside 0..num_classes-1.
        """
        outside = self.labels >= num_classes
        if outside.any():
            first = int(outside.argmax())
            raise BetonError(
                f"{self.path}: sample {first} has label {self.labels[first]}, allowed are 0..{num_classes - 1}"
                f" ({num_classes} classes)"
            )


class _Index(NamedTuple):
    """What a file says about its samples.

    Attributes:
        header: a ``HEADER``, without dimensions.
        descriptors: a ``DESCRIPTOR`` for each field.
        names: of the fields.
        metadata: a row for each sample, with a column ``f0``, ``f1`` and so on for each field.
        table: an ``ALLOCATION`` for each stretch of bytes.
    """

    header: np.ndarray
    descriptors: np.ndarray
    names: list[str]
    metadata: np.ndarray
    table: np.ndarray


def _read_index(path: Path) -> tuple[OpenFile, _Index]:
    if path.is_dir():
        raise BetonError(f"{path}: is a folder, not a .beton file")
    file = OpenFile(path)
    if not file.num_bytes:
        raise BetonError(f"{path}: is empty")
    if file.num_bytes < HEADER.itemsize:
        raise BetonError(f"{path}: is too short to be a .beton file ({file.num_bytes} bytes)")
    header = file.rows(0, HEADER, 1, "header").reshape(())
    _check_header(path, header, file.num_bytes)
    num_samples, table_ptr = int(header["num_samples"]), int(header["alloc_table_ptr"])
    descriptors = file.rows(HEADER.itemsize, DESCRIPTOR, int(header["num_fields"]), "field descriptors")
    names = _field_names(path, descriptors)
    row = _row_type(path, descriptors, names)
    start = HEADER.itemsize + descriptors.nbytes
    if start + num_samples * row.itemsize > table_ptr:
        raise BetonError(f"{path}: is damaged: {num_samples} samples do not fit before its allocation table")
    metadata = file.rows(start, row, num_samples, "metadata")
    table = file.rows(table_ptr, ALLOCATION, (file.num_bytes - table_ptr) // ALLOCATION.itemsize, "allocation table")
    return file, _Index(header, descriptors, names, metadata, table)


def _check_header(path: Path, header: np.ndarray, size: int) -> None:
    if header["version"] != VERSION:
        raise BetonError(f"{path}: is not a .beton file of version {VERSION} (found {header['version']})")
    page_size, table_ptr = int(header["page_size"]), int(header["alloc_table_ptr"])
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        raise BetonError(f"{path}: is damaged: page size {page_size} is not a power of two of at least {MIN_PAGE_SIZE}")
    if table_ptr == 0:
        raise BetonError(f"{path}: was not written to its end (no allocation table); convert it again")
    if header["num_samples"] == 0:
        raise BetonError(f"{path}: holds no samples")
    if table_ptr >= size or (size - table_ptr) % ALLOCATION.itemsize:
        raise BetonError(f"{path}: is cut short: its allocation table at byte {table_ptr} is missing or incomplete")


def _field_names(path: Path, descriptors: np.ndarray) -> list[str]:
    raw_names = [bytes(name).split(b"\0")[0] for name in descriptors["name"]]
    if not all(bytes(name).isascii() for name in descriptors["name"]) or len(set(raw_names)) != len(raw_names):
        raise BetonError(f"{path}: is damaged: field names {raw_names} are not ASCII or not distinct")
    return [name.decode("ascii") for name in raw_names]


def _row_type(path: Path, descriptors: np.ndarray, names: list[str]) -> np.dtype:
    type_ids = descriptors["type_id"].tolist()
    for name, type_id in zip(names, type_ids, strict=True):
        if type_id not in METADATA:
            raise BetonError(f"{path}: field {name!r} has type {type_id}, which FFCV cannot read")
    return row_type(type_ids)


def _only_field(path: Path, index: _Index, type_id: int, usual: str) -> int:
    """Place of the field of a type; among several, the one with FFCV's usual name for it."""
    names = index.names
    found = np.flatnonzero(index.descriptors["type_id"] == type_id).tolist()
    if len(found) == 1:
        return found[0]
    if not found:
        raise BetonError(f"{path}: has no {usual} field (its fields are {', '.join(map(repr, names)) or 'none'})")
    for field in found:
        if names[field] == usual:
            return field
    listed = ", ".join(repr(names[field]) for field in found)
    raise BetonError(f"{path}: has several fields that may be the {usual} ({listed}), none is named {usual!r}")


def _read_pointer(path: Path, index: _Index) -> InfoPointer | None:
    """The pointer to the information block; None without one. With one, the index's checksum is right."""
    descriptors = index.descriptors.copy()
    image = descriptors[_only_field(path, index, IMAGE, "image")]
    try:
        pointer = InfoPointer.unpack(image["arguments"].tobytes())
    except ValueError as error:
        raise BetonError(f"{path}: {error}") from error
    if pointer is not None:
        write_pointer(image, InfoPointer(pointer.ptr, pointer.size, pointer.info_crc))
        if index_checksum(index.header, descriptors, index.metadata, index.table) != pointer.index_crc:
            raise BetonError(f"{path}: is damaged: the checksum of its header, metadata and allocation table is wrong")
    return pointer


def _read_labels(path: Path, index: _Index) -> np.ndarray:
    field = _only_field(path, index, INT, "label")
    labels = index.metadata[f"f{field}"].astype(np.int64)
    _refuse(path, labels < 0, "has a negative label")
    _refuse(path, labels >= MAX_CLASSES, f"has a label of {MAX_CLASSES} or more")
    return labels


def _read_levels(path: Path, index: _Index, denominators: tuple[int, ...]) -> Levels:
    names, descriptors = index.names, index.descriptors
    columns = [_only_field(path, index, IMAGE, "image")]
    for denominator in denominators:
        name = field_name(denominator)
        if name not in names or descriptors["type_id"][names.index(name)] != IMAGE:
            raise BetonError(f"{path}: is damaged: it has no image field {name!r} for its level 1/{denominator}")
        columns.append(names.index(name))
    levels = Levels.empty(len(columns), len(index.metadata))
    starts, lengths = _sorted_table(path, index)
    first = np.uint64(HEADER.itemsize + descriptors.nbytes + index.metadata.nbytes)
    end = index.header["alloc_table_ptr"]
    for level, column in enumerate(columns):
        image = index.metadata[f"f{column}"]
        where = f" in its field {names[column]!r}" if level else ""
        heights, widths, is_jpeg, data_ptr, data_size = (rows[level] for rows in levels)
        heights[:], widths[:], data_ptr[:] = image["height"], image["width"], image["data_ptr"]
        is_jpeg[:] = image["mode"] == JPEG
        pixels = heights * widths
        _refuse(path, pixels == 0, f"has a zero height or width{where}")
        _refuse(path, image["mode"] > RAW, f"is stored in a way FFCV does not know{where}")
        place = np.minimum(np.searchsorted(starts, data_ptr), len(starts) - 1)
        missing = starts[place] != data_ptr
        _refuse(path, missing, f"is not in the allocation table{where} (is the file cut short?)")
        data_size[:] = lengths[place]
        # Where data_ptr > end the difference wraps around, but the sample is refused already.
        outside = (data_ptr < first) | (data_ptr > end) | (data_size == 0) | (data_size > end - data_ptr)
        _refuse(path, outside, f"has bytes outside the file's data region{where}")
        wrong_size = ~is_jpeg & (data_size != (pixels * 3).astype(np.uint64))
        _refuse(path, wrong_size, f"is raw but not of height x width x 3 bytes{where}")
        # Memory is allocated for the declared size, long before the decoder finds another one.
        too_large = is_jpeg & (pixels > data_size.astype(np.int64) * MAX_PIXELS_PER_JPEG_BYTE)
        _refuse(path, too_large, f"declares more pixels than its bytes can hold{where}")
    for level, denominator in enumerate(denominators, 1):
        _check_level(path, levels, level, denominator)
    return levels


def _sorted_table(path: Path, index: _Index) -> tuple[np.ndarray, np.ndarray]:
    """Offsets in the allocation table, ascending, and the lengths that belong to them."""
    samples, starts, lengths = (index.table[key] for key in ("sample_id", "ptr", "size"))
    if (samples >= len(index.metadata)).any():
        raise BetonError(f"{path}: is damaged: its allocation table speaks of more than {len(index.metadata)} samples")
    # At one offset the longest first: an empty value of another field may stand there too.
    order = np.lexsort((~lengths, starts))
    return starts[order], lengths[order]


def _check_level(path: Path, levels: Levels, level: int, denominator: int) -> None:
    """Refuse images that neither repeat the level above nor have the size that belongs to this one."""
    repeats = levels.data_ptr[level] == levels.data_ptr[level - 1]
    same = levels.is_jpeg[level] == levels.is_jpeg[level - 1]
    scaled = np.ones(len(same), np.bool_)
    for sides in (levels.heights, levels.widths):
        same &= sides[level] == sides[level - 1]
        scaled &= sides[level] == level_side(sides[0], denominator)
    name = field_name(denominator)
    _refuse(path, repeats & ~same, f"has in its field {name!r} the bytes of the level above, but not its size and kind")
    _refuse(
        path, ~repeats & ~scaled, f"has in its field {name!r} a size that is not 1/{denominator} of the full image's"
    )


def _refuse(path: Path, wrong: np.ndarray, what: str) -> None:
    if wrong.any():
        raise BetonError(f"{path}: sample {int(wrong.argmax())} {what}")


def _read_info(path: Path, file: OpenFile, index: _Index, pointer: InfoPointer) -> BetonInfo:
    if pointer.ptr + pointer.size > int(index.header["alloc_table_ptr"]):
        raise BetonError(f"{path}: is damaged: its information block lies outside the file")
    block = file.read(pointer.ptr, pointer.size)
    if zlib.crc32(block) != pointer.info_crc:
        raise BetonError(f"{path}: is damaged: the checksum of its information block is wrong")
    try:
        return BetonInfo.from_json(block.decode("ascii"))
    except ValueError as error:
        raise BetonError(f"{path}: its information block cannot be used: {error}") from error


def _check_info(path: Path, info: BetonInfo, labels: np.ndarray, levels: Levels) -> None:
    counts = np.bincount(np.minimum(labels, len(info.classes)), minlength=len(info.classes))
    if counts.tolist() != list(info.counts):
        raise BetonError(f"{path}: its labels do not agree with the images per class it records")
    for level, recorded in enumerate(info.levels):
        own = levels.data_ptr[level] != levels.data_ptr[level - 1] if level else np.ones(len(labels), np.bool_)
        num_bytes = int(levels.data_size[level].sum(where=own))
        if (int(own.sum()), num_bytes) != (recorded.images, recorded.num_bytes):
            raise BetonError(f"{path}: its level 1/{recorded.denominator} does not hold the images it records")
