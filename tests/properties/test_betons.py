"""A ``.beton`` file of any bytes is read, or a BetonError names it: no other error, no crash, no flood of memory."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from mixsize.ffcv_loaders.beton.format import ALLOCATION, DESCRIPTOR, HEADER
from mixsize.ffcv_loaders.beton.info import InfoPointer, index_checksum, write_pointer
from mixsize.ffcv_loaders.conversion.convert import convert

from ..ffcv_loaders.beton.parts import Parts
from .for_all import for_all

WORKER = Path(__file__).with_name("beton_worker.py")
ARGUMENTS = DESCRIPTOR.fields["arguments"][1]
#: What a size or an offset becomes where someone means harm.
HARMFUL = [0, 1, 2, 7, 8, 127, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 8]


class Worker:
    """A process of ``beton_worker.py``, started anew where it ended."""

    def __init__(self, folder: Path, warm_up: Path) -> None:
        self.file = folder / "mutant.beton"
        self._warm_up = warm_up
        self._process: subprocess.Popen[str] | None = None

    def read(self, content: Content) -> dict:
        content.write(self.file)
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, str(WORKER), str(self._warm_up)], stdin=-1, stdout=-1, stderr=-1, text=True
            )
            assert "images" in self._ask(self._warm_up)
        return self._ask(self.file)

    def _ask(self, path: Path) -> dict:
        process = self._process
        assert process is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"the interpreter ended with {process.wait()}: {process.stderr.read()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


class Content:
    """A file's bytes without the stretches of zeros in which its pages lie apart."""

    def __init__(self, size: int, parts: dict[int, bytearray]) -> None:
        self.size, self.parts = size, parts

    @classmethod
    def of(cls, path: Path) -> Content:
        content, parts, block = path.read_bytes(), {}, 4096
        for start in range(0, len(content), block):
            piece = content[start : start + block]
            if any(piece):
                parts[start] = bytearray(piece)
        return cls(len(content), parts)

    def copy(self) -> Content:
        return Content(self.size, {start: bytearray(part) for start, part in self.parts.items()})

    def put(self, offset: int, content: bytes) -> None:
        for i, value in enumerate(content):
            start = (offset + i) // 4096 * 4096
            part = self.parts.setdefault(start, bytearray(4096))
            if (offset + i) % 4096 < len(part):
                part[(offset + i) % 4096] = value

    def get(self, offset: int, length: int) -> bytes:
        places = (divmod(offset + i, 4096) for i in range(length))
        return bytes(self.parts.get(block * 4096, bytes(4096))[at] for block, at in places)

    def write(self, path: Path) -> None:
        with open(path, "wb") as file:
            for start, part in self.parts.items():
                file.seek(start)
                file.write(part)
            file.truncate(self.size)


class Start:
    """A file to spoil, and where its parts are."""

    def __init__(self, path: Path) -> None:
        self.content = Content.of(path)
        parts = Parts(path)
        self.descriptors = len(parts.descriptors)
        table = int(parts.header["alloc_table_ptr"])
        metadata = HEADER.itemsize + parts.descriptors.nbytes
        pointer = InfoPointer.unpack(parts.descriptors["arguments"][0].tobytes())
        #: Begin and length of what is worth changing.
        self.regions = [
            (0, HEADER.itemsize),
            *((HEADER.itemsize + i * DESCRIPTOR.itemsize, 60) for i in range(self.descriptors)),
            (metadata, parts.metadata.nbytes),
            (table, len(parts.table) * ALLOCATION.itemsize),
            *((int(ptr), min(700, int(size))) for ptr, size in parts.table[["ptr", "size"]].tolist()),
        ]
        if pointer is not None:
            self.regions.append((pointer.ptr, pointer.size))

    def mend(self, content: Content, path: Path) -> None:
        """Make the checksums right again, as someone would who means harm."""
        header = np.frombuffer(content.get(0, HEADER.itemsize), HEADER)[0]
        at = HEADER.itemsize
        block = content.get(at, self.descriptors * DESCRIPTOR.itemsize)
        descriptors = np.frombuffer(block, DESCRIPTOR).copy()
        try:
            pointer = InfoPointer.unpack(descriptors["arguments"][0].tobytes())
        except ValueError:
            return
        if pointer is None or pointer.ptr + pointer.size > content.size:
            return
        content.write(path)
        info_crc = zlib.crc32(content.get(pointer.ptr, pointer.size))
        write_pointer(descriptors[0], InfoPointer(pointer.ptr, pointer.size, info_crc))
        content.put(at, descriptors.tobytes())
        content.write(path)
        try:
            parts = Parts(path)
        except Exception:  # What FFCV cannot read has no index to mend.
            return
        index_crc = index_checksum(header, descriptors, parts.metadata, parts.table)
        write_pointer(descriptors[0], InfoPointer(pointer.ptr, pointer.size, info_crc, index_crc))
        content.put(at, descriptors.tobytes())


