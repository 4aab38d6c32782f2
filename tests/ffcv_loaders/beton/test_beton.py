import dataclasses
import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from mixsize.ffcv_loaders.beton.format import ALLOCATION, DESCRIPTOR, HEADER, IMAGE, INT, row_type
from mixsize.ffcv_loaders.beton.reader import Beton, BetonError, BetonInfo
from mixsize.ffcv_loaders.conversion.encode import Encoding
from mixsize.ffcv_loaders.conversion.sources import ArraySource
from mixsize.ffcv_loaders.conversion.writer import write_beton

COUNT = 12
METADATA = HEADER.itemsize + 2 * DESCRIPTOR.itemsize
ARGUMENTS = HEADER.itemsize + DESCRIPTOR.fields["arguments"][1]
ROW = row_type([IMAGE, INT])
INFO = BetonInfo(
    classes=("cat", "dog"),
    counts=(3, 4),
    mean=(0.5, 0.25, 0.125),
    std=(0.1, 0.2, 0.3),
    min_size=(10, 20),
    max_size=(30, 40),
    source="image folder",
    skipped=("cat/é.jpg",),
)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 6, 5, 3), np.uint8)


@pytest.fixture(scope="module")
def written(tmp_path_factory, pixels):
    """A file of 12 raw 6 x 5 images with labels 0 1 2 0 1 2 ..."""
    path = tmp_path_factory.mktemp("written") / "data.beton"
    source = ArraySource(pixels, np.arange(COUNT) % 3, ("a", "b", "c"), "test images", "train")
    write_beton(source, path, Encoding(), workers=1, progress=False)
    return path


@pytest.fixture
def beton(written, tmp_path):
    return shutil.copy(written, tmp_path / "data.beton")


@pytest.fixture
def plain(beton):
    """The same without the converter's information, as FFCV's own writer leaves it."""
    patch(beton, ARGUMENTS, bytes(1024))
    return beton


def patch(path, offset, content):
    with open(path, "r+b") as file:
        file.seek(offset)
        before = file.read(len(content))
        file.seek(offset)
        file.write(content)
    return before


