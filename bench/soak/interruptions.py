"""Kill a run at random moments, let it go on each time, and compare it with one that was left alone.

Batches are compared by their checksums at every step on every rank, weights by their bytes, accuracies by their
values. Half of the kills take the launcher and all ranks, half a single rank.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mixsize.bench.result_files import write_result
from mixsize.display.console import plain_console
from mixsize.recipes.build.trainer import run_folder
from mixsize.recipes.commands.arguments import add_items
from mixsize.recipes.config.compose import compose
from mixsize.recipes.records.run_folder import RECORD_FILE, WEIGHTS_FILE
from mixsize.recipes.records.run_record import read_record

_POLL_SECONDS = 0.005
#: A start that shows no new step for so long hangs.
_PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Comparison:
    """A run that was killed beside one that was not.

    Attributes:
        killed_at: the steps under way at each kill.
        steps: of the whole run.
        repeated: steps that were trained on again, over all starts.
        wrong_batches: (rank, step) whose batch ever differed.
        missing_batches: (rank, step) that never came.
        same_weights: whether the final weights agree byte by byte.
        same_record: whether shapes, their order and accuracies agree.
    """

    killed_at: tuple[int, ...]
    steps: int
    repeated: int
    wrong_batches: tuple[tuple[int, int], ...]
    missing_batches: tuple[tuple[int, int], ...]
    same_weights: bool
    same_record: bool

    @property
    def exact(self) -> bool:
        """Whether nothing tells the two runs apart."""
        return self.same_weights and self.same_record and not self.wrong_batches and not self.missing_batches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench interruptions``."""
    add_items(parser)
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="how often to kill the run (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the outcome to this JSON file")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Check the recipe; what is returned kills and compares."""
    for name in ("ranks", "kills"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: must be at least 1")
    compose(args.items)

    def compare() -> int:
        outcome = interrupt(args.items, args.ranks, args.kills, args.seed)
        print_comparison(outcome, args.ranks, plain_console())
        if args.out:
            write_result(args.out, "interruptions", {"ranks": args.ranks, **vars(outcome), "exact": outcome.exact})
        return 0 if outcome.exact else 1

    return compare


def interrupt(items: Sequence[str], ranks: int, kills: int, seed: int) -> Comparison:
    """Train a recipe twice, once left alone and once killed time and again.

    Raises:
        RuntimeError: a start that fails by itself, or hangs.
    """
    name = compose(items).name
    common = [*items, "output.log_batches=true", "progress_bar=false"]
    whole = [*common, f"name={name}-whole", "output.restart=true"]
    broken = [*common, f"name={name}-killed"]
    _finish(_start(whole, ranks))
    whole_folder, broken_folder = (run_folder(compose(part)) for part in (whole, broken))
    batches = [_read_log(whole_folder, rank) for rank in range(ranks)]
    steps = max(step for step, _ in batches[0]) + 1

    generator = random.Random(seed)
    killed_at = []
    extra: list[str] = ["output.restart=true"]
    for log in broken_folder.glob("batches-rank*.csv"):
        log.unlink()  # An earlier comparison's.
    for number in range(kills):
        begun = _last_step(broken_folder) if killed_at else -1
        # Counted from where the last kill struck, so that the run gets on; the last kills fall close together.
        target = min(steps - 1, begun + 1 + generator.randrange(max(1, 2 * (steps - begun) // (kills - number + 1))))
        process = _start([*broken, *extra], ranks)
        extra = []
        if not _reaches(process, broken_folder, target):
            break
        time.sleep(generator.random() * 0.2)
        _kill(process, whole_group=number % 2 == 0)
        killed_at.append(_last_step(broken_folder))
    _finish(_start(broken, ranks))
    return _compare(whole_folder, broken_folder, batches, steps, tuple(killed_at), ranks)


def print_comparison(outcome: Comparison, ranks: int, console: Console) -> None:
    """What was done to the run, and whether it shows."""
    table = Table(title=f"{ranks} ranks, killed {len(outcome.killed_at)} times", show_header=False)
    table.add_row("killed at step", ", ".join(map(str, outcome.killed_at)))
    table.add_row("steps of the run", f"{outcome.steps:,}")
    table.add_row("steps trained on again", f"{outcome.repeated:,}")
    table.add_row("batches that differ", _listed(outcome.wrong_batches))
    table.add_row("batches that are missing", _listed(outcome.missing_batches))
    table.add_row("final weights", "the same bytes" if outcome.same_weights else "differ")
    table.add_row("shapes and accuracies", "the same" if outcome.same_record else "differ")
    console.print(table)


def _start(items: Sequence[str], ranks: int) -> subprocess.Popen:
    train = ["train", *items]
    command = [sys.executable, "-m", "mixsize", *train]
    if ranks > 1:
        # The module, not the script beside the interpreter, so that it is this interpreter's Composer.
        command = [sys.executable, "-m", "composer.cli.launcher", "-n", str(ranks), "-m", "mixsize", *train]
    # A session of its own, so that a kill takes the launcher and all ranks, and not this process.
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def _finish(process: subprocess.Popen) -> None:
    if process.wait():
        raise RuntimeError(f"the run ended with exit code {process.returncode}; its own error stands above")


def _reaches(process: subprocess.Popen, folder: Path, target: int) -> bool:
    """Wait for a step; False where the run ended before it."""
    known, since = None, time.monotonic()
    while (step := _last_step(folder)) < target:
        if process.poll() is not None:
            if process.returncode:
                _finish(process)
            return False
        if step != known:
            known, since = step, time.monotonic()
        elif time.monotonic() - since > _PATIENCE_SECONDS:
            _kill(process, whole_group=True)
            raise RuntimeError(f"no step followed step {step} for {_PATIENCE_SECONDS} s")
        time.sleep(_POLL_SECONDS)
    return True


def _kill(process: subprocess.Popen, whole_group: bool) -> None:
    if not whole_group:
        children = _children(process.pid)
        if children:
            os.kill(children[-1], signal.SIGKILL)
            try:
                process.wait(timeout=60)  # The launcher ends the others.
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise RuntimeError("the launcher did not end after one of its ranks was killed") from None
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def _log_lines(folder: Path, rank: int) -> list[dict[str, str]]:
    file = folder / f"batches-rank{rank}.csv"
    if not file.exists():
        return []
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _read_log(folder: Path, rank: int) -> list[tuple[int, str]]:
    return [(int(line["step"]), line["checksum"]) for line in _log_lines(folder, rank)]


def _last_step(folder: Path) -> int:
    return max((step for step, _ in _read_log(folder, 0)), default=-1)


def _compare(
    whole: Path, broken: Path, batches: list[list[tuple[int, str]]], steps: int, killed_at: tuple[int, ...], ranks: int
) -> Comparison:
    wrong, missing, repeated = [], [], 0
    for rank in range(ranks):
        expected, found = dict(batches[rank]), _read_log(broken, rank)
        wrong += [(rank, step) for step, checksum in found if expected.get(step) != checksum]
        missing += [(rank, step) for step in sorted(expected.keys() - {step for step, _ in found})]
        repeated = max(repeated, len(found) - steps)
    return Comparison(
        killed_at,
        steps,
        repeated,
        tuple(wrong),
        tuple(missing),
        (whole / WEIGHTS_FILE).read_bytes() == (broken / WEIGHTS_FILE).read_bytes(),
        _outcome(whole) == _outcome(broken),
    )


def _outcome(folder: Path) -> dict[str, Any]:
    """What a record says but for its name and what it cost."""
    record = read_record(folder / RECORD_FILE)
    kept = record.model_dump(
        include={
            "plan_digest", "sequence_crc", "steps", "epochs", "samples", "distinct_samples", "pixels", "accuracy",
            "calibrated_accuracy", "loss", "gradient_norms",
        }
    )  # fmt: skip
    kept["shapes"] = [row.model_dump(exclude={"seconds"}) for row in record.shapes]
    kept["curve"] = [point.model_dump(exclude={"seconds"}) for point in record.curve]
    return kept


def _listed(places: Sequence[tuple[int, int]]) -> str:
    if not places:
        return "none"
    shown = ", ".join(f"step {step} on rank {rank}" for rank, step in places[:5])
    return shown + (f" and {len(places) - 5} more" if len(places) > 5 else "")
