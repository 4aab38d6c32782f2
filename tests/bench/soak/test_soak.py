"""What long runs hold is counted right, and growth is told from flatness by the stated rule."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import threading
from dataclasses import asdict
from multiprocessing import shared_memory

import pytest

from mixsize.bench.pages.tables import TABLES
from mixsize.bench.soak import soak
from mixsize.bench.soak.resources import Resources, held
from mixsize.cli import main
from mixsize.ffcv_loaders.conversion.convert import convert_splits

LEVEL = asdict(Resources(500.0, 1.0, 5, 2, 10, 0, 0))


def samples(quantity: str, values: list[float]) -> list[dict]:
    return [{"epoch": 5 * (i + 1), **LEVEL, quantity: value} for i, value in enumerate(values)]


def test_what_is_opened_is_counted_and_what_is_closed_is_not(tmp_path):
    before = held()
    event = threading.Event()
    thread = threading.Thread(target=event.wait)
    thread.start()
    files = [open(tmp_path / str(i), "w") for i in range(3)]  # noqa: SIM115
    shared = shared_memory.SharedMemory(create=True, size=8 << 20)
    shared.buf[:] = bytes(8 << 20)
    memory = mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, 32 << 20, mmap.PAGESIZE):
        memory[page] = 1
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    during = held()
    child.communicate()
    memory.close()
    shared.close()
    shared.unlink()
    for file in files:
        file.close()
    event.set()
    thread.join()
    after = held()
    assert during.threads - before.threads == during.python_threads - before.python_threads == 1
    assert during.file_handles - before.file_handles >= 3 + 1 + 1  # files, shared memory, the child's pipe
    assert during.shared_files - before.shared_files == 1
    # Python's tracker of shared memory is another child, and stays.
    assert during.processes - after.processes == 1
    assert during.shared_mib - before.shared_mib == pytest.approx(8, abs=0.5)
    assert during.resident_mib - after.resident_mib > 30
    assert (after.threads, after.python_threads, after.shared_files) == (
        before.threads,
        before.python_threads,
        before.shared_files,
    )


@pytest.mark.parametrize(
    ("quantity", "values", "expected"),
    [
        # second quarter: 520, 530; last: 535, 525
        ("resident_mib", [400, 500, 520, 530, 600, 700, 535, 525], False),
        # 530 against 525 at most
        ("resident_mib", [400, 500, 510, 510, 510, 510, 520, 520], True),
        # a warm-up is nobody's leak
        ("resident_mib", [100, 300, 510, 510, 510, 510, 510, 510], False),
        ("threads", [1, 1, 5, 4, 9, 9, 5, 5], False),
        ("threads", [1, 1, 5, 5, 5, 5, 5, 6], True),
        ("file_handles", [12, 12, 12, 12, 12, 12, 11, 13], True),
    ],
)
def test_growth_is_of_the_last_quarter_over_the_second(quantity, values, expected):
    assert soak.grows(samples(quantity, values), quantity, tolerance=0.01) is expected
    flat = samples("threads", [5] * 8)
    setting = {"epochs": {"training": 40, "loader": 40}, "memory_tolerance": 0.01}
    result = {"setting": setting, "samples": {"training": flat, "loader": samples(quantity, values)}}
    assert soak.is_flat(result) is not expected
    verdicts = {(row[0], row[1]): row[-1] for row in soak.table(result)[1]}
    words = {"resident_mib": "resident memory, MiB", "threads": "threads", "file_handles": "file handles"}
    assert verdicts["loader", words[quantity]] == ("grows" if expected else "flat")
    assert list(verdicts.values()).count("grows") == expected


COUNTS = ("threads", "python_threads", "file_handles", "shared_files", "processes")


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jpegs")
    convert_splits("digits", folder, store="jpg", workers=1, progress=False)
    return folder


@pytest.mark.soak
def test_threads_files_and_processes_stay_over_epochs_of_training_left_early(jpegs):
    found = []
    soak._train(jpegs, 8, lambda epoch: found.append({"epoch": epoch, **asdict(held())}))
    assert [row["epoch"] for row in found] == list(range(1, 9))
    assert not [quantity for quantity in COUNTS if soak.grows(found, quantity, 0)]


@pytest.mark.soak
def test_the_loader_left_early_keeps_nothing_in_a_process_of_its_own(jpegs, capsys):
    found = soak.run("loader", jpegs, 48)
    assert [row["epoch"] for row in found] == list(range(1, 49))
    assert not [quantity for quantity in COUNTS if soak.grows(found, quantity, 0)]
    before, after = soak.quarters(found, "resident_mib")
    assert after - before < 1
    assert "loader, epoch 48/48: resident memory, MiB" in capsys.readouterr().out


@pytest.mark.parametrize(("leak", "code"), [(0, 0), (1, 1)])
def test_the_command_keeps_the_samples_and_its_exit_code_tells_growth(leak, code, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak, "run", lambda case, folder, epochs: samples("threads", [5 + leak * i for i in range(8)]))
    assert main(["bench", "soak", "--out", str(tmp_path / "soak.json")]) == code
    result = json.loads((tmp_path / "soak.json").read_text())
    assert result["setting"]["epochs"] == {"training": 200, "loader": 1000}
    assert result["samples"]["training"][0]["epoch"] == 5
    text = TABLES["soak"](result)
    assert f"| loader | threads | {5 + 3 * leak} | {5 + 7 * leak} | {'grows' if leak else 'flat'} |" in text
    assert "Sampled every 5 and 5 epochs" in text


def test_a_case_that_fails_ends_the_soak_with_its_exit_code(tmp_path, capfd):
    with pytest.raises(RuntimeError, match="loader: the process ended with exit code 1"):
        soak.run("loader", tmp_path, 8)
    assert "train.beton: cannot be read: No such file" in capfd.readouterr().err


@pytest.mark.parametrize("option", ["--epochs", "--loader-epochs"])
def test_too_few_epochs_are_refused(option, capsys):
    assert main(["bench", "soak", option, "7"]) == 2
    assert f"{option} is 7; it must be at least 8" in capsys.readouterr().err
