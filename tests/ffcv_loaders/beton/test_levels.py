import argparse
import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mixsize.ffcv_loaders.beton.info import BetonInfo, InfoPointer, StoredLevel, index_checksum, write_pointer
from mixsize.ffcv_loaders.beton.levels import encode_level, level_side, shrink
from mixsize.ffcv_loaders.beton.reader import Beton, BetonError
from mixsize.ffcv_loaders.conversion import encode
from mixsize.ffcv_loaders.conversion.convert import add_arguments, convert, prepare
from mixsize.ffcv_loaders.conversion.encode import EncodedImage, Encoding, encode_image
from mixsize.ffcv_loaders.conversion.pages import PageWriter
from mixsize.ffcv_loaders.conversion.sources import ArraySource
from mixsize.ffcv_loaders.conversion.writer import write_beton

from .parts import Parts

PAGE = 8 << 20
FIELDS = ("image", "image_2", "image_4")
# Name, size, and sizes by hand: sides halved and quartered, rounded up; down to 32 px on the shorter side.
PICTURES = {
    "a/0_even.jpg": [(200, 300), (100, 150), (50, 75)],
    "a/1_odd.jpg": [(301, 203), (151, 102), (76, 51)],
    "a/2_no_quarter.jpg": [(124, 400), (62, 200), (62, 200)],
    "a/3_just_a_quarter.jpg": [(127, 125), (64, 63), (32, 32)],
    "b/0_no_half.jpg": [(62, 400), (62, 400), (62, 400)],
    "b/1_just_a_half.jpg": [(63, 70), (32, 35), (32, 35)],
    "b/2_raw.png": [(64, 64), (64, 64), (64, 64)],
    "b/3_encoded.png": [(222, 111), (111, 56), (111, 56)],
    "b/4_saves_little.jpg": [(200, 300), (200, 300), (50, 75)],
}


def photograph(height, width, at=0):
    photo = load_sample_images().images[at % 2]
    top, left = (37 * at) % (427 - height), (53 * at) % (640 - width)
    return photo[top : top + height, left : left + width]


def jpeg_pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        return np.asarray(image.convert("RGB"))


def content(beton, level, sample):
    return beton.stored(sample, level)


def stored_pixels(beton, level, sample, decode=jpeg_pixels):
    """A stored image; JPEGs as ``decode`` has them."""
    height, width = int(beton.levels.heights[level, sample]), int(beton.levels.widths[level, sample])
    data = content(beton, level, sample)
    if not beton.levels.is_jpeg[level, sample]:
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)
    pixels = decode(data)
    assert pixels.shape == (height, width, 3)
    return pixels


def psnr(first, second):
    return 10 * np.log10(255**2 / max(((first.astype(float) - second) ** 2).mean(), 1e-9))


