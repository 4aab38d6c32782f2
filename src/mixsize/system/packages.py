"""The packages that mixsize is built on, and how to get a missing one. Needs the standard library alone."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

from mixsize.system.tested import newer

#: Composer's requirements without their upper bounds, for ``uv pip install --override``.
OVERRIDES = Path(__file__).parent / "composer-overrides.txt"
#: The newest PyTorch that Composer's own requirements take.
_COMPOSERS_TORCH = "2.7"


@dataclass(frozen=True)
class Package:
    """A package that mixsize imports.

    Attributes:
        title: its name to people.
        module: its name to ``import``.
        distribution: its name to pip.
        needed_for: what cannot run without it; empty for what few commands or arguments need.
        extra: the extra of mixsize that brings it; empty for a package that is installed by its own name.
        system: the Debian packages that it is built or loaded with.
    """

    title: str
    module: str
    distribution: str
    needed_for: Literal["mixsize", "recipes", ""] = "mixsize"
    extra: str = ""
    system: str = ""

    @property
    def requirement(self) -> str:
        """The argument for pip, with the versions that mixsize takes."""
        return _requirements().get(_normal(self.distribution), self.distribution)

    @property
    def version(self) -> str | None:
        """Version of the installed distribution; None where none of its name is installed."""
        return _version(self.distribution)

    def install(self, *, again: bool = False) -> str:
        """The command that installs it, over a broken installation if ``again``."""
        wanted = f"mixsize[{self.extra}]" if self.extra else self.requirement
        if self.extra == "composer" and newer(_version("torch") or "0", _COMPOSERS_TORCH):
            # Plain pip would replace PyTorch by one that Composer's requirements take.
            force = f"--reinstall-package {self.distribution} " if again else ""
            return f'uv pip install {force}--override {shlex.quote(str(OVERRIDES))} "{wanted}"'
        apt = f"apt-get install {self.system} && " if self.system else ""
        force = "--force-reinstall --no-cache-dir " if again else ""
        return f'{apt}pip install {force}"{wanted}"'


#: Each after those that it imports itself.
PACKAGES = (
    Package("NumPy", "numpy", "numpy"),
    Package("PyTorch", "torch", "torch"),
    Package("torchvision", "torchvision", "torchvision"),
    Package("timm", "timm", "timm"),
    Package("Pillow", "PIL", "pillow"),
    Package("Composer", "composer", "mosaicml", needed_for="recipes", extra="composer"),
    Package("pydantic", "pydantic", "pydantic"),
    Package("ruamel.yaml", "ruamel.yaml", "ruamel.yaml"),
    Package("rich", "rich", "rich"),
    Package("safetensors", "safetensors", "safetensors"),
    Package("tqdm", "tqdm", "tqdm"),
    Package("Matplotlib", "matplotlib", "matplotlib", needed_for="", extra="report"),
    Package("Jinja", "jinja2", "jinja2", needed_for="", extra="report"),
    Package("SciPy", "scipy", "scipy", needed_for="", extra="report"),
    Package("scikit-learn", "sklearn", "scikit-learn", needed_for=""),
    Package("ONNX Script", "onnxscript", "onnxscript", needed_for="", extra="onnx"),
    Package("Hugging Face Datasets", "datasets", "datasets", needed_for="", extra="hf"),
    Package("Weights & Biases", "wandb", "wandb", needed_for="", extra="wandb"),
)
#: mixsize's own compiled library.
EXTENSION = Package("engine", "mixsize.ffcv_loaders.engine.native", "mixsize", system="libjpeg-dev gcc")
#: For ``mixsize bench loader`` alone, which times it.
FFCV = Package("FFCV", "ffcv", "ffcv", needed_for="", system="libopencv-dev libturbojpeg0-dev pkg-config g++")
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
    """Distribution -> requirement, as the installed mixsize lists them, those of its extras included.

    Empty for a tree that is not installed.
    """
    try:
        listed = metadata.requires("mixsize") or []
    except metadata.PackageNotFoundError:
        return {}
    texts = (text.partition(";")[0].strip() for text in listed)
    # An extra that holds another names mixsize itself.
    return {_normal(re.split(r"[^\w.-]", text, maxsplit=1)[0]): text for text in texts if "mixsize[" not in text}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
