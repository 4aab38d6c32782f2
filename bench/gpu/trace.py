"""What PyTorch's profiler saw: when the device was at work, and where the host waited for it.

Read from the profiler's trace file, whose events are plain mappings: ``cat`` (kind), ``name``, and ``ts`` and ``dur``
in microseconds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

#: Work on the device; without one, operators on the processor.
_DEVICE_KINDS = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_HOST_KINDS = frozenset({"cpu_op"})
_CALLS = frozenset({"cuda_runtime", "cuda_driver"})
#: Calls of CUDA in which the host waits for the device. An asynchronous copy that PyTorch must wait for is followed by
#: one of these.
_WAITS = frozenset(
    {
        "cudaDeviceSynchronize",
        "cudaEventSynchronize",
        "cudaStreamSynchronize",
        "cudaMemcpy",
        "cuCtxSynchronize",
        "cuEventSynchronize",
        "cuStreamSynchronize",
    }
)
#: How names of calls begin that start work on the device.
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaLaunchCooperativeKernel")

Event = Mapping[str, Any]


def record_trace(work: Callable[[], object], device: torch.device) -> list[Event]:
    """Run something under the profiler, until the device has done it too."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8"))["traceEvents"]


def busy_seconds(events: Iterable[Event], device: torch.device) -> float:
    """Seconds in which at least one kernel or copy ran on the device; without a GPU, an operator."""
    kinds = _DEVICE_KINDS if device.type == "cuda" else _HOST_KINDS
    return 1e-6 * union_length(
        (event["ts"], event["ts"] + event["dur"]) for event in events if event.get("cat") in kinds and "dur" in event
    )


def host_waits(events: Iterable[Event]) -> int:
    """How often the host waited for the device."""
    return sum(event.get("cat") in _CALLS and event["name"] in _WAITS for event in events)


def launches(events: Iterable[Event]) -> int:
    """How often kernels or graphs were started."""
    return sum(event.get("cat") in _CALLS and event["name"].startswith(_LAUNCHES) for event in events)


def union_length(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals ``(start, end)``."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        if end > reached:
            total += end - max(start, reached)
            reached = end
    return total
