"""A file that does not fit into memory: the loader reads little more of it than the images it serves."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.ffcv_loaders import MixSizeLoader
from mixsize.ffcv_loaders.conversion.encode import Encoding
from mixsize.ffcv_loaders.conversion.sources import ArraySource
from mixsize.ffcv_loaders.conversion.writer import write_beton

IMAGES, SIDE_PX = 12_000, 256
#: Of 2.2 GiB of pixels. An idle process with PyTorch takes about a third.
LIMIT_MIB = 1200
SERVED = 3000


@contextmanager
def memory_limit(mebibytes: int):
    """A control group, as the file that process numbers are written to; page cache counts."""
    root = Path("/sys/fs/cgroup")
    is_v1 = (root / "memory").is_dir()
    group = (root / "memory" if is_v1 else root) / f"mixsize-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        (group / ("memory.limit_in_bytes" if is_v1 else "memory.max")).write_text(str(mebibytes << 20))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def bytes_read() -> int:
    rows = Path("/proc/self/io").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("read_bytes"))


def serve(group: Path, file: Path, window_mib: int | None, queue) -> None:
    group.write_text(str(os.getpid()))
    regime = Regime.fixed(Base(64, 60))
    batches = iter(MixSizeLoader(file, regime, window_mib=window_mib, num_workers=2, device="cpu"))
    next(batches)
    before, served = bytes_read(), 0
    while served < SERVED:
        served += len(next(batches)[1])
    queue.put((bytes_read() - before) / served)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.beton"
    image = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    images = np.broadcast_to(image, (IMAGES, *image.shape))
    source = ArraySource(images, np.zeros(IMAGES, int), ("a",), "noise", "train")
    write_beton(source, path, Encoding(store="raw"), workers=1, progress=False)
    return path


@pytest.mark.soak  # Writes a file of 2 GiB and reads a good part of it, twice.
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can limit a process's memory")
@pytest.mark.parametrize("window_mib", [None, 64])
def test_random_and_quasi_random_order_read_hardly_more_than_the_images(file, window_mib):
    assert file.stat().st_size > LIMIT_MIB << 20
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with memory_limit(LIMIT_MIB) as group:
        process = context.Process(target=serve, args=(group, file, window_mib, queue))
        process.start()
        process.join()
    assert process.exitcode == 0
    # A mapping that is read where it is touched takes up to the system's read-ahead, megabytes, for an image.
    assert queue.get() < 2 * SIDE_PX**2 * 3
