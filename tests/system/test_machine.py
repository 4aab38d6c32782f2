"""The processor, and the limits of a container."""

from __future__ import annotations

import pytest

from mixsize.system import machine
from mixsize.system.machine import bfloat16_instructions, core_limit
from mixsize.system.memory import bytes_at_hand


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile", ["amx_bf16", "avx512_bf16"]),
        ("flags\t\t: fpu avx512f avx512_fp16 amx_int8", []),
        ("Features\t: fp asimd svebf16 bf16", ["bf16"]),
        ("Features\t: fp asimd svebf16", []),
        ("model name\t: bf16", []),
        ("", []),
    ],
)
def test_bfloat16_is_what_the_kernel_lists(tmp_path, monkeypatch, lines, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{lines}\nbugs\t\t: spectre_v1\n")
    monkeypatch.setattr(machine, "PROCESSOR", tmp_path / "cpuinfo")
    assert bfloat16_instructions() == expected
    monkeypatch.setattr(machine, "PROCESSOR", tmp_path / "nowhere")
    assert bfloat16_instructions() == []


def test_a_container_is_given_the_time_of_some_cores(tmp_path):
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert core_limit(tmp_path) == 2.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert core_limit(tmp_path) is None
    assert core_limit(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("rows", "limits", "expected"),
    [
        ("0::/a/b\n", {"memory.max": "max", "a/memory.max": "3000", "a/b/memory.max": "max"}, 3000),
        ("0::/a/b\n", {"memory.max": "2000"}, 2000),  # In a container, where /a/b is the host's name for it.
        ("0::/a\n", {"memory.max": "6000000"}, 5000 * 1024),
        ("4:memory:/\n", {"memory.max": "1"}, 5000 * 1024),  # Version 1.
        ("", {}, 5000 * 1024),
    ],
)
def test_memory_at_hand_is_the_lowest_limit(tmp_path, rows, limits, expected):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text(rows)
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    for name, text in limits.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    assert bytes_at_hand(tmp_path, tmp_path / "groups") == expected


def test_memory_at_hand_is_unlimited_where_the_system_does_not_tell(tmp_path):
    assert bytes_at_hand(tmp_path, tmp_path) > 2**60
