"""``mixsize doctor``, and the errors of commands and public names that need a missing package."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from mixsize import doctor
from mixsize.cli import main
from mixsize.system import machine, packages, tested

ROOT = Path(__file__).parent.parent
GIB = 2**30


def broken(monkeypatch, error: BaseException) -> None:
    def fail(module):
        raise error

    monkeypatch.setattr(doctor.importlib, "import_module", fail)


@pytest.fixture
def torch_package() -> packages.Package:
    (package,) = (package for package in packages.PACKAGES if package.module == "torch")
    return package


def test_with_python_alone_the_doctor_lists_every_missing_package_and_commands_name_the_first(python_without):
    code = (
        "from mixsize.cli import main\n"
        "print('status', main(['doctor', '--json']))\n"
        "print('status', main(['plan', 'demo']))"
    )
    lines = python_without([package.module for package in packages.PACKAGES], code)
    end = lines.index("status 1")
    told = json.loads("".join(lines[:end]))
    assert (told["runs"], told["trains"]) == (False, False)
    by_name = {finding["name"]: finding for finding in told["findings"]}
    for package in packages.PACKAGES:
        finding = by_name[package.title]
        assert finding["value"] == "not installed"
        assert finding["blocks"] == package.needed_for
        assert finding["advice"] == package.install()
    assert len(lines) == end + 3
    assert re.match(r"error: \w+ is not installed; get it with: pip install ", lines[-2])
    assert lines[-1] == "status 2"


def test_this_installation_trains_and_the_report_says_so(tmp_path, capsys):
    assert main(["doctor", "--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "recipes can be trained here"
    versions = {line.split()[1]: line.split()[2] for line in lines if line.startswith("ok") and len(line.split()) > 2}
    assert versions["PyTorch"].startswith("2.")
    assert list(tmp_path.iterdir()) == []


def test_the_report_puts_advice_below_its_line_and_ends_with_what_blocks():
    findings = [
        doctor.Finding("a", "1"),
        doctor.Finding("bc", "2", "mend it"),
        doctor.Finding("d", "3", "get it", "recipes"),
    ]
    lines = [
        "ok       a   1",
        "advice   bc  2",
        "             -> mend it",
        "MISSING  d   3",
        "             -> get it",
    ]
    recipes = "plans, data, loaders, evaluation and your own loops run here; recipes need d"
    assert list(doctor.report(findings)) == [*lines, recipes]
    findings.append(doctor.Finding("e", "4", "get it", "mixsize"))
    assert list(doctor.report(findings))[-1] == "mixsize cannot run here: e"


def test_a_folder_that_is_not_there_is_refused(capsys):
    assert main(["doctor", "--folder", "/nowhere"]) == 2
    assert capsys.readouterr().err == "error: --folder /nowhere: not a folder\n"


# ---- packages ----


def test_every_requirement_of_the_package_is_looked_at():
    tomllib = pytest.importorskip("tomllib")  # From Python 3.11 on.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"]
    for package in packages.PACKAGES:
        if package.extra:
            assert any(one.startswith(package.distribution) for one in project["optional-dependencies"][package.extra])
    names = {re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0] for requirement in listed}
    assert names == {package.distribution for package in packages.PACKAGES if package.needed_for == "mixsize"}


@pytest.mark.parametrize(
    ("error", "value"),
    [
        (OSError("libcudart.so.12: cannot open\nshared object"), "OSError: libcudart.so.12: cannot open shared object"),
        (ModuleNotFoundError("No module named 'sympy'", name="sympy"), "ModuleNotFoundError: No module named 'sympy'"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_a_package_that_does_not_load_blocks_with_its_error(error, value, torch_package, monkeypatch):
    broken(monkeypatch, error)
    finding = doctor.package_found(torch_package)
    assert (finding.state, finding.value) == ("missing", f"does not load: {value}")
    assert "--force-reinstall" in finding.advice


def test_output_of_a_package_that_loads_keeps_out_of_the_report(torch_package, monkeypatch, capsys):
    monkeypatch.setattr(doctor.importlib, "import_module", lambda module: print("noise"))
    assert doctor.package_found(torch_package).state == "ok"
    assert capsys.readouterr().out == ""


def test_a_version_outside_the_requirements_is_named_with_them(torch_package, monkeypatch):
    monkeypatch.setattr(packages, "_requirements", lambda: {"torch": "torch<2.8,>=2.6"})
    monkeypatch.setattr(packages.metadata, "version", lambda name: "2.9.1+cu130")
    finding = doctor.package_found(torch_package)
    assert finding == doctor.Finding("PyTorch", "2.9.1+cu130", "mixsize is made for torch<2.8,>=2.6")
    monkeypatch.setattr(packages.metadata, "version", lambda name: "2.7.1+cu126")
    assert doctor.package_found(torch_package) == doctor.Finding("PyTorch", "2.7.1+cu126")


def test_a_version_above_those_tested_is_a_warning(torch_package, monkeypatch):
    monkeypatch.setattr(packages, "_requirements", lambda: {"torch": "torch>=2.6"})
    monkeypatch.setattr(packages.metadata, "version", lambda name: "97.1.0+cu1")
    finding = doctor.package_found(torch_package)
    assert finding.state == "advice"
    assert re.fullmatch(r"newer than 2\.\d+, the newest that was tested", finding.advice)


def test_a_combination_is_one_that_was_tested_or_names_those_that_were(monkeypatch):
    rows = ({"python": "3.11", "torch": "2.9", "mosaicml": "0.32"}, {"python": "3.14", "torch": "2.9"})
    monkeypatch.setattr(tested, "TESTED", rows)
    monkeypatch.setattr(doctor, "TESTED", rows)
    together = {"python": "3.11.7", "torch": "2.9.1+cu130", "mosaicml": "0.32.1", "numpy": "9.9"}
    assert doctor.combination(together) == doctor.Finding(
        "combination", "Python 3.11, PyTorch 2.9, Composer 0.32: tested"
    )
    # Composer was there in the tests, and may be absent.
    without = {"python": "3.11.7", "torch": "2.9.1"}
    assert doctor.combination(without) == doctor.Finding("combination", "Python 3.11, PyTorch 2.9: tested")
    finding = doctor.combination(together | {"python": "3.14.0"})
    assert (finding.state, finding.blocks) == ("advice", "")
    assert finding.value == "Python 3.14, PyTorch 2.9, Composer 0.32: not tested"
    assert finding.advice == "tested are Python 3.11, PyTorch 2.9, Composer 0.32; Python 3.14, PyTorch 2.9"


@pytest.fixture
def listed(monkeypatch) -> Iterator[None]:
    """An installed mixsize with these requirements."""
    texts = [
        "ruamel_yaml>=0.18",
        'mosaicml<0.33,>=0.32.1; extra == "composer"',
        'mixsize[composer,report]; extra == "dev"',
        'ffcv==1.0.2; extra == "bench"',
    ]
    monkeypatch.setattr(packages.metadata, "requires", lambda name: texts)
    packages._requirements.cache_clear()
    yield
    packages._requirements.cache_clear()


def test_commands_install_the_versions_that_mixsize_requires(listed, monkeypatch):
    monkeypatch.setattr(packages.metadata, "version", lambda name: "2.7.1")
    commands = {package.title: package.install() for package in (*packages.PACKAGES, packages.FFCV)}
    assert commands["Composer"] == 'pip install "mixsize[composer]"'
    assert commands["Matplotlib"] == commands["SciPy"] == 'pip install "mixsize[report]"'
    assert commands["Weights & Biases"] == 'pip install "mixsize[wandb]"'
    assert commands["ruamel.yaml"] == 'pip install "ruamel_yaml>=0.18"'
    assert commands["FFCV"].endswith(' && pip install "ffcv==1.0.2"')
    assert packages.EXTENSION.install() == 'apt-get install libjpeg-dev gcc && pip install "mixsize"'
    assert commands["timm"] == 'pip install "timm"'


def test_beside_a_newer_pytorch_composer_is_installed_with_the_overrides_that_mixsize_ships(listed, monkeypatch):
    (composer,) = (package for package in packages.PACKAGES if package.module == "composer")
    monkeypatch.setattr(packages.metadata, "version", lambda name: "2.8.0+cpu")
    assert composer.install() == f'uv pip install --override {packages.OVERRIDES} "mixsize[composer]"'
    assert composer.install(again=True) == (
        f'uv pip install --reinstall-package mosaicml --override {packages.OVERRIDES} "mixsize[composer]"'
    )


def test_the_overrides_name_what_composer_requires_and_hold_back_neither_pytorch_nor_numpy():
    requirements = pytest.importorskip("packaging.requirements")
    lines = packages.OVERRIDES.read_text(encoding="utf-8").splitlines()
    ours = [requirements.Requirement(line) for line in lines if line and not line.startswith("#")]
    try:
        theirs = map(requirements.Requirement, metadata.requires("mosaicml") or [])
    except metadata.PackageNotFoundError:
        pytest.skip("needs Composer")
    wanted = {packages._normal(one.name) for one in theirs if "extra" not in str(one.marker)}
    assert {packages._normal(one.name) for one in ours} == wanted
    free = {one.name for one in ours if one.specifier.contains("99")}
    assert free == {"torch", "torchvision", "torchmetrics", "numpy", "pillow", "packaging"}


def test_an_import_error_of_our_own_stays_a_traceback():
    assert packages.explain(ImportError("cannot import name 'x'", name="mixsize.algorithms")) is None
    assert packages.explain(ImportError("cannot import name 'x'")) is None


def test_a_package_that_does_not_load_is_told_from_a_missing_one():
    error = ImportError("libturbojpeg.so.0: cannot open\nshared object file", name="ffcv._libffcv")
    words = packages.explain(error)
    assert words.startswith(
        "FFCV does not load (libturbojpeg.so.0: cannot open shared object file); install it again: "
    )


# ---- the machine ----


def test_python_must_be_one_that_mixsize_takes():
    finding = doctor.python_version((3, 9))
    assert (finding.blocks, finding.advice) == ("mixsize", "mixsize needs Python 3.10 or newer")
    assert doctor.python_version((3, 10)).state == doctor.python_version((3, 99)).state == "ok"


@pytest.mark.parametrize(
    ("cores", "limit", "ranks", "text", "words"),
    [
        (8, None, 1, "", ""),
        (8, None, 3, "", ""),
        (8, 8.0, 1, "8", ""),
        (8, None, 2, "4", ""),
        (8, None, 4, "8", "8 threads in each rank slow each other down: set OMP_NUM_THREADS=2"),
        (8, None, 16, "2", "set OMP_NUM_THREADS=1"),
        (8, None, 1, "1", "leaves cores idle when a network trains on the CPU: set OMP_NUM_THREADS=8"),
        (8, None, 1, "four", "OMP_NUM_THREADS=four is not a number of threads: set OMP_NUM_THREADS=8"),
        (16, 2.5, 1, "", "16 threads in each rank slow each other down: set OMP_NUM_THREADS=2"),
        (16, 2.5, 1, "2", ""),
    ],
)
def test_threads_times_ranks_should_be_the_cores_or_the_containers_limit(cores, limit, ranks, text, words, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    advice = doctor.threads(cores, limit, ranks).advice
    assert words in advice
    assert bool(advice) == bool(words)


@pytest.mark.parametrize(
    ("cuda", "visible", "words"),
    [
        ("12.6", None, "built for CUDA 12.6: update the driver"),
        ("12.6", "", "CUDA_VISIBLE_DEVICES= hides it"),
        (None, None, "without CUDA"),
    ],
)
def test_a_gpu_that_pytorch_does_not_see_is_told_with_the_reason(cuda, visible, words, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    finding = doctor.gpu(["NVIDIA T4, 470.82, 15360 MiB"], 0)
    assert finding.value == "NVIDIA T4, 470.82, 15360 MiB; PyTorch sees none"
    assert words in finding.advice
    seen = doctor.gpu(["NVIDIA T4, 470.82, 15360 MiB"], 1)
    assert seen == doctor.Finding("GPU", f"NVIDIA T4, 470.82, 15360 MiB; PyTorch sees 1, CUDA {cuda}")
    assert doctor.gpu([], 0) == doctor.Finding("GPU", "none: trains on the CPU")


def test_gpus_are_read_from_the_driver(tmp_path, monkeypatch):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'NVIDIA H200, 550.54.15, 143771 MiB'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine.gpus_of_driver() == ["NVIDIA H200, 550.54.15, 143771 MiB"]
    script.write_text("#!/bin/sh\necho 'Driver/library version mismatch'; exit 18\n")
    assert machine.gpus_of_driver() == []


def test_little_memory_and_slow_disks_are_advised_on():
    assert doctor.memory(5 * GIB, 4).state == "ok"
    assert "needs about 10 GiB" in doctor.memory(5 * GIB, 8).advice
    assert doctor.memory(sys.maxsize, 4).value == "unknown"
    slow = doctor.read_speed("/data, read", 110e6)
    assert slow.value == "110 MB/s"
    assert "about 1,000 ImageNet images a second" in slow.advice
    assert doctor.read_speed("/data, read", 200e6).state == "ok"


def test_a_folder_that_cannot_be_written_to_is_told_with_the_systems_words(tmp_path):
    (finding,) = doctor.folder_speed(tmp_path / "gone")
    assert "cannot be written to: [Errno 2] No such file or directory" in finding.value
    assert finding.state == "advice"


def test_the_speed_of_a_folder_is_measured_with_a_file_that_is_gone_afterwards(tmp_path):
    write, read = doctor.folder_speed(tmp_path, num_bytes=3 * 2**20 + 7)
    assert [write.name, read.name] == [f"{tmp_path}, write", f"{tmp_path}, read"]
    assert list(tmp_path.iterdir()) == []
