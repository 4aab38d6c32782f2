import argparse
import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
import torchvision
from PIL import Image, ImageCms

from mixsize.cli import main
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion import encode, opening, writer
from mixsize.ffcv_loaders.conversion.convert import add_arguments, convert, convert_splits, prepare
from mixsize.ffcv_loaders.conversion.encode import EncodedImage, Encoding, UnusableImage, encode_image
from mixsize.ffcv_loaders.conversion.sources import ArraySource, SourceError, open_cifar, open_folder
from mixsize.ffcv_loaders.conversion.writer import ConvertError, write_beton
from mixsize.ffcv_loaders.engine.native import decode_whole


def picture(height, width, seed=0):
    """A smooth picture with some noise, ``(height, width, 3)`` uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([rows * 3 + seed * 40, columns * 2, 255 - rows - columns], axis=2) % 256
    return np.clip(smooth * 0.8 + rng.integers(0, 40, smooth.shape), 0, 255).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def bytes_of(pixels, kind="JPEG", mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def stored(beton, index):
    """A stored image decoded by Pillow, or its raw pixels."""
    content = beton.stored(index)
    if beton.is_jpeg[index]:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    return np.frombuffer(content, np.uint8).reshape(int(beton.heights[index]), int(beton.widths[index]), 3)


def raw(content, tmp_path, **options):
    """Pixels as encoded raw from a file of the given bytes."""
    path = tmp_path / "one.jpg"
    path.write_bytes(content)
    image, _ = encode_image(str(path), Encoding("raw", **options))
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)


def leftovers(folder):
    return [path.name for path in folder.iterdir() if "beton" in path.name]


def array_source(pixels):
    return ArraySource(np.stack(pixels), np.arange(len(pixels)) % 2, ("even", "odd"), "test images", "train")


@pytest.fixture
def folder(tmp_path):
    """cat: 2 images, dog: 3 images (one nested, one small PNG), in all five formats and sizes that differ."""
    root = tmp_path / "images"
    save(root / "dog" / "b.jpg", picture(90, 120, 1), quality=80)
    save(root / "dog" / "a.PNG", picture(20, 30, 2))
    save(root / "dog" / "more" / "c.webp", picture(70, 80, 3), lossless=True)
    save(root / "cat" / "x.bmp", picture(100, 66, 4))
    save(root / "cat" / "y.tiff", picture(65, 65, 5))
    (root / "cat" / "notes.txt").write_text("not an image")
    return root


@pytest.fixture
def quiet():
    return {"progress": False, "workers": 1}


def command(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return prepare(parser.parse_args(["--no-progress", "--workers", "1", *map(str, arguments)]))()


# ---- what is stored


def test_a_folder_is_stored_as_torchvision_lists_it(folder, tmp_path, quiet):
    out = tmp_path / "out.beton"
    info = convert(folder, out, **quiet)
    beton = Beton.open(out)
    reference = torchvision.datasets.ImageFolder(folder)
    assert beton.labels.tolist() == reference.targets == [0, 0, 1, 1, 1]
    assert info == beton.info
    assert info.classes == ("cat", "dog")
    assert info.counts == (2, 3)
    assert (info.min_size, info.max_size) == ((20, 30), (100, 120))
    assert info.source == "image folder"
    assert str(tmp_path) not in info.to_json()
    assert beton.is_jpeg.tolist() == [True, True, False, True, True]
    for index, (path, _) in enumerate(reference.samples):
        expected = np.asarray(Image.open(path).convert("RGB"))
        difference = np.abs(stored(beton, index).astype(int) - expected)
        assert difference.mean() < (12 if beton.is_jpeg[index] else 1e-9), path
    assert beton.stored(3) == (folder / "dog" / "b.jpg").read_bytes()


def test_raw_images_keep_every_pixel(folder, tmp_path, quiet):
    out = tmp_path / "out.beton"
    convert(folder, out, store="raw", **quiet)
    beton = Beton.open(out)
    for index, (path, _) in enumerate(torchvision.datasets.ImageFolder(folder).samples):
        with Image.open(path) as image:
            assert np.array_equal(stored(beton, index), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("store", ["raw", "jpg"])
def test_mean_and_std_are_those_of_all_pixels(folder, tmp_path, quiet, store):
    info = convert(folder, tmp_path / "out.beton", store=store, **quiet)
    paths = [path for path, _ in torchvision.datasets.ImageFolder(folder).samples]
    pixels = np.concatenate([np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3) for path in paths]) / 255.0
    assert info.mean == pytest.approx(pixels.mean(0).tolist(), rel=1e-12)
    assert info.std == pytest.approx(pixels.std(0).tolist(), rel=1e-12)


def test_ffcvs_own_loader_reads_the_images(tmp_path):
    """With FFCV's process cache, which needs every sample within one page; the file has several of them."""
    pytest.importorskip("ffcv")
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    root = tmp_path / "images"
    noise = np.random.default_rng(0)
    for index in range(44):
        pixels = noise.integers(0, 256, (440, 500, 3), np.uint8)
        save(root / f"class{index % 4}" / f"{index:02}.jpg", pixels, quality=95)
    out = tmp_path / "out.beton"
    convert(root, out, workers=2, progress=False)
    beton = Beton.open(out)
    page = 8 << 20
    pages = beton.data_ptr.astype(np.int64) // page
    assert np.array_equal(pages, (beton.data_ptr + beton.data_size - np.uint64(1)).astype(np.int64) // page)
    assert len(set(pages.tolist())) >= 2
    pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor()]}
    loader = Loader(
        str(out), batch_size=11, num_workers=1, os_cache=False, order=OrderOption.SEQUENTIAL, pipelines=pipelines
    )
    batches = [(images.clone(), labels.clone()) for images, labels in loader]
    images, labels = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
    assert labels[:, 0].tolist() == beton.labels.tolist()
    for index, (path, _) in enumerate(torchvision.datasets.ImageFolder(root).samples):
        with Image.open(path) as image:
            # FFCV decodes with libjpeg's fast transform, Pillow with its exact one.
            assert np.abs(images[index].astype(int) - np.asarray(image)).max() <= 16


