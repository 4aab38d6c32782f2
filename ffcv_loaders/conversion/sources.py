"""Where images come from: what a source is, a folder of class folders, CIFAR-10 and CIFAR-100, scikit-learn's digits.

A source is a sequence of samples, each with a name for messages, a label, and an image as
:mod:`~mixsize.ffcv_loaders.conversion.encode` takes it. Sources of other libraries have modules of their own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from mixsize.ffcv_loaders.beton.reader import MAX_CLASSES
from mixsize.ffcv_loaders.conversion.encode import Item

# torchvision.datasets.folder.IMG_EXTENSIONS; files of other kinds are passed over, as torchvision does.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
#: Other images, which are counted and not converted.
OTHER_IMAGE_EXTENSIONS = (".gif", ".jfif", ".jpe", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".tga", ".svg")
TRAIN_NAMES = ("train",)
TEST_NAMES = ("test", "val", "valid")
BUILT_IN = ("cifar10", "cifar100", "digits")
SPLITS = ("train", "test")

DIGITS_TEST_SHARE = 0.2
DIGITS_SEED = 0
_LISTED = 20


class SourceError(ValueError):
    """A source that cannot be converted; the message names the folder or the option to change."""


class Source(Protocol):
    """Samples as the writer takes them."""

    @property
    def kind(self) -> str:
        """Kind of source, kept in the file; never a path."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, indexed by label; complete when all samples have been read."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Name of a sample for messages: relative, printable, the same on every machine."""
        ...

    def sample(self, index: int) -> tuple[Item, int]:
        """A sample's image, or the reason why it has none that can be used, and its label."""
        ...


@dataclass(frozen=True)
class FolderSource:
    """Image files in class folders.

    Attributes:
        root: the folder of the class folders.
        files: paths relative to ``root``.
        passed_over: what the folder holds beside these, a line each.
    """

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    passed_over: tuple[str, ...] = ()
    kind: str = "image folder"

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """The file's path relative to the source folder."""
        return printable(self.files[index])

    def sample(self, index: int) -> tuple[str, int]:
        """The file's path, and the label."""
        return os.path.join(self.root, self.files[index]), int(self.labels[index])


@dataclass(frozen=True)
class ArraySource:
    """Images of one size held in memory, ``pixels`` being ``(N, height, width, 3)`` uint8 RGB."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    kind: str
    split: str

    def __post_init__(self) -> None:
        assert self.pixels.dtype == np.uint8
        assert self.pixels.shape[0] == len(self.labels)
        assert self.pixels.shape[3] == 3

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Split and index, as in ``train[17]``."""
        return f"{self.split}[{index}]"

    def sample(self, index: int) -> tuple[np.ndarray, int]:
        """The sample's pixels, and the label."""
        return self.pixels[index], int(self.labels[index])


