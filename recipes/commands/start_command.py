"""``mixsize start``: its options, without the imports that choosing a recipe takes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from mixsize.recipes.commands.arguments import add_imports, import_modules

_FOR = re.compile(r"([1-9]\d{0,8})(min|h|sec|ep)")
_SECONDS = {"sec": 1, "min": 60, "h": 3600}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize start``."""
    parser.add_argument(
        "images",
        metavar="IMAGES",
        help="folder with train/ and test/ (or val/), each with a folder for each class; or digits, cifar10, cifar100",
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="timm model, for instance resnet18")
    parser.add_argument(
        "--for",
        dest="length",
        type=parse_length,
        required=True,
        metavar="LENGTH",
        help="length of training: 20min, 3h, 600sec or 30ep",
    )
    parser.add_argument("--pretrained", action="store_true", help="start from timm's pretrained weights")
    parser.add_argument("--name", metavar="NAME", help="of the run, its recipe and its data; by default the folder's")
    parser.add_argument("--no-train", dest="train", action="store_false", help="write the recipe and end")
    add_imports(parser)


def parse_length(text: str) -> str:
    """A length of training as a recipe's ``max_duration``.

    Raises:
        argparse.ArgumentTypeError: another form.
    """
    match = _FOR.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no length; examples: 20min, 3h, 600sec, 30ep")
    return text if match[2] == "ep" else f"{int(match[1]) * _SECONDS[match[2]]}sec"


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Convert the images, choose and write the recipe; the function returned trains it."""
    name = args.name or Path(args.images).resolve().name
    file = Path(f"{name}.yaml")
    if file.exists():
        raise ValueError(f"{file} exists; train it with mixsize train {file}, or give another --name")
    import_modules(args.imports)
    # These imports take seconds, which --help need not wait for.
    from mixsize.recipes.commands import start

    return start.prepare(args, name, file)
