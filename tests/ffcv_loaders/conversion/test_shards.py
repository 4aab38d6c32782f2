"""Shards of WebDataset as a source of a conversion."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from mixsize.cli import main
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.convert import convert
from mixsize.ffcv_loaders.conversion.shards import ShardSource, find_shards
from mixsize.ffcv_loaders.conversion.sources import SourceError
from mixsize.ffcv_loaders.conversion.writer import ConvertError

QUIET = {"progress": False, "workers": 1}


def jpeg(value):
    """A JPEG of 70 x 90 px."""
    pixels = np.random.default_rng(value).integers(0, 256, (7, 9, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def shard(path, members):
    """A tar file of (name, bytes)."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def reasons(path, tmp_path):
    """What is wrong with a shard's samples."""
    with pytest.raises(ConvertError) as caught:
        convert(path, tmp_path / "out.beton", **QUIET)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize("label", ["cls", "json"])
def test_shards_that_webdataset_wrote_hold_what_webdataset_reads(label, tmp_path, recwarn):
    webdataset = pytest.importorskip("webdataset")
    pattern = str(tmp_path / "train-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for index in range(10):
            number = index * 7 % 5
            content = {"cls": number} if label == "cls" else {"json": {"label": number, "source": "a"}}
            writer.write({"__key__": f"part/{index:04}", "jpg": jpeg(index), **content})
    names = str(tmp_path / "train-{000000..000002}.tar")
    info = convert(names, tmp_path / "out.beton", workers=2, progress=False)
    assert (info.classes, info.counts) == (("0", "1", "2", "3", "4"), (2, 2, 2, 2, 2))
    assert info.source == "WebDataset shards"
    beton = Beton.open(tmp_path / "out.beton")
    theirs = list(webdataset.WebDataset(names, shardshuffle=False))
    assert len(theirs) == beton.num_samples == 10
    for index, sample in enumerate(theirs):
        assert beton.stored(index) == sample["jpg"]
        expected = int(sample["cls"]) if label == "cls" else json.loads(sample["json"])["label"]
        assert beton.labels[index] == expected
    convert(tmp_path, tmp_path / "folder.beton", **QUIET)
    assert (tmp_path / "folder.beton").read_bytes() == (tmp_path / "out.beton").read_bytes()


def test_the_command_reads_shards_and_counts_samples_as_it_lists(tmp_path, capsys):
    shard(tmp_path / "a-0.tar", [("1.jpg", jpeg(1)), ("1.cls", b"0"), ("2.JPEG", jpeg(2)), ("2.cls", b"2\n")])
    assert main(["convert", str(tmp_path / "a-0.tar"), str(tmp_path / "out.beton"), "--workers", "1"]) == 0
    assert "2 images, 3 classes" in capsys.readouterr().out
    listed = []
    ShardSource([tmp_path / "a-0.tar"], listed.append)
    assert listed == [1, 1]


def test_names_with_ranges_stand_for_all_of_them(tmp_path):
    for name in ("a-08", "a-09", "a-10", "b-1-3", "b-1-4", "b-2-3", "b-2-4"):
        shard(tmp_path / f"{name}.tar", [])

    def names(pattern):
        return [path.stem for path in find_shards(tmp_path / pattern)]

    assert names("a-{08..10}.tar") == ["a-08", "a-09", "a-10"]
    assert names("b-{1..2}-{3..4}.tar") == ["b-1-3", "b-1-4", "b-2-3", "b-2-4"]
    with pytest.raises(SourceError, match=r"no such file: \S+a-11\.tar, \S+a-12\.tar$"):
        names("a-{10..12}.tar")
    with pytest.raises(SourceError, match=r"the range \{3\.\.1\} must rise"):
        names("a-{3..1}.tar")
    with pytest.raises(
        SourceError, match=r"shards of several kinds \(a-\*\.tar, b-\*-\*\.tar\); name those of one split"
    ):
        find_shards(tmp_path)


def test_a_folder_with_folders_is_no_folder_of_shards(tmp_path):
    shard(tmp_path / "left-over.tar", [])
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(jpeg(1))
    assert convert(tmp_path, tmp_path / "out.beton", **QUIET).classes == ("cat", "dog")


def test_samples_that_cannot_be_used_are_named_by_shard_and_key(tmp_path):
    path = shard(
        tmp_path / "a.tar",
        [
            ("__meta__/info.json", b"{}"), ("README", b"no sample"),
            ("x/1.jpg", jpeg(1)),
            ("x/2.cls", b"1"),
            ("x/3.jpg", jpeg(3)), ("x/3.cls", b"cat"),
            ("x/4.jpg", jpeg(4)), ("x/4.json", b'{"label": "cat"}'),
            ("x/5.jpg", b"no image"), ("x/5.cls", b"1"),
            ("x/6.jpg", jpeg(6)), ("x/6.png", jpeg(6)), ("x/6.cls", b"1"),
            ("x/7.jpg", jpeg(7)), ("x/7.cls", b"-1"),
            ("x/8.jpg", jpeg(8)), ("x/8.cls", b"3"), ("x/8.json", b'{"label": 4}'),
        ],
    )  # fmt: skip
    assert reasons(path, tmp_path) == [
        "a.tar/x/1: has no label: neither a .cls file nor a .json file",
        "a.tar/x/2: has no images (it holds cls)",
        "a.tar/x/3: has no label: its .cls file does not hold a class number",
        'a.tar/x/4: has no label: its .json file does not hold a class number under "label"',
        "a.tar/x/5: is not an image of a known format, or its header is damaged",
        "a.tar/x/6: has 2 images (it holds jpg, png, cls)",
        "a.tar/x/7: has the label -1; it must be from 0 to 16777215",
    ]
    info = convert(path, tmp_path / "out.beton", skip_broken=True, **QUIET)
    assert info.counts == (0, 0, 0, 1)
    assert info.skipped == tuple(f"a.tar/x/{key}" for key in range(1, 8))


def test_a_damaged_shard_is_named_beside_what_it_still_holds(tmp_path):
    whole = shard(
        tmp_path / "whole.tar",
        [(f"{i}.{kind}", data) for i in (1, 2) for kind, data in (("cls", b"1"), ("jpg", jpeg(i)))],
    )
    content = whole.read_bytes()
    with tarfile.open(whole) as archive:
        third, fourth = archive.getmembers()[2:]
    whole.unlink()
    path = tmp_path / "cut.tar"

    path.write_bytes(content[: fourth.offset_data + 100])
    image, end = reasons(path, tmp_path)
    assert image.startswith("cut.tar/2: cannot be decoded: ")
    assert end == "cut.tar: cannot be read as a .tar file: unexpected end of data; what follows is lost"

    path.write_bytes(content[: fourth.offset + 100])
    damaged = f"cut.tar: is cut short or damaged at byte {fourth.offset}; what follows is lost"
    assert reasons(path, tmp_path) == ["cut.tar/2: has no images (it holds cls)", damaged]
    path.write_bytes(content[: fourth.offset] + b"!" + content[fourth.offset + 1 :])
    assert reasons(path, tmp_path) == ["cut.tar/2: has no images (it holds cls)", damaged]

    path.write_bytes(content[: third.offset])  # Between two samples.
    damaged = f"cut.tar: is cut short or damaged at byte {third.offset}; what follows is lost"
    assert reasons(path, tmp_path) == [damaged]
    assert convert(path, tmp_path / "kept.beton", skip_broken=True, **QUIET).counts == (0, 1)

    path.write_bytes(b"\x1f\x8b" + content)
    assert reasons(path, tmp_path) == ["cut.tar: cannot be read as a .tar file: bad checksum; what follows is lost"]
