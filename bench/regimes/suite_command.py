"""``mixsize bench regimes``: its options. All recipes are composed before PyTorch and Composer are imported."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from mixsize.bench.regimes.suite import Data, load_suite, packaged_suites
from mixsize.bench.regimes.suite_runs import SuiteRun, files_of, runs_of
from mixsize.recipes.commands.arguments import add_imports, import_modules


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench regimes``."""
    parser.add_argument(
        "suite",
        metavar="SUITE",
        help=f"packaged suite ({', '.join(packaged_suites())}) or path of a YAML file",
    )
    parser.add_argument(
        "items",
        nargs="*",
        metavar="ITEM",
        help="further items for every run, as for mixsize train: device=gpu, output.wandb.project=mine",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each regime (default: the suite's)")
    parser.add_argument("--folder", type=Path, help="folder of the runs (default: runs/<suite>)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs side by side, which share the cores (default: 1)"
    )
    parser.add_argument("--restart", action="store_true", help="repeat runs that ended or were stopped")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="also write all records into one JSON file; in an existing folder (bench/results), named after suite, "
        "hardware, PyTorch's version and date",
    )
    add_imports(parser)


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Compose and check the recipes of all runs, so that a mistake in the last one is found before the first starts."""
    if args.seeds is not None and args.seeds < 1:
        raise ValueError(f"--seeds {args.seeds}: must be at least 1")
    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: must be at least 1")
    suite = load_suite(args.suite)
    folder = args.folder or Path("runs") / suite.name
    extra = [*args.items, *(["output.restart=true"] if args.restart else [])]
    import_modules(args.imports)
    runs = runs_of(suite, folder, args.seeds or suite.seeds, extra, args.imports)
    _check_exists(runs, written=suite.data)
    # These imports take seconds, which a mistake in a recipe need not wait for.
    from mixsize.bench.regimes import regimes

    return regimes.prepare(suite, runs, folder, args.out, args.jobs)


def _check_exists(runs: Sequence[SuiteRun], written: Data | None) -> None:
    """Refuse a suite whose data neither exists nor is written by it."""
    made = () if written is None else files_of(written)
    for run in runs:
        for key in ("train", "eval"):
            path = Path(getattr(run.recipe.data, key))
            if path not in made and not path.exists():
                raise ValueError(
                    f"data.{key}: {path} does not exist; write it with mixsize convert, or give data.{key}=PATH"
                )
