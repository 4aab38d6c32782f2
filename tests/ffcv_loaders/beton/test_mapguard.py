"""A mapped file that is cut short under its reader: zeros and a count instead of the process's end."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import numpy as np
import pytest

from mixsize.ffcv_loaders.beton import mapguard
from mixsize.ffcv_loaders.beton.mapguard import MapGuard

PAGE = os.sysconf("SC_PAGESIZE")

pytestmark = pytest.mark.skipif(mapguard._library is None, reason="the extension is not built")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes([7]) * (4 * PAGE))
    return path


def test_pages_that_are_gone_read_as_zeros_and_are_counted_once_each(file):
    mapped = np.memmap(file, np.uint8, "r")
    guard = MapGuard(mapped)
    assert guard.missing_pages == 0
    os.truncate(file, 2 * PAGE)
    assert (mapped[: 2 * PAGE] == 7).all()
    assert guard.missing_pages == 0
    assert (mapped[2 * PAGE :] == 0).all()
    assert (mapped[2 * PAGE :] == 0).all()
    assert guard.missing_pages == 2


def test_each_file_counts_its_own(file, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(file.read_bytes())
    maps = [np.memmap(path, np.uint8, "r") for path in (file, other)]
    guards = [MapGuard(mapped) for mapped in maps]
    os.truncate(other, PAGE)
    assert [int(mapped[-1]) for mapped in maps] == [7, 0]
    assert [guard.missing_pages for guard in guards] == [0, 1]


def test_a_guard_goes_with_its_mapping_so_that_they_do_not_run_out(file):
    for _ in range(300):
        mapped = np.memmap(file, np.uint8, "r")
        guard = MapGuard(mapped)
        assert guard._slot >= 0
    view = mapped[PAGE:]
    del mapped
    gc.collect()
    os.truncate(file, PAGE)
    assert view[0] == 0
    assert guard.missing_pages == 1


def test_a_guard_whose_mapping_is_gone_does_not_count_for_the_next_file(file, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(file.read_bytes())
    mapped = np.memmap(file, np.uint8, "r")
    guard = MapGuard(mapped)
    slot = guard._slot
    del mapped
    gc.collect()
    mapped = np.memmap(other, np.uint8, "r")
    assert MapGuard(mapped)._slot == slot
    os.truncate(other, PAGE)
    assert mapped[-1] == 0
    assert guard.missing_pages == 0


def test_the_signal_sent_by_a_process_ends_this_one(file):
    program = (
        "import os, signal, sys\n"
        "import numpy as np\n"
        "from mixsize.ffcv_loaders.beton.mapguard import MapGuard\n"
        "mapped = np.memmap(sys.argv[1], np.uint8, 'r')\n"
        "guard = MapGuard(mapped)\n"
        "os.kill(os.getpid(), signal.SIGBUS)\n"
        "print('still here')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, timeout=200)
    assert (ended.returncode, ended.stdout) == (-7, "")


@pytest.mark.parametrize("again", [False, True], ids=["enabled once", "enabled again behind an earlier guard"])
def test_other_mappings_end_the_process_as_before_and_say_where(file, again):
    program = (
        "import faulthandler, os, sys\n"
        "import numpy as np\n"
        "from mixsize.ffcv_loaders.beton.mapguard import MapGuard\n"
        f"earlier = {again} and MapGuard(np.memmap(sys.argv[1], np.uint8, 'r'))\n"
        "faulthandler.enable()\n"
        "guarded = np.memmap(sys.argv[1], np.uint8, 'r')\n"
        "guard = MapGuard(guarded)\n"
        "other = np.memmap(sys.argv[1], np.uint8, 'r')\n"
        "os.truncate(sys.argv[1], 0)\n"
        "assert guarded[0] == 0 and guard.missing_pages == 1\n"
        "print(other[0])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, timeout=200)
    assert ended.returncode == -7
    assert "Fatal Python error: Bus error" in ended.stderr
    assert ended.stdout == ""
