"""Open and check a ``.beton`` file: FFCV's data format, with what the converter keeps beside the samples.

Layout of a file (little-endian, types from :mod:`ffcv.types`)::

    header | field descriptors | one metadata row a sample | pages of samples | BetonInfo as JSON | allocation table

Everything but the JSON is FFCV's own format. FFCV reads the allocation table from ``alloc_table_ptr`` to the end of the
file, so the JSON stands before the table; where it is and how it is checked is kept in the first bytes of the image
field's ``arguments``, which FFCV's ``RGBImageField`` does not read. A stock FFCV reader therefore sees a plain file.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.reader import Reader
from ffcv.types import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    TYPE_ID_HANDLER,
    FieldDescType,
    HeaderType,
    get_handlers,
    get_metadata_type,
)
from ffcv.writer import MAX_PAGE_SIZE, MIN_PAGE_SIZE

FORMAT = 1
MAX_SIDE = 65_535

_TYPE_IDS = {handler: type_id for type_id, handler in TYPE_ID_HANDLER.items()}
IMAGE_TYPE_ID = _TYPE_IDS[RGBImageField]
LABEL_TYPE_ID = _TYPE_IDS[IntField]
RAW_MODE, JPEG_MODE = 1, 0


class BetonError(ValueError):
    """A ``.beton`` file that cannot be used; the message names the file."""


@dataclass(frozen=True)
class BetonInfo:
    """What the converter knows about a file's images and keeps inside the file.

    Attributes:
        classes: class names; a sample's label is an index into them.
        counts: images of each class, in the order of ``classes``.
        mean: mean of each channel (R, G, B) over all pixels of all images, on the scale 0..1.
        std: standard deviation (of the population) of the same pixels, on the scale 0..1.
        min_size: smallest height and smallest width in pixels; they may come from different images.
        max_size: largest height and largest width in pixels, likewise.
        source: kind of source, such as ``"image folder"`` or ``"CIFAR-10"``; never a path.
        skipped: names, relative to the source, of images that were left out.
        format: version of this block.

    Raises:
        ValueError: a value is of the wrong type, out of range, or contradicts another.
    """

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    min_size: tuple[int, int]
    max_size: tuple[int, int]
    source: str
    skipped: tuple[str, ...] = ()
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format is {self.format!r}, this version of mixsize reads {FORMAT}")
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

    def to_json(self) -> str:
        """One line of JSON, keys sorted, ASCII only; equal values give equal text."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

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
        known = {field.name for field in fields(cls)}
        if values.get("format") != FORMAT:
            raise ValueError(f"format is {values.get('format')!r}, this version of mixsize reads {FORMAT}")
        if set(values) != known:
            raise ValueError(f"keys missing: {sorted(known - set(values))}, unknown: {sorted(set(values) - known)}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _require_strings(key: str, values: object) -> None:
    if not isinstance(values, tuple) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key} is not a list of texts")


def _require_integers(key: str, values: object, length: int, low: int, high: int) -> None:
    whole = isinstance(values, tuple) and all(type(value) is int and low <= value <= high for value in values)
    if not whole or len(values) != length:
        raise ValueError(f"{key} is {values!r}, not {length} integers of {low}..{high}")


def _require_unit_interval(key: str, values: object) -> None:
    real = isinstance(values, tuple) and all(type(value) in (int, float) for value in values)
    if not real or len(values) != 3 or not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
        raise ValueError(f"{key} is {values!r}, not three numbers of 0..1")