_workplace: dict[str, object] = {}


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory):
    """Files of every kind, and the process that reads what becomes of them."""
    folder = tmp_path_factory.mktemp("betons")
    photo = load_sample_images().images[0]
    for index, (height, width) in enumerate([(90, 130), (64, 64), (33, 200), (20, 18)]):
        (folder / "images" / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[:height, :width]).save(folder / "images" / "ab"[index % 2] / f"{index}.jpg", quality=80)
    quiet = {"workers": 1, "progress": False}
    convert(folder / "images", folder / "jpeg.beton", store="jpg", **quiet)
    convert(folder / "images", folder / "raw.beton", store="raw", **quiet)
    convert(folder / "images", folder / "levels.beton", store="jpg", levels=(2,), **quiet)
    for kind in ("jpeg", "raw"):  # As FFCV's own writer leaves them: without checksums.
        plain = Content.of(folder / f"{kind}.beton")
        plain.put(HEADER.itemsize + ARGUMENTS, bytes(36))
        plain.write(folder / f"plain_{kind}.beton")
    kinds = ("plain_jpeg", "plain_raw", "jpeg", "raw", "levels")
    _workplace["starts"] = [Start(folder / f"{kind}.beton") for kind in kinds]
    worker = _workplace["worker"] = Worker(folder, folder / "levels.beton")
    yield
    worker.close()
    _workplace.clear()


@st.composite
def changes(draw) -> tuple:
    """Where in which region, and what happens there."""
    place = draw(st.integers(0, 50)), draw(st.floats(0, 1, exclude_max=True))
    kind = draw(st.sampled_from(["bit", "bytes", "number", "number", "cut", "copy"]))
    if kind == "bit":
        return kind, *place, draw(st.integers(0, 7))
    if kind == "bytes":
        return kind, *place, draw(st.binary(min_size=1, max_size=12))
    if kind == "number":
        return kind, *place, draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(HARMFUL))
    return kind, *place, draw(st.integers(1, 40))


def changed(start: Start, content: Content, change: tuple) -> None:
    kind, region, part, *how = change
    begin, length = start.regions[region % len(start.regions)]
    offset = begin + int(part * length)
    if kind == "bit":
        content.put(offset, bytes([content.get(offset, 1)[0] ^ 1 << how[0]]))
    elif kind == "bytes":
        content.put(offset, how[0])
    elif kind == "number":
        width, number = how
        content.put(offset - offset % width, (number % 2 ** (8 * width)).to_bytes(width, "little"))
    elif kind == "cut":
        content.size = min(content.size, offset)
    else:
        content.put(offset, content.get(max(0, offset - how[0]), how[0]))


@for_all(
    250, 30_000, number=st.integers(0, 4), faults=st.lists(changes(), min_size=1, max_size=4), mended=st.booleans()
)
def test_a_beton_of_any_bytes_is_read_or_named(number, faults, mended):
    start, worker = _workplace["starts"][number], _workplace["worker"]
    content = start.content.copy()
    for change in faults:
        changed(start, content, change)
    if mended:
        start.mend(content, worker.file)
    answer = worker.read(content)
    if "images" not in answer:
        assert answer["kind"] == "BetonError", answer
        assert answer["error"].startswith(f"{worker.file}: "), answer
        assert len(answer["error"].splitlines()) == 1


def test_every_file_is_read_before_it_is_spoilt():
    for start in _workplace["starts"]:
        assert _workplace["worker"].read(start.content) == {"images": 4}
        mended = start.content.copy()
        start.mend(mended, _workplace["worker"].file)
        assert {a: p for a, p in mended.parts.items() if any(p)} == {
            a: p for a, p in start.content.parts.items() if any(p)
        }


def test_an_information_block_of_nonsense_or_elsewhere_is_named_though_its_checksums_are_right():
    start, worker = _workplace["starts"][2], _workplace["worker"]
    nonsense = start.content.copy()
    nonsense.put(start.regions[-1][0], b"\xff")
    start.mend(nonsense, worker.file)
    assert worker.read(nonsense)["error"].startswith(f"{worker.file}: its information block cannot be used: ")
    elsewhere = start.content.copy()
    table = int(np.frombuffer(elsewhere.get(0, HEADER.itemsize), HEADER)[0]["alloc_table_ptr"])
    length = start.descriptors * DESCRIPTOR.itemsize
    descriptors = np.frombuffer(elsewhere.get(HEADER.itemsize, length), DESCRIPTOR).copy()
    write_pointer(descriptors[0], InfoPointer(table, 8, 0))
    elsewhere.put(HEADER.itemsize, descriptors.tobytes())
    start.mend(elsewhere, worker.file)
    assert worker.read(elsewhere) == {
        "error": f"{worker.file}: is damaged: its information block lies outside the file", "kind": "BetonError"
    }  # fmt: skip