@contextmanager
def flipped(path, bit):
    with open(path, "rb") as file:
        file.seek(bit // 8)
        value = file.read(1)[0]
    patch(path, bit // 8, bytes([value ^ (1 << bit % 8)]))
    yield
    patch(path, bit // 8, bytes([value]))


def set_header(path, **values):
    with open(path, "rb") as file:
        header = np.frombuffer(file.read(HEADER.itemsize), HEADER).copy()
    for key, value in values.items():
        header[0][key] = value
    patch(path, 0, header.tobytes())


def set_row(path, index, label=None, **image):
    with open(path, "rb") as file:
        file.seek(METADATA + index * ROW.itemsize)
        row = np.frombuffer(file.read(ROW.itemsize), ROW).copy()
    for key, value in image.items():
        row["f0"][key] = value
    if label is not None:
        row["f1"] = label
    patch(path, METADATA + index * ROW.itemsize, row.tobytes())


def test_holds_what_was_written(written, pixels):
    with Beton.open(written) as beton:
        assert (beton.num_samples, beton.num_classes) == (COUNT, 3)
        assert beton.labels.tolist() == [0, 1, 2] * 4
        assert beton.labels.dtype == np.int64
        assert beton.heights.tolist() == [6] * COUNT
        assert beton.widths.tolist() == [5] * COUNT
        assert not beton.is_jpeg.any()
        assert beton.is_jpeg.dtype == np.bool_
        assert beton.data_size.tolist() == [90] * COUNT
        assert beton.data_ptr.dtype == beton.data_size.dtype == np.uint64
        for index in range(COUNT):
            assert beton.stored(index) == pixels[index].tobytes()
        assert beton.info.classes == ("a", "b", "c")
        assert beton.info.counts == (4, 4, 4)
        assert beton.info.source == "test images"
    with pytest.raises(BetonError, match=r"data\.beton: was closed"):
        _ = beton.file


def test_arrays_cannot_be_written(written):
    beton = Beton.open(written)
    for name in ("heights", "widths", "is_jpeg", "data_ptr", "data_size", "labels"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(beton, name)[0] = 0


def test_ffcv_reads_the_file_as_a_plain_one(written, pixels):
    ffcv = pytest.importorskip("ffcv")
    reader = ffcv.reader.Reader(str(written))
    assert reader.num_samples == COUNT
    assert reader.field_names == ["image", "label"]
    assert [type(handler) for handler in reader.handlers.values()] == [ffcv.fields.RGBImageField, ffcv.fields.IntField]
    assert reader.page_size == 8 << 20
    assert len(reader.alloc_table) == COUNT
    assert sorted(reader.alloc_table["sample_id"]) == list(range(COUNT))
    assert reader.metadata["f1"].tolist() == [0, 1, 2] * 4
    content = written.read_bytes()
    for sample, ptr, size in reader.alloc_table.tolist():
        assert reader.metadata["f0"][sample].tolist() == (1, 5, 6, ptr)
        assert content[ptr : ptr + size] == pixels[sample].tobytes()


@pytest.mark.parametrize("mode", ["raw", "jpg", "smart", "proportion"])
def test_a_file_of_ffcvs_writer_opens_whatever_its_modes_and_fields(tmp_path, mode):
    """On pages of 2 MiB by two processes, with an empty value at the place of an image."""
    ffcv = pytest.importorskip("ffcv")
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (250 + 9 * index, 300, 3), np.uint8) for index in range(12)]
    fields = {
        "caption": ffcv.fields.BytesField(),
        "weight": ffcv.fields.FloatField(),
        "picture": ffcv.fields.RGBImageField(write_mode=mode, smart_threshold=300 * 300 * 3),
        "about": ffcv.fields.JSONField(),
        "point": ffcv.fields.NDArrayField(np.dtype("<f4"), (3,)),
        "target": ffcv.fields.IntField(),
        "noise": ffcv.fields.TorchTensorField(torch.int16, (2, 2)),
    }
    samples = [
        (
            np.zeros(0 if index % 4 == 3 else index + 1, np.uint8),
            index / 2,
            pixels,
            {"name": "x" * index},
            np.arange(3, dtype=np.float32),
            11 - index,
            torch.ones(2, 2, dtype=torch.int16),
        )
        for index, pixels in enumerate(images)
    ]
    path = tmp_path / "ffcv.beton"
    writer = ffcv.writer.DatasetWriter(str(path), fields, page_size=2 << 20, num_workers=2)
    writer.from_indexed_dataset(samples, chunksize=2)
    beton = Beton.open(path)
    assert (beton.info, beton.num_classes, beton.page_bytes) == (None, 12, 2 << 20)
    assert beton.labels.tolist() == [11 - index for index in range(12)]
    assert beton.heights.tolist() == [250 + 9 * index for index in range(12)]
    assert beton.widths.tolist() == [300] * 12
    for sample, pixels in enumerate(images):
        # "smart" encodes what takes more than the threshold, "proportion" half of the images, as chance has it.
        as_jpeg = {"raw": False, "jpg": True, "smart": sample > 5, "proportion": beton.is_jpeg[sample]}[mode]
        assert beton.is_jpeg[sample] == as_jpeg
        assert beton.stored(sample) == (ffcv.fields.rgb_image.encode_jpeg(pixels, 90) if as_jpeg else pixels).tobytes()


def test_a_plain_file_has_no_info(plain):
    beton = Beton.open(plain)
    assert beton.info is None
    assert beton.num_classes == 3


def test_every_flipped_bit_of_the_index_is_noticed(beton):
    with open(beton, "rb") as file:
        table = int(np.frombuffer(file.read(HEADER.itemsize), HEADER)[0]["alloc_table_ptr"])
        file.seek(ARGUMENTS)
        block = int.from_bytes(file.read(24)[16:], "little")
    header = list(range(HEADER.itemsize * 8))
    descriptor = list(range(header[-1] + 1, (ARGUMENTS + 40) * 8))
    rest = [offset * 8 + offset % 8 for offset in range(ARGUMENTS + 40, METADATA + COUNT * ROW.itemsize)]
    tail = [offset * 8 + offset % 8 for offset in [*range(block, block + 60), *range(table, beton.stat().st_size)]]
    for bit in header + descriptor + rest + tail:
        with flipped(beton, bit), pytest.raises(BetonError, match=r"data\.beton"):
            Beton.open(beton)
    assert Beton.open(beton).num_samples == COUNT


def test_flipped_bits_of_a_plain_file_raise_nothing_but_beton_error(plain):
    messages = []
    for bit in range(ARGUMENTS * 8):
        with flipped(plain, bit):
            try:
                Beton.open(plain)
            except BetonError as error:
                messages.append(str(error))
    assert len(messages) > 150
    assert all("data.beton: " in message for message in messages)


def test_a_file_cut_short_anywhere_is_refused(beton):
    size = beton.stat().st_size
    with open(beton, "rb") as file:
        table = int(np.frombuffer(file.read(HEADER.itemsize), HEADER)[0]["alloc_table_ptr"])
    near = [*range(size - 60, size), *range(table - 30, table + 60), *range(0, METADATA + 400, 7)]
    spread = np.linspace(1, size - 1, 50).astype(int).tolist()
    for length in sorted({*near, *spread}, reverse=True):
        with open(beton, "r+b") as file:
            file.truncate(length)
        with pytest.raises(BetonError, match=r"data\.beton"):
            Beton.open(beton)


def test_a_plain_file_that_lost_whole_table_entries_is_refused(plain):
    with open(plain, "r+b") as file:
        file.truncate(plain.stat().st_size - ALLOCATION.itemsize)
    with pytest.raises(BetonError, match=r"sample 11 is not in the allocation table"):
        Beton.open(plain)


def test_a_table_of_a_broken_number_of_entries_is_refused(plain):
    with open(plain, "ab") as file:
        file.write(b"12345")
    with pytest.raises(BetonError, match=r"allocation table at byte .* is missing or incomplete"):
        Beton.open(plain)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x02\x00", "too short"),
        (b"\x89PNG\r\n\x1a\n" * 20, "not a .beton file of version 2"),
        (bytes(3000), "not a .beton file of version 2"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "x.beton"
    path.write_bytes(content)
    with pytest.raises(BetonError, match=message):
        Beton.open(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(BetonError, match=r"none\.beton: cannot be read: No such file"):
        Beton.open(tmp_path / "none.beton")
    with pytest.raises(BetonError, match="is a folder"):
        Beton.open(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alloc_table_ptr": 0}, "was not written to its end"),
        ({"alloc_table_ptr": 2**40}, "cut short"),
        ({"alloc_table_ptr": 24}, "damaged|cut short"),
        ({"num_samples": 0}, "holds no samples"),
        ({"num_samples": 2**63}, "do not fit before its allocation table"),
        ({"num_samples": COUNT - 1}, "speaks of more than 11 samples"),
        ({"num_samples": COUNT + 1}, "sample 12 has a zero height or width"),
        ({"num_fields": 0}, "has no image field"),
        ({"num_fields": 1}, "has no label field|damaged|is not|zero|outside|do not know"),
        ({"num_fields": 65535}, "cut short in its field descriptors"),
        ({"page_size": 0}, "page size 0"),
        ({"page_size": 12 << 20}, "page size"),
        ({"version": 3}, "version 2 .found 3."),
    ],
)
def test_impossible_headers_are_refused(plain, values, message):
    set_header(plain, **values)
    with pytest.raises(BetonError, match=message):
        Beton.open(plain)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 0}, "sample 7 has a zero height or width"),
        ({"height": 0}, "sample 7 has a zero height or width"),
        ({"height": 7}, "sample 7 is raw but not of height x width x 3 bytes"),
        ({"mode": 2}, "sample 7 is stored in a way"),
        ({"data_ptr": 5}, "sample 7 is not in the allocation table"),
        # 90 bytes of a JPEG hold 90 * 8 codes at most, of 64 pixels each: 256 x 180.
        ({"mode": 0, "width": 256, "height": 181}, "sample 7 declares more pixels than its bytes can hold"),
        ({"label": -1}, "sample 7 has a negative label"),
        ({"label": 2**24}, "sample 7 has a label of 16777216 or more"),
    ],
)
def test_an_impossible_sample_is_named(plain, values, message):
    set_row(plain, 7, **values)
    with pytest.raises(BetonError, match=message):
        Beton.open(plain)