@dataclass(frozen=True)
class InfoPointer:
    """Where a file's :class:`BetonInfo` stands, kept at the start of the image field's ``arguments``.

    Attributes:
        ptr: offset of the JSON in the file, in bytes.
        size: its length in bytes.
        info_crc: its CRC-32.
        index_crc: CRC-32 of all that tells where and what the samples are, see :func:`index_checksum`.
    """

    ptr: int
    size: int
    info_crc: int
    index_crc: int = 0

    _STRUCT = struct.Struct("<8sIIQQI")
    _MAGIC = b"mixsize\0"

    def pack(self) -> bytes:
        """The bytes to place at the start of ``arguments``."""
        return self._STRUCT.pack(self._MAGIC, FORMAT, self.index_crc, self.ptr, self.size, self.info_crc)

    @classmethod
    def unpack(cls, arguments: bytes) -> InfoPointer | None:
        """Read a pointer back; None where ``arguments`` is blank, as FFCV's own writer leaves it.

        Raises:
            ValueError: the bytes are neither blank nor a pointer of a known version.
        """
        if not any(arguments):
            return None
        magic, version, index_crc, ptr, size, info_crc = cls._STRUCT.unpack_from(arguments)
        if magic != cls._MAGIC or version != FORMAT:
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
        checksum = zlib.crc32(np.ascontiguousarray(part).view(np.uint8), checksum)
    return checksum


class Beton:
    """An open, checked ``.beton`` file.

    Attributes:
        path: the file.
        num_samples: number of images N.
        num_classes: number of classes: that of ``info``, else the largest label plus one.
        heights, widths: ``(N,)`` int64, pixels.
        is_jpeg: ``(N,)`` bool; True for JPEG bytes, False for raw ``(height, width, 3)`` uint8 RGB.
        data_ptr: ``(N,)`` uint64, offset of a sample's bytes in the file.
        data_size: ``(N,)`` uint64, length of a sample's bytes.
        labels: ``(N,)`` int64, none negative.
        info: what the converter stored, or None for a file from FFCV's own writer.

    All arrays are read-only. Made by :meth:`open`; usable as a context manager.
    """

    def __init__(
        self,
        path: Path,
        samples: dict[str, np.ndarray],
        info: BetonInfo | None,
        data: np.memmap,
    ):
        for values in samples.values():
            values.setflags(write=False)
        self.path = path
        self.heights = samples["heights"]
        self.widths = samples["widths"]
        self.is_jpeg = samples["is_jpeg"]
        self.data_ptr = samples["data_ptr"]
        self.data_size = samples["data_size"]
        self.labels = samples["labels"]
        self.info = info
        self.num_samples = len(self.labels)
        self.num_classes = len(info.classes) if info else int(self.labels.max()) + 1
        self._data: np.memmap | None = data

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Beton:
        """Open ``path`` and check everything that can be checked without reading the samples.

        Raises:
            BetonError: the file is missing, unreadable, not a ``.beton`` file, cut short, damaged, has no samples, or
                lacks one image field (RGB image) and one label field (integer).
        """
        path = Path(path)
        header, descriptors, names = _read_front(path)
        try:
            pointer = InfoPointer.unpack(_image_descriptor(descriptors, names, path)["arguments"].tobytes())
        except ValueError as error:
            raise BetonError(f"{path}: {error}") from error
        reader = Reader(str(path))
        if pointer is not None:
            _check_index(path, header, descriptors, reader, pointer)
        samples = _read_samples(path, reader, descriptors, names)
        data = np.memmap(path, np.uint8, "r")
        info = None if pointer is None else _read_info(path, data, int(header["alloc_table_ptr"]), pointer, samples)
        return cls(path, samples, info, data)

    @property
    def data(self) -> np.memmap:
        """The whole file, ``(bytes,)`` uint8, mapped read-only.

        Raises:
            BetonError: after :meth:`close`.
        """
        if self._data is None:
            raise BetonError(f"{self.path}: was closed")
        return self._data

    def close(self) -> None:
        """Let go of the mapped file; views of ``data`` held elsewhere keep it mapped until they go too."""
        self._data = None

    def __enter__(self) -> Beton:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that tell two data sets apart by their images' number, sizes, bytes and labels."""
        checksum = 0
        for values in (self.heights, self.widths, self.data_size, self.labels):
            checksum = zlib.crc32(np.ascontiguousarray(values).view(np.uint8), checksum)
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


