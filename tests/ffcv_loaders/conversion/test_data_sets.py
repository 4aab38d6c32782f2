"""Data sets of PyTorch and of Hugging Face's datasets as sources of a conversion."""

import io
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from mixsize.cli import main
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.convert import convert, convert_splits
from mixsize.ffcv_loaders.conversion.writer import ConvertError

CLASSES = ["cat", "dog", "fox"]
QUIET = {"progress": False, "workers": 1}


def jpeg(value):
    """A JPEG of 70 x 90 px."""
    pixels = np.random.default_rng(value).integers(0, 256, (7, 9, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two cats and three dogs."""
    for index, name in enumerate(("cat/a", "cat/b", "dog/c", "dog/d", "dog/e")):
        path = tmp_path / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(index))
    return tmp_path / "images"


def contents(path):
    beton = Beton.open(path)
    return [(beton.stored(index), int(beton.labels[index])) for index in range(beton.num_samples)]


class TestMapStyle:
    def test_it_gives_the_pixels_labels_and_classes_of_its_samples(self, folder, tmp_path):
        data = ImageFolder(folder)
        info = convert(data, tmp_path / "out.beton", store="raw", **QUIET)
        assert (info.classes, info.counts, info.source) == (("cat", "dog"), (2, 3), "map-style data set")
        assert contents(tmp_path / "out.beton") == [(image.tobytes(), label) for image, label in data]

    def test_a_subset_keeps_the_classes_of_the_whole(self, folder, tmp_path):
        info = convert(Subset(ImageFolder(folder), [1, 0]), tmp_path / "out.beton", store="raw", **QUIET)
        assert (info.classes, info.counts) == (("cat", "dog"), (2, 0))

    def test_classes_without_names_are_numbered_up_to_the_greatest_label(self, tmp_path):
        data = [(np.full((8, 8, 3), value, np.uint8), np.int64(label)) for value, label in ((1, 2), (2, 0))]
        info = convert(data, tmp_path / "out.beton", shuffle=3, **QUIET)
        assert (info.classes, info.counts) == (("0", "1", "2"), (1, 0, 1))
        assert sorted(contents(tmp_path / "out.beton")) == [(b"\1" * 192, 2), (b"\2" * 192, 0)]

    def test_the_bytes_do_not_depend_on_the_workers(self, folder, tmp_path):
        for workers in (1, 2):
            convert(ImageFolder(folder), tmp_path / f"{workers}.beton", workers=workers, progress=False)
        assert (tmp_path / "1.beton").read_bytes() == (tmp_path / "2.beton").read_bytes()

    def test_samples_that_cannot_be_used_are_named(self, folder, tmp_path):
        (folder / "cat" / "b.jpg").write_bytes(b"no image")
        data = ImageFolder(folder)
        data.target_transform = lambda label: 7 * label
        with pytest.raises(ConvertError) as caught:
            convert(data, tmp_path / "out.beton", **QUIET)
        lines = str(caught.value).splitlines()
        assert lines[0] == "4 of 5 images cannot be used; use --skip-broken to leave them out"
        assert re.match(r"  sample 1: cannot be read: cannot identify image file", lines[1])
        assert lines[2:] == [f"  sample {index}: has the label 7; it must be from 0 to 1" for index in (2, 3, 4)]
        info = convert(data, tmp_path / "out.beton", skip_broken=True, **QUIET)
        assert (info.counts, info.skipped) == ((1, 0), tuple(f"sample {index}" for index in (1, 2, 3, 4)))

    @pytest.mark.parametrize(
        ("data", "found"),
        [
            ([(torch.zeros(3, 8, 8), 1)], "the image of sample 0 is a Tensor"),
            ([(np.zeros((8, 8, 3), np.uint8), "cat")], "the label of sample 0 is a str"),
            (iter([]), "data is a list_iterator"),
        ],
    )
    def test_another_kind_of_sample_is_refused_with_what_was_found(self, data, found, tmp_path):
        with pytest.raises(ValueError, match=rf"^{found}.*; expected a map-style data set"):
            convert(data, tmp_path / "out.beton", **QUIET)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("option", "value"), [("split", "train"), ("root", "x"), ("follow_links", True), ("label_column", "y")]
    )
    def test_options_of_other_sources_are_refused(self, option, value, tmp_path):
        with pytest.raises(ValueError, match=f"^--{option.replace('_', '-')} applies to .*, not to a list$"):
            convert([], tmp_path / "out.beton", **{option: value}, **QUIET)

    def test_a_mapping_of_splits_gives_a_file_each(self, folder, tmp_path):
        data = ImageFolder(folder)
        written = convert_splits({"train": data, "val": Subset(data, [0])}, tmp_path / "out", store="raw", **QUIET)
        assert {path.name: info.counts for path, info in written.items()} == {
            "train.beton": (2, 3), "val.beton": (1, 0)
        }  # fmt: skip
        with pytest.raises(ConvertError, match=r"has a split named \.\./train, which is no name of a file"):
            convert_splits({"../train": data}, tmp_path / "out", **QUIET)


@pytest.fixture
def datasets():
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def split(datasets, folder):
    """The folder's images and labels, with a class that has none of them and a column of text."""
    files = sorted(folder.rglob("*.jpg"))
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "picture": datasets.Image(),
            "animal": datasets.ClassLabel(names=CLASSES),
        }
    )
    rows = {
        "text": [file.name for file in files],
        "picture": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "animal": [CLASSES.index(file.parent.name) for file in files],
    }
    return datasets.Dataset.from_dict(rows, features=features)


