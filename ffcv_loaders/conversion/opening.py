"""From what the user names or gives to a source: which kind it is, the options that apply to it, and its splits."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from tqdm import tqdm

from mixsize.ffcv_loaders.conversion.shards import ShardSource, find_shards
from mixsize.ffcv_loaders.conversion.sources import (
    BUILT_IN,
    SPLITS,
    Source,
    SourceError,
    find_split_folders,
    open_cifar,
    open_digits,
    open_folder,
    some,
)
from mixsize.ffcv_loaders.conversion.writer import ConvertError
from mixsize.system.packages import one_line

if TYPE_CHECKING:
    from mixsize.ffcv_loaders.decode.hugging_face import Split
    from mixsize.ffcv_loaders.decode.samples import ImageDataset

#: A place or a name, or a data set.
Place: TypeAlias = "str | os.PathLike[str] | ImageDataset | Split"

_CIFAR = ("cifar10", "cifar100")
#: Files that save_to_disk writes, of a split and of several.
_SAVED_SPLIT, _SAVED_SPLITS = "state.json", "dataset_dict.json"
#: Listing shows no bar before, so that an error of a moment stands alone.
_SECONDS_WITHOUT_BAR = 1.0
_HUGGING_FACE = "data sets of Hugging Face's datasets"


@dataclass(frozen=True)
class Opening:
    """How a source is opened; see :func:`~mixsize.ffcv_loaders.conversion.convert.convert`."""

    root: str | os.PathLike[str] | None = None
    download: bool = False
    follow_links: bool = False
    image_column: str | None = None
    label_column: str | None = None
    progress: bool = False

    def check(self, kind: str, name: str, split: str | None) -> None:
        """Refuse options that do not apply to a source of this kind.

        Raises:
            ConvertError: names the option.
        """
        for option, given, kinds, words in (
            ("--root", self.root is not None, ("cifar",), "cifar10 and cifar100"),
            ("--download", self.download, ("cifar",), "cifar10 and cifar100"),
            ("--follow-links", self.follow_links, ("folder",), "folders"),
            ("--image-column", self.image_column is not None, ("saved", "split"), _HUGGING_FACE),
            ("--label-column", self.label_column is not None, ("saved", "split"), _HUGGING_FACE),
            (
                "--split",
                split is not None,
                ("cifar", "digits", "saved"),
                f"{', '.join(BUILT_IN)} and saved {_HUGGING_FACE}",
            ),
        ):
            if given and kind not in kinds:
                raise ConvertError(f"{option} applies to {words}, not to {name}")


def in_words(source: object) -> str:
    """The name or the path of a source, or the type of a data set."""
    return str(source) if isinstance(source, str | os.PathLike) else f"a {type(source).__name__}"


def open_source(source: Place, split: str | None, opening: Opening) -> Source:
    """Open one split of a source.

    Raises:
        ValueError: a source that cannot be used, or an option that does not apply to it.
    """
    kind = _kind(source)
    opening.check(kind, in_words(source), split)
    if kind == "data set":
        # The import takes a second, which a folder need not wait for.
        from mixsize.ffcv_loaders.conversion.data_sets import MapStyleSource
        from mixsize.ffcv_loaders.decode.samples import as_images

        return MapStyleSource(as_images(cast("ImageDataset", source)))
    if kind in ("split", "saved"):
        data = source if kind == "split" else _saved_split(Path(cast(str, source)), split)
        from mixsize.ffcv_loaders.conversion.data_sets import HuggingFaceSource

        return HuggingFaceSource(data, opening.image_column, opening.label_column)
    place = cast("str | os.PathLike[str]", source)
    if kind in ("folder", "shards"):
        with _listing(place, opening.progress) as bar:
            if kind == "shards":
                return ShardSource(find_shards(place), bar.update)
            return open_folder(place, opening.follow_links, bar.update)
    name = str(place)
    if split is None:
        raise SourceError(f"{name}: needs --split {' or '.join(SPLITS)}, or a folder as OUT for both")
    if split not in SPLITS:
        raise SourceError(f"--split {split}: must be {' or '.join(SPLITS)}")
    if kind == "digits":
        return open_digits(split)
    if opening.root is None:
        raise SourceError(f"{name}: needs --root, the folder that holds its files or that --download puts them into")
    return open_cifar(name, opening.root, split, opening.download)


def find_splits(source: Place | Mapping[str, Place], follow_links: bool = False) -> dict[str, tuple[Place, str | None]]:
    """The splits of a source, each with the source and the split that :func:`open_source` takes; empty without any.

    Raises:
        SourceError: a split folder that is a link out of its folder, and ``follow_links`` is off.
    """
    if isinstance(source, Mapping):
        return {str(name): (data, None) for name, data in source.items()}
    if not isinstance(source, str | os.PathLike):
        return {}
    if str(source) in BUILT_IN:
        return {split: (source, split) for split in SPLITS}
    if (Path(source) / _SAVED_SPLITS).is_file():
        return {split: (source, split) for split in _load_saved(Path(source))}
    return {split: (folder, None) for split, folder in find_split_folders(source, follow_links).items()}


def _kind(source: object) -> str:
    if not isinstance(source, str | os.PathLike):
        from mixsize.ffcv_loaders.decode.hugging_face import is_split

        return "split" if is_split(source) else "data set"
    if str(source) in BUILT_IN:
        return "cifar" if str(source) in _CIFAR else "digits"
    if any((Path(source) / name).is_file() for name in (_SAVED_SPLIT, _SAVED_SPLITS)):
        return "saved"
    return "shards" if find_shards(source) else "folder"


def _saved_split(folder: Path, split: str | None) -> Any:
    saved = _load_saved(folder)
    if not isinstance(saved, Mapping):
        if split is not None:
            raise SourceError(f"--split {split}: {folder} holds one split, without a name")
        return saved
    if split not in saved:
        given = "needs --split, one of" if split is None else f"has no split {split}; it has"
        raise SourceError(f"{folder}: {given} {some(saved)}, or a folder as OUT for all")
    return saved[split]


def _load_saved(folder: Path) -> Any:
    from datasets import load_from_disk

    try:
        return load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{folder}: is damaged, or no data set that save_to_disk wrote: {one_line(error)}") from error


def _listing(place: str | os.PathLike[str], progress: bool) -> tqdm:
    """A bar that counts images, and goes when it is done."""
    return tqdm(
        unit=" img",
        desc=f"listing {Path(place).name}",
        file=sys.stderr,
        leave=False,
        delay=_SECONDS_WITHOUT_BAR,
        disable=not progress,
    )
