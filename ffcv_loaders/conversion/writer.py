"""Write a ``.beton`` file.

Why not FFCV's ``DatasetWriter``: it waits for ever when a worker dies or raises, leaves shared memory behind when it is
killed, writes under the final name from the start, and its bytes depend on which worker was faster. Here workers only
read, check and encode; this process writes what they return, in order, so that a source gives the same bytes for any
number of workers, and the final name only ever holds a whole file.
"""

from __future__ import annotations

import fcntl
import glob
import math
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from mixsize.ffcv_loaders.beton.info import BetonInfo
from mixsize.ffcv_loaders.conversion.encode import EncodedChunk, Encoding, encode_chunk, start_worker
from mixsize.ffcv_loaders.conversion.pages import PageWriter
from mixsize.ffcv_loaders.conversion.sources import Source

CHUNK = 64
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
    skip_broken: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[BetonInfo, dict[str, str]]:
    """Write a source's samples, in order, to ``out``.

    Args:
        source: where the images come from.
        out: the file to write, ending in ``.beton``; its folder is made where it is missing.
        encoding: how images are stored.
        skip_broken: leave unusable images out instead of refusing the source.
        overwrite: replace ``out`` where it exists; until the new file is whole the old one stays.
        workers: processes that read and encode; with 1 it is done in this process. Default: one for each core this
            process may use, at most one for each chunk of 64 images.
        progress: show a progress bar on stderr.

    Returns:
        What was stored beside the samples, and the reason for each image left out, by name.

    Raises:
        ConvertError: ``out`` cannot or must not be written, images are unusable (all of them are checked before the
            error lists them), or a worker died. Nothing is then left under the final name.
    """
    out = Path(out)
    check_destination(out, overwrite)
    total = len(source.labels)
    if total == 0:
        raise ConvertError(f"{out}: the source holds no images")
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), -(-total // CHUNK))
    if workers < 1:
        raise ConvertError(f"workers is {workers}, at least 1 is needed")
    broken: dict[str, str] = {}
    try:
        with _partial_file(out, overwrite) as file:
            pages = PageWriter(file, total, encoding.levels)
            histogram = np.zeros((3, 256), np.int64)
            with (
                closing(_encoded(source, encoding, workers)) as chunks,
                tqdm(total=total, unit="img", desc=out.name, file=sys.stderr, disable=not progress) as bar,
            ):
                for start, chunk in chunks:
                    _add_chunk(pages, source, start, chunk, broken, skip_broken)
                    histogram += chunk.histogram
                    bar.update(len(chunk.results))
            _refuse_broken(broken, total, skip_broken)
            pages.end_page()
            info = _info(source, pages, histogram, tuple(broken))
            pages.finish(info)
    except BrokenProcessPool as error:
        raise ConvertError(
            f"{out}: was not written: a worker process died (killed, out of memory, or, in a script without an"
            ' `if __name__ == "__main__":` guard, unable to start); fewer --workers need less memory'
        ) from error
    except OSError as error:
        raise ConvertError(f"{out}: cannot be written: {error.strerror or error}") from error
    return info, broken


def _add_chunk(
    pages: PageWriter, source: Source, start: int, chunk: EncodedChunk, broken: dict[str, str], skip_broken: bool
) -> None:
    for index, result in enumerate(chunk.results, start):
        if isinstance(result, str):
            broken[source.name(index)] = result
        elif skip_broken or not broken:
            pages.add(result, int(source.labels[index]))


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
def _partial_file(out: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A file beside ``out`` that takes its name at the end of the block, and is removed if the block raises."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(out)
    partial = out.parent / f".{out.name}.{os.getpid()}.partial"
    with open(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666), "w+b") as file:
        try:
            # Held until the file is closed, however this process ends: it tells a later run that the file is in use.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
            check_destination(out, overwrite)
            os.replace(partial, out)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    folder = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove_stale(out: Path) -> None:
    """Remove what conversions to ``out`` left behind that were killed; those still running hold a lock."""
    for partial in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        with open(partial, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            partial.unlink(missing_ok=True)


def _encoded(source: Source, encoding: Encoding, workers: int) -> Iterator[tuple[int, EncodedChunk]]:
    """Results in order, each with the index of its first sample."""
    total = len(source.labels)

    def items(start: int, stop: int) -> list[str | np.ndarray]:
        return [source.item(index) for index in range(start, stop)]

    if workers == 1:
        start = 0
        while start < total:
            chunk = encode_chunk(items(start, min(start + CHUNK, total)), encoding)
            yield start, chunk
            start += len(chunk.results)
        return
    # Not "fork": this process may hold threads (FFCV's, PyTorch's), whose locks a forked child would inherit locked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker)
    waiting: deque[tuple[int, int, Future[EncodedChunk]]] = deque()
    try:
        submitted = 0
        while waiting or submitted < total:
            while submitted < total and len(waiting) < 2 * workers:
                stop = min(submitted + CHUNK, total)
                waiting.append((submitted, stop, pool.submit(encode_chunk, items(submitted, stop), encoding)))
                submitted = stop
            start, stop, future = waiting.popleft()
            chunk = future.result()
            done = start + len(chunk.results)
            if done < stop:
                waiting.appendleft((done, stop, pool.submit(encode_chunk, items(done, stop), encoding)))
            yield start, chunk
    finally:
        pool.shutdown(cancel_futures=True)
