"""Read, check and encode images: the part of a conversion that worker processes run.

Imports Pillow, NumPy and the engine only, so that a worker starts in a fraction of a second.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from mixsize.ffcv_loaders.beton.info import MAX_SIDE
from mixsize.ffcv_loaders.beton.levels import MAX_SHARE, MIN_SIDE, check_denominators, encode_level, level_side, shrink
from mixsize.ffcv_loaders.engine.native import decode_whole

STORES = ("auto", "raw", "jpg")
DEFAULT_QUALITY = 90
RAW_UP_TO = 64 * 64
MAX_BYTES = 1 << 31
# Pillow's own default limit against images that unpack to more memory than a machine has.
MAX_PIXELS = 89_478_485

# Never Pillow's other formats: some run outside programs (EPS), and a data set of images holds none of them.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF", "GIF")


class UnusableImage(ValueError):  # noqa: N818 (a finding about an image, not a failure of the program)
    """An image that cannot go into the file; the message is the reason, without the image's name."""


class FilePart(NamedTuple):
    """An image file inside of another file: ``size`` bytes of ``path`` from ``offset`` on."""

    path: str
    offset: int
    size: int


#: An image to encode: the path of its file, its file's bytes, where they lie, its ``(height, width, 3)`` uint8 RGB
#: pixels, or why there is none.
Item: TypeAlias = str | bytes | FilePart | np.ndarray | UnusableImage


@dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Attributes:
        store: ``raw`` (uint8 RGB pixels), ``jpg``, or ``auto``: raw up to 64 x 64 pixels in area, JPEG above.
        quality: JPEG quality 1..100 for images that have to be encoded, with 4:2:0 chroma subsampling.
        max_side: images whose longer side exceeds it, in pixels, are shrunk to it by averaging areas; None keeps all.
        levels: denominators of the smaller copies stored beside each JPEG, ascending, see
            :mod:`~mixsize.ffcv_loaders.beton.levels`.

    Raises:
        ValueError: a value is out of range.
    """

    store: str = "auto"
    quality: int = DEFAULT_QUALITY
    max_side: int | None = None
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.store not in STORES:
            raise ValueError(f"store is {self.store!r}; it must be one of {', '.join(STORES)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; it must be from 1 to 100")
        if self.max_side is not None and not 1 <= self.max_side <= MAX_SIDE:
            raise ValueError(f"max_side is {self.max_side}; it must be from 1 to {MAX_SIDE}")
        check_denominators(self.levels)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which an image is stored."""
        longer = max(height, width)
        if self.max_side is None or longer <= self.max_side:
            return height, width
        return (
            max(1, (height * self.max_side + longer // 2) // longer),
            max(1, (width * self.max_side + longer // 2) // longer),
        )

    def is_jpeg(self, height: int, width: int) -> bool:
        """Whether an image stored at this size becomes a JPEG."""
        return self.store == "jpg" or (self.store == "auto" and height * width > RAW_UP_TO)


@dataclass(frozen=True)
class EncodedImage:
    """One image as it goes into the file.

    Attributes:
        data: JPEG bytes, or ``height * width * 3`` bytes of RGB.
        is_jpeg: which of the two.
        height, width: pixels.
        levels: its smaller copies, in the order of :attr:`Encoding.levels`; None for one that is not worth its bytes.
    """

    data: bytes
    is_jpeg: bool
    height: int
    width: int
    levels: tuple[EncodedImage | None, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of the image and its smaller copies."""
        return len(self.data) + sum(len(level.data) for level in self.levels if level is not None)


@dataclass(frozen=True)
class EncodedChunk:
    """Results for some images.

    Attributes:
        results: for each an image, or the reason why it cannot be used.
        histogram: ``(3, 256)`` int64, how often each value occurs in each channel of the usable images.
    """

    results: list[EncodedImage | str]
    histogram: np.ndarray


def encode_chunk(items: Sequence[Item], encoding: Encoding) -> EncodedChunk:
    """Encode images in order.

    Args:
        items: the images.
        encoding: how to store them.
    """
    results: list[EncodedImage | str] = []
    histogram = np.zeros((3, 256), np.int64)
    for item in items:
        try:
            image, image_histogram = encode_image(item, encoding)
        except UnusableImage as error:  # noqa: PERF203 (each image has its own reason)
            results.append(str(error))
        else:
            results.append(image)
            histogram += image_histogram
    return EncodedChunk(results, histogram)


def encode_image(item: Item, encoding: Encoding) -> tuple[EncodedImage, np.ndarray]:
    """Encode one image, decoding it fully on the way.

    A JPEG file that needs no change (8-bit RGB, YCbCr or greyscale) keeps its bytes, provided that the loader's own
    decoder reads it without an error or a warning. One that Pillow alone still decodes (as it does for torchvision) is
    encoded again. EXIF orientation is ignored, as torchvision and timm ignore it.

    Returns:
        The image, and the ``(3, 256)`` int64 histogram of its pixels before JPEG coding (after decoding, where the
        bytes were kept).

    Raises:
        UnusableImage: unreadable, cut short, not an image, too large, or of a kind without a defined 8-bit RGB form.
    """
    if isinstance(item, np.ndarray):
        return _encode_pixels(Image.fromarray(item), encoding)
    if isinstance(item, UnusableImage):
        raise item
    data = _bytes_of(item)
    if not data:
        raise UnusableImage("is empty (zero bytes)")
    # A decoder may raise nearly anything on damaged input, and warns about damage that does not touch the pixels.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_declared_size(image, encoding)
            if _may_keep_bytes(image, encoding):
                kept = decode_whole(data, image.height, image.width)
                if kept is not None:
                    copies = _smaller_copies(kept, len(data), encoding.levels)
                    encoded = _of_a_page(EncodedImage(data, True, image.height, image.width, copies))
                    return encoded, _histogram(Image.fromarray(kept))
            image.load()
            return _encode_pixels(_to_rgb(image), encoding)
    except (UnusableImage, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise UnusableImage("is not an image of a known format, or its header is damaged") from error
    except Exception as error:
        raise UnusableImage(f"cannot be decoded: {error or type(error).__name__}") from error


def _bytes_of(item: str | bytes | FilePart) -> bytes:
    if isinstance(item, bytes):
        return item
    try:
        size = item.size if isinstance(item, FilePart) else os.path.getsize(item)
        if size > MAX_BYTES:
            raise UnusableImage(f"takes {size} bytes, a .beton page holds at most {MAX_BYTES}")
        if isinstance(item, str):
            return Path(item).read_bytes()
        with open(item.path, "rb") as file:
            file.seek(item.offset)
            return file.read(size)
    except OSError as error:
        raise UnusableImage(f"cannot be read: {error.strerror or error}") from error


def _check_declared_size(image: Image.Image, encoding: Encoding) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnusableImage(f"declares {image.width} x {image.height} pixels, more than {MAX_PIXELS} in all")
    if max(encoding.size_of(image.height, image.width)) > MAX_SIDE:
        raise UnusableImage(f"is {image.width} x {image.height}, the format's largest side is {MAX_SIDE}")


def _may_keep_bytes(image: Image.Image, encoding: Encoding) -> bool:
    size = (image.height, image.width)
    # A phone's JPEG with a second picture appended is an "MPO" to Pillow; decoders read its first picture.
    is_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
    return is_jpeg and encoding.is_jpeg(*size) and encoding.size_of(*size) == size


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; alpha is dropped, CMYK and palettes are converted, 16-bit grey is scaled rather than clipped."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = (np.asarray(image).astype(np.int64) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnusableImage("has 32-bit pixels, whose range no file format defines; store it as 8 or 16 bit")
    return image.convert("RGB")


def _encode_pixels(image: Image.Image, encoding: Encoding) -> tuple[EncodedImage, np.ndarray]:
    assert image.mode == "RGB"
    height, width = encoding.size_of(image.height, image.width)
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), Image.Resampling.BOX)
    is_jpeg = encoding.is_jpeg(height, width)
    if is_jpeg:
        buffer = io.BytesIO()
        # Without this Pillow copies a comment into the new file.
        image.info.clear()
        image.save(buffer, "JPEG", quality=encoding.quality)
        data = buffer.getvalue()
    else:
        data = image.tobytes()
    # Raw pixels need no decoding, so a smaller copy would save nothing.
    copies: tuple[EncodedImage | None, ...] = (None,) * len(encoding.levels)
    if is_jpeg and encoding.levels:
        copies = _smaller_copies(np.asarray(image), len(data), encoding.levels)
    return _of_a_page(EncodedImage(data, is_jpeg, height, width, copies)), _histogram(image)


def _smaller_copies(
    pixels: np.ndarray, num_bytes: int, denominators: tuple[int, ...]
) -> tuple[EncodedImage | None, ...]:
    """Copies of a JPEG of ``num_bytes``; None in place of a copy that is too small or saves too little."""
    copies: list[EncodedImage | None] = []
    for denominator in denominators:
        height, width = (level_side(side, denominator) for side in pixels.shape[:2])
        copy = None
        if min(height, width) >= MIN_SIDE:
            data = encode_level(shrink(pixels, denominator))
            if len(data) <= MAX_SHARE * num_bytes:
                copy = EncodedImage(data, True, height, width)
                num_bytes = len(data)
        copies.append(copy)
    return tuple(copies)


def _of_a_page(image: EncodedImage) -> EncodedImage:
    if image.num_bytes > MAX_BYTES:
        raise UnusableImage(f"takes {image.num_bytes} bytes, a .beton page holds at most {MAX_BYTES}")
    return image


def _histogram(image: Image.Image) -> np.ndarray:
    return np.array(image.histogram(), np.int64).reshape(3, 256)


def start_worker() -> None:
    """Prepare a worker process: it ignores Ctrl-C and ends with its parent."""
    # Ctrl-C reaches every process of the terminal; the parent ends the conversion in order, a worker need not react.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Without this, workers whose parent was killed wait for work for ever.
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
