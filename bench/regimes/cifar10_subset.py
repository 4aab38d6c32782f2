"""Copy the first 1,000 training and 200 test images of each class of an image folder, in the order of their names.

python -m mixsize.bench.regimes.cifar10_subset SOURCE OUT
"""

import shutil
import sys
from pathlib import Path

COUNTS = {"train": 1000, "test": 200}


def main(source: Path, out: Path) -> None:
    """Copy the images; existing copies are overwritten."""
    for split, count in COUNTS.items():
        for folder in sorted(path for path in (source / split).iterdir() if path.is_dir()):
            images = sorted(folder.iterdir())[:count]
            if len(images) < count:
                raise SystemExit(f"{folder}: has {len(images)} images, {count} are needed")
            target = out / split / folder.name
            target.mkdir(parents=True, exist_ok=True)
            for image in images:
                shutil.copy(image, target / image.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