def test_bytes_are_the_same_for_any_number_of_workers(tmp_path):
    root = tmp_path / "images"
    for index in range(140):
        save(
            root / f"class{index % 3}" / f"{index}.{'png' if index % 2 else 'jpg'}", picture(60 + index % 9, 70, index)
        )
    (root / "class0" / "0bad.png").write_bytes(b"")
    outputs = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.beton"
        convert(root, out, skip_broken=True, workers=workers, progress=False)
        outputs.append(out.read_bytes())
    assert all(output == outputs[0] for output in outputs)
    assert Beton.open(tmp_path / "1.beton").num_samples == 140


def test_pages_grow_to_the_largest_image(tmp_path, quiet):
    root = tmp_path / "images"
    save(root / "a" / "1.png", picture(50, 50, 1))
    save(root / "a" / "2.png", picture(1700, 1710, 2), compress_level=1)
    save(root / "b" / "3.png", picture(50, 50, 3))
    out = tmp_path / "out.beton"
    convert(root, out, store="raw", **quiet)
    beton = Beton.open(out)
    with open(out, "rb") as file:
        page = int.from_bytes(file.read(8)[4:], "little")
    assert page == 16 << 20
    first, last = beton.data_ptr, beton.data_ptr + beton.data_size - np.uint64(1)
    assert (first // np.uint64(page)).tolist() == (last // np.uint64(page)).tolist()
    assert np.array_equal(stored(beton, 1), picture(1700, 1710, 2))
    assert np.array_equal(stored(beton, 2), picture(50, 50, 3))


def test_large_images_are_shrunk_by_averaging(tmp_path, quiet):
    root = tmp_path / "images"
    pixels = picture(120, 200)
    save(root / "a" / "1.png", pixels)
    save(root / "a" / "2.png", picture(3, 1000))
    save(root / "b" / "3.png", picture(100, 40))
    out = tmp_path / "out.beton"
    convert(root, out, store="raw", max_side=100, **quiet)
    beton = Beton.open(out)
    assert list(zip(beton.heights.tolist(), beton.widths.tolist(), strict=True)) == [(60, 100), (1, 100), (100, 40)]
    blocks = pixels.reshape(60, 2, 100, 2, 3).astype(float).mean((1, 3))
    assert np.abs(stored(beton, 0) - blocks).max() <= 1


def test_a_jpeg_that_is_too_large_is_shrunk_and_encoded_again(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(bytes_of(np.full((200, 100, 3), 90, np.uint8), comment=b"a comment"))
    image, _ = encode_image(str(path), Encoding("jpg", max_side=100))
    assert (image.height, image.width) == (100, 50)
    with Image.open(io.BytesIO(image.data)) as again:
        assert again.size == (50, 100)
        assert np.abs(np.asarray(again).astype(int) - 90).max() <= 1
    assert b"a comment" not in image.data


@pytest.mark.parametrize(("side", "is_jpeg"), [(64, False), (65, True)])
def test_auto_stores_small_images_raw(side, is_jpeg, tmp_path):
    image, _ = encode_image(picture(64, side), Encoding())
    assert image.is_jpeg == is_jpeg


def test_jpegs_that_need_no_change_keep_their_bytes(tmp_path):
    pixels = picture(90, 100)
    for options in ({}, {"progressive": True}, {"mode": "L"}, {"subsampling": 0}, {"quality": 30}):
        content = bytes_of(pixels, **options)
        path = tmp_path / "x.jpg"
        path.write_bytes(content)
        image, histogram = encode_image(str(path), Encoding())
        assert image.data == content, options
        assert histogram.sum() == 90 * 100 * 3


def test_jpegs_that_the_decoder_refuses_are_encoded_again(tmp_path):
    pixels = picture(90, 100)
    plain = bytes_of(pixels, quality=95)
    middle = plain.index(b"\xff\xda") + 500
    contents = {
        "CMYK": bytes_of(pixels, mode="CMYK", quality=95),
        "bytes before the end marker": plain[:-2] + bytes(500) + plain[-2:],
        "damaged in the middle": plain[:middle] + b"\xff\x00" * 10 + plain[middle + 20 :],
    }
    for what, content in contents.items():
        path = tmp_path / "x.jpg"
        path.write_bytes(content)
        image, _ = encode_image(str(path), Encoding(quality=95))
        assert image.data != content, what
        assert decode_whole(image.data, 90, 100) is not None, what
        if what != "damaged in the middle":
            with Image.open(io.BytesIO(image.data)) as again:
                assert np.abs(np.asarray(again).astype(int) - pixels).mean() < 10, what


def test_files_are_read_by_content_whatever_they_are_called(tmp_path):
    pixels = picture(40, 50)
    assert np.array_equal(raw(bytes_of(pixels, "PNG"), tmp_path), pixels)
    assert np.array_equal(raw(bytes_of(pixels, "BMP"), tmp_path), pixels)


def test_modes_become_rgb(tmp_path):
    pixels = picture(16, 24)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    alpha = np.dstack([pixels, np.full((16, 24), 7, np.uint8)])
    assert np.array_equal(raw(bytes_of(alpha, "PNG"), tmp_path), pixels), "RGBA"
    assert np.array_equal(raw(bytes_of(grey, "PNG"), tmp_path), np.dstack([grey] * 3)), "L"
    assert np.array_equal(raw(bytes_of(grey, "PNG", "LA"), tmp_path), np.dstack([grey] * 3)), "LA"
    bits = np.asarray(Image.fromarray(grey).convert("1"))
    assert np.array_equal(raw(bytes_of(bits, "PNG"), tmp_path), np.dstack([bits * np.uint8(255)] * 3)), "1"
    palette = Image.fromarray(pixels).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=bytes(range(256)))
    assert np.array_equal(raw(buffer.getvalue(), tmp_path), np.asarray(palette.convert("RGB"))), "P"
    cmyk = Image.fromarray(pixels).convert("CMYK")
    buffer = io.BytesIO()
    cmyk.save(buffer, "TIFF")
    assert np.array_equal(raw(buffer.getvalue(), tmp_path), np.asarray(cmyk.convert("RGB"))), "CMYK"


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PPM", "<u2")])
def test_16_bit_grey_is_scaled_not_clipped(kind, dtype, tmp_path):
    values = np.array([[0, 128, 129, 257, 1000], [32768, 40000, 65000, 65406, 65535]], dtype)
    expected = np.array([[0, 0, 1, 1, 4], [128, 156, 253, 254, 255]])
    assert raw(bytes_of(values, kind), tmp_path)[..., 0].tolist() == expected.tolist()


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.fromarray(np.full((10, 12, 3), value, np.uint8)) for value in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(raw(buffer.getvalue(), tmp_path), np.full((10, 12, 3), 10))


def test_orientation_and_colour_profiles_do_not_enter(tmp_path):
    pixels = picture(70, 90)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = bytes_of(pixels, "PNG", exif=exif, icc_profile=profile)
    assert np.array_equal(raw(content, tmp_path), pixels)
    path = tmp_path / "x.png"
    path.write_bytes(content)
    image, _ = encode_image(str(path), Encoding())
    assert b"ICC_PROFILE" not in image.data
    assert b"Exif" not in image.data


# ---- images that cannot be used


def bad_images():
    jpeg, png = bytes_of(picture(90, 100)), bytes_of(picture(90, 100), "PNG")
    bomb = bytearray(png)
    bomb[16:24] = (30_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    twelve = bytearray(jpeg)
    twelve[jpeg.index(b"\xff\xc0") + 4] = 12
    return {
        "empty": (b"", "is empty"),
        "text": (b"this is no image", "is not an image"),
        "JPEG without its end": (jpeg[:-2], "truncated"),
        "half a JPEG": (jpeg[: len(jpeg) // 2], "truncated"),
        "a JPEG's first bytes": (jpeg[:30], "is not an image|cannot be decoded"),
        "12-bit JPEG": (bytes(twelve), "is not an image"),
        "half a PNG": (png[: len(png) // 2], "truncated"),
        "PNG with a wrong byte": (png[:3000] + b"\0" + png[3001:], "cannot be decoded"),
        "half a WebP": (bytes_of(picture(90, 100), "WEBP")[:900], "cannot be|is not an image"),
        "half a GIF": (bytes_of(picture(90, 100), "GIF")[:2000], "truncated|cannot be decoded"),
        "half a TIFF": (bytes_of(picture(90, 100), "TIFF")[:2000], "cannot be|is not an image"),
        "bomb": (bytes(bomb), "declares 30000 x 30000 pixels|could be decompression bomb"),
        "32-bit TIFF": (bytes_of(np.arange(6, dtype=np.int32).reshape(2, 3), "TIFF"), "32-bit pixels"),
        "float TIFF": (bytes_of(np.ones((2, 3), np.float32), "TIFF"), "32-bit pixels"),
        "too wide": (bytes_of(np.zeros((1, 65_536), np.uint8), "PNG"), "largest side is 65535"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is not an image"),
    }


@pytest.mark.parametrize("kind", bad_images())
@pytest.mark.parametrize("store", ["raw", "jpg"])
def test_unusable_images_are_refused_with_a_reason(kind, store, tmp_path):
    content, reason = bad_images()[kind]
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(UnusableImage, match=reason):
        encode_image(str(path), Encoding(store))


def test_images_of_more_pixels_than_the_limit_are_refused(tmp_path, monkeypatch):
    content = bytes_of(picture(10, 11), "PNG")
    monkeypatch.setattr(encode, "MAX_PIXELS", 110)
    assert raw(content, tmp_path).shape == (10, 11, 3)
    monkeypatch.setattr(encode, "MAX_PIXELS", 109)
    with pytest.raises(UnusableImage, match="declares 11 x 10 pixels, more than 109"):
        raw(content, tmp_path)


def test_all_unusable_images_are_listed_in_one_error(folder, tmp_path, quiet):
    for index in range(25):
        (folder / "cat" / f"bad{index:02}.jpg").write_bytes(b"" if index % 2 else b"junk")
    out = tmp_path / "out.beton"
    with pytest.raises(ConvertError) as caught:
        convert(folder, out, **quiet)
    lines = str(caught.value).splitlines()
    assert lines[0] == "25 of 30 images cannot be used; use --skip-broken to leave them out"
    assert lines[1] == "  cat/bad00.jpg: is not an image of a known format, or its header is damaged"
    assert lines[2] == "  cat/bad01.jpg: is empty (zero bytes)"
    assert lines[21] == "  and 5 more"
    assert len(lines) == 22
    assert leftovers(tmp_path) == []


def test_unusable_images_can_be_left_out(folder, tmp_path, quiet, capsys):
    (folder / "cat" / "bad.jpg").write_bytes(b"junk")
    expected = convert(folder, tmp_path / "good.beton", store="raw", skip_broken=True, **quiet).mean
    (folder / "dog" / "0bad.png").write_bytes(b"")
    info = convert(folder, tmp_path / "out.beton", store="raw", skip_broken=True, **quiet)
    assert info.skipped == ("cat/bad.jpg", "dog/0bad.png")
    assert info.counts == (2, 3)
    assert info.mean == expected
    assert "left out cat/bad.jpg: is not an image" in capsys.readouterr().err
    beton = Beton.open(tmp_path / "out.beton")
    assert beton.labels.tolist() == [0, 0, 1, 1, 1]
    assert np.array_equal(stored(beton, 2), picture(20, 30, 2))


def test_a_source_without_one_usable_image_is_refused(tmp_path, quiet):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.jpg").write_bytes(b"")
    with pytest.raises(ConvertError, match=r"^2 of 2 images cannot be used\n"):
        convert(tmp_path / "images", tmp_path / "out.beton", skip_broken=True, **quiet)
    assert leftovers(tmp_path) == []


# ---- failures while writing


class Interfering(ArraySource):
    """Calls ``self.act`` when the image at ``self.at`` is asked for."""

    def sample(self, index):
        if index == self.at:
            self.act()
        return super().sample(index)


def interfering(act, count=400, at=300):
    source = Interfering(np.zeros((count, 4, 4, 3), np.uint8), np.arange(count) % 2, ("a", "b"), "test", "train")
    object.__setattr__(source, "at", at)
    object.__setattr__(source, "act", act)
    return source


def test_a_dying_worker_is_an_error_and_no_wait(tmp_path):
    def kill_workers():
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(ConvertError, match="a worker process died"):
        write_beton(interfering(kill_workers), tmp_path / "out.beton", Encoding(), workers=2, progress=False)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_leaves_nothing_behind(tmp_path, workers):
    def interrupt():
        assert leftovers(tmp_path) == [f".out.beton.{os.getpid()}.partial"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_beton(interfering(interrupt), tmp_path / "out.beton", Encoding(), workers=workers, progress=False)
    assert leftovers(tmp_path) == []
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("older", [True, False])
def test_an_interrupted_command_says_that_nothing_is_written(folder, tmp_path, monkeypatch, capsys, older):
    def interrupt(*_):
        raise KeyboardInterrupt

    out = tmp_path / "out.beton"
    if older:
        out.write_bytes(b"old")
    monkeypatch.setattr(writer, "encode_chunk", interrupt)
    argv = ["convert", str(folder), str(out), "--workers", "1", "--no-progress", "--overwrite"]
    assert main(argv) == 128 + signal.SIGINT
    kept = "; the older file stays" if older else ""
    assert capsys.readouterr().err == f"{out}: not written, and nothing of it is left{kept}\ninterrupted\n"
    assert leftovers(tmp_path) == (["out.beton"] if older else [])


def test_a_file_goes_to_disk_while_it_is_written(tmp_path, quiet, monkeypatch):
    """At the end all but the last page and the images beside it is there already."""
    synced = []
    monkeypatch.setattr(writer, "_SYNC_BYTES", 1)
    monkeypatch.setattr(writer.os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    source = array_source([picture(400, 400, index) for index in range(64)])  # 480,000 bytes each, 17 to a page
    write_beton(source, tmp_path / "out.beton", Encoding("raw"), **quiet)
    # Pages begin at multiples of 8 MiB, the first after the index; a chunk of 16 images can end one.
    assert [size // (8 << 20) for size in synced] == [1, 2, 3]


def test_a_file_system_that_refuses_to_write_is_one_error(tmp_path, quiet):
    """A limit on the size of files stands for a full disk: both are an OSError in the middle of writing."""
    source = array_source([picture(200, 200, index) for index in range(20)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9 << 20, before[1]))
    try:
        with pytest.raises(ConvertError, match=r"out\.beton: cannot be written: File too large"):
            write_beton(source, tmp_path / "out.beton", Encoding("raw"), **quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert leftovers(tmp_path) == []


def test_a_disk_found_full_at_the_end_is_one_error(tmp_path, quiet, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer.os, "fsync", full)
    with pytest.raises(ConvertError, match=r"out\.beton: cannot be written: No space left on device"):
        write_beton(array_source([picture(5, 5)]), tmp_path / "out.beton", Encoding(), **quiet)
    assert leftovers(tmp_path) == []


def children_of(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code", "clears_up"),
    [
        pytest.param(signal.SIGKILL, -signal.SIGKILL, False, id="SIGKILL"),
        pytest.param(signal.SIGTERM, 128 + signal.SIGTERM, True, id="SIGTERM"),
        # Another test sends it to the writing process.
        pytest.param(signal.SIGINT, 128 + signal.SIGINT, True, marks=pytest.mark.soak, id="SIGINT"),
    ],
)
def test_a_stopped_conversion_leaves_no_file_and_no_process(tmp_path, quiet, number, code, clears_up):
    image = save(tmp_path / "images" / "a" / "0.png", picture(1200, 1200), compress_level=1)
    (tmp_path / "images" / "b").mkdir()
    for index in range(600):
        os.link(image, tmp_path / "images" / "ab"[index % 2] / f"{index + 1}.png")
    out = tmp_path / "out.beton"
    argv = ["convert", tmp_path / "images", out, "--store", "raw", "--workers", "2", "--no-progress"]
    process = subprocess.Popen([sys.executable, "-m", "mixsize", *argv])
    partial = tmp_path / f".out.beton.{process.pid}.partial"
    wait_until(lambda: partial.exists() and partial.stat().st_size > 10 << 20)
    # The file is locked while it is written: a second conversion must not take it for a stale one.
    writer._remove_stale(out)
    assert partial.exists()
    children = children_of(process.pid)
    assert len(children) >= 2
    process.send_signal(number)
    assert process.wait() == code
    assert leftovers(tmp_path) == ([] if clears_up else [partial.name])
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 20)
    # A later conversion to the same name clears up, and leaves other files' leftovers alone.
    (tmp_path / ".another.beton.1.partial").write_bytes(b"")
    write_beton(array_source([picture(5, 5)]), out, Encoding(), **quiet)
    assert sorted(leftovers(tmp_path)) == [".another.beton.1.partial", "out.beton"]


def test_a_file_that_exists_is_replaced_only_when_asked(tmp_path, quiet, folder):
    out = tmp_path / "out.beton"
    out.write_bytes(b"old")
    with pytest.raises(ConvertError, match=r"out\.beton: exists already; use --overwrite"):
        convert(tmp_path / "no such source", out, **quiet)
    (folder / "cat" / "bad.jpg").write_bytes(b"")
    with pytest.raises(ConvertError, match="1 of 6 images cannot be used"):
        convert(folder, out, overwrite=True, **quiet)
    assert out.read_bytes() == b"old"
    convert(folder, out, overwrite=True, skip_broken=True, **quiet)
    assert Beton.open(out).num_samples == 5


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    out = tmp_path / "out.beton"
    source = interfering(lambda: out.write_bytes(b"another's"))
    with pytest.raises(ConvertError, match="exists already"):
        write_beton(source, out, Encoding(), workers=1, progress=False)
    assert out.read_bytes() == b"another's"
    assert leftovers(tmp_path) == ["out.beton"]


@pytest.mark.parametrize("name", ["out.bin", "out", "folder.beton"])
def test_a_name_that_cannot_be_written_is_refused(tmp_path, name, quiet):
    (tmp_path / "folder.beton").mkdir()
    with pytest.raises(ConvertError, match=r"must end in \.beton|is a folder"):
        write_beton(array_source([picture(5, 5)]), tmp_path / name, Encoding(), **quiet)


# ---- sources


def test_folders_that_are_no_image_folder_are_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    save(tmp_path / "flat" / "1.jpg", picture(5, 5))
    for name, message in {
        "none": "none: no such folder",
        "empty": "empty: holds no class folders, one sub-folder for each class is needed",
        "flat": "flat: holds images but no class folders",
        "flat/1.jpg": r"flat/1\.jpg: is not a folder",
    }.items():
        with pytest.raises(SourceError, match=message):
            open_folder(tmp_path / name)
    save(folder / "loose.png", picture(5, 5))
    with pytest.raises(SourceError, match=r"images lie beside the class folders and have no class: loose\.png"):
        open_folder(folder)


def test_class_folders_without_images_are_passed_over_in_a_line(tmp_path, folder, capsys, quiet):
    (folder / "bird" / "deep").mkdir(parents=True)
    (folder / "bird" / "deep" / "notes.txt").write_text("none yet")
    assert command(folder, tmp_path / "a.beton") == 0
    assert capsys.readouterr().err == f"{folder}: passed over class folders without images: bird\n"
    assert Beton.open(tmp_path / "a.beton").info.classes == ("cat", "dog")
    save(folder / "bird" / "deep" / "er" / "1.JPEG", picture(5, 5))
    assert open_folder(folder).classes == ("bird", "cat", "dog")
    assert open_folder(folder).passed_over == ()
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    with pytest.raises(SourceError, match="hollow: holds no class folders with images"):
        open_folder(tmp_path / "hollow")


def test_images_of_other_kinds_are_counted_in_a_line(tmp_path, folder, capsys):
    for name in ("cat/a.gif", "cat/B.GIF", "dog/more/c.avif"):
        (folder / name).write_bytes(b"")
    (folder / "cat" / "notes.txt").write_bytes(b"")
    assert command(folder, tmp_path / "a.beton") == 0
    assert capsys.readouterr().err == f"{folder}: passed over images of kinds that are not converted: 1 .avif, 2 .gif\n"
    # A class that would be lost is an error.
    (folder / "bird").mkdir()
    (folder / "bird" / "x.gif").write_bytes(b"")
    with pytest.raises(SourceError, match=r"images/bird: class folder without images .* .found bird/x\.gif; converted"):
        open_folder(folder)


def test_folders_of_splits_are_not_taken_for_classes(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        save(tmp_path / "data" / name / "1.png", picture(5, 5))
    with pytest.raises(SourceError, match=r"convert these: .*data/test, .*data/train"):
        open_folder(tmp_path / "data")
    (tmp_path / "above").mkdir()
    (tmp_path / "data").rename(tmp_path / "above" / "data")
    with pytest.raises(SourceError, match=r"convert these: .*above/data$"):
        open_folder(tmp_path / "above")


def test_a_class_may_be_called_train(tmp_path):
    save(tmp_path / "train" / "steam" / "1.png", picture(5, 5))
    save(tmp_path / "bus" / "1.png", picture(5, 5))
    assert open_folder(tmp_path).classes == ("bus", "train")


def test_a_listing_that_takes_long_counts_every_image(tmp_path, folder, monkeypatch, capfd):
    listed = []
    open_folder(folder, listed=listed.append)
    assert sorted(listed) == [0, 1, 2, 2]  # The folder itself, dog/more, cat and dog.
    convert(folder, tmp_path / "a.beton", workers=1)
    assert "listing" not in capfd.readouterr().err
    monkeypatch.setattr(opening, "_SECONDS_WITHOUT_BAR", 0)
    convert(folder, tmp_path / "b.beton", workers=1)
    assert "listing images: 0 img" in capfd.readouterr().err


def test_links_are_followed_inside_the_folder_only(tmp_path, folder):
    (folder / "cat" / "link.bmp").symlink_to("x.bmp")
    (folder / "cat" / "dir").symlink_to(folder / "dog")
    files = open_folder(folder).files
    assert [file for file in files if file.startswith("cat")] == [
        "cat/link.bmp",
        "cat/x.bmp",
        "cat/y.tiff",
        "cat/dir/a.PNG",
        "cat/dir/b.jpg",
        "cat/dir/more/c.webp",
    ]
    (folder / "cat" / "dir").unlink()
    (folder / "dog" / "up").symlink_to(folder / "dog")
    for follow_links in (False, True):
        with pytest.raises(SourceError, match=r"links back to a folder above them.*: dog/up$"):
            open_folder(folder, follow_links)
    (folder / "dog" / "up").unlink()
    os.mkfifo(folder / "cat" / "pipe.png")
    with pytest.raises(SourceError, match=r"cat/pipe\.png$"):
        open_folder(folder)


def test_links_out_of_the_folder_are_followed_only_when_asked(tmp_path, folder, quiet):
    outside = save(tmp_path / "outside" / "1.png", picture(5, 5))
    for link, target in {"cat/out.png": outside, "dog/out": outside.parent, "out": outside.parent}.items():
        before = open_folder(folder).files
        (folder / link).symlink_to(target)
        with pytest.raises(SourceError, match=rf"links that lead out .* with --follow-links: {link}$"):
            open_folder(folder)
        more = {"cat/out.png": "cat/out.png", "dog/out": "dog/out/1.png", "out": "out/1.png"}[link]
        assert {*open_folder(folder, follow_links=True).files} == {*before, more}
        (folder / link).unlink()
    (folder / "out").symlink_to(outside.parent)
    assert command(folder, tmp_path / "a.beton", "--follow-links") == 0
    assert Beton.open(tmp_path / "a.beton").info.classes == ("cat", "dog", "out")
    with pytest.raises(ConvertError, match="--follow-links applies to folders, not to digits"):
        convert("digits", tmp_path / "d.beton", split="test", follow_links=True, **quiet)


def test_a_split_outside_of_the_folder_is_followed_only_when_asked(tmp_path, folder):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / split).symlink_to(folder)
    with pytest.raises(SourceError, match=r"with --follow-links: train, test$"):
        command(tmp_path / "data", tmp_path / "out")
    assert command(tmp_path / "data", tmp_path / "out", "--follow-links") == 0
    assert Beton.open(tmp_path / "out" / "train.beton").num_samples == 5


@pytest.mark.parametrize("name", ["gone.png", "gone"])
def test_a_link_that_leads_nowhere_is_a_broken_image(tmp_path, folder, quiet, name):
    (folder / "cat" / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(
        ConvertError, match=rf"1 of 6 images cannot be used(?s:.*)cat/{name}: cannot be read: No such file"
    ):
        convert(folder, tmp_path / "a.beton", **quiet)
    assert convert(folder, tmp_path / "a.beton", skip_broken=True, **quiet).skipped == (f"cat/{name}",)


def test_levels_that_no_image_got_say_why(tmp_path, folder, capsys):
    # At 50 px or less on both sides, all are stored raw.
    assert command(folder, tmp_path / "a.beton", "--levels", "2", "--max-side", "50") == 0
    assert "level 1/2: no images. Smaller copies are kept of images stored as JPEG" in capsys.readouterr().out


def test_names_that_are_no_text_can_be_named(tmp_path, quiet):
    for name in ("a", "b"):
        save(tmp_path / "images" / name / "1.png", picture(5, 5))
    with open(os.path.join(os.fsencode(tmp_path), b"images", b"a", b"\xff.png"), "wb"):
        pass
    info = convert(tmp_path / "images", tmp_path / "out.beton", skip_broken=True, **quiet)
    assert info.skipped == (r"a/\udcff.png",)
    assert Beton.open(tmp_path / "out.beton").info == info


def test_digits_are_scikit_learns(tmp_path, quiet):
    assert command("digits", tmp_path) == 0
    train, test = Beton.open(tmp_path / "train.beton"), Beton.open(tmp_path / "test.beton")
    assert (train.num_samples, test.num_samples) == (1437, 360)
    assert train.info.classes == tuple("0123456789")
    assert train.info.source == "digits"
    digits = sklearn.datasets.load_digits()
    everything = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes() + bytes([label])
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    seen = set()
    for beton in (train, test):
        assert not beton.is_jpeg.any()
        counts = np.bincount(beton.labels)
        assert counts.max() <= 1.06 * counts.min()
        for index in range(beton.num_samples):
            pixels = stored(beton, index)
            assert np.array_equal(pixels[..., 0], pixels[..., 2])
            seen.add(pixels[..., 0].tobytes() + bytes([beton.labels[index]]))
    assert seen == everything


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A CIFAR-10 of 6 + 4 images in torchvision's files, with its checksums set to match."""
    data_set = torchvision.datasets.CIFAR10
    folder = tmp_path / "root" / data_set.base_folder
    folder.mkdir(parents=True)
    data = np.random.default_rng(0).integers(0, 256, (10, 3072), np.uint8)

    def put(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    train = put("data_batch_1", {"data": data[:6], "labels": [0, 1, 2, 0, 1, 2]})
    test = put("test_batch", {"data": data[6:], "labels": [2, 1, 0, 0]})
    meta = put("batches.meta", {"label_names": ["plane", "car", "bird"]})
    monkeypatch.setattr(data_set, "train_list", [train])
    monkeypatch.setattr(data_set, "test_list", [test])
    monkeypatch.setattr(data_set, "meta", {"filename": meta[0], "md5": meta[1], "key": "label_names"})
    return data.reshape(10, 3, 32, 32).transpose(0, 2, 3, 1)


def test_cifar_is_torchvisions(tmp_path, cifar):
    assert command("cifar10", tmp_path / "out", "--root", tmp_path / "root") == 0
    train, test = Beton.open(tmp_path / "out" / "train.beton"), Beton.open(tmp_path / "out" / "test.beton")
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert test.labels.tolist() == [2, 1, 0, 0]
    assert test.info.classes == ("plane", "car", "bird")
    assert np.array_equal(stored(train, 5), cifar[5])
    assert np.array_equal(stored(test, 0), cifar[6])


def test_cifar_that_is_missing_or_cannot_be_fetched_is_one_error(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match=r"cifar-100-python: cifar100 is missing or damaged; use --download"):
        open_cifar("cifar100", tmp_path, "train", download=False)

    def offline(*arguments, **options):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", offline)
    with pytest.raises(SourceError, match=r"cifar100: cannot be downloaded to .*urlopen error"):
        open_cifar("cifar100", tmp_path, "train", download=True)


# ---- the command


def split_folder(root, classes):
    for split, names in classes.items():
        for name in names:
            save(root / split / name / "1.png", picture(5, 6))
    return root


def test_a_folder_of_splits_gives_a_file_each(tmp_path, capsys):
    root = split_folder(tmp_path / "data", {"train": ("cat", "dog"), "val": ("cat", "dog")})
    assert command(root, tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        str(tmp_path / "out" / f"{name}.beton") for name in ("train", "val")
    ]
    assert "2 images, 2 classes, 5x6 px (height x width), mean 0." in lines[0]
    assert lines[0].endswith("0 left out")
    assert Beton.open(tmp_path / "out" / "val.beton").info.classes == ("cat", "dog")


def test_splits_must_hold_the_same_classes(tmp_path, quiet):
    root = split_folder(tmp_path / "data", {"train": ("cat", "dog"), "test": ("cat", "fox")})
    with pytest.raises(
        SourceError, match="train and test do not hold the same classes: only in train: dog; only in test: fox"
    ):
        convert_splits(root, tmp_path / "out", **quiet)
    assert not (tmp_path / "out").exists()


def test_no_split_is_written_where_one_exists(tmp_path, quiet):
    root = split_folder(tmp_path / "data", {"train": ("cat", "dog"), "test": ("cat", "dog")})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "test.beton").write_bytes(b"old")
    with pytest.raises(ConvertError, match=r"test\.beton: exists already"):
        convert_splits(root, tmp_path / "out", **quiet)
    assert leftovers(tmp_path / "out") == ["test.beton"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOURCE", "o.beton", "--split", "train"], "--split applies to cifar10, cifar100, digits"),
        (["SOURCE", "o.beton", "--root", "x"], "--root applies to cifar10 and cifar100"),
        (["SOURCE", "o.beton", "--download"], "--download applies to cifar10 and cifar100"),
        (
            ["digits", "o.beton", "--split", "test", "--download"],
            "--download applies to cifar10 and cifar100, not to digits",
        ),
        (["digits", "o.beton"], "digits: needs --split train or test, or a folder"),
        (["digits", "o", "--split", "test"], "o: the file to write must end in .beton"),
        (["digits", "o", "--quality", "80"], "--quality has no effect here: .* digits have 8 x 8; add --store jpg"),
        (["cifar10", "o"], "cifar10: needs --root"),
        (["SOURCE", "o.beton", "--store", "raw", "--quality", "80"], "--quality has no effect with --store raw"),
        (["SOURCE", "o.beton", "--quality", "0"], "quality is 0; it must be from 1 to 100"),
        (["SOURCE", "o.beton", "--max-side", "0"], "max_side is 0; it must be from 1 to 65535"),
        (["SOURCE", "o"], "has no train and test folders, so the file to write must end in .beton"),
        (["SOURCE", "o.beton", "--workers", "0"], "workers is 0; it must be at least 1"),
        (["nowhere", "o"], "nowhere: no such folder"),
        (["nowhere", "o.beton"], "nowhere: no such folder"),
    ],
)
def test_options_that_do_not_apply_are_refused(arguments, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        command(*[str(folder) if argument == "SOURCE" else argument for argument in arguments])
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("values", [{"store": "png"}, {"quality": 101}, {"max_side": 70_000}])
def test_impossible_encodings_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Encoding(**values)


def test_the_bar_shows_progress_on_stderr(folder, tmp_path, capfd):
    convert(folder, tmp_path / "out.beton", workers=1)
    assert "5/5" in capfd.readouterr().err
    convert(folder, tmp_path / "out.beton", workers=1, overwrite=True, progress=False)
    assert capfd.readouterr().err == ""


def test_an_encoded_image_is_what_its_fields_say():
    image, histogram = encode_image(picture(5, 7), Encoding())
    assert image == EncodedImage(picture(5, 7).tobytes(), False, 5, 7)
    assert histogram.sum(1).tolist() == [35, 35, 35]
    assert histogram[1, picture(5, 7)[0, 0, 1]] >= 1