def test_a_sample_at_the_limits_is_not_refused(plain):
    set_row(plain, 7, mode=0, width=256, height=180, label=2**24 - 1)
    with Beton.open(plain) as beton:
        assert (beton.heights[7], beton.widths[7], beton.labels[7]) == (180, 256, 2**24 - 1)


@pytest.mark.parametrize(("ptr", "size"), [(9 << 20, 1 << 40), (9 << 20, 0), (1 << 40, 90), (2200, 90)])
def test_bytes_outside_the_data_region_are_refused(plain, ptr, size):
    table = plain.stat().st_size - COUNT * ALLOCATION.itemsize
    patch(plain, table + 3 * 24, np.array([(3, ptr, size)], ALLOCATION).tobytes())
    set_row(plain, 3, data_ptr=ptr, mode=0)
    with pytest.raises(BetonError, match="sample 3 has bytes outside the file's data region"):
        Beton.open(plain)


def test_field_types_and_names_are_checked(plain):
    first, second = HEADER.itemsize, HEADER.itemsize + DESCRIPTOR.itemsize
    for offset, content, message in [
        (first, b"\x01", "has no image field"),
        (second, b"\x00", "has no label field"),
        (second, b"\x09", "field 'label' has type 9"),
        (second, b"\xff", "field 'label' has type 255"),
        (second, b"\x04", "has no label field"),
        (second + 1, b"image\0", "not distinct"),
        (second + 1, b"\xfflabel", "not ASCII"),
    ]:
        before = patch(plain, offset, content)
        with pytest.raises(BetonError, match=message):
            Beton.open(plain)
        patch(plain, offset, before)
    assert Beton.open(plain).num_samples == COUNT


