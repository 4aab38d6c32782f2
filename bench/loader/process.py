"""A loader in a process of its own, which runs an epoch on request.

FFCV sets the threads of PyTorch and numba for its whole process, and memory can only be measured by process. Only one
of several loaders should run at a time.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import resource
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from mixsize.bench.loader.cases import Case, Setting
from mixsize.bench.loader.loaders import LOADERS

if TYPE_CHECKING:
    import torch

_Result = TypeVar("_Result")
#: Runs one epoch and yields its batches: normalised float32 ``(N, 3, S, S)`` on the CPU, every view counted in N.
Epoch = Callable[[], Iterator["torch.Tensor"]]

# Each loader has its decoding threads or workers; libraries that these call must not start more.
_ONE_THREAD_EACH = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")


@dataclass(frozen=True)
class Visit:
    """Measurements of one epoch.

    Attributes:
        images: number of images served, every view counted.
        seconds: duration, including the start.
        first_batch_seconds: time from the start to the first batch.
        cpu_seconds: user and system time of the process, all its threads and its worker processes.
    """

    images: int
    seconds: float
    first_batch_seconds: float
    cpu_seconds: float


#: The loader that this process serves: the name of each case -> its epoch.
_epochs: dict[str, Epoch] = {}


class LoaderProcess:
    """One loader, on as many cores as it has threads. A context manager; leaving it ends the process.

    Args:
        loader: name in :data:`LOADERS`.
        setting: of the bench.
        cases: to serve; those that the loader cannot serve are skipped.

    Raises:
        RuntimeError: the loader failed, or its process ended.
    """

    def __init__(self, loader: str, setting: Setting, cases: Sequence[Case]) -> None:
        self._loader = loader
        # A forked process would lack the threads of this one.
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._serves = self._process.submit(_start, loader, setting, tuple(cases))

    @property
    def serves(self) -> tuple[str, ...]:
        """Names of the cases that the loader can serve; waits for it to start."""
        return self._result(self._serves)

    def visit(self, name: str) -> Visit:
        """Run an epoch of a case that the loader serves."""
        return self._result(self._process.submit(_visit, name))

    def memory(self, name: str) -> float:
        """Peak rise of resident memory in an epoch, in MiB; visit the case before, so that all code is compiled."""
        return self._result(self._process.submit(_memory, name))

    def __enter__(self) -> LoaderProcess:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._process.shutdown()

    def _result(self, future: Future[_Result]) -> _Result:
        try:
            return future.result()
        except Exception as error:
            raise RuntimeError(f"the loader {self._loader!r} failed: {type(error).__name__}: {error}") from error


def make_loader(loader: str, setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """Make a loader of :data:`LOADERS`: name of each case that it can serve -> its epoch."""
    candidate = LOADERS[loader]
    if candidate.workers is not None:
        setting = replace(setting, threads=candidate.workers)
    return getattr(import_module(candidate.module), candidate.function)(setting, cases)


def _start(loader: str, setting: Setting, cases: Sequence[Case]) -> tuple[str, ...]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # An interrupt ends the other side, and that ends this one.
    os.environ.update(dict.fromkeys(_ONE_THREAD_EACH, "1"))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setting.threads])
    # DataLoaders shall start their workers as by default; a spawned process would spawn them.
    multiprocessing.set_start_method(None, force=True)
    # More workers than cores are timed too.
    warnings.filterwarnings("ignore", "This DataLoader will create")
    # On import, libraries read the environment and count the cores: they are imported from here on.
    import torch

    torch.set_num_threads(1)
    _epochs.update(make_loader(loader, setting, cases))
    gc.freeze()  # Imported objects need not be searched for garbage before each epoch.
    return tuple(_epochs)


def _visit(name: str) -> Visit:
    gc.collect()
    images, first = 0, 0.0
    cpu = cpu_seconds()
    start = time.perf_counter()
    for batch in _epochs[name]():
        first = first or time.perf_counter() - start
        images += len(batch)
    return Visit(images, time.perf_counter() - start, first, cpu_seconds() - cpu)


def cpu_seconds() -> float:
    """User and system time of this process and its workers, those that ended included."""
    seconds = time.process_time()
    for worker in multiprocessing.active_children():
        clock = ctypes.c_int()
        if ctypes.CDLL(None).clock_getcpuclockid(worker.pid, ctypes.byref(clock)) == 0:
            seconds += time.clock_gettime(clock.value)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds + ended.ru_utime + ended.ru_stime


def _memory(name: str) -> float:
    gc.collect()
    # Memory freed by earlier epochs would hide a rise.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Resets the peak to what is resident now.
    before = _resident("VmRSS")
    deque(_epochs[name](), maxlen=0)
    return (_resident("VmHWM") - before) / 1024


def _resident(field: str) -> int:
    """A line of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")
