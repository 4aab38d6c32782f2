"""``mixsize doctor``, and what the parts that need a missing package say, on installations that are really so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mixsize import doctor
from mixsize.cli import main
from mixsize.system import machine, packages
from mixsize.system.probe import CUDA, Probe, probe

THIRD_PARTY = [package.module for package in packages.PACKAGES]

# Where Python finds it first, it makes packages missing for that process and those that it starts.
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def without(tmp_path: Path, *modules: str, **broken: str) -> dict[str, str]:
    """An environment in which packages are missing, and others are the source given."""
    site = tmp_path / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(BLOCKER.format(blocked=modules))
    for name, source in broken.items():
        (site / f"{name}.py").write_text(source)
    return {**os.environ, "PYTHONPATH": str(site)}


def python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def mixsize(*argv: str) -> str:
    return f"import sys; from mixsize.cli import main; sys.exit(main({list(argv)!r}))"


def test_a_machine_with_nothing_but_python_is_told_all_that_is_missing(tmp_path):
    environment = without(tmp_path, *THIRD_PARTY)
    done = python(mixsize("doctor", "--json", "--folder", str(tmp_path)), environment)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["trains"] is False
    by_name = {finding["name"]: finding for finding in told["findings"]}
    for package in packages.PACKAGES:
        finding = by_name[package.title]
        assert finding["value"] == "not installed"
        assert finding["state"] == ("missing" if package.needed else "advice")
        assert finding["advice"].endswith(f'pip install "{package.requirement}"')
    assert by_name["FFCV"]["advice"].startswith("apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++ && ")
    assert by_name[f"{tmp_path}, write"]["value"] > 0


def test_broken_packages_are_reported_with_their_errors_and_do_not_end_the_command(tmp_path):
    others = [name for name in THIRD_PARTY if name not in ("torch", "ffcv", "composer", "wandb", "timm")]
    environment = without(
        tmp_path,
        *others,
        torch="raise OSError('libcudart.so.12: cannot open shared object file')",
        timm="import sys; sys.exit(3)",
        ffcv="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        composer="print('noise on stdout'); raise ImportError('cannot import name x')",
        wandb="import os; os._exit(7)",
    )
    done = python(mixsize("doctor", "--json", "--folder", str(tmp_path)), environment)
    assert done.returncode == 1, done.stderr
    by_name = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert by_name["PyTorch"]["value"] == "does not load: OSError: libcudart.so.12: cannot open shared object file"
    assert by_name["timm"]["value"] == "does not load: SystemExit: 3"
    assert by_name["FFCV"]["value"] == "does not load: importing it ends Python with SIGSEGV"
    assert by_name["Composer"]["value"] == "does not load: ImportError: cannot import name x"
    assert by_name["Weights & Biases"]["value"] == "does not load: importing it ends Python with status 7"
    assert by_name["Weights & Biases"]["state"] == "advice"
    assert "--force-reinstall" in by_name["PyTorch"]["advice"]


def test_this_installation_trains_and_the_report_says_so(tmp_path, capsys):
    assert main(["doctor", "--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "recipes can be trained here"
    versions = {line.split()[1]: line.split()[2] for line in lines if line.startswith("ok") and len(line.split()) > 2}
    assert versions["FFCV"] == "1.0.2"  # Its module says 0.0.3rc1.
    assert versions["PyTorch"].startswith("2.")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_refused(capsys):
    assert main(["doctor", "--folder", "/nowhere"]) == 2
    assert capsys.readouterr().err == "error: --folder /nowhere: is no folder\n"


def test_every_requirement_of_the_package_is_looked_at():
    tomllib = pytest.importorskip("tomllib")  # From Python 3.11 on.
    listed = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0] for requirement in listed}
    assert names == {package.distribution for package in packages.PACKAGES if not package.brought_by}
    assert {package.brought_by for package in packages.PACKAGES} - {""} <= names


def test_the_regime_the_plan_and_the_plain_functions_need_neither_composer_nor_ffcv_nor_wandb(tmp_path):
    code = """
