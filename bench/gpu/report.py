"""Tables of ``mixsize bench gpu``: of each part, and of the targets."""

from __future__ import annotations

from collections.abc import Sequence

from mixsize.bench.gpu import algorithms as gpu_algorithms
from mixsize.bench.gpu import calibration as gpu_calibration
from mixsize.bench.gpu import cifar as gpu_cifar
from mixsize.bench.gpu import epoch as gpu_epoch
from mixsize.bench.gpu import equivalence as gpu_equivalence
from mixsize.bench.gpu import kernels as gpu_kernels
from mixsize.bench.gpu import shapes as gpu_shapes
from mixsize.bench.gpu.part import Part, PartTable, Verdict
from mixsize.bench.gpu.record import GpuRecord

#: In the order in which they are measured: what most hangs on comes first.
PARTS: tuple[Part, ...] = (
    gpu_shapes.PRICE,
    gpu_shapes.BUDGET,
    gpu_algorithms.PART,
    gpu_epoch.PART,
    gpu_calibration.PART,
    gpu_kernels.PART,
    gpu_equivalence.PART,
    gpu_cifar.PART,
)

_MET = {True: "yes", False: "no", None: "not measured yet"}


def targets_table(record: GpuRecord) -> PartTable:
    """A row for each target, those not measured yet included."""
    rows = [[verdict.target, verdict.found, _MET[verdict.met]] for verdict in verdicts(record)]
    incomplete = [part.name for part in PARTS if not (part.name in record.parts and record.parts[part.name].complete)]
    notes = [f"Not complete: {', '.join(incomplete)}."] if incomplete else []
    if record.dry_run:
        notes.append("A dry run: tiny shapes on the CPU, which say nothing about a GPU.")
    return PartTable(["target", "found", "met"], rows, notes)


def part_table(record: GpuRecord, name: str) -> PartTable:
    """The figures of a part.

    Raises:
        ValueError: a part without figures.
    """
    figures = record.parts[name].figures if name in record.parts else {}
    if not figures:
        raise ValueError(f"part {name} has no figures in this record")
    table = part_named(name).table(figures)
    incomplete = () if record.parts[name].complete else ("Not complete.",)
    return PartTable(table.head, table.rows, (*table.notes, *incomplete))


def part_named(name: str) -> Part:
    """The part of this name.

    Raises:
        ValueError: there is none.
    """
    for part in PARTS:
        if part.name == name:
            return part
    raise ValueError(f"--part {name}: the parts are {', '.join(part.name for part in PARTS)}")


def verdicts(record: GpuRecord) -> list[Verdict]:
    """On every target, in the order of the parts; a dry run says nothing about them."""
    known = {} if record.dry_run else record.parts
    return [
        verdict for part in PARTS for verdict in part.verdicts(known[part.name].figures if part.name in known else {})
    ]


def left_over(names: Sequence[str], shown: int = 6) -> str:
    """A list of names, the first few of it."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