def averaged(pixels, height, width):
    """Averages over areas, each pixel weighted by the share of it that lies in an area; in float64."""

    def weights(full, side):
        edges = np.arange(side + 1) * full / side
        low = np.maximum(edges[:-1, None], np.arange(full))
        high = np.minimum(edges[1:, None], np.arange(1, full + 1))
        return np.maximum(high - low, 0) * side / full

    rows, columns = weights(pixels.shape[0], height), weights(pixels.shape[1], width)
    return np.einsum("ia,abc,jb->ijc", rows, pixels.astype(float), columns, optimize=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for at, (name, sizes) in enumerate(PICTURES.items()):
        (root / name).parent.mkdir(exist_ok=True)
        image = Image.fromarray(photograph(*sizes[0], at))
        image.save(root / name, **({} if name.endswith("png") else {"quality": 25 if "little" in name else 95}))
    return root


@pytest.fixture(scope="module")
def written(folder):
    """The pictures with half and quarter copies."""
    convert(folder, folder / "data.beton", levels=(2, 4), workers=1, progress=False)
    return folder / "data.beton"


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """200 noisy images of 300 x 300 with their half copies: three pages."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 300, 3), np.uint8)
    source = ArraySource(pixels, np.arange(200), tuple(map(str, range(200))), "noise", "train")
    path = tmp_path_factory.mktemp("crowded") / "data.beton"
    write_beton(source, path, Encoding(store="jpg", quality=85, levels=(2,)), workers=1, progress=False)
    return path


def alter(source, out, change):
    """Copy a file, changing its header, descriptors, metadata or table, with a checksum that fits."""
    data = bytearray(source.read_bytes())
    parts = Parts(source)
    copies = [part.copy() for part in (parts.header, parts.descriptors, parts.metadata, parts.table)]
    header, descriptors, metadata, table = copies
    pointer = InfoPointer.unpack(descriptors[0]["arguments"].tobytes())
    change(header, descriptors, metadata, table)
    write_pointer(descriptors[0], dataclasses.replace(pointer, index_crc=0))
    index_crc = index_checksum(header, descriptors, metadata, table)
    write_pointer(descriptors[0], dataclasses.replace(pointer, index_crc=index_crc))
    front = header.tobytes() + descriptors.tobytes() + metadata.tobytes()
    data[: len(front)] = front
    data[int(header["alloc_table_ptr"]) :] = table.tobytes()
    out.write_bytes(data)
    return out


# ---- what a level is


@pytest.mark.parametrize(
    ("side", "halves", "quarters", "eighths"), [(1, 1, 1, 1), (4, 2, 1, 1), (5, 3, 2, 1), (500, 250, 125, 63)]
)
def test_sides_are_divided_and_rounded_up(side, halves, quarters, eighths):
    assert [level_side(side, denominator) for denominator in (2, 4, 8)] == [halves, quarters, eighths]
    assert level_side(np.array([side, 4]), 2).tolist() == [halves, 2]


@pytest.mark.parametrize("size", [(200, 300), (201, 299), (127, 94), (1, 50)])
@pytest.mark.parametrize("denominator", [2, 4, 8])
def test_a_level_holds_averages_over_areas(size, denominator):
    pixels = photograph(*size)
    level = shrink(pixels, denominator)
    assert level.shape == (-(-size[0] // denominator), -(-size[1] // denominator), 3)
    assert np.abs(level - averaged(pixels, *level.shape[:2])).max() < 0.501


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("side", [64, 65, 67])
@pytest.mark.parametrize("denominator", [2, 4])
def test_positions_scale_by_the_ratio_of_the_sides(axis, side, denominator):
    """On a ramp a pixel's value tells its position: that of its centre, as a share of the side."""
    ramp = np.rint(255 * (np.arange(side) + 0.5) / side).astype(np.uint8)
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[:] = ramp[None, :, None] if axis else ramp[:, None, None]
    level = shrink(pixels, denominator).mean(axis=(1 - axis, 2))
    expected = 255 * (np.arange(len(level)) + 0.5) / len(level)
    assert np.abs(level - expected).max() <= 1


def test_chroma_is_kept_at_full_resolution_and_tables_are_optimised():
    data = encode_level(photograph(200, 300))
    with Image.open(io.BytesIO(data)) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
        buffer = io.BytesIO()
        Image.fromarray(jpeg_pixels(data)).save(buffer, "JPEG", qtables=image.quantization, subsampling=0)
    assert len(data) < 0.99 * len(buffer.getvalue())


def test_noise_is_encoded_whatever_room_it_takes():
    """Each channel on or off takes more bytes than encoders commonly set aside."""
    pixels = np.random.default_rng(0).integers(0, 2, (600, 602, 3)).astype(np.uint8) * 255
    data = encode_level(pixels)
    assert len(data) > 600 * 602 * 1.5
    assert np.abs(jpeg_pixels(data).astype(int) - pixels).mean() < 20


# ---- what is stored


def test_each_image_has_the_copies_that_are_worth_it(written):
    with Beton.open(written) as beton:
        assert beton.num_levels == 3
        sizes = np.stack([beton.levels.heights, beton.levels.widths], axis=2)
        assert sizes.transpose(1, 0, 2).tolist() == [[list(size) for size in sizes] for sizes in PICTURES.values()]
        assert beton.levels.is_jpeg.tolist() == [["raw" not in name for name in PICTURES]] * 3
        for sample, own in enumerate(PICTURES.values()):
            for level in (1, 2):
                repeats = own[level] == own[level - 1]
                same_place = beton.levels.data_ptr[level, sample] == beton.levels.data_ptr[level - 1, sample]
                assert same_place == repeats
        assert beton.heights.tolist() == beton.levels.heights[0].tolist()
        assert beton.data_ptr.tolist() == beton.levels.data_ptr[0].tolist()
        assert not any(rows.flags.writeable for rows in beton.levels)


def test_full_images_keep_their_bytes_and_copies_show_the_same_picture(written, folder):
    with Beton.open(written) as beton:
        for sample, (name, sizes) in enumerate(PICTURES.items()):
            if name.endswith("jpg"):
                assert content(beton, 0, sample) == (folder / name).read_bytes()
            with Image.open(folder / name) as image:
                original = np.asarray(image.convert("RGB"))
            for level in (1, 2):
                pixels = stored_pixels(beton, level, sample)
                assert pixels.shape == (*sizes[level], 3)
                assert psnr(pixels, averaged(original, *sizes[level])) > 28, (name, level)


def test_copies_of_an_image_that_is_encoded_come_from_its_pixels_before():
    pixels = photograph(400, 600)
    image, _ = encode_image(pixels, Encoding(max_side=300, quality=50, levels=(2,)))
    assert (image.height, image.width) == (200, 300)
    truth, through_jpeg = averaged(pixels, 100, 150), averaged(jpeg_pixels(image.data), 100, 150)
    assert psnr(jpeg_pixels(image.levels[0].data), truth) > psnr(through_jpeg, truth)


def test_no_bytes_are_stored_twice_and_the_record_tells_how_many(written):
    table = Parts(written).table
    with Beton.open(written) as beton:
        own = [{} for _ in range(3)]
        for level in range(3):
            for sample in range(beton.num_samples):
                ptr = int(beton.levels.data_ptr[level, sample])
                if level == 0 or ptr != int(beton.levels.data_ptr[level - 1, sample]):
                    own[level][ptr] = int(beton.levels.data_size[level, sample])
        assert beton.info.levels == tuple(
            StoredLevel(denominator, len(sizes), sum(sizes.values()))
            for denominator, sizes in zip((1, 2, 4), own, strict=True)
        )
        assert [level.images for level in beton.info.levels] == [9, 6, 4]
        assert dict(zip(table["ptr"].tolist(), table["size"].tolist(), strict=True)) == own[0] | own[1] | own[2]
        assert len(table) == 19


def test_a_sample_lies_on_one_page_with_its_copies_and_levels_side_by_side(crowded):
    with Beton.open(crowded) as beton:
        levels = beton.levels
        pages = levels.data_ptr // np.uint64(PAGE)
        assert np.array_equal(pages, (levels.data_ptr + levels.data_size - np.uint64(1)) // np.uint64(PAGE))
        assert np.array_equal(pages[0], pages[1])
        found, starts = np.unique(pages[0], return_index=True)
        assert len(found) == 3
        for first, stop in zip(starts, [*starts[1:], 200], strict=True):
            ptr, size = levels.data_ptr[:, first:stop].ravel(), levels.data_size[:, first:stop].ravel()
            assert np.array_equal(ptr[1:], (ptr + size)[:-1]), "all full images of a page, then all half ones"


def test_pages_grow_to_the_largest_sample_with_its_copies(tmp_path):
    def image(size, copy):
        return EncodedImage(bytes(size), True, 400, 400, (EncodedImage(bytes([1]) * copy, True, 200, 200), None))

    with open(tmp_path / "x.beton", "w+b") as file:
        pages = PageWriter(file, 4, (2, 4))
        for label, size in enumerate((1 << 20, 6 << 20, 3 << 20)):
            pages.add(image(size, size // 2), label)
        pages.end_page()
        info = BetonInfo(
            classes=("a", "b", "c"),
            counts=(1, 1, 1),
            mean=(0.5,) * 3,
            std=(0.1,) * 3,
            min_size=(400, 400),
            max_size=(400, 400),
            source="test",
            levels=pages.levels,
        )
        pages.finish(info)
    assert Parts(tmp_path / "x.beton").header["page_size"] == 16 << 20
    beton = Beton.open(tmp_path / "x.beton")
    # The first alone on a page of 8 MiB, for with the second it would need 10.5; then 13.5 MiB on one of 16.
    mib = 1 << 20
    assert (beton.levels.data_ptr[:2] / mib).tolist() == [[8, 16, 22], [9, 25, 28]]
    assert np.array_equal(beton.levels.data_ptr[2], beton.levels.data_ptr[1])
    assert content(beton, 2, 1) == bytes([1]) * (3 * mib)


def test_bytes_are_the_same_for_any_number_of_workers(folder, written, tmp_path):
    convert(folder, tmp_path / "two.beton", levels=(2, 4), workers=2, progress=False)
    assert (tmp_path / "two.beton").read_bytes() == written.read_bytes()


def test_a_sample_too_large_for_a_page_is_refused(monkeypatch):
    pixels = photograph(200, 300)
    image, _ = encode_image(pixels, Encoding(levels=(2,)))
    monkeypatch.setattr(encode, "MAX_BYTES", image.num_bytes - 1)
    with pytest.raises(encode.UnusableImage, match=rf"takes {image.num_bytes} bytes, a .beton page holds at most"):
        encode_image(pixels, Encoding(levels=(2,)))


def test_levels_change_the_fingerprint_and_their_absence_does_not(folder, written, tmp_path):
    convert(folder, tmp_path / "none.beton", workers=1, progress=False)
    convert(folder, tmp_path / "half.beton", levels=(2,), workers=1, progress=False)
    files = [tmp_path / "none.beton", tmp_path / "half.beton", written]
    assert len({Beton.open(file).fingerprint for file in files}) == 3
    pixels = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), np.uint8)
    source = ArraySource(pixels, np.arange(12) % 3, ("a", "b", "c"), "test images", "train")
    write_beton(source, tmp_path / "raw.beton", Encoding(), workers=1, progress=False)
    # As runs recorded it before there were levels.
    assert Beton.open(tmp_path / "raw.beton").fingerprint == "3db85d85"


# ---- stock FFCV


@pytest.fixture(scope="module", params=["os_cache", "process_cache"])
def served(request, written, crowded, tmp_path_factory):
    """What FFCV's loader serves of the two files."""
    pytest.importorskip("ffcv")
    from . import stock_ffcv

    if request.param == "process_cache":
        return stock_ffcv.read(written, crowded, os_cache=False)
    out = tmp_path_factory.mktemp("served") / "out.npz"
    subprocess.run([sys.executable, stock_ffcv.__file__, written, crowded, out], check=True)
    return np.load(out)


def test_ffcvs_loader_reads_every_level(served, written):
    """CenterCrop at ratio 1 takes the middle square and resizes it by area averaging, as OpenCV does here."""
    import cv2
    from ffcv.libffcv import imdecode

    def decode(data):
        pixels = np.empty_like(jpeg_pixels(data))
        assert imdecode(np.frombuffer(data, np.uint8), pixels, *pixels.shape[:2], *pixels.shape[:2]) == 0
        return pixels

    beton = Beton.open(written)
    assert served["label"].ravel().tolist() == beton.labels.tolist() == [0] * 4 + [1] * 5
    for level, name in enumerate(FIELDS):
        for sample, image in enumerate(served[name]):
            pixels = stored_pixels(beton, level, sample, decode)
            side = min(pixels.shape[:2])
            top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
            square = pixels[top : top + side, left : left + side]
            expected = cv2.resize(square, (48, 48), interpolation=cv2.INTER_AREA)
            assert np.abs(image.astype(int) - expected).max() <= 1, (level, sample)


def test_ffcvs_process_cache_finds_the_bytes_of_every_level(crowded):
    pytest.importorskip("ffcv")
    from ffcv.memory_managers import ProcessCacheManager
    from ffcv.reader import Reader

    reader = Reader(str(crowded))
    assert reader.field_names == ["image", "image_2", "label"]
    memory = ProcessCacheManager(reader)
    read = memory.compile_reader()
    beton = Beton.open(crowded)
    batches = [range(0, 200, 2), range(1, 200, 2)]
    context = memory.schedule_epoch(batches)
    context.__enter__()
    for number, batch in enumerate(batches):
        context.start_batch(number)
        for sample in batch:
            for level in range(2):
                ptr = reader.metadata[f"f{level}"]["data_ptr"][sample]
                assert read(ptr, context.state).tobytes() == content(beton, level, sample)
    context.__exit__(None, None, None)


def test_ffcvs_page_order_serves_each_sample_once(served):
    """It serves a sample once for each page that the sample lies on."""
    labels = served["by_page"].ravel().tolist()
    assert labels != sorted(labels)
    assert sorted(labels) == list(range(200))


# ---- damage


def test_flipped_bits_of_levels_are_noticed(written, tmp_path):
    parts = Parts(written)
    start = parts.header.nbytes + parts.descriptors.nbytes
    table, end = int(parts.header["alloc_table_ptr"]), written.stat().st_size
    block = InfoPointer.unpack(parts.descriptors[0]["arguments"].tobytes()).ptr
    descriptors = [24 + parts.descriptors.itemsize * field + byte for field in (1, 2) for byte in range(20)]
    places = [
        *descriptors,
        *range(start, start + parts.metadata.nbytes),
        *range(block, end - 1, 3),
        *range(table, end),
    ]
    path = tmp_path / "data.beton"
    path.write_bytes(written.read_bytes())
    with open(path, "r+b") as file:
        for place in places:
            file.seek(place)
            value = file.read(1)[0]
            for replacement in (value ^ (1 << place % 8), value):
                file.seek(place)
                file.write(bytes([replacement]))
                file.flush()
                if replacement == value:
                    continue
                # The bytes between block and table are of no use.
                if place < table - 8 or place >= table:
                    with pytest.raises(BetonError, match=r"data\.beton: "):
                        Beton.open(path)
    assert Beton.open(path).num_levels == 3


@pytest.mark.parametrize(
    ("sample", "field", "values", "message"),
    [
        (1, "image_2", {"height": 301}, "a size that is not 1/2 of the full image's"),
        (1, "image_2", {"width": 101}, "a size that is not 1/2 of the full image's"),
        (1, "image_2", {"height": 102, "width": 151}, "a size that is not 1/2 of the full image's"),
        (0, "image_4", {"height": 100, "width": 150}, "a size that is not 1/4 of the full image's"),
        (2, "image_4", {"height": 32}, "the bytes of the level above, but not its size and kind"),
        (4, "image_2", {"width": 200}, "the bytes of the level above, but not its size and kind"),
        (6, "image_2", {"mode": 0}, "the bytes of the level above, but not its size and kind"),
        (3, "image_2", {"mode": 1}, "is raw but not of height x width x 3 bytes in its field 'image_2'"),
        (3, "image_2", {"mode": 7}, "is stored in a way FFCV does not know in its field 'image_2'"),
        (3, "image_4", {"width": 0}, "has a zero height or width in its field 'image_4'"),
        (3, "image_4", {"data_ptr": 77}, "is not in the allocation table in its field 'image_4'"),
    ],
)
def test_levels_that_contradict_the_full_image_are_refused(written, tmp_path, sample, field, values, message):
    def change(header, descriptors, metadata, table):
        for key, value in values.items():
            metadata[f"f{FIELDS.index(field)}"][key][sample] = value

    path = alter(written, tmp_path / "data.beton", change)
    with pytest.raises(BetonError, match=rf"data\.beton: sample {sample} .*{message}"):
        Beton.open(path)


def test_bytes_of_a_level_outside_the_data_region_are_refused(written, tmp_path):
    def change(header, descriptors, metadata, table):
        table["size"][table["ptr"] == metadata["f2"]["data_ptr"][1]] = 1 << 40

    path = alter(written, tmp_path / "data.beton", change)
    with pytest.raises(BetonError, match="sample 1 has bytes outside the file's data region in its field 'image_4'"):
        Beton.open(path)


def test_a_level_without_its_field_is_refused(written, tmp_path):
    def change(header, descriptors, metadata, table):
        descriptors[2]["name"][6] = ord("8")

    path = alter(written, tmp_path / "data.beton", change)
    with pytest.raises(BetonError, match=r"data\.beton: .*no image field 'image_4' for its level 1/4"):
        Beton.open(path)


@pytest.mark.parametrize("levels", [(9, 7, 4), (9, 6, 3)])
def test_a_record_that_contradicts_the_levels_is_refused(folder, tmp_path, monkeypatch, levels):
    original = BetonInfo.to_json

    def wrong(info):
        rows = (dataclasses.replace(row, images=images) for row, images in zip(info.levels, levels, strict=True))
        return original(dataclasses.replace(info, levels=tuple(rows)))

    monkeypatch.setattr(BetonInfo, "to_json", wrong)
    convert(folder, tmp_path / "data.beton", levels=(2, 4), workers=1, progress=False)
    with pytest.raises(BetonError, match=r"data\.beton: its level 1/[24] does not hold the images it records"):
        Beton.open(tmp_path / "data.beton")


def test_records_survive_json_and_say_which_format_they_are_of(written):
    info = Beton.open(written).info
    assert BetonInfo.from_json(info.to_json()) == info
    assert json.loads(info.to_json())["format"] == 2
    plain = dataclasses.replace(info, levels=())
    values = json.loads(plain.to_json())
    assert values["format"] == 1, "every version reads a file without levels"
    assert "levels" not in values
    assert BetonInfo.from_json(plain.to_json()) == plain


@pytest.mark.parametrize(
    "levels",
    [
        [],
        None,
        {},
        [1, 2],
        [{"denominator": 1, "images": 9}],
        [{"denominator": 1, "images": 9, "num_bytes": 5}],
        [{"denominator": 2, "images": 9, "num_bytes": 5}, {"denominator": 4, "images": 9, "num_bytes": 5}],
        [{"denominator": 1, "images": 8, "num_bytes": 5}, {"denominator": 2, "images": 8, "num_bytes": 5}],
        [{"denominator": 1, "images": 9, "num_bytes": 5}, {"denominator": 3, "images": 9, "num_bytes": 5}],
        [{"denominator": 1, "images": 9, "num_bytes": 5}, {"denominator": 2.0, "images": 9, "num_bytes": 5}],
        [{"denominator": 1, "images": 9, "num_bytes": 5}, {"denominator": [2], "images": 9, "num_bytes": 5}],
        [{"denominator": 1, "images": 9, "num_bytes": 5}, {"denominator": 2, "images": 10, "num_bytes": 5}],
        [{"denominator": 1, "images": 9, "num_bytes": 5}, {"denominator": 2, "images": 9, "num_bytes": -5}],
    ],
)
def test_unusable_records_of_levels_are_refused(written, levels):
    values = json.loads(Beton.open(written).info.to_json()) | {"levels": levels}
    with pytest.raises(ValueError, match="level"):
        BetonInfo.from_json(json.dumps(values))


def test_levels_in_a_record_of_the_first_format_are_refused(written):
    values = json.loads(Beton.open(written).info.to_json()) | {"format": 1}
    with pytest.raises(ValueError, match=r"levels is .* in a block of format 1"):
        BetonInfo.from_json(json.dumps(values))


# ---- the command


def command(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return prepare(parser.parse_args([*map(str, arguments), "--no-progress", "--workers", "1"]))


def test_what_levels_take_is_printed_by_level(folder, tmp_path, capsys):
    assert command(folder, tmp_path / "out.beton", "--levels", "2,4", "--store", "jpg")() == 0
    lines = capsys.readouterr().out.splitlines()
    beton = Beton.open(tmp_path / "out.beton")
    assert len(lines) == 3
    for level, denominator in ((1, 2), (2, 4)):
        own = beton.levels.data_ptr[level] != beton.levels.data_ptr[level - 1]
        size = int(beton.levels.data_size[level][own].sum())
        share = 100 * size / int(beton.data_size.sum())
        assert lines[level] == (
            f"  level 1/{denominator}: {own.sum()} images, {size:,} bytes, {share:.1f} % of the full images'"
        )


def test_without_levels_a_file_holds_none(folder, tmp_path, capsys):
    assert command(folder, tmp_path / "out.beton")() == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    beton = Beton.open(tmp_path / "out.beton")
    assert beton.num_levels == 1
    assert beton.info.levels == ()
    assert Parts(tmp_path / "out.beton").names == ["image", "label"]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("FOLDER", ["--levels", "3"], "levels are 3, allowed are 2, 4 and 8, or some of them, in ascending"),
        ("FOLDER", ["--levels", "4,2"], "levels are 4,2, allowed"),
        ("FOLDER", ["--levels", "2,2"], "levels are 2,2, allowed"),
        ("FOLDER", ["--levels", "1,2"], "levels are 1,2, allowed"),
        ("FOLDER", ["--levels", "half"], "--levels half: must be whole numbers separated by commas, such as 2,4"),
        ("FOLDER", ["--levels", ""], "--levels : must be whole numbers"),
        ("FOLDER", ["--levels", "2", "--store", "raw"], "--levels has no effect with --store raw"),
        ("digits", ["--levels", "2", "--split", "test"], "--levels has no effect here: .* digits have 8 x 8"),
        ("digits", ["--levels", "2", "--split", "test", "--store", "jpg"], "of at least 32 px on the shorter side"),
    ],
)
def test_levels_without_effect_are_refused(folder, tmp_path, source, options, message):
    with pytest.raises(ValueError, match=message):
        command(folder if source == "FOLDER" else source, tmp_path / "out.beton", *options)
    assert list(tmp_path.iterdir()) == []
