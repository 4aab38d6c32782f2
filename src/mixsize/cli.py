"""The ``mixsize`` command: a table of sub-commands and their modules.

A command's module is imported when its command is chosen. Its ``add_arguments(parser)`` declares the options. Its
``prepare(args)`` checks everything that the user may have got wrong and returns the function that runs the command.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import mixsize
from mixsize.system.packages import explain
from mixsize.system.signals import ending_on_sigterm

COMMANDS = {
    "start": (
        "mixsize.recipes.commands.start_command",
        "choose a recipe for a folder of images and a timm model; train it",
    ),
    "convert": (
        "mixsize.ffcv_loaders.conversion.convert",
        "write a folder of images, shards or a data set as .beton files",
    ),
    "plan": ("mixsize.recipes.commands.plan", "print the steps and costs of a recipe's regime before training"),
    "train": ("mixsize.recipes.commands.train_command", "train a recipe"),
    "eval": ("mixsize.recipes.commands.eval_command", "evaluate trained weights over image sizes"),
    "export": (
        "mixsize.recipes.commands.export_command",
        "write a trained network with its statistics by size for timm",
    ),
    "predict": ("mixsize.recipes.commands.predict", "print the classes of images by a trained network"),
    "report": ("mixsize.bench.report.report", "compare runs in a web page, and in Markdown with plots"),
    "recipes": ("mixsize.recipes.commands.listing", "list the packaged recipes, print one, or explain a key"),
    "doctor": ("mixsize.doctor", "check the installation and the machine"),
    "completion": ("mixsize.completion", "print a shell script that completes commands, recipes and keys"),
}
BENCHES = {
    "calibration": (
        "mixsize.bench.paper.calibration",
        "accuracy with batch norm calibrated on augmented and on plain training images",
    ),
    "fidelity": ("mixsize.bench.loader.fidelity", "views from smaller stored copies against those of full images"),
    "gpu": ("mixsize.bench.gpu.gpu", "the cost of the method on a GPU, in parts that resume"),
    "gradients": (
        "mixsize.bench.paper.gradients",
        "how alike gradients are between sizes and between images (table 2)",
    ),
    "loader": (
        "mixsize.bench.loader.loader",
        "the loader at each size, mixed and with duplicates, beside other libraries'",
    ),
    "overhead": (
        "mixsize.bench.overhead.overhead",
        "the cost of the algorithms in a training step",
    ),
    "peers": ("mixsize.bench.peers.peers", "accuracy and time under Composer's and timm's image sizes and ours"),
    "regimes": ("mixsize.bench.regimes.suite_command", "train a recipe under several regimes and compare them"),
    "startup": ("mixsize.bench.loader.startup", "the time to import the loader and to its first batch, beside others"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code.

    A user's mistake ends in one line on standard error and code 2, Ctrl-C in code 130. A bug ends in a traceback.
    """
    # wandb, which timm imports, reports its own errors to its makers unless this is set before the import.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # Prints the Python stack where compiled code ends the process.
    with contextlib.suppress(ValueError, RuntimeError):  # Standard error may not be a file.
        faulthandler.enable()
    try:
        args = _parser().parse_args(argv)
        with ending_on_sigterm():
            try:
                remaining: Callable[[], int] = args.prepare(args)
            except (ValueError, OSError) as error:
                return _mistake(str(error))
            return remaining()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except ImportError as error:
        words = explain(error)
        if words is None:
            raise
        return _mistake(f"{words} (mixsize doctor looks for what else is missing)")


def _mistake(words: str) -> int:
    print(f"error: {words}", file=sys.stderr)
    return 2


class _LazyParser(argparse.ArgumentParser):
    """Imports a command's module when its arguments are parsed, as PyTorch takes seconds to import."""

    def __init__(self, *args: Any, module: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._module = module

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._module is not None:
            module, self._module = import_module(self._module), None
            module.add_arguments(self)
            self.set_defaults(prepare=module.prepare)
            # Recipe items may stand before, between and after options.
            return self.parse_known_intermixed_args(args, namespace)
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mixsize", description="Mixed image sizes for Composer and timm.")
    parser.add_argument("--version", action="version", version=f"mixsize {mixsize.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_LazyParser)
    for name, (module, words) in COMMANDS.items():
        commands.add_parser(name, module=module, help=words, description=_sentence(words))
    bench = commands.add_parser("bench", help="measure", description="Measure, and save the results.")
    suites = bench.add_subparsers(required=True, metavar="SUITE", parser_class=_LazyParser)
    for name, (module, words) in BENCHES.items():
        suites.add_parser(name, module=module, help=words, description=_sentence(words))
    return parser


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."
