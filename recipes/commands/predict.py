"""``mixsize predict``: classes and probabilities of images, by a trained network at an image size."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from mixsize.display.console import plain_console, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize predict``."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="of a finished run (runs/NAME) or of mixsize export"
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image file")
    parser.add_argument("--size", type=int, metavar="S", help="image side in pixels; by default the network's own")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="classes to print for an image (default: 3)")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Load the network; the function returned predicts."""
    for name in ("size", "top"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    # These imports take seconds, which --help need not wait for.
    from PIL import Image, UnidentifiedImageError

    from mixsize.recipes.models.inference import class_names, load_at_size, probabilities, size_statistics

    network, transform = load_at_size(args.folder, args.size)
    names = class_names(network)
    bank = size_statistics(args.folder)
    if bank.sizes and args.size is not None and args.size not in bank:
        sizes = ", ".join(f"{size} px" for size in bank.sizes)
        print(f"no batch-norm statistics of {args.size} px, which mixsize export measures; there are those of {sizes}")

    def predict() -> int:
        rows, unreadable, count = [], [], min(args.top, len(names))
        for path in args.images:
            try:
                with Image.open(path) as image:
                    picture = transform(image.convert("RGB"))
            except (UnidentifiedImageError, OSError) as error:
                unreadable.append(f"{path}: cannot be read as an image: {error}")
                continue
            values, indices = probabilities(network, picture[None])[0].topk(count)
            for place, (value, index) in enumerate(zip(values, indices, strict=True)):
                rows.append([str(path) if place == 0 else "", names[index], f"{100 * value:.1f}"])
        print_table(plain_console(), ["image", "class", "probability %"], rows, notes=unreadable)
        return 1 if unreadable else 0

    return predict
