"""WebDataset's shards as a source: tar files whose members of one name, such as 0001.jpg and 0001.cls, are a sample."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixsize.ffcv_loaders.conversion.encode import FilePart, Item, UnusableImage
from mixsize.ffcv_loaders.conversion.sources import (
    IMAGE_EXTENSIONS,
    SourceError,
    numbered,
    printable,
    some,
    wrong_label,
)

#: Where a sample's label stands: a file of its number, or a JSON file with the key "label".
LABEL_FILES = ("cls", "json")
#: A label's file is read into memory as it is listed.
_MAX_LABEL_BYTES = 1 << 20
#: As WebDataset splits a member's name: all behind the first dot of the last part is the extension.
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class _Sample:
    name: str
    image: Item
    label: int


class ShardSource:
    """The samples of shards, in the order in which they stand there.

    Listing reads the members' names and the labels. An image's bytes stay where they are until it is encoded. Classes
    are named by number, as shards hold no names.

    Args:
        shards: tar files, without compression.
        listed: called with 1 for each sample, as it is listed.
    """

    kind = "WebDataset shards"

    def __init__(self, shards: Sequence[Path], listed: Callable[[int], object] = lambda samples: None) -> None:
        self._samples: list[_Sample] = []
        for shard in shards:
            for sample in _list_shard(shard):
                self._samples.append(sample)
                listed(1)
        labels = (sample.label for sample in self._samples if not isinstance(sample.image, UnusableImage))
        self.classes = numbered(max(labels, default=-1) + 1)

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, index: int) -> str:
        """Shard and sample, as in ``train-000000.tar/0017``; the shard alone for what is lost of a damaged one."""
        return self._samples[index].name

    def sample(self, index: int) -> tuple[Item, int]:
        """Where the image's file lies, and the label."""
        return self._samples[index].image, self._samples[index].label


def find_shards(source: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The shards that a source names; none where it names something else.

    Args:
        source: a .tar file, names of some as in ``train-{000000..000146}.tar``, or a folder that holds .tar files and
            no folders.

    Raises:
        SourceError: names a file that does not exist, a range that falls, or a folder of shards of several kinds.
    """
    path = Path(source)
    if path.is_dir():
        entries = list(path.iterdir())
        shards = sorted(entry for entry in entries if entry.suffix == ".tar")
        if any(entry.is_dir() for entry in entries):
            return ()
        kinds = {re.sub(r"\d+", "*", shard.name) for shard in shards}
        if len(kinds) > 1:
            raise SourceError(
                f"{path}: holds shards of several kinds ({some(sorted(kinds))}); name those of one split, for instance "
                f"'{path}/train-{{000000..000146}}.tar'"
            )
        return tuple(shards)
    if path.suffix != ".tar":
        return ()
    shards = tuple(map(Path, _expanded(str(source))))
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if missing:
        raise SourceError(f"no such file: {some(missing)}")
    return shards


def _expanded(names: str) -> Iterator[str]:
    """All names of a pattern, the last range rising fastest."""
    match = _RANGE.search(names)
    if match is None:
        yield names
        return
    first, last = match.groups()
    if int(first) > int(last):
        raise SourceError(f"{names}: the range {match[0]} must rise")
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{names[: match.start()]}{number:0{len(first)}}{names[match.end() :]}")


def _list_shard(shard: Path) -> Iterator[_Sample]:
    """The samples of a shard, and a last one without an image where its end is damaged or missing."""
    name = printable(shard.name)
    key, members = None, {}
    damage = None
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                match = _MEMBER.fullmatch(member.name)
                if not member.isfile() or match is None or member.name.startswith("__"):
                    continue
                if match[1] != key:
                    if key is not None:
                        yield _sample(f"{name}/{printable(key)}", members)
                    key, members = match[1], {}
                label_file = match[2].lower() in LABEL_FILES and member.size <= _MAX_LABEL_BYTES
                content = archive.extractfile(member) if label_file else None
                read = None if content is None else content.read()
                members[match[2].lower()] = (FilePart(str(shard), member.offset_data, member.size), read)
            # tarfile takes a damaged or missing header behind the first for the end, which is a block of zeros.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                damage = f"is cut short or damaged at byte {archive.offset}"
    except (tarfile.TarError, OSError) as error:
        damage = f"cannot be read as a .tar file: {getattr(error, 'strerror', None) or error}"
    if key is not None:
        yield _sample(f"{name}/{printable(key)}", members)
    if damage is not None:
        yield _Sample(name, UnusableImage(f"{damage}; what follows is lost"), 0)


def _sample(name: str, members: dict[str, tuple[FilePart, bytes | None]]) -> _Sample:
    images = [kind for kind in members if f".{kind}" in IMAGE_EXTENSIONS]
    if len(images) != 1:
        held = ", ".join(members)
        return _Sample(name, UnusableImage(f"has {len(images) or 'no'} images (it holds {held})"), 0)
    try:
        label = _label({kind: members[kind][1] for kind in LABEL_FILES if kind in members})
    except ValueError as error:
        return _Sample(name, UnusableImage(str(error)), 0)
    wrong = wrong_label(label, None)
    if wrong is not None:
        return _Sample(name, UnusableImage(wrong), 0)
    return _Sample(name, members[images[0]][0], label)


def _label(files: dict[str, bytes | None]) -> int:
    """The number in ``cls``, else under "label" in ``json``."""
    if not files:
        raise ValueError("has no label: neither a .cls file nor a .json file")
    kind, content = next(iter(files.items()))
    try:
        label = int(content or b"") if kind == "cls" else json.loads(content or b"")["label"]
        if not isinstance(label, int) or isinstance(label, bool):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        expected = "a class number" if kind == "cls" else 'a class number under "label"'
        raise ValueError(f"has no label: its .{kind} file does not hold {expected}") from None
    return label