def printable(name: str) -> str:
    """``name`` with escapes for bytes that are not text and for characters that would act on a terminal."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def numbered(count: int) -> tuple[str, ...]:
    """Names of classes that have none: ``0``, ``1``, ..."""
    return tuple(map(str, range(count)))


def wrong_label(label: int, classes: int | None) -> str | None:
    """What is wrong with a label, None if nothing is; ``classes`` is their number, None where it is not known."""
    most = (MAX_CLASSES if classes is None else classes) - 1
    return None if 0 <= label <= most else f"has the label {label}; it must be from 0 to {most}"


def some(names: Iterable[str]) -> str:
    """The first 20 names on a line, and how many more there are."""
    names = [printable(name) for name in names]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def open_folder(
    root: str | os.PathLike[str], follow_links: bool = False, listed: Callable[[int], object] = lambda images: None
) -> FolderSource:
    """Images in torchvision's ``ImageFolder`` layout: ``root/<class>/.../<name>.<extension>``.

    Classes are the sub-folders that hold images, sorted by name; files come in the order in which torchvision lists
    them. Images are found by extension (case-insensitive) at any depth below a class folder; other files are passed
    over. Links inside the folder are followed. Links that lead nowhere count as images that cannot be read.

    Args:
        root: the folder.
        follow_links: also follow links that lead out of the folder.
        listed: called with the number of images in each folder, as it is listed.

    Raises:
        SourceError: not a folder, no class folders, images beside the class folders, a class folder whose images are
            all of kinds that are not converted, a link that leads out of the folder or back to a folder above it, or a
            folder that holds splits rather than classes.
    """
    root = Path(root)
    if not root.exists():
        raise SourceError(f"{root}: no such folder")
    if not root.is_dir():
        raise SourceError(f"{root}: is not a folder of class folders")
    try:
        listing = _Listing(root, follow_links, listed)
    except OSError as error:
        raise SourceError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
    listing.check()
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(listing.classes):
        found = listing.images_of(name)
        files += found
        labels += [label] * len(found)
    classes = tuple(printable(name) for name in listing.classes)
    return FolderSource(root, tuple(files), np.array(labels, np.int64), classes, tuple(listing.passed_over()))


class _Listing:
    """All folders and images below a root, by path relative to it."""

    def __init__(self, root: Path, follow_links: bool, listed: Callable[[int], object]):
        self.root = root
        self.images: dict[str, list[str]] = {}
        self.other_images: dict[str, list[str]] = {}
        self.leading_out: list[str] = []
        self.refused: list[str] = []
        self._follow_links = follow_links
        self._listed = listed
        self._top = os.path.realpath(root)
        self._walk("", (self._top,))
        folders = [folder for folder in self.images if folder]
        # Sorted by whole path, as torchvision sorts what os.walk yields.
        self._by_class: dict[str, list[str]] = {}
        for folder in sorted(folders):
            self._by_class.setdefault(folder.split(os.sep, 1)[0], []).append(folder)
        self._empty = [name for name in self._by_class if not self.images_of(name) and not self._others_of(name)]
        self.classes = sorted(set(self._by_class) - set(self._empty))

    def _walk(self, folder: str, above: tuple[str, ...]) -> None:
        images, others, folders = [], [], []
        with os.scandir(os.path.join(self.root, folder)) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                if not os.path.exists(entry.path):
                    images.append(path)  # A link that leads nowhere, whatever its name: nothing of a class is lost.
                elif entry.is_symlink() and os.path.realpath(entry.path) in above:
                    self.refused.append(path)
                elif entry.is_symlink() and not self._follow_links and not _lies_in(self._top, entry.path):
                    self.leading_out.append(path)
                elif entry.is_dir():
                    folders.append(path)
                elif entry.name.lower().endswith(OTHER_IMAGE_EXTENSIONS):
                    others.append(path)
                elif not entry.name.lower().endswith(IMAGE_EXTENSIONS):
                    continue
                elif entry.is_file():
                    images.append(path)
                else:
                    self.refused.append(path)
        self.images[folder] = sorted(images)
        self.other_images[folder] = sorted(others)
        self._listed(len(images))
        for path in folders:
            self._walk(path, (*above, os.path.realpath(os.path.join(self.root, path))))

    def images_of(self, name: str) -> list[str]:
        """Images of a class, in torchvision's order."""
        return [image for folder in self._by_class[name] for image in self.images[folder]]

    def _others_of(self, name: str) -> list[str]:
        return [image for folder in self._by_class[name] for image in self.other_images[folder]]

    def passed_over(self) -> Iterator[str]:
        """Lines that name empty class folders, and count images of kinds that are not converted."""
        if self._empty:
            yield f"{self.root}: passed over class folders without images: {some(self._empty)}"
        others = [image for images in self.other_images.values() for image in images]
        if others:
            kinds = Counter(os.path.splitext(image)[1].lower() for image in others)
            listed = ", ".join(f"{number:,} {kind}" for kind, number in sorted(kinds.items()))
            yield f"{self.root}: passed over images of kinds that are not converted: {listed}"

    def check(self) -> None:
        """Refuse a layout that cannot be converted."""
        root = self.root
        layout = ", one sub-folder for each class is needed"
        if self.leading_out:
            listed = some(sorted(self.leading_out))
            raise SourceError(
                f"{root}: holds links that lead out of the folder, which are followed with --follow-links: {listed}"
            )
        if self.refused:
            listed = some(sorted(self.refused))
            raise SourceError(f"{root}: holds links back to a folder above them, or what is no file: {listed}")
        if not self.classes:
            found = "holds images but no class folders" if self.images[""] else "holds no class folders"
            found += " with images" if self._empty else ""
            raise SourceError(f"{root}: {found}{layout}")
        nested = [name for name in self.classes if not self.images[name] and len(self._by_class[name]) > 1]
        splits = [name for name in nested if name.lower() in (*TRAIN_NAMES, *TEST_NAMES)]
        flat = [name for name in self.classes if self.images[name]]
        if not flat and (splits or len(nested) == 1 == len(self.classes)):
            listed = some(os.path.join(root, name) for name in (splits or nested))
            raise SourceError(f"{root}: its sub-folders hold folders of classes, not images; convert these: {listed}")
        if self.images[""]:
            listed = some(self.images[""])
            raise SourceError(f"{root}: images lie beside the class folders and have no class: {listed}")
        for name in self.classes:
            if not self.images_of(name):
                found, read = some(self._others_of(name)), " ".join(IMAGE_EXTENSIONS)
                raise SourceError(
                    f"{root / printable(name)}: class folder without images that are converted (found {found}; "
                    f"converted are {read})"
                )


