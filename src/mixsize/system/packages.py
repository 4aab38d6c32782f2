"""The packages that mixsize is built on, and how to get a missing one. Needs the standard library alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from typing import Any


@dataclass(frozen=True)
class Package:
    """A package that mixsize imports.

    Attributes:
        title: its name to people.
        module: its name to ``import``.
        distribution: its name to pip.
        needed: whether no recipe can be trained without it.
        brought_by: the distribution that brings it and chooses its version; empty where mixsize requires it directly.
        system: the Debian packages that it is built or loaded with.
    """

    title: str
    module: str
    distribution: str
    needed: bool = True
    brought_by: str = ""
    system: str = ""

    @property
    def requirement(self) -> str:
        """The argument for pip, with the versions that mixsize takes."""
        distribution = self.brought_by or self.distribution
        return _requirements().get(_normal(distribution), distribution)

    @property
    def version(self) -> str | None:
        """Version of the installed distribution; None where none of its name is installed."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None

    def install(self, *, again: bool = False) -> str:
        """The command that installs it, over a broken installation if ``again``."""
        apt = f"apt-get install {self.system} && " if self.system else ""
        force = "--force-reinstall --no-cache-dir " if again else ""
        return f'{apt}pip install {force}"{self.requirement}"'


#: Each after those that it imports itself.
PACKAGES = (
    Package("NumPy", "numpy", "numpy"),
    Package("PyTorch", "torch", "torch"),
    Package("torchvision", "torchvision", "torchvision"),
    Package("timm", "timm", "timm"),
    Package("Pillow", "PIL", "pillow"),
    Package("Composer", "composer", "mosaicml"),
    Package("pydantic", "pydantic", "pydantic"),
    Package("ruamel.yaml", "ruamel.yaml", "ruamel.yaml"),
    Package("rich", "rich", "rich"),
    Package("safetensors", "safetensors", "safetensors"),
    Package("tqdm", "tqdm", "tqdm"),
    Package("Matplotlib", "matplotlib", "matplotlib", needed=False),
    Package("Jinja", "jinja2", "jinja2", needed=False),
    Package("SciPy", "scipy", "scipy", needed=False),
    Package("scikit-learn", "sklearn", "scikit-learn", needed=False),
    Package("Weights & Biases", "wandb", "wandb", needed=False, brought_by="mosaicml"),
)
#: mixsize's own compiled library.
EXTENSION = Package("engine", "mixsize.ffcv_loaders.engine.native", "mixsize", system="libjpeg-dev gcc")
#: For ``mixsize bench loader`` alone, which times it.
FFCV = Package("FFCV", "ffcv", "ffcv", needed=False, system="libopencv-dev libturbojpeg0-dev pkg-config g++")
_BY_MODULE = {package.module.partition(".")[0]: package for package in (*PACKAGES, FFCV)}


def load(module: str, name: str) -> Any:
    """A public name from the module that defines it.

    Raises:
        ImportError: the module needs a package that is missing or does not load; the message says how to get it.
    """
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        words = explain(error)
        if words is None:
            raise
        raise ImportError(f"{name}: {words}", name=error.name) from error


def explain(error: ImportError) -> str | None:
    """One line on a failed import of one of these packages, with the command that mends it; None for other imports."""
    top = (error.name or "").partition(".")[0]
    package = _BY_MODULE.get(top)
    if package is None:
        return None
    if isinstance(error, ModuleNotFoundError) and error.name == top:
        return f"{package.title} is not installed; get it with: {package.install()}"
    return f"{package.title} does not load ({one_line(error)}); install it again: {package.install(again=True)}"


def one_line(error: BaseException) -> str:
    """An error's message on one line, or its class where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


@cache
def _requirements() -> dict[str, str]:
    """Distribution -> requirement, as the installed mixsize lists them; empty for a tree that is not installed."""
    try:
        listed = metadata.requires("mixsize") or []
    except metadata.PackageNotFoundError:
        return {}
    return {_normal(re.split(r"[^\w.-]", text, maxsplit=1)[0]): text for text in listed if ";" not in text}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
