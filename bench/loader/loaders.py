"""The loaders that can be timed: what each reads and needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from ctypes.util import find_library
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from types import MappingProxyType

from mixsize.bench.loader.cases import Setting

_OURS, _LIBRARIES = "mixsize.bench.loader.ours", "mixsize.bench.loader.libraries"


@dataclass(frozen=True)
class Candidate:
    """A loader that can be timed.

    Attributes:
        label: its name in tables.
        module: holds ``function``; imported in the loader's own process.
        function: maps a setting and cases to epochs, by the names of the cases that it can serve.
        reads: the file or folder of :class:`~mixsize.bench.loader.cases.Setting` that it reads.
        package: the module, or the system's library (``lib...``), that mixsize does not require; empty for none.
        workers: number of worker processes; None for as many as the setting has threads.
    """

    label: str
    module: str
    function: str
    reads: str
    package: str = ""
    workers: int | None = None


def _torchvision(workers: int) -> Candidate:
    label = f"torchvision, {workers} worker{'' if workers == 1 else 's'}"
    return Candidate(label, _LIBRARIES, "torchvision", "images", workers=workers)


#: In the order in which tables show them.
LOADERS: Mapping[str, Candidate] = MappingProxyType(
    {
        "levels": Candidate("mixsize, levels", _OURS, "ours_levels", "levels_file"),
        "ours": Candidate("mixsize", _OURS, "ours", "data"),
        "ffcv": Candidate("FFCV", _LIBRARIES, "ffcv", "data", "ffcv"),
        "dali": Candidate("DALI, CPU", _LIBRARIES, "dali", "images", "nvidia.dali"),
        "simplejpeg": Candidate("simplejpeg", _LIBRARIES, "simplejpeg", "images", "simplejpeg"),
        "torchvision": Candidate("torchvision", _LIBRARIES, "torchvision", "images"),
        **{f"torchvision-{workers}": _torchvision(workers) for workers in (0, 1, 2, 4)},
        "timm": Candidate("timm", _LIBRARIES, "timm", "images"),
        "composer": Candidate("Composer", _LIBRARIES, "composer", "images"),
        "entropy_floor": Candidate(
            "floor (libjpeg-turbo, entropy decoding alone)", _LIBRARIES, "entropy_floor", "data", "libturbojpeg"
        ),
    }
)
#: Our loaders, which are compared with FFCV's.
OURS = ("levels", "ours")
_INPUTS = {"levels_file": "--levels-file", "images": "--images"}


def choose_loaders(
    asked: Sequence[str] | None, setting: Setting, pool: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The loaders to time, and a line on each library that is not installed.

    Args:
        asked: names in ``pool``; None for all whose input is given and whose library is installed.
        setting: names the inputs.
        pool: names in :data:`LOADERS`.

    Raises:
        ValueError: a loader that is asked for lacks its library or its input.
    """
    absent = {name: why for name in pool if (why := _not_installed(LOADERS[name]))}
    unfed = {name for name in pool if getattr(setting, LOADERS[name].reads) is None}
    if asked is None:
        left_out = tuple(f"{LOADERS[name].label} is left out: {why}" for name, why in absent.items())
        return tuple(name for name in pool if name not in absent and name not in unfed), left_out
    for name in asked:
        if name in absent:
            raise ValueError(f"--loaders {name}: {absent[name]}")
        if name in unfed:
            raise ValueError(f"--loaders {name}: needs {_INPUTS[LOADERS[name].reads]}")
    return tuple(name for name in pool if name in asked), ()


def default_pool(threads: int) -> list[str]:
    """All loaders, but torchvision with a worker for each thread only where none has that number of workers."""
    same = any(candidate.workers == threads for candidate in LOADERS.values())
    return [name for name in LOADERS if name != "torchvision" or not same]


def versions() -> dict[str, str]:
    """The installed versions of the libraries behind the loaders."""
    libraries = re.compile("ffcv|nvidia-dali-.*|simplejpeg|torchvision|timm|mosaicml")
    return {found.name: found.version for found in metadata.distributions() if libraries.fullmatch(found.name)}


def _not_installed(candidate: Candidate) -> str | None:
    """Why a loader cannot run; None where it can."""
    package = candidate.package
    if package.startswith("lib"):
        return None if find_library(package.removeprefix("lib")) else f"{package} is not installed"
    try:
        found = not package or find_spec(package) is not None
    except ModuleNotFoundError:  # The package around it is not there.
        found = False
    return None if found else f"{package} is not installed (pip install 'mixsize[bench]')"