def test_labels_outside_the_wanted_range_are_named(written):
    beton = Beton.open(written)
    beton.check_labels(3)
    beton.check_labels(10)
    with pytest.raises(BetonError, match=r"data\.beton: sample 2 has label 2, allowed are 0\.\.1 \(2 classes\)"):
        beton.check_labels(2)


def test_info_survives_json():
    text = INFO.to_json()
    assert BetonInfo.from_json(text) == INFO
    assert text.isascii()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "format is 3, this version of mixsize reads 1 and 2"),
        ({"format": None}, "format is None"),
        ({"classes": []}, "classes: Tuple should have at least 1 item"),
        ({"classes": ["cat", "cat"]}, "names a class twice"),
        ({"classes": "cat"}, "classes: Input should be a valid tuple"),
        ({"counts": [1]}, "counts"),
        ({"counts": [1, -1]}, "counts"),
        ({"counts": [1, True]}, "counts"),
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean"),
        ({"std": [0.5, 0.5, "x"]}, "std"),
        ({"mean": [127.0, 0.5, 0.5]}, "mean"),
        ({"min_size": [0, 1]}, "min_size"),
        ({"min_size": [10, 41]}, "above max_size"),
        ({"max_size": [10, 70000]}, "max_size"),
        ({"source": ""}, "source"),
        ({"skipped": [1]}, "skipped"),
        ({"surprise": 1}, "surprise: Unexpected keyword argument"),
    ],
)
def test_unusable_info_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        BetonInfo.from_json(json.dumps(json.loads(INFO.to_json()) | change))


@pytest.mark.parametrize("text", ["", "[]", "1", "{", "{}", "[" * 100_000])
def test_text_that_is_no_info_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        BetonInfo.from_json(text)


def test_an_info_that_contradicts_the_labels_is_refused(tmp_path, pixels, monkeypatch):
    source = ArraySource(pixels, np.arange(COUNT) % 3, ("a", "b", "c"), "test images", "train")
    path = tmp_path / "wrong.beton"
    original = BetonInfo.to_json
    monkeypatch.setattr(BetonInfo, "to_json", lambda info: original(dataclasses.replace(info, counts=(5, 4, 3))))
    write_beton(source, path, Encoding(), workers=1, progress=False)
    with pytest.raises(BetonError, match=r"wrong\.beton: its labels do not agree"):
        Beton.open(path)


def test_pillow_agrees_on_the_bytes_of_a_jpeg_sample(tmp_path, pixels):
    path = tmp_path / "jpg.beton"
    source = ArraySource(pixels, np.arange(COUNT) % 3, ("a", "b", "c"), "test images", "train")
    write_beton(source, path, Encoding(store="jpg", quality=100), workers=1, progress=False)
    beton = Beton.open(path)
    out = tmp_path / "one.jpg"
    out.write_bytes(beton.stored(4))
    with Image.open(out) as image:
        assert (image.format, image.size) == ("JPEG", (5, 6))