def _read_front(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Header, descriptors and field names, checked so far that FFCV's reader cannot fail on the file."""
    try:
        if path.is_dir():
            raise BetonError(f"{path}: is a folder, not a .beton file")
        size = path.stat().st_size
        with open(path, "rb") as file:
            front = file.read(HeaderType.itemsize)
            if not front:
                raise BetonError(f"{path}: is empty")
            if len(front) < HeaderType.itemsize:
                raise BetonError(f"{path}: is too short to be a .beton file ({size} bytes)")
            header = np.frombuffer(front, HeaderType)[0]
            _check_header(path, header, size)
            block = file.read(int(header["num_fields"]) * FieldDescType.itemsize)
    except OSError as error:
        raise BetonError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(block) < int(header["num_fields"]) * FieldDescType.itemsize:
        raise BetonError(f"{path}: is cut short in its field descriptors")
    descriptors = np.frombuffer(block, FieldDescType)
    names = _field_names(path, descriptors)
    metadata_end = HeaderType.itemsize + descriptors.nbytes
    metadata_end += int(header["num_samples"]) * _metadata_type(path, descriptors, names).itemsize
    if metadata_end > int(header["alloc_table_ptr"]):
        raise BetonError(f"{path}: is damaged: {header['num_samples']} samples do not fit before its allocation table")
    return header, descriptors, names


def _check_header(path: Path, header: np.ndarray, size: int) -> None:
    if header["version"] != CURRENT_VERSION:
        raise BetonError(f"{path}: is not a .beton file of version {CURRENT_VERSION} (found {header['version']})")
    page_size, table_ptr = int(header["page_size"]), int(header["alloc_table_ptr"])
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size < MAX_PAGE_SIZE:
        raise BetonError(f"{path}: is damaged: page size {page_size} is not a power of two of at least {MIN_PAGE_SIZE}")
    if table_ptr == 0:
        raise BetonError(f"{path}: was not written to its end (no allocation table); convert it again")
    if header["num_samples"] == 0:
        raise BetonError(f"{path}: holds no samples")
    if table_ptr >= size or (size - table_ptr) % ALLOC_TABLE_TYPE.itemsize:
        raise BetonError(f"{path}: is cut short: its allocation table at byte {table_ptr} is missing or incomplete")


def _field_names(path: Path, descriptors: np.ndarray) -> list[str]:
    raw_names = [bytes(name).split(b"\0")[0] for name in descriptors["name"]]
    if not all(bytes(name).isascii() for name in descriptors["name"]) or len(set(raw_names)) != len(raw_names):
        raise BetonError(f"{path}: is damaged: field names {raw_names} are not ASCII or not distinct")
    return [name.decode("ascii") for name in raw_names]


def _metadata_type(path: Path, descriptors: np.ndarray, names: list[str]) -> np.dtype:
    for name, descriptor in zip(names, descriptors, strict=True):
        type_id = int(descriptor["type_id"])
        if TYPE_ID_HANDLER.get(type_id) is None:
            raise BetonError(f"{path}: field {name!r} has type {type_id}, which FFCV cannot read")
    try:
        return get_metadata_type(get_handlers(descriptors))
    except Exception as error:  # FFCV's array fields parse their arguments unchecked and may raise anything
        raise BetonError(f"{path}: field descriptors cannot be understood: {error}") from error


def _only_field(path: Path, descriptors: np.ndarray, names: list[str], type_id: int, usual: str) -> int:
    """Index of the field of a type; among several, the one with FFCV's usual name for it."""
    found = np.flatnonzero(descriptors["type_id"] == type_id).tolist()
    if len(found) == 1:
        return found[0]
    if not found:
        raise BetonError(f"{path}: has no {usual} field (its fields are {', '.join(map(repr, names)) or 'none'})")
    for index in found:
        if names[index] == usual:
            return index
    listed = ", ".join(repr(names[index]) for index in found)
    raise BetonError(f"{path}: has several fields that may be the {usual} ({listed}), none is named {usual!r}")


def _image_descriptor(descriptors: np.ndarray, names: list[str], path: Path) -> np.ndarray:
    return descriptors[_only_field(path, descriptors, names, IMAGE_TYPE_ID, "image")]


def _check_index(path: Path, header: np.ndarray, descriptors: np.ndarray, reader: Reader, pointer: InfoPointer) -> None:
    blank = descriptors.copy()
    image = _only_field(path, descriptors, reader.field_names, IMAGE_TYPE_ID, "image")
    write_pointer(blank[image], InfoPointer(pointer.ptr, pointer.size, pointer.info_crc))
    if index_checksum(header, blank, reader.metadata, reader.alloc_table) != pointer.index_crc:
        raise BetonError(f"{path}: is damaged: the checksum of its header, metadata and allocation table is wrong")


def _read_samples(path: Path, reader: Reader, descriptors: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    image_field = _only_field(path, descriptors, names, IMAGE_TYPE_ID, "image")
    label_field = _only_field(path, descriptors, names, LABEL_TYPE_ID, "label")
    image = reader.metadata[f"f{image_field}"]
    samples = {
        "heights": image["height"].astype(np.int64),
        "widths": image["width"].astype(np.int64),
        "is_jpeg": image["mode"] == JPEG_MODE,
        "data_ptr": image["data_ptr"].astype(np.uint64),
        "labels": reader.metadata[f"f{label_field}"].astype(np.int64),
    }
    pixels = samples["heights"] * samples["widths"]
    _refuse(path, pixels == 0, "has a zero height or width")
    _refuse(path, image["mode"] > RAW_MODE, "is stored in a way FFCV does not know")
    _refuse(path, samples["labels"] < 0, "has a negative label")
    samples["data_size"] = _sizes(path, reader, descriptors, samples["data_ptr"])
    raw_size = (pixels * 3).astype(np.uint64)
    _refuse(
        path, ~samples["is_jpeg"] & (samples["data_size"] != raw_size), "is raw but not of height x width x 3 bytes"
    )
    return samples


def _sizes(path: Path, reader: Reader, descriptors: np.ndarray, data_ptr: np.ndarray) -> np.ndarray:
    """Length of each sample's bytes, looked up by offset in the allocation table."""
    table_ptr = np.uint64(reader.header["alloc_table_ptr"])
    if (reader.alloc_table["sample_id"] >= reader.num_samples).any():
        raise BetonError(f"{path}: is damaged: its allocation table speaks of more than {reader.num_samples} samples")
    order = np.argsort(reader.alloc_table["ptr"], kind="stable")
    starts = reader.alloc_table["ptr"][order]
    place = np.minimum(np.searchsorted(starts, data_ptr), len(starts) - 1)
    _refuse(path, starts[place] != data_ptr, "is not in the allocation table (is the file cut short?)")
    sizes = reader.alloc_table["size"][order][place]
    metadata_end = np.uint64(HeaderType.itemsize + descriptors.nbytes + reader.metadata.nbytes)
    outside = (data_ptr < metadata_end) | (data_ptr > table_ptr)
    # Where data_ptr > table_ptr the difference wraps around, but the sample is refused already.
    outside |= (sizes == 0) | (sizes > table_ptr - data_ptr)
    _refuse(path, outside, "has bytes outside the file's data region")
    return sizes


def _refuse(path: Path, wrong: np.ndarray, what: str) -> None:
    if wrong.any():
        raise BetonError(f"{path}: sample {int(wrong.argmax())} {what}")


def _read_info(
    path: Path, data: np.memmap, table_ptr: int, pointer: InfoPointer, samples: dict[str, np.ndarray]
) -> BetonInfo:
    if pointer.ptr + pointer.size > table_ptr:
        raise BetonError(f"{path}: is damaged: its information block lies outside the file")
    block = data[pointer.ptr : pointer.ptr + pointer.size].tobytes()
    if zlib.crc32(block) != pointer.info_crc:
        raise BetonError(f"{path}: is damaged: the checksum of its information block is wrong")
    try:
        info = BetonInfo.from_json(block.decode("ascii"))
    except ValueError as error:
        raise BetonError(f"{path}: its information block cannot be used: {error}") from error
    counts = np.bincount(np.minimum(samples["labels"], len(info.classes)), minlength=len(info.classes))
    if counts.tolist() != list(info.counts):
        raise BetonError(f"{path}: its labels do not agree with the images per class it records")
    return info
