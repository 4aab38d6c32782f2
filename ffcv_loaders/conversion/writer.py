"""Write a ``.beton`` file.

Why not FFCV's ``DatasetWriter``: it waits for ever when a worker dies or raises, leaves shared memory behind when it is
killed, writes under the final name from the start, and its bytes depend on which worker was faster. Here workers only
read, check and encode. This process writes their results in order, so a source gives the same bytes for any number of
workers, and the final name only ever holds a whole file.
"""

from __future__ import annotations

import fcntl
import glob
import math
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from mixsize.ffcv_loaders.beton.info import BetonInfo
from mixsize.ffcv_loaders.conversion.encode import EncodedChunk, Encoding, Item, encode_chunk, start_worker
from mixsize.ffcv_loaders.conversion.pages import PageWriter
from mixsize.ffcv_loaders.conversion.sources import Source
from mixsize.system.files import in_one_piece

#: Images that a worker encodes at a time.
CHUNK = 16
#: Bytes after which the file is brought to disk.
_SYNC_BYTES = 64 << 20
_LISTED = 20


class ConvertError(ValueError):
    """A conversion that cannot be done; the message names the file, folder or option concerned."""


def check_destination(out: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse a file name that cannot be written, or must not be.

    Raises:
        ConvertError: ``out`` does not end in ``.beton``, is a folder, or exists and ``overwrite`` is off.
    """
    out = Path(out)
    if out.suffix != ".beton":
        raise ConvertError(f"{out}: the file to write must end in .beton")
    if out.is_dir():
        raise ConvertError(f"{out}: is a folder, not a file to write")
    if not overwrite and os.path.lexists(out):
        raise ConvertError(f"{out}: exists already; use --overwrite to replace it")


def write_beton(
    source: Source,
    out: str | os.PathLike[str],
    encoding: Encoding,
    *,
    shuffle: int | None = None,
    skip_broken: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[BetonInfo, dict[str, str]]:
    """Write a source's samples to ``out``.

    Args:
        source: where the images come from.
        out: the file to write, ending in ``.beton``; its folder is made where it is missing.
        encoding: how images are stored.
        shuffle: seed of a random order of the samples, at least 0; by default the source's order.
        skip_broken: leave unusable images out instead of refusing the source.
        overwrite: replace ``out`` where it exists; until the new file is whole the old one stays.
        workers: processes that read and encode; with 1 it is done in this process. Default: one for each core this
            process may use, at most one for each chunk of 16 images.
        progress: show a progress bar on stderr.

    Returns:
        The facts stored beside the samples, and the reason for each image left out, by name.

    Raises:
        ConvertError: ``out`` cannot or must not be written, images are unusable (all of them are checked before the
            error lists them), or a worker died. Nothing is then left under the final name.
    """
    out = Path(out)
    check_destination(out, overwrite)
    total = len(source)
    if total == 0:
        raise ConvertError(f"{out}: the source holds no images")
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), -(-total // CHUNK))
    if workers < 1:
        raise ConvertError(f"workers is {workers}; it must be at least 1")
    if shuffle is not None and shuffle < 0:
        raise ConvertError(f"shuffle is {shuffle}; it must be at least 0")
    order = np.arange(total) if shuffle is None else np.random.default_rng(shuffle).permutation(total)
    broken: dict[str, str] = {}
    try:
        with (
            tqdm(total=total, unit="img", desc=out.name, file=sys.stderr, disable=not progress) as bar,
            _new_file(out, overwrite) as file,
        ):
            pages = PageWriter(file, total, encoding.levels)
            histogram = np.zeros((3, 256), np.int64)
            synced = 0
            with closing(_encoded(source, order, encoding, workers)) as chunks:
                for samples, labels, chunk in chunks:
                    for sample, label, result in zip(samples, labels, chunk.results, strict=True):
                        if isinstance(result, str):
                            broken[source.name(sample)] = result
                        elif skip_broken or not broken:
                            pages.add(result, label)
                    histogram += chunk.histogram
                    bar.update(len(chunk.results))
                    if file.tell() - synced >= _SYNC_BYTES:
                        # Else all of it waits for the end, minutes on a slow disk after the bar has reached its own.
                        file.flush()
                        os.fdatasync(file.fileno())
                        synced = file.tell()
            _refuse_broken(broken, total, skip_broken)
            bar.set_description(f"{out.name}, to disk")
            pages.end_page()
            info = _info(source, pages, histogram, tuple(broken))
            pages.finish(info)
    except BrokenProcessPool as error:
        raise ConvertError(
            f"{out}: was not written: a worker process died (killed, out of memory, or, in a script without an"
            ' `if __name__ == "__main__":` guard, unable to start); fewer --workers need less memory'
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).removeprefix("cannot be written: ")
        raise ConvertError(f"{out}: cannot be written: {reason}") from error
    return info, broken


def _refuse_broken(broken: dict[str, str], total: int, skip_broken: bool) -> None:
    if not broken or (skip_broken and len(broken) < total):
        return
    lines = [f"  {name}: {reason}" for name, reason in list(broken.items())[:_LISTED]]
    if len(broken) > _LISTED:
        lines.append(f"  and {len(broken) - _LISTED} more")
    hint = "" if len(broken) == total else "; use --skip-broken to leave them out"
    raise ConvertError("\n".join([f"{len(broken)} of {total} images cannot be used{hint}", *lines]))


def _info(source: Source, pages: PageWriter, histogram: np.ndarray, skipped: tuple[str, ...]) -> BetonInfo:
    mean, std = _mean_and_std(histogram)
    return BetonInfo(
        classes=tuple(source.classes),
        counts=tuple(np.bincount(pages.labels, minlength=len(source.classes)).tolist()),
        mean=mean,
        std=std,
        min_size=tuple(pages.sizes.min(axis=0).tolist()),
        max_size=tuple(pages.sizes.max(axis=0).tolist()),
        source=source.kind,
        skipped=skipped,
        levels=pages.levels,
    )


def _mean_and_std(histogram: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Per channel, on the scale 0..1. In whole numbers up to the last division, so no order of images matters."""
    means, stds = [], []
    for channel in histogram.tolist():
        count = sum(channel)
        first = sum(value * times for value, times in enumerate(channel))
        second = sum(value * value * times for value, times in enumerate(channel))
        means.append(first / (255 * count))
        stds.append(math.sqrt(count * second - first * first) / (255 * count))
    return tuple(means), tuple(stds)


@contextmanager
def _new_file(out: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A file that takes the name ``out`` at the end of the block, and is removed if the block raises."""
    _remove_stale(out)
    with in_one_piece(out) as partial:
        with open(partial, "w+b") as file:
            # Until the file is closed, however this process ends, the lock tells a later run that it is in use.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        check_destination(out, overwrite)


def _remove_stale(out: Path) -> None:
    """Remove what conversions to ``out`` left behind that were killed; those still running hold a lock."""
    for partial in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        with open(partial, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            partial.unlink(missing_ok=True)


def _encoded(
    source: Source, order: np.ndarray, encoding: Encoding, workers: int
) -> Generator[tuple[list[int], list[int], EncodedChunk]]:
    """Chunks in order: indices of the samples, their labels, and their results."""

    def read() -> Iterator[tuple[list[int], list[int], list[Item]]]:
        for start in range(0, len(order), CHUNK):
            samples = order[start : start + CHUNK].tolist()
            items, labels = zip(*map(source.sample, samples), strict=True)
            yield samples, list(labels), list(items)

    if workers == 1:
        for samples, labels, items in read():
            yield samples, labels, encode_chunk(items, encoding)
        return
    # Not "fork": this process may hold threads (PyTorch's), whose locks a forked child would inherit locked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker)
    waiting: deque[tuple[list[int], list[int], Future[EncodedChunk]]] = deque()
    try:
        for samples, labels, items in read():
            waiting.append((samples, labels, pool.submit(encode_chunk, items, encoding)))
            # A bound on the results that wait in memory.
            if len(waiting) >= 2 * workers:
                samples, labels, future = waiting.popleft()
                yield samples, labels, future.result()
        for samples, labels, future in waiting:
            yield samples, labels, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
