"""The loader on a file larger than memory: images a second and bytes read, beside the same file in memory and FFCV.

Each loader runs in processes of its own, under a control group that limits their memory, page cache included, so root
is needed. The file's pages are dropped from memory before each.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixsize.bench.result_files import keep_result
from mixsize.display.console import plain_console, print_table
from mixsize.display.markdown import markdown_table
from mixsize.ffcv_loaders.beton.levels import field_name
from mixsize.ffcv_loaders.beton.reader import Beton

_BATCH = 64
_WARM_UP_BATCHES = 2

#: What is measured: label -> loader, ranks, whether memory is limited.
CASES = {
    "in memory, random order": ("random", 1, False),
    "random order": ("random", 1, True),
    "random order, 2 ranks": ("random", 2, True),
    "quasi-random order": ("quasi-random", 1, True),
    "quasi-random order, 2 ranks": ("quasi-random", 2, True),
    "random order, without asking ahead": ("unasked", 1, True),
    "FFCV, random order, page cache": ("ffcv random", 1, True),
    "FFCV, quasi-random order, process cache": ("ffcv quasi-random", 1, True),
}


@contextlib.contextmanager
def memory_limit(mebibytes: int) -> Iterator[Path]:
    """A control group of so much memory, as the file that process numbers are written to.

    Raises:
        OSError: there are no control groups here, or this user may not make one.
    """
    root = Path("/sys/fs/cgroup")
    is_v1 = (root / "memory").is_dir()
    group = (root / "memory" if is_v1 else root) / f"mixsize-bench-{os.getpid()}"
    group.mkdir()
    try:
        limit = group / ("memory.limit_in_bytes" if is_v1 else "memory.max")
        limit.write_text(str(mebibytes << 20), encoding="ascii")
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def run(case: str, data: Path, size_px: int, images: int, threads: int, limit_mib: int, window_mib: int) -> dict:
    """Images a second and KiB read for each, over all ranks."""
    loader, ranks, limited = CASES[case]
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(memory_limit(limit_mib)) if limited else None
        queue, start = context.Queue(), context.Barrier(ranks)
        arguments = (group, data, loader, size_px, images // ranks, max(1, threads // ranks), window_mib)
        workers = [
            context.Process(target=_work, args=(queue, start, rank, ranks, *arguments), daemon=False)
            for rank in range(ranks)
        ]
        _drop_from_memory(data, read_first=not limited)
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RuntimeError(f"{case}: a process ended with exit code {[worker.exitcode for worker in workers]}")
        found = [queue.get() for _ in workers]
    served = sum(count for count, _, _ in found)
    return {
        "images_per_second": served / max(seconds for _, seconds, _ in found),
        "kib_per_image": sum(read for _, _, read in found) / served / 1024,
        "images": served,
    }


def _drop_from_memory(data: Path, read_first: bool) -> None:
    with open(data, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while read_first and file.read(1 << 24):
            pass


def _work(queue, start, rank, ranks, group, data, loader, size_px, images, threads, window_mib) -> None:
    if group is not None:
        group.write_text(str(os.getpid()), encoding="ascii")
    batches = iter(_batches(loader, data, size_px, threads, window_mib, rank, ranks))
    for _ in range(_WARM_UP_BATCHES):
        next(batches)
    start.wait()
    served, read, begun = 0, _bytes_read(), time.perf_counter()
    for batch in batches:
        served += len(batch[1])
        if served >= images:
            break
    queue.put((served, time.perf_counter() - begun, _bytes_read() - read))


def _batches(loader: str, data: Path, size_px: int, threads: int, window_mib: int, rank: int, ranks: int):
    if loader.startswith("ffcv"):
        return _ffcv(loader, data, size_px, threads)
    from mixsize.algorithms.regime.regime import Base, Regime
    from mixsize.ffcv_loaders import MixSizeLoader
    from mixsize.ffcv_loaders.pipeline import readahead

    if loader == "unasked":
        readahead.HAS_FADVISE = False
    return MixSizeLoader(
        data,
        Regime.fixed(Base(size_px, _BATCH * ranks)),
        num_workers=threads,
        window_mib=window_mib if loader == "quasi-random" else None,
        device="cpu",
        rank=rank,
        world_size=ranks,
    )


def _ffcv(loader: str, data: Path, size_px: int, threads: int):
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    from mixsize.ffcv_loaders.pipeline.staging import IMAGENET_MEAN, IMAGENET_STD

    mean, std = 255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD)
    head = [RandomResizedCropRGBImageDecoder((size_px, size_px)), RandomHorizontalFlip()]
    quasi_random = loader == "ffcv quasi-random"
    with Beton.open(data) as beton:
        copies = [field_name(denominator) for denominator in (beton.info.denominators if beton.info else ())]
    return Loader(
        str(data),
        batch_size=_BATCH,
        num_workers=threads,
        order=OrderOption.QUASI_RANDOM if quasi_random else OrderOption.RANDOM,
        os_cache=not quasi_random,
        batches_ahead=2,
        pipelines={
            "image": [*head, NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor()],
            **dict.fromkeys(copies),
        },
    )


def _bytes_read() -> int:
    rows = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("read_bytes"))


def storage_table(result: dict[str, Any]) -> str:
    """The table of a ``mixsize bench storage`` result."""
    return markdown_table(*table(result)) + f"\n{note(result)}\n"


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows."""
    head = ["loader", "images/s", "read for an image"]
    rows = []
    for case, runs in result["cases"].items():
        if not runs:
            rows.append([case, "did not run", ""])
            continue
        rates = [row["images_per_second"] for row in runs]
        read = np.median([row["kib_per_image"] for row in runs])
        rows.append([case, f"{np.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})", f"{read:,.0f} KiB"])
    return head, rows


