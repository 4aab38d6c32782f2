"""The packages that mixsize is built on, and how to get one that is missing.

Needs the standard library alone, so that it can speak where nothing else is installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from typing import Any

#: What FFCV and OpenCV need of the system, under the names of Debian and Ubuntu.
_FFCV_SYSTEM = "libopencv-dev libturbojpeg0-dev pkg-config g++"


@dataclass(frozen=True)
class Package:
    """A package that mixsize imports.

    Attributes:
        module: what is imported.
        title: what people call it.
        distribution: its name to pip.
        brought_by: the distribution that chooses its version and is installed to get it; empty where it is itself.
        system: what it needs of the system, as Debian names it; empty where pip's files suffice.
        needed: whether a recipe cannot be trained without it.
    """

    module: str
    title: str
    distribution: str
    brought_by: str = ""
    system: str = ""
    needed: bool = True

    @property
    def requirement(self) -> str:
        """What pip is told to install, with the versions that mixsize takes; any version where they are unknown."""
        distribution = self.brought_by or self.distribution
        return _requirements().get(_normal(distribution), distribution)

    @property
    def version(self) -> str | None:
        """Of the installed distribution; None where there is none of its name."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None

    @property
    def how_to_get(self) -> str:
        """The command that installs it."""
        pip = f'pip install "{self.requirement}"'
        return f"apt-get install {self.system} && {pip}" if self.system else pip

    @property
    def how_to_mend(self) -> str:
        """The command that installs it again."""
        pip = f'pip install --force-reinstall --no-cache-dir "{self.requirement}"'
        return f"apt-get install {self.system} && {pip}" if self.system else pip


#: In the order in which they are best imported: each after those that it imports itself.
PACKAGES = (
    Package("numpy", "NumPy", "numpy"),
    Package("torch", "PyTorch", "torch"),
    Package("torchvision", "torchvision", "torchvision"),
    Package("timm", "timm", "timm"),
    Package("numba", "numba", "numba"),
    Package("cv2", "OpenCV", "opencv-python", system="libgl1 libglib2.0-0"),
    Package("PIL", "Pillow", "pillow"),
    Package("ffcv", "FFCV", "ffcv", system=_FFCV_SYSTEM),
    Package("composer", "Composer", "mosaicml"),
    Package("pydantic", "pydantic", "pydantic"),
    Package("ruamel", "ruamel.yaml", "ruamel.yaml"),
    Package("rich", "rich", "rich"),
    Package("safetensors", "safetensors", "safetensors"),
    Package("tqdm", "tqdm", "tqdm"),
    Package("matplotlib", "Matplotlib", "matplotlib", needed=False),
    Package("jinja2", "Jinja", "jinja2", needed=False),
    Package("scipy", "SciPy", "scipy", needed=False),
    Package("sklearn", "scikit-learn", "scikit-learn", needed=False),
    Package("wandb", "Weights & Biases", "wandb", brought_by="mosaicml", needed=False),
)
_BY_MODULE = {package.module: package for package in PACKAGES}


class PackageError(ImportError):
    """A package that is missing or does not load; the message says how to get it."""


def load(module: str, name: str) -> Any:
    """A public name out of the module that defines it.

    Raises:
        PackageError: a package that the module needs is missing or does not load.
    """
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        words = explain(error)
        if words is None:
            raise
        raise PackageError(f"{name}: {words}", name=error.name) from error


def explain(error: ImportError) -> str | None:
    """What to tell a person whose import failed, on one line; None where none of these packages is to blame."""
    top = (error.name or "").partition(".")[0]
    package = _BY_MODULE.get(top)
    if package is None:
        return None
    if isinstance(error, PackageError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name == top:
        return f"{package.title} is not installed; get it with: {package.how_to_get}"
    return f"{package.title} does not load ({one_line(error)}); install it again: {package.how_to_mend}"


def one_line(error: BaseException) -> str:
    """An error's own words, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@cache
def _requirements() -> dict[str, str]:
    """Distribution -> requirement, of the installed mixsize itself."""
    try:
        listed = metadata.requires("mixsize") or []
    except metadata.PackageNotFoundError:
        return {}
    plain = [requirement for requirement in listed if ";" not in requirement]
    return {_normal(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]): text for text in plain}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
