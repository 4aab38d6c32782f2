"""The wheel: complete, and at work outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_works_outside_the_checkout(tmp_path):
    checkout = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(ROOT / "src", checkout / "src", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    subprocess.run([sys.executable, "-c", build], cwd=checkout, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("mixsize-*.whl")

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    recipes = {f"mixsize/recipes/{path.relative_to(ROOT / 'recipes')}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assert len(recipes) > 10
    suites = {f"mixsize/bench/suites/{path.name}" for path in (ROOT / "bench/suites").glob("*.yaml")}
    assert len(suites) == 8
    assert recipes | suites <= names
    assert "mixsize/py.typed" in names
    assert not [name for name in names if not name.startswith(("mixsize/", "mixsize-"))]

    code = (
        "import mixsize.recipes, sys; from mixsize.cli import main; print(mixsize.recipes.__file__);"
        "sys.exit(main(['plan', 'cifar10/resnet20', 'regime/s28_bplus', '--json']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert '"steps_per_epoch": 647' in done.stdout