def find_split_folders(root: str | os.PathLike[str], follow_links: bool = False) -> dict[str, Path]:
    """Split folders of a folder such as ``cifar10/{train,test}``, train first; empty where it is not of that kind.

    Of that kind are folders whose only sub-folders are ``train``, ``test``, ``val`` or ``valid``, each holding folders
    and no images of its own.

    Args:
        root: the folder.
        follow_links: also follow splits that are links out of the folder.

    Raises:
        SourceError: a split that is a link out of the folder.
    """
    root = Path(root)
    if not root.is_dir():
        return {}
    folders = sorted(
        (path for path in root.iterdir() if path.is_dir()), key=lambda path: (path.name != "train", path.name)
    )
    if not folders or any(path.name not in (*TRAIN_NAMES, *TEST_NAMES) for path in folders):
        return {}
    for folder in folders:
        below = list(folder.iterdir())
        loose = any(path.name.lower().endswith(IMAGE_EXTENSIONS) for path in below if not path.is_dir())
        if loose or not any(path.is_dir() for path in below):
            return {}
    outside = [folder.name for folder in folders if not _lies_in(root, folder)]
    if outside and not follow_links:
        raise SourceError(
            f"{root}: holds links that lead out of the folder, which are followed with --follow-links: {some(outside)}"
        )
    return {folder.name: folder for folder in folders}


def _lies_in(root: str | os.PathLike[str], path: str | os.PathLike[str]) -> bool:
    """Whether a path, its links followed, is below a folder."""
    top = os.path.realpath(root)
    return os.path.commonpath([top, os.path.realpath(path)]) == top


def check_same_classes(sources: Mapping[str, Source]) -> None:
    """Require that all splits name the same classes, so that a label means the same in each.

    Raises:
        SourceError: names the classes that only some splits have.
    """
    (first, reference), *others = sources.items()
    for name, source in others:
        if source.classes != reference.classes:
            only = {
                first: sorted(set(reference.classes) - set(source.classes)),
                name: sorted(set(source.classes) - set(reference.classes)),
            }
            listed = "; ".join(f"only in {split}: {some(classes)}" for split, classes in only.items() if classes)
            raise SourceError(f"{first} and {name} do not hold the same classes: {listed}")


def open_cifar(name: str, root: str | os.PathLike[str], split: str, download: bool) -> ArraySource:
    """CIFAR-10 or CIFAR-100 (fine labels) through torchvision, which checks the files' MD5 sums before reading them.

    Args:
        name: ``cifar10`` or ``cifar100``.
        root: folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        split: ``train`` or ``test``.
        download: fetch the data into ``root`` where it is missing.

    Raises:
        SourceError: the data is missing or damaged, or cannot be fetched.
    """
    from torchvision import datasets

    data_set = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    where = Path(root) / data_set.base_folder
    try:
        data = data_set(str(root), train=split == "train", download=download)
    except (OSError, RuntimeError) as error:
        if download:
            raise SourceError(f"{name}: cannot be downloaded to {root}: {error}") from error
        raise SourceError(f"{where}: {name} is missing or damaged; use --download, or another --root") from error
    kind = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[name]
    pixels = np.ascontiguousarray(data.data)
    return ArraySource(pixels, np.array(data.targets, np.int64), tuple(data.classes), kind, split)


def open_digits(split: str) -> ArraySource:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, values 0..16 scaled to 0..255 and repeated in R, G and B.

    scikit-learn has no split of its own. Here 360 digits (20 %), drawn by class with the fixed seed 0, are ``test``
    and the other 1,437 are ``train``, both in scikit-learn's order.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = cast(Any, load_digits())  # A mapping, which the stubs take for a pair of arrays.
    train, test = train_test_split(
        np.arange(len(digits.target)),
        test_size=DIGITS_TEST_SHARE,
        random_state=DIGITS_SEED,
        stratify=digits.target,
    )
    chosen = np.sort(train if split == "train" else test)
    grey = (digits.images[chosen].astype(np.int64) * 255 + 8) // 16
    pixels = np.ascontiguousarray(np.repeat(grey.astype(np.uint8)[..., None], 3, axis=3))
    classes = tuple(str(name) for name in digits.target_names)
    return ArraySource(pixels, digits.target[chosen].astype(np.int64), classes, "digits", split)
