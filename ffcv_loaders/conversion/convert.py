"""Convert images to ``.beton`` files: the function and the ``mixsize convert`` command.

Example::

    mixsize convert digits data/digits                      # train.beton and test.beton
    mixsize convert path/to/imagenet/train data/train.beton --max-side 500 --levels 2,4
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mixsize.ffcv_loaders.beton.info import BetonInfo
from mixsize.ffcv_loaders.beton.levels import DENOMINATORS, MAX_SHARE, MIN_SIDE, level_side
from mixsize.ffcv_loaders.conversion.encode import DEFAULT_QUALITY, RAW_UP_TO, STORES, Encoding
from mixsize.ffcv_loaders.conversion.opening import Opening, Place, find_splits, in_words, open_source
from mixsize.ffcv_loaders.conversion.sources import ArraySource, FolderSource, Source, check_same_classes
from mixsize.ffcv_loaders.conversion.writer import ConvertError, check_destination, write_beton

_LISTED = 20


def convert(
    source: Place,
    out: str | os.PathLike[str],
    *,
    store: str = "auto",
    quality: int | None = None,
    max_side: int | None = None,
    levels: Sequence[int] = (),
    shuffle: int | None = None,
    skip_broken: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool = True,
    split: str | None = None,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    follow_links: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> BetonInfo:
    """Write one ``.beton`` file.

    Args:
        source: a folder with one sub-folder a class; ``cifar10``, ``cifar100`` or ``digits`` (a folder of one of these
            names is written ``./digits``); a data set of Hugging Face's ``datasets``, itself or the folder that
            ``save_to_disk`` wrote; shards of WebDataset, as a folder or as ``train-{000000..000146}.tar``; or any
            map-style data set of pairs (image, label), as torchvision's.
        out: the file to write, ending in ``.beton``.
        store: ``raw`` pixels, ``jpg``, or ``auto``: raw up to 64 x 64 pixels in area, JPEG above.
        quality: JPEG quality 1..100 (default 90) of images that must be encoded, with 4:2:0 chroma subsampling. JPEG
            files that need no change keep their bytes.
        max_side: shrink images whose longer side exceeds this many pixels.
        levels: smaller copies to store beside each JPEG: 2 for half its sides, 4 for a quarter, 8 for an eighth, in
            ascending order. The loader decodes them where they suffice. A copy is left out where its shorter side would
            be below 32 px, or where it would take more than three quarters of the bytes of the next larger one.
        shuffle: store the samples in a random order drawn from this seed, for loaders that read in quasi-random order;
            by default in the source's, class after class.
        skip_broken: leave out images that cannot be used, and say so on stderr.
        overwrite: replace ``out`` where it exists.
        workers: processes; default: one for each core.
        progress: show a progress bar on stderr.
        split: ``train`` or ``test`` of the named sources, or a split of a saved data set that has several; needed
            there.
        root: folder of the CIFAR files; for ``cifar10`` and ``cifar100`` only, and needed there.
        download: fetch the CIFAR files into ``root`` where they are missing.
        follow_links: follow symbolic links that lead out of the source folder; by default they are an error.
        image_column: of a Hugging Face data set with several columns of images, the one to take.
        label_column: of a Hugging Face data set with several columns of class labels, the one to take.

    Returns:
        The facts that the file keeps about its images.

    Raises:
        ValueError: the source, an option or an image cannot be used, an option does not apply, or ``out`` cannot be
            written. The message names what to change; nothing is left under the final name.

    Class folders without images are passed over, and so are images of kinds that are not converted (GIF, AVIF); a line
    on stderr says so. A link that leads nowhere counts as a broken image. EXIF orientation is ignored, as torchvision
    and timm ignore it.

    The JPEG files of a folder, of shards and of a Hugging Face data set keep their bytes. A map-style data set gives
    pixels, which are encoded anew, and is read in this process alone.

    Example:
        >>> info = convert("train", "copy.beton", store="jpg", levels=(2,), progress=False)
        >>> info.classes
        ('cat', 'dog')
    """
    options = _Options(skip_broken, overwrite, workers, progress, shuffle)
    encoding = _encoding(store, quality, max_side, levels)
    check_destination(out, overwrite)
    opening = Opening(root, download, follow_links, image_column, label_column, progress)
    opened = open_source(source, split, opening)
    _refuse_idle_options(opened, encoding, quality)
    return _write(opened, Path(out), encoding, options)


def convert_splits(
    source: Place | Mapping[str, Place],
    out: str | os.PathLike[str],
    *,
    store: str = "auto",
    quality: int | None = None,
    max_side: int | None = None,
    levels: Sequence[int] = (),
    shuffle: int | None = None,
    skip_broken: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool = True,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    follow_links: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> dict[Path, BetonInfo]:
    """Write one ``.beton`` file for each split of a source into the folder ``out``, named after the split.

    The source is ``cifar10``, ``cifar100``, ``digits``, a folder whose sub-folders are named ``train``, ``test``,
    ``val`` or ``valid``, each with one sub-folder a class, the folder of a saved ``datasets.DatasetDict``, or a mapping
    of splits to sources, as a ``DatasetDict`` is. ``out`` is made where it is missing. The options are those of
    :func:`convert`.

    Returns:
        The facts that each file keeps about its images, by the file's path.

    Raises:
        ValueError: as for :func:`convert`, or the splits do not hold the same classes. All sources are opened, and all
            files to write are checked, before the first is written.
    """
    out = Path(out)
    if out.suffix == ".beton" or (out.exists() and not out.is_dir()):
        raise ConvertError(f"{out}: splits are written into a folder, not into a file")
    options = _Options(skip_broken, overwrite, workers, progress, shuffle)
    encoding = _encoding(store, quality, max_side, levels)
    opening = Opening(root, download, follow_links, image_column, label_column, progress)
    splits = find_splits(source, follow_links)
    if not splits:
        open_source(cast(Place, source), None, opening)  # It raises where the source cannot be used at all.
        raise ConvertError(
            f"{out}: {in_words(source)} has no train and test folders, so the file to write must end in .beton"
        )
    for split in splits:
        if Path(split).name != split:
            raise ConvertError(f"{in_words(source)}: has a split named {split}, which is no name of a file")
        check_destination(out / f"{split}.beton", overwrite)
    sources = {split: open_source(place, name, opening) for split, (place, name) in splits.items()}
    check_same_classes(sources)
    for opened in sources.values():
        _refuse_idle_options(opened, encoding, quality)
    files = {out / f"{split}.beton": opened for split, opened in sources.items()}
    return {file: _write(opened, file, encoding, options) for file, opened in files.items()}


@dataclass(frozen=True)
class _Options:
    """How a file is written, whatever is in it."""

    skip_broken: bool
    overwrite: bool
    workers: int | None
    progress: bool
    shuffle: int | None


def _encoding(store: str, quality: int | None, max_side: int | None, levels: Sequence[int]) -> Encoding:
    encoding = Encoding(store, DEFAULT_QUALITY if quality is None else quality, max_side, tuple(levels))
    if store == "raw" and quality is not None:
        raise ConvertError("--quality has no effect with --store raw: nothing is encoded as JPEG")
    if store == "raw" and levels:
        raise ConvertError("--levels has no effect with --store raw: smaller copies are kept of JPEG images only")
    return encoding


def _refuse_idle_options(source: Source, encoding: Encoding, quality: int | None) -> None:
    if not isinstance(source, ArraySource):
        return
    height, width = encoding.size_of(*source.pixels.shape[1:3])
    is_jpeg = encoding.is_jpeg(height, width)
    if encoding.levels and not (is_jpeg and level_side(min(height, width), encoding.levels[0]) >= MIN_SIDE):
        raise ConvertError(
            f"--levels has no effect here: JPEG images have smaller copies, of at least {MIN_SIDE} px on the shorter"
            f" side, and images of {source.kind} have {height} x {width}"
        )
    if quality is not None and not is_jpeg:
        raise ConvertError(
            f"--quality has no effect here: --store auto keeps images of up to {RAW_UP_TO} pixels raw, and those of"
            f" {source.kind} have {height} x {width}; add --store jpg"
        )


def _write(source: Source, out: Path, encoding: Encoding, options: _Options) -> BetonInfo:
    if isinstance(source, FolderSource):
        for line in source.passed_over:
            print(line, file=sys.stderr)
    try:
        info, broken = write_beton(source, out, encoding, **vars(options))
    except KeyboardInterrupt:
        older = "; the older file stays" if out.exists() else ""
        print(f"{out}: not written, and nothing of it is left{older}", file=sys.stderr)
        raise
    for name, reason in list(broken.items())[:_LISTED]:
        print(f"{out}: left out {name}: {reason}", file=sys.stderr)
    if len(broken) > _LISTED:
        print(f"{out}: left out {len(broken) - _LISTED} more images", file=sys.stderr)
    return info


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``mixsize convert``."""
    parser.description = (
        "Convert images to FFCV's .beton format. Every image is decoded once to check it, and the mean and standard"
        " deviation of the pixels are kept in the file. EXIF orientation is ignored, as torchvision and timm ignore it."
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder with one sub-folder a class; a folder of such folders named train and test (or val, valid); one"
        " of cifar10, cifar100, digits (a folder of such a name: ./digits); a data set that Hugging Face's save_to_disk"
        " wrote; or shards of WebDataset: a folder of .tar files, or 'train-{000000..000146}.tar' in quotes",
    )
    parser.add_argument("out", metavar="OUT", help="the .beton file to write, or a folder to write all splits into")
    parser.add_argument(
        "--store",
        choices=STORES,
        default="auto",
        help="raw pixels, jpg, or auto: raw up to 64 x 64 pixels in area, jpg above (default: auto)",
    )
    parser.add_argument(
        "--quality",
        type=int,
        help=f"JPEG quality of images that must be encoded (default: {DEFAULT_QUALITY}; chroma at half resolution)."
        " JPEG files that need no change keep their bytes",
    )
    parser.add_argument("--max-side", type=int, metavar="PX", help="shrink images whose longer side exceeds this")
    parser.add_argument(
        "--levels",
        metavar="D,...",
        help="store smaller copies beside each JPEG, which decode faster where they suffice: 2 for half the sides, 2,4"
        f" for half and quarter; of {', '.join(map(str, DENOMINATORS))}, ascending (default: none). 2,4 takes a fifth"
        " to a good third more space",
    )
    parser.add_argument(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="store samples in random order, which reading in quasi-random order needs (default: class after class)",
    )
    parser.add_argument("--skip-broken", action="store_true", help="leave out images that cannot be used")
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="follow symbolic links that lead out of the source folder (default: they are an error)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    parser.add_argument("--split", help="which part of cifar10, cifar100, digits (train, test), or of a saved data set")
    parser.add_argument("--root", metavar="FOLDER", help="where the files of cifar10 or cifar100 are")
    parser.add_argument("--download", action="store_true", help="fetch cifar10 or cifar100 into --root if missing")
    for what in ("image", "label"):
        parser.add_argument(
            f"--{what}-column", metavar="NAME", help=f"which {what} column of a saved data set, where it has several"
        )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Convert with the parsed options of :func:`add_arguments`.

    Returns:
        A function that prints :func:`summary` of each file written and returns the exit status, 0.

    Raises:
        ValueError: as :func:`convert` does; the message is meant for the user.
    """
    options = {
        "store": args.store,
        "quality": args.quality,
        "max_side": args.max_side,
        "levels": _denominators(args.levels),
        "shuffle": args.shuffle,
        "skip_broken": args.skip_broken,
        "overwrite": args.overwrite,
        "workers": args.workers,
        "progress": not args.no_progress,
        "root": args.root,
        "download": args.download,
        "follow_links": args.follow_links,
        "image_column": args.image_column,
        "label_column": args.label_column,
    }
    out = Path(args.out)
    if out.suffix != ".beton" and args.split is None:
        written = convert_splits(args.source, out, **options)
    else:
        written = {out: convert(args.source, out, split=args.split, **options)}

    def show() -> int:
        for file, info in written.items():
            print(summary(file, info))
        return 0

    return show


def _denominators(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConvertError(f"--levels {text}: must be whole numbers separated by commas, such as 2,4") from None


def summary(file: Path, info: BetonInfo) -> str:
    """A line about a file that was written, and one about each level below the full images."""

    def numbers(values: tuple[float, ...]) -> str:
        return " ".join(f"{value:.4f}" for value in values)

    size = "x".join(map(str, info.min_size))
    if info.min_size != info.max_size:
        size += " to " + "x".join(map(str, info.max_size))
    lines = [
        f"{file}: {sum(info.counts):,} images, {len(info.classes)} classes, {size} px (height x width),"
        f" mean {numbers(info.mean)}, std {numbers(info.std)}, {len(info.skipped)} left out"
    ]
    for level in info.levels[1:]:
        if not level.images:
            lines.append(
                f"  level 1/{level.denominator}: no images. Smaller copies are kept of images stored as JPEG, where"
                f" they have {MIN_SIDE} px or more on the shorter side and take at most {MAX_SHARE:.0%} of the bytes of"
                f" the next larger copy; --store auto stores images of up to {RAW_UP_TO} pixels raw"
            )
            continue
        share = 100 * level.num_bytes / info.levels[0].num_bytes
        size = f"{level.num_bytes:,} bytes, {share:.1f} % of the full images'"
        lines.append(f"  level 1/{level.denominator}: {level.images:,} images, {size}")
    return "\n".join(lines)