import mixsize, mixsize.algorithms
from mixsize import Base, Regime, plan_epoch, GradientSmoother, StatisticsBank, TorchMixSizeLoader, Progression
regime = Regime.from_sizes("s28", Base(32, 64), "B+")
print(len(plan_epoch(regime, 50_000, seed=0, epoch=0)))
from mixsize.cli import main
print(main(["plan", "cifar10/resnet20", "regime/s28_bplus", "--json"]))
"""
    done = python(code, without(tmp_path, "composer", "ffcv", "wandb"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("647", "0")


@pytest.mark.parametrize(
    ("missing", "argv", "words"),
    [
        (
            "ffcv",
            ["convert", "digits", "out"],
            "error: FFCV is not installed; get it with: apt-get install libopencv-dev",
        ),
        ("composer", ["train", "demo"], 'error: Composer is not installed; get it with: pip install "mosaicml'),
        ("torch", ["plan", "cifar10/resnet20"], 'error: PyTorch is not installed; get it with: pip install "torch'),
        ("ruamel", ["plan", "demo"], 'error: ruamel.yaml is not installed; get it with: pip install "ruamel.yaml'),
    ],
)
def test_a_command_that_needs_a_missing_package_says_how_to_get_it_in_one_line(missing, argv, words, tmp_path):
    done = python(mixsize(*argv), without(tmp_path, missing))
    assert done.returncode == 2
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("(mixsize doctor looks for what else is missing)\n")


def test_public_names_that_need_a_missing_package_say_how_to_get_it(tmp_path):
    code = """
import mixsize
for name in ("MixSizeLoader", "GradSmoothing"):
    try:
        getattr(mixsize, name)
    except ImportError as error:
        print(error)
"""
    lines = python(code, without(tmp_path, "composer", "ffcv")).stdout.splitlines()
    assert lines[0].startswith("MixSizeLoader: FFCV is not installed; get it with: apt-get install")
    assert lines[1].startswith("GradSmoothing: Composer is not installed; get it with: pip install")


def test_training_needs_no_wandb_and_logging_to_it_says_how_to_get_it(tmp_path):
    code = """
import mixsize.recipes.commands.train
from mixsize.system.packages import explain
from mixsize.recipes.records.wandb_log import settings
try:
    settings()
except ImportError as error:
    print(explain(error))
