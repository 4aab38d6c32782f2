"""What importing packages comes to, found out in a process of its own, which a broken one may end.

    python -m mixsize.system.probe numpy torch

prints a line of JSON for each module as soon as it is known.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

#: Stands for PyTorch's view of the GPUs among the modules to look at.
CUDA = "torch.cuda"
_PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Probe:
    """What became of importing a module.

    Attributes:
        module: its name.
        version: its own word; None where it has none or did not load.
        missing: whether it is not installed.
        error: why it did not load; None where it did.
        gpus: names of the GPUs that PyTorch sees, for the module ``torch.cuda``.
    """

    module: str
    version: str | None = None
    missing: bool = False
    error: str | None = None
    gpus: tuple[str, ...] = ()

    @property
    def loads(self) -> bool:
        """Whether it can be used."""
        return self.error is None and not self.missing


def probe(modules: Sequence[str]) -> dict[str, Probe]:
    """Import modules, in their order, in another process.

    One that ends its process, by a signal or by an exit, is reported as such, and the rest is looked at in a new one.
    """
    found: dict[str, Probe] = {}
    left = list(modules)
    while left:
        output, ending = _run(left)
        for line in output.splitlines():
            with contextlib.suppress(ValueError, TypeError):  # A line that the end of the process cut short.
                values = json.loads(line)
                found[values["module"]] = Probe(**{**values, "gpus": tuple(values["gpus"])})
        left = [module for module in left if module not in found]
        if left:
            found[left[0]] = Probe(left[0], error=ending)
            left = left[1:]
    return found


def _run(modules: Sequence[str]) -> tuple[str, str]:
    """What the process that imports modules printed, and how it ended."""
    command = [sys.executable, "-W", "ignore", "-m", "mixsize.system.probe", *modules]
    # What lies in the working directory is not what is installed.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode(errors="replace"), f"importing it takes more than {_PATIENCE_SECONDS} s"
    ending = f"importing it ends Python with status {done.returncode}"
    if done.returncode < 0:
        ending = f"importing it ends Python with {signal.Signals(-done.returncode).name}"
    return done.stdout.decode(errors="replace"), ending


def look_at(module: str) -> Probe:
    """Import a module here."""
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module.partition(".")[0]:
            return Probe(module, missing=True)
        return Probe(module, error=_words(error))
    except BaseException as error:  # A broken installation may raise anything, an exit included.
        return Probe(module, error=_words(error))
    if module == CUDA:
        return _look_at_gpus()
    version = getattr(imported, "__version__", None)
    return Probe(module, None if version is None else str(version))


def _look_at_gpus() -> Probe:
    import torch

    try:
        gpus = tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        gpus = gpus if torch.cuda.is_available() else ()
    except (RuntimeError, AssertionError) as error:
        return Probe(CUDA, torch.version.cuda, error=_words(error))
    return Probe(CUDA, torch.version.cuda, gpus=gpus)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def main(modules: Sequence[str]) -> None:
    """Print a line about each module, and nothing else, whatever modules print."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in modules:
        print(json.dumps(asdict(look_at(module))), file=lines, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    # Not the interpreter's own end, which runs what half-imported packages left behind.
    os._exit(0)
