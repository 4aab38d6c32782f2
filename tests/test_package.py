"""The source distribution, and the wheel that is built from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSES = ("algorithms", "bench", "ffcv_loaders", "recipes")


def build(kind: str, folder: Path) -> None:
    """Call setuptools in a folder; what it makes is put beside the folder."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}('..')"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The files of the wheel, unpacked."""
    folder = tmp_path_factory.mktemp("package")
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in ("src", *HOUSES):
        shutil.copytree(ROOT / name, folder / "checkout" / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "checkout")
    build("sdist", folder / "checkout")
    with tarfile.open(next(folder.glob("mixsize-*.tar.gz"))) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    build("wheel", source.rename(folder / "unpacked"))
    with zipfile.ZipFile(next(folder.glob("mixsize-*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_module_recipe_suite_and_template_and_nothing_else(wheel):
    wanted = {"mixsize/py.typed", "mixsize/ffcv_loaders/engine/_engine.so", "mixsize/system/composer-overrides.txt"}
    wanted |= {f"mixsize/{path.relative_to(ROOT / 'src/mixsize')}" for path in (ROOT / "src/mixsize").rglob("*.py")}
    for house in HOUSES:
        for kind in ("*.py", "*.yaml", "*.jinja"):
            wanted |= {f"mixsize/{path.relative_to(ROOT)}" for path in (ROOT / house).rglob(kind)}
    assert len([name for name in wanted if name.endswith(".yaml")]) > 30
    found = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith("mixsize-")} == wanted
    assert any(name.endswith("licenses/LICENSE") for name in found)


def test_the_wheel_serves_every_python_3(wheel):
    (tags,) = wheel.glob("mixsize-*.dist-info/WHEEL")
    assert "Tag: py3-none-linux_" in tags.read_text()


def test_the_wheel_works_outside_of_the_checkout(wheel, tmp_path):
    code = (
        "import sys, mixsize.recipes, mixsize.ffcv_loaders.engine.native as engine\n"
        "from mixsize.cli import main\n"
        "print(mixsize.recipes.__file__)\n"
        "print(engine.__file__)\n"
        "sys.exit(main(['recipes']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(wheel)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert all(line.startswith(str(wheel)) for line in lines[:2])
    assert {"demo", "cifar10/resnet44", "regime/s144_bplus"} <= set(done.stdout.split())