"""
    done = python(code, without(tmp_path, "wandb"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('Weights & Biases is not installed; get it with: pip install "mosaicml[wandb]')


def test_an_import_error_of_our_own_stays_a_traceback():
    assert packages.explain(ImportError("cannot import name 'x'", name="mixsize.algorithms")) is None
    assert packages.explain(ImportError("cannot import name 'x'")) is None


def test_a_package_that_does_not_load_is_told_from_a_missing_one():
    error = ImportError("libturbojpeg.so.0: cannot open\nshared object file", name="ffcv._libffcv")
    words = packages.explain(error)
    assert words.startswith(
        "FFCV does not load (libturbojpeg.so.0: cannot open shared object file); install it again: "
    )


def test_modules_are_imported_in_the_order_given_and_each_is_reported_once():
    found = probe(["json", "no_such_module_of_ours", "csv"])
    assert list(found) == ["json", "no_such_module_of_ours", "csv"]
    assert [found[name].missing for name in found] == [False, True, False]
    assert found["csv"].version == "1.0"


@pytest.mark.parametrize(
    ("version", "state"), [((3, 9), "missing"), ((3, 10), "ok"), ((3, 12), "ok"), ((3, 13), "missing")]
)
def test_python_must_be_one_that_composer_takes(version, state):
    assert doctor.python_version(version, ".".join(map(str, version))).state == state


def test_a_version_outside_the_requirements_is_named_with_them(monkeypatch):
    (torch,) = (package for package in packages.PACKAGES if package.module == "torch")
    monkeypatch.setattr(packages.metadata, "version", lambda name: "2.9.1+cu130")
    finding = doctor.package_found(torch, Probe("torch", "2.9.1"))
    assert (finding.state, finding.value) == ("advice", "2.9.1+cu130")
    assert finding.advice == f"mixsize is made for {torch.requirement}"
    monkeypatch.setattr(packages.metadata, "version", lambda name: "2.7.1+cu126")
    assert doctor.package_found(torch, Probe("torch", "2.7.1")).state == "ok"


@pytest.mark.parametrize(
    ("cores", "ranks", "text", "state", "words"),
    [
        (8, 1, None, "ok", ""),
        (8, 1, "8", "ok", ""),
        (8, 2, "4", "ok", ""),
        (8, 4, "8", "advice", "set it to 2"),
        (2, 1, "16", "advice", "set it to 2"),
        (8, 1, "1", "advice", "leaves cores idle"),
        (8, 16, "1", "advice", "set it to 1"),
        (8, 1, "four", "advice", "is no number of threads"),
    ],
)
def test_threads_times_ranks_should_be_the_cores(cores, ranks, text, state, words):
    environment = {} if text is None else {"OMP_NUM_THREADS": text}
    finding = doctor.threads(cores, ranks, environment)
    assert finding.state == state
    assert words in (finding.advice or "")


def test_a_container_with_less_time_than_cores_is_told_how_many_threads_it_can_feed(tmp_path):
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert machine.core_limit(tmp_path) == 2.5
    assert "OMP_NUM_THREADS=2" in doctor.cores(16, 2.5).advice
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.core_limit(tmp_path) is None
    assert doctor.cores(16, None).state == "ok"
    assert machine.core_limit(tmp_path / "nowhere") is None


def test_a_gpu_that_pytorch_does_not_see_is_told_with_its_driver(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listed = [machine.Gpu("NVIDIA T4", "470.82", 15360)]
    assert doctor.gpu([], Probe(CUDA, "12.6")).value == "none: trains on the CPU"
    assert "driver may be too old" in doctor.gpu(listed, Probe(CUDA, "12.6")).advice
    assert "without CUDA" in doctor.gpu(listed, Probe(CUDA, None)).advice
    assert "PyTorch does not load" in doctor.gpu(listed, Probe(CUDA, missing=True)).advice
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides it" in doctor.gpu(listed, Probe(CUDA, "12.6")).advice
    seen = doctor.gpu(listed * 2, Probe(CUDA, "12.6", gpus=("NVIDIA T4",) * 2))
    assert (seen.state, seen.value) == ("ok", "2 x NVIDIA T4, 15,360 MiB, driver 470.82, CUDA 12.6")


def test_gpus_are_read_from_what_the_driver_lists(tmp_path, monkeypatch):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'NVIDIA H200, 550.54.15, 143771'\necho 'Odd, name, 550.54.15, [N/A]'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine.gpus_of_driver() == [machine.Gpu("NVIDIA H200", "550.54.15", 143771)]


def test_memory_shared_memory_and_slow_disks_are_advised_on():
    gib = 2**30
    assert doctor.memory(5 * gib, 4).state == "ok"
    assert "8 ranks need about 10 GiB" in doctor.memory(5 * gib, 8).advice
    assert "a rank needs about 1.25 GiB" in doctor.memory(gib, 1).advice
    assert doctor.memory(sys.maxsize, 4).value == "unknown"
    assert "--shm-size" in doctor.shared(64 * 2**20).advice
    assert doctor.shared(8 * gib).state == "ok"
    slow = list(doctor.folder_findings(Path("/data"), lambda: machine.FolderSpeed(write=80e6, read=110e6)))
    assert [finding.value for finding in slow] == [80, 110]
    assert "about 1,000 images a second" in slow[1].advice


def test_a_folder_that_cannot_be_written_to_is_told_with_the_systems_words():
    def full():
        raise OSError(28, "No space left on device")

    (finding,) = doctor.folder_findings(Path("/data"), full)
    assert finding.value == "cannot be written to: [Errno 28] No space left on device"
    assert finding.state == "advice"


def test_the_speed_of_a_folder_is_measured_with_a_file_that_is_gone_afterwards(tmp_path):
    speed = machine.folder_speed(tmp_path, num_bytes=3 * 2**20 + 7)
    assert speed.write > 0
    assert speed.read > 0
    assert list(tmp_path.iterdir()) == []
