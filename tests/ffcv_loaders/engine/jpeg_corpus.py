"""The fuzzer's seeds: JPEGs of every kind, whole and broken."""

from __future__ import annotations

from pathlib import Path

from mixsize.ffcv_loaders.engine.native import BROKEN, UNSUPPORTED

CORPUS = {path.stem: path.read_bytes() for path in Path(__file__).parents[2].glob("fuzz/corpus/*.jpg")}
BROKEN_FILES = {
    "cmyk": (UNSUPPORTED, "not 8-bit grey"),
    "damaged": (BROKEN, "Corrupt JPEG data"),
    "huge": (BROKEN, "premature end"),
    "lossless": (BROKEN, "Unsupported"),
    "no_height": (BROKEN, "Empty JPEG image"),
    "truncated": (BROKEN, "Premature end"),
    "twelve_bit": (UNSUPPORTED, "not 8-bit grey"),
}
WHOLE_FILES = sorted(set(CORPUS) - set(BROKEN_FILES))


def declared_size(data: bytes) -> tuple[int, int]:
    """Height and width in the frame header."""
    at = 2
    while not 0xC0 <= data[at + 1] <= 0xCF or data[at + 1] in (0xC4, 0xC8, 0xCC):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
