"""What the method costs and gives on a GPU, part by part; ``gpu.md`` beside this file says what each figure means.

Parts are measured in units, whose figures are kept as each ends. When the time is used up the bench stops between two
of them; the same command goes on with those that are left.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from mixsize.bench.gpu.dry_data import write_dry_data
from mixsize.bench.gpu.part import Bench, Part, PartTable, Unit
from mixsize.bench.gpu.record import Figures, GpuRecord, PartRecord, UnitRecord, read_gpu_record, write_gpu_record
from mixsize.bench.gpu.report import PARTS, left_over, part_named, part_table, targets_table
from mixsize.bench.gpu.training import CLASSES
from mixsize.bench.result_files import result_path
from mixsize.display.console import plain_console, print_table
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.records.environment import environment, source_version
from mixsize.system.ranks import default_threads

#: The record, in the bench's folder.
RECORD_FILE = "gpu.json"
_CIFAR_FILES = ("train.beton", "test.beton")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench gpu``."""
    parser.add_argument(
        "items",
        nargs="*",
        metavar="ITEM",
        help="further items for the CIFAR-10 runs, as for mixsize train: execution.network=cuda_graphs",
    )
    names = ", ".join(part.name for part in PARTS)
    parser.add_argument("--part", action="append", metavar="NAME", help=f"measure this part, of {names} (repeatable)")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, to try the bench itself")
    parser.add_argument(
        "--minutes", type=float, default=9.0, metavar="M", help="stop before what does not fit in any more (default: 9)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="CIFAR-10's train.beton and test.beton (default: data/cifar10; of a dry run: digits)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FILE.beton",
        help="photographs, read several times over where there are few (default: data/imagenet-sample.beton; of a dry "
        "run: two that come with scikit-learn)",
    )
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="processes of each CIFAR-10 run (default: 1)")
    parser.add_argument(
        "--folder", type=Path, help="where record and runs are kept (default: runs/gpu; of a dry run: runs/gpu-dry-run)"
    )
    parser.add_argument("--restart", action="store_true", help="measure the parts anew that were measured before")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="result file (default: bench/results/ with hardware and date; of a dry run: none)",
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Check options, files and what was measured before; what is returned measures."""
    parts = [part for part in PARTS if part.name in {part_named(name).name for name in args.part or _names(PARTS)}]
    if not args.minutes > 0:
        raise ValueError(f"--minutes is {args.minutes:g}; it must be above 0")
    if args.ranks < 1:
        raise ValueError(f"--ranks is {args.ranks}; it must be at least 1")
    if not args.dry_run and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU here; --dry-run tries the bench on the CPU, with tiny shapes")
    folder = args.folder or Path("runs/gpu-dry-run" if args.dry_run else "runs/gpu")
    dry_data = write_dry_data(folder / "data") if args.dry_run and None in (args.data, args.images) else None
    bench = Bench(
        device=torch.device("cpu") if args.dry_run else torch.device("cuda", torch.cuda.current_device()),
        dry_run=args.dry_run,
        folder=folder,
        cifar=args.data or (dry_data.cifar if dry_data else Path("data/cifar10")),
        images=args.images or (dry_data.images if dry_data else Path("data/imagenet-sample.beton")),
        threads=default_threads(),
        ranks=args.ranks,
        items=(*args.items, "output.restart=true") if args.restart else tuple(args.items),
    )
    _check_files(parts, bench)
    record = _record_so_far(folder / RECORD_FILE, args.dry_run)
    if args.restart:
        kept = {name: part for name, part in record.parts.items() if name not in _names(parts)}
        record = record.model_copy(update={"parts": kept})
    session = Session(record, folder / RECORD_FILE, [(part, part.units(bench)) for part in parts], plain_console())

    def measured() -> int:
        session.measure(60 * args.minutes)
        session.report()
        out = args.out or (None if args.dry_run else result_path("gpu"))
        if out is not None:
            write_gpu_record(out, session.record)
            session.console.print(f"result: {out}", soft_wrap=True)
        return 1 if session.failed else 0

    return measured


class Session:
    """Measures what a record lacks.

    Args:
        record: as far as earlier sessions came.
        file: where it is kept.
        parts: with their units, in order.
        console: what is being done goes there.
    """

    def __init__(
        self, record: GpuRecord, file: Path, parts: Sequence[tuple[Part, Sequence[Unit]]], console: Console
    ) -> None:
        self.record = record
        self.console = console
        #: Units that failed in this session, as ``part: unit``.
        self.failed: list[str] = []
        self._file = file
        self._parts = parts
        self._source = source_version()

    @property
    def pending(self) -> list[tuple[Part, Unit]]:
        """What has no figures yet."""
        return [(part, unit) for part, units in self._parts for unit in units if unit.name not in self._figures(part)]

    def measure(self, seconds: float) -> None:
        """Measure unit after unit, but for those that what is left of the time does not suffice for.

        The first one begins whatever the time, so that every session gets on. A unit that fails is noted with its
        error, and the next session tries it again.

        Args:
            seconds: for all of them.
        """
        began = time.monotonic()
        for number, (part, unit) in enumerate(self.pending):
            left = seconds - (time.monotonic() - began)
            if number and left < self._expected(part, unit):
                continue
            self.console.print(f"{part.name}: {unit.name}", highlight=False, markup=False)
            self._keep(part, unit, self._run(part, unit))

    def report(self) -> None:
        """The tables of the parts, what is left, and last the targets."""
        for part, _ in self._parts:
            if self._figures(part):
                self._print(part_table(self.record, part.name))
        for name in self.failed:
            self.console.print(f"failed: {name}", highlight=False, markup=False, soft_wrap=True)
        self._print(targets_table(self.record))
        left = [f"{part.name} ({unit.name})" for part, unit in self.pending]
        if left:
            self.console.print(
                f"{len(left)} units are left: {left_over(left)}. The same command, without --restart, goes on.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def _print(self, table: PartTable) -> None:
        print_table(self.console, table.head, table.rows, notes=table.notes)

    def _run(self, part: Part, unit: Unit) -> UnitRecord:
        began = time.monotonic()
        figures: Figures | None = None
        error = None
        try:
            figures = unit.measure()
        except Exception as failure:  # What one unit meets must not cost the others their time on the machine.
            error = f"{type(failure).__name__}: {failure}"
            self.failed.append(f"{part.name}: {unit.name}: {error}")
        finally:
            _free()
        commit, dirty = self._source
        return UnitRecord(seconds=time.monotonic() - began, commit=commit, dirty=dirty, figures=figures, error=error)

    def _keep(self, part: Part, unit: Unit, found: UnitRecord) -> None:
        (names,) = ([unit.name for unit in units] for mine, units in self._parts if mine is part)
        before = self.record.parts[part.name].units if part.name in self.record.parts else {}
        units = {**before, unit.name: found}
        units = {name: units[name] for name in (*names, *before) if name in units}
        complete = all(name in units and units[name].figures is not None for name in names)
        parts = {**self.record.parts, part.name: PartRecord(complete=complete, units=units)}
        self.record = self.record.model_copy(
            update={"measured": _now(), "parts": {name: parts[name] for name in _names(PARTS) if name in parts}}
        )
        write_gpu_record(self._file, self.record)

    def _figures(self, part: Part) -> dict[str, Figures]:
        known = self.record.parts.get(part.name)
        return {} if known is None else known.figures

    def _expected(self, part: Part, unit: Unit) -> float:
        """Seconds that a unit may take: as long as the longest of its part did, where one has ended."""
        if self.record.dry_run:
            return 0.0
        known = self.record.parts.get(part.name)
        taken = [found.seconds for found in known.units.values() if found.figures is not None] if known else []
        return max(taken, default=unit.seconds)


def _check_files(parts: Sequence[Part], bench: Bench) -> None:
    reads = frozenset[str]().union(*(part.reads for part in parts))
    if "images" in reads:
        if not bench.images.is_file():
            raise ValueError(
                f"--images: {bench.images} is not there; write it with mixsize convert path/to/images {bench.images}"
            )
        with Beton.open(bench.images) as beton:
            beton.check_labels(CLASSES)
            if not beton.is_jpeg.all():
                raise ValueError(f"--images: {bench.images} holds raw pixels; decoding is timed from JPEGs")
    missing = [name for name in _CIFAR_FILES if not (bench.cifar / name).is_file()]
    if "cifar" in reads and missing:
        raise ValueError(
            f"--data: {bench.cifar / missing[0]} is not there; write it with mixsize convert cifar10 {bench.cifar} "
            "--root path/to/cifar --download"
        )


def _record_so_far(file: Path, dry_run: bool) -> GpuRecord:
    """The record in a folder, or an empty one.

    Raises:
        ValueError: a record of another machine or other versions, or a dry run's beside a real one.
    """
    here = environment(1)
    if not file.exists():
        return GpuRecord(measured=_now(), dry_run=dry_run, environment=here)
    record = read_gpu_record(file)
    if record.dry_run != dry_run:
        kinds = ("a dry run", "measured on a GPU") if record.dry_run else ("measured on a GPU", "a dry run")
        raise ValueError(f"{file}: is of {kinds[0]}, this is {kinds[1]}; give another --folder")
    before, now = record.environment.model_dump(), here.model_dump()
    differing = [f"{key} {before[key]} (here {now[key]})" for key in now if before[key] != now[key]]
    if differing:
        raise ValueError(f"{file}: was measured elsewhere: {', '.join(differing)}; give another --folder")
    return record


def _free() -> None:
    """Give back what a unit held: networks, their compiled code and graphs, memory of the device."""
    if "torch._dynamo" in sys.modules:
        # Compilations count against a limit by the code of a class, whichever network they were for.
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _names(parts: Sequence[Part]) -> list[str]:
    return [part.name for part in parts]


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
