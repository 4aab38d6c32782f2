"""The pages of a ``.beton`` file, and the index around them.

FFCV reads whole pages of a power of two of bytes, and expects each sample on one page with all its copies: its
``QUASI_RANDOM`` order would serve a sample once for each page that it lies on. A page holds as many samples as fit with
their smaller copies: first their full images, then their copies of each level, so that training on one level reads
unbroken stretches of the file and leaves the rest of it alone.

The page size starts at FFCV's default of 8 MiB and doubles until the largest sample fits. That can happen midway: a
sample within a page of 8 MiB is also within one page of any larger size.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from mixsize.ffcv_loaders.beton.format import (
    ALLOCATION,
    DESCRIPTOR,
    HEADER,
    IMAGE,
    INT,
    JPEG,
    MIN_PAGE_SIZE,
    RAW,
    VERSION,
    align,
    row_type,
)
from mixsize.ffcv_loaders.beton.info import BetonInfo, InfoPointer, StoredLevel, index_checksum, write_pointer
from mixsize.ffcv_loaders.beton.levels import field_name
from mixsize.ffcv_loaders.conversion.encode import EncodedImage

PAGE_SIZE = 4 * MIN_PAGE_SIZE


class PageWriter:
    """Writes samples in the order in which they are added, and the index at the end.

    Args:
        file: an empty file.
        capacity: samples there may be at most.
        denominators: of the levels below the full images; each sample has an entry in ``levels`` for each.
    """

    def __init__(self, file: BinaryIO, capacity: int, denominators: Sequence[int]):
        self._file = file
        self._denominators = (1, *denominators)
        num_levels = len(self._denominators)
        self._metadata = np.zeros(capacity, row_type([*[IMAGE] * num_levels, INT]))
        self._table = np.zeros(capacity * num_levels, ALLOCATION)
        self._images, self._bytes = [0] * num_levels, [0] * num_levels
        self._count = 0
        self._page_size = PAGE_SIZE
        self._end = HEADER.itemsize + (num_levels + 1) * DESCRIPTOR.itemsize + self._metadata.nbytes
        self._page: list[EncodedImage] = []
        self._page_bytes = 0

    @property
    def labels(self) -> np.ndarray:
        """Labels of the samples added so far."""
        return self._metadata[f"f{len(self._denominators)}"][: self._count]

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of the samples written so far, ``(N, 2)``; complete after :meth:`end_page`."""
        full = self._metadata["f0"][: self._count - len(self._page)]
        return np.stack([full["height"], full["width"]], axis=1).astype(np.int64)

    @property
    def levels(self) -> tuple[StoredLevel, ...]:
        """Images and bytes written on each level, the full images first; empty where there are no other levels."""
        rows = tuple(map(StoredLevel, self._denominators, self._images, self._bytes))
        return rows if len(rows) > 1 else ()

    def add(self, image: EncodedImage, label: int) -> None:
        """Take the next sample."""
        assert len(image.levels) == len(self._denominators) - 1
        if self._page_bytes + image.num_bytes > self._page_size:
            self.end_page()
            while image.num_bytes > self._page_size:
                self._page_size *= 2
        self._page.append(image)
        self._page_bytes += image.num_bytes
        self._metadata[f"f{len(self._denominators)}"][self._count] = label
        self._count += 1

    def end_page(self) -> None:
        """Write the samples taken since the last page."""
        ptr = align(self._end, self._page_size)
        self._file.seek(ptr)
        first = self._count - len(self._page)
        for level in range(len(self._denominators)):
            column = self._metadata[f"f{level}"]
            for row, image in enumerate(self._page, first):
                stored = image.levels[level - 1] if level else image
                if stored is None:
                    column[row] = self._metadata[f"f{level - 1}"][row]
                    continue
                mode = JPEG if stored.is_jpeg else RAW
                column[row] = (mode, stored.width, stored.height, ptr)
                self._table[sum(self._images)] = (row, ptr, len(stored.data))
                self._file.write(stored.data)
                ptr += len(stored.data)
                self._images[level] += 1
                self._bytes[level] += len(stored.data)
        self._end = ptr
        self._page, self._page_bytes = [], 0

    def finish(self, info: BetonInfo) -> None:
        """Write the index; :meth:`end_page` must have been called."""
        assert not self._page
        block = info.to_json().encode("ascii")
        block_ptr = align(self._end, self._page_size)
        table_ptr = align(block_ptr + len(block), 8)
        descriptors = self._descriptors()
        header = np.zeros((), HEADER)
        header["version"] = VERSION
        header["num_fields"] = len(descriptors)
        header["page_size"] = self._page_size
        header["num_samples"] = self._count
        header["alloc_table_ptr"] = table_ptr
        metadata, table = self._metadata[: self._count], self._table[: sum(self._images)]
        place = {"ptr": block_ptr, "size": len(block), "info_crc": zlib.crc32(block)}
        write_pointer(descriptors[0], InfoPointer(**place))
        index_crc = index_checksum(header, descriptors, metadata, table)
        write_pointer(descriptors[0], InfoPointer(**place, index_crc=index_crc))
        self._file.seek(block_ptr)
        self._file.write(block)
        self._file.seek(table_ptr)
        self._file.write(table.tobytes())
        self._file.seek(0)
        self._file.write(header.tobytes() + descriptors.tobytes() + metadata.tobytes())

    def _descriptors(self) -> np.ndarray:
        fields = [(IMAGE, field_name(denominator)) for denominator in self._denominators]
        # The label comes last, so that FFCV's batches are (images, labels) whichever level is used.
        fields.append((INT, "label"))
        descriptors = np.zeros(len(fields), DESCRIPTOR)
        for descriptor, (type_id, name) in zip(descriptors, fields, strict=True):
            descriptor["type_id"] = type_id
            descriptor["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
        return descriptors
