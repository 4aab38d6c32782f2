"""PyTorch's profiler: how long the device was at work, and how often the host waited for it.

Events are those of the profiler's trace file: mappings with ``cat`` (kind), ``name``, and ``ts`` and ``dur`` in
microseconds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mixsize.bench.gpu.step import synchronize

#: Work on the device; on a machine without one, operators on the processor.
_DEVICE_KINDS = {"kernel", "gpu_memcpy", "gpu_memset"}
_HOST_KINDS = {"cpu_op"}
_CALLS = {"cuda_runtime", "cuda_driver"}
#: Calls in which the host waits. One of these follows every asynchronous copy that PyTorch must wait for.
_WAITS = {
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaStreamSynchronize",
    "cudaMemcpy",
    "cuCtxSynchronize",
    "cuEventSynchronize",
    "cuStreamSynchronize",
}
#: First letters of calls that start work on the device.
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaLaunchCooperativeKernel")

Event = Mapping[str, Any]


def record_trace(work: Callable[[], object], device: torch.device) -> list[Event]:
    """Do some work under the profiler, until the device has done it too; returns the events."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        work()
        synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8"))["traceEvents"]


def busy_seconds(events: Iterable[Event], device: torch.device) -> float:
    """Seconds in which at least one kernel or copy ran on the device; on the CPU, an operator."""
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