def note(result: dict[str, Any]) -> str:
    """What the table's figures are."""
    setting = result["setting"]
    return (
        f"Views of {setting['size_px']} px from a file of {setting['bytes'] / 2**20:,.0f} MiB ({setting['samples']:,} "
        f"images, {setting['levels']} stored resolutions, {setting['kib_per_image']:.0f} KiB each), by processes "
        f"limited to {setting['limit_mib']:,} MiB but in the first row; windows of {setting['window_mib']} MiB; "
        f"{setting['threads']} threads in all; kernel read-ahead {setting['read_ahead_kib']} KiB. Median (range) of "
        f"{setting['rounds']} interleaved rounds of {setting['images']:,} images."
    )


def _read_ahead_kib(data: Path) -> int | None:
    device = os.stat(data).st_dev
    for part in ("queue", "../queue"):
        with contextlib.suppress(OSError):
            folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
            return int((folder / part / "read_ahead_kb").read_text(encoding="ascii"))
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench storage``."""
    parser.add_argument("data", type=Path, metavar="DATA.beton", help="a file larger than --limit-mib, shuffled")
    parser.add_argument("--limit-mib", type=int, default=1500, metavar="MIB", help="memory of a loader (default: 1500)")
    parser.add_argument("--window-mib", type=int, default=128, metavar="MIB", help="of quasi-random order")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="side of the views (default: 128)")
    parser.add_argument("--images", type=int, default=6000, metavar="N", help="images of a round (default: 6000)")
    parser.add_argument("--threads", type=int, default=2, help="decoding threads, over all ranks (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--out", type=Path, help="result file; by default in bench/results/ with hardware and date")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Check the options; what is returned measures."""
    for name in ("limit_mib", "window_mib", "size", "images", "threads", "rounds"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    size = args.data.stat().st_size
    if size <= args.limit_mib << 20:
        raise ValueError(f"{args.data} has {size >> 20} MiB; it must be larger than --limit-mib {args.limit_mib}")
    with Beton.open(args.data) as beton:
        if args.images > beton.num_samples // 2:
            raise ValueError(f"--images is {args.images}; it must be at most half the file's {beton.num_samples}")
        samples, levels = beton.num_samples, beton.num_levels
    with memory_limit(args.limit_mib):
        pass  # Where that cannot be had, now is the time to say so.

    def measured() -> int:
        setting = {
            "size_px": args.size,
            "bytes": size,
            "samples": samples,
            "levels": levels,
            "kib_per_image": size / samples / 1024,
            "limit_mib": args.limit_mib,
            "window_mib": args.window_mib,
            "threads": args.threads,
            "images": args.images,
            "rounds": args.rounds,
            "read_ahead_kib": _read_ahead_kib(args.data),
        }
        cases: dict[str, list[dict]] = {case: [] for case in CASES}
        for number in range(args.rounds):
            for case in np.random.default_rng(number).permutation(list(CASES)).tolist():
                try:
                    found = run(case, args.data, args.size, args.images, args.threads, args.limit_mib, args.window_mib)
                except RuntimeError as error:
                    print(error, flush=True)
                    continue
                cases[case].append(found)
                print(f"{number + 1}/{args.rounds} {case}: {found['images_per_second']:,.0f} images/s", flush=True)
        result = {"setting": setting, "cases": cases}
        print_table(plain_console(), *table(result), notes=[note(result)])
        keep_result(args.out, "storage", result)
        return 0

    return measured