class TestHuggingFace:
    def test_a_split_keeps_its_files_bytes_labels_and_classes(self, split, folder, tmp_path):
        """As the folder of the same images gives them."""
        convert(folder, tmp_path / "folder.beton", **QUIET)
        info = convert(split.with_format("torch"), tmp_path / "split.beton", **QUIET)
        assert contents(tmp_path / "split.beton") == contents(tmp_path / "folder.beton")
        assert (info.classes, info.counts, info.source) == (tuple(CLASSES), (2, 3, 0), "Hugging Face data set")

    def test_the_command_reads_a_saved_split(self, split, tmp_path, capsys):
        split.save_to_disk(tmp_path / "saved")
        assert main(["convert", str(tmp_path / "saved"), str(tmp_path / "out.beton"), "--no-progress"]) == 0
        convert(split, tmp_path / "split.beton", **QUIET)
        assert (tmp_path / "out.beton").read_bytes() == (tmp_path / "split.beton").read_bytes()
        saved = [str(tmp_path / "saved"), str(tmp_path / "other.beton")]
        assert main(["convert", *saved, "--split", "train"]) == 2
        assert "holds one split, without a name" in capsys.readouterr().err

    def test_the_command_reads_saved_splits_all_or_one(self, datasets, split, tmp_path, capsys):
        together = datasets.DatasetDict(train=split, validation=split.select([4, 0]))
        together.save_to_disk(tmp_path / "saved")
        saved = str(tmp_path / "saved")
        assert main(["convert", saved, str(tmp_path / "out"), "--no-progress"]) == 0
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.beton", "validation.beton"]
        one = str(tmp_path / "one.beton")
        assert main(["convert", saved, one, "--split", "validation", "--no-progress"]) == 0
        assert contents(one) == contents(tmp_path / "out" / "validation.beton") == [(jpeg(4), 1), (jpeg(0), 0)]
        capsys.readouterr()
        for split_option, words in (([], "needs --split, one of"), (["--split", "test"], "has no split test; it has")):
            assert main(["convert", saved, str(tmp_path / "no.beton"), *split_option]) == 2
            assert f"{saved}: {words} train, validation, or a folder as OUT for all" in capsys.readouterr().err
        assert convert_splits(together, tmp_path / "again", **QUIET).keys() == {
            tmp_path / "again" / "train.beton", tmp_path / "again" / "validation.beton"
        }  # fmt: skip

    def test_a_saved_data_set_that_is_damaged_is_one_error(self, split, tmp_path):
        split.save_to_disk(tmp_path / "saved")
        (tmp_path / "saved" / "state.json").write_text("{}")
        with pytest.raises(ValueError, match=r"saved: is damaged, or no data set that save_to_disk wrote: "):
            convert(tmp_path / "saved", tmp_path / "out.beton", **QUIET)

    def test_images_may_lie_in_files_of_their_own(self, datasets, folder, tmp_path):
        files = sorted(map(str, folder.rglob("*.jpg")))
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
        split = datasets.Dataset.from_dict({"image": files, "label": [0] * 5}, features=features)
        convert(split, tmp_path / "out.beton", **QUIET)
        assert [data for data, _ in contents(tmp_path / "out.beton")] == [jpeg(index) for index in range(5)]

    def test_a_column_is_named_where_there_are_several(self, datasets, split, tmp_path):
        coarse = datasets.ClassLabel(names=["pet", "wild"])
        split = split.add_column("coarse", [1, 1, 0, 0, 0]).cast_column("coarse", coarse)
        with pytest.raises(
            ValueError, match=r"several columns of the type ClassLabel; name one by label_column.*coarse"
        ):
            convert(split, tmp_path / "out.beton", **QUIET)
        info = convert(split, tmp_path / "out.beton", label_column="coarse", image_column="picture", **QUIET)
        assert (info.classes, info.counts) == (("pet", "wild"), (3, 2))
        with pytest.raises(ValueError, match=r"label_column is text; expected a column of the type ClassLabel"):
            convert(split, tmp_path / "other.beton", label_column="text", **QUIET)
        with pytest.raises(ValueError, match=r"no column of the type Image; expected one, which cast_column makes"):
            convert(split.remove_columns(["picture", "coarse"]), tmp_path / "other.beton", **QUIET)

    def test_samples_that_cannot_be_used_are_named(self, datasets, split, tmp_path):
        features = split.features
        rows = {
            "text": list("abcde"),
            "picture": [None, *({"bytes": data, "path": None} for data in (jpeg(0), b"x", jpeg(3), b""))],
            "animal": [0, None, 1, -1, 0],
        }
        broken = datasets.Dataset.from_dict(rows, features=features)
        with pytest.raises(ConvertError) as caught:
            convert(broken, tmp_path / "out.beton", **QUIET)
        assert str(caught.value).splitlines() == [
            "5 of 5 images cannot be used",
            "  sample 0: has no image",
            "  sample 1: has no label",
            "  sample 2: is not an image of a known format, or its header is damaged",
            "  sample 3: has the label -1; it must be from 0 to 2",
            "  sample 4: is empty (zero bytes)",
        ]

    def test_without_the_library_the_command_names_its_installation(self, split, tmp_path, python_without):
        split.save_to_disk(tmp_path / "saved")
        arguments = ["convert", str(tmp_path / "saved"), str(tmp_path / "out.beton")]
        lines = python_without(["datasets"], f"from mixsize.cli import main\nprint(main({arguments!r}))")
        assert lines[0].startswith(
            'error: Hugging Face Datasets is not installed; get it with: pip install "mixsize[hf]"'
        )
        assert lines[1:] == ["2"]


def test_a_split_survives_the_way_to_a_worker(split):
    """Of a DataLoader, which pickles it where processes are spawned."""
    from mixsize.ffcv_loaders.decode.hugging_face import HuggingFaceImages

    images = HuggingFaceImages(split)
    image, label = pickle.loads(pickle.dumps(images))[3]
    assert (image.tobytes(), label) == (split[3]["picture"].tobytes(), 1)
