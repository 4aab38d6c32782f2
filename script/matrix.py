"""The wheel beside several versions of Python and PyTorch; called by script/matrix."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
OVERRIDES = ROOT / "src/mixsize/system/composer-overrides.txt"
#: Name -> requirement, whether Composer's own bounds are kept, and the newest Python that there are wheels for.
TORCH = {
    "2.6": ("torch==2.6.*", True, "3.13"),
    "2.7.0": ("torch==2.7.0", True, "3.13"),
    "2.11": ("torch==2.11.*", False, "3.14"),
    "newest": ("torch", False, "3.14"),
}
PYTHONS = ("3.10", "newest")
TOOLS = ("pytest", "pytest-timeout", "hypothesis")
TESTS = ("tests/algorithms", "tests/ffcv_loaders", "tests/test_extras.py")
SHOWN = ("torch", "torchvision", "mosaicml", "timm", "numpy", "wandb")


def main() -> None:
    """Run the cells, one after the other, and write what was found after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", help='a version, "newest", or the path of an interpreter')
    parser.add_argument("--torch", action="append", choices=list(TORCH))
    parser.add_argument("--out", type=Path, default=ROOT / f"bench/results/matrix-{datetime.date.today()}.json")
    parser.add_argument("tests", nargs="*", default=TESTS, help="what pytest runs")
    args = parser.parse_args()
    (wheel,) = ROOT.glob("dist/mixsize-*.whl")
    done = json.loads(args.out.read_text())["cells"] if args.out.exists() else []
    bad = False
    for python in args.python or PYTHONS:
        for name in args.torch or TORCH:
            cell = run_cell(wheel, TORCH[name][2] if python == "newest" else python, name, args.tests)
            print(row(cell), flush=True)
            bad |= bool(cell["error"] or cell["failed"])
            # A cell that ran before is replaced.
            done = [other for other in done if place(other) != place(cell)] + [cell]
            done.sort(key=place)
            result = {"measured": f"{datetime.datetime.now():%Y-%m-%d %H:%M}", "wheel": wheel.name, "cells": done}
            args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(bad)


def place(cell: dict) -> tuple[list[int], int]:
    """Python's version without its last number, and the place of PyTorch's among those asked for."""
    return [int(number) for number in cell["python"].split(".")[:2]], list(TORCH).index(cell["asked"])


def run_cell(wheel: Path, python: str, name: str, tests: Sequence[str]) -> dict:
    """Make an environment, test in it, and take it away."""
    found = run("uv", "python", "find", python).splitlines()[-1]  # Behind warnings.
    python = run(found, "-c", "import platform; print(platform.python_version())").strip()
    cell = {"python": python, "asked": name, "error": "", "versions": {}, "passed": 0, "skipped": 0, "failed": []}
    cell |= {"system": system(), "tests": list(tests)}
    began = time.monotonic()
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        environment, work = Path(folder) / "venv", Path(folder) / "work"
        work.mkdir()
        try:
            install(wheel, found, name, environment)
            cell["versions"] = versions(environment)
            assert name == "newest" or cell["versions"]["torch"].startswith(name), cell["versions"]
            test(environment, work, cell)
            shutil.copy(ROOT / "script/try_wheel.py", work)
            call(environment, "try_wheel.py", cwd=work)
            call(environment, "-m", "mixsize", "convert", "digits", "data/digits", cwd=work)
            call(environment, "-m", "mixsize", "train", "demo", "max_duration=1ep", cwd=work)
        except subprocess.CalledProcessError as error:
            cell["error"] = "\n".join((error.stdout or "").strip().splitlines()[-8:])
    cell["minutes"] = round((time.monotonic() - began) / 60, 1)
    return cell


def install(wheel: Path, python: str, name: str, environment: Path) -> None:
    """The wheel with its extras, and one version of PyTorch; everything else is the newest that they allow."""
    torch, as_composer_says, _ = TORCH[name]
    run("uv", "venv", "-q", "--python", python, str(environment))
    install = ["uv", "pip", "install", "-q", "--python", f"{environment}/bin/python"]
    # First, so that torchvision matches: the overrides loosen what it requires of PyTorch.
    run(*install, torch, "torchvision")
    overrides = [] if as_composer_says else ["--override", str(OVERRIDES)]
    run(*install, *overrides, f"mixsize[composer,report,wandb] @ {wheel.as_uri()}", *TOOLS)


def system() -> str:
    """The distribution's name, and the processor's kind."""
    return f"{platform.freedesktop_os_release().get('PRETTY_NAME', 'Linux')}, {platform.machine()}"


def versions(environment: Path) -> dict[str, str]:
    """Distribution -> version, of those that a table shows."""
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {SHOWN}}}))"
    return json.loads(call(environment, "-c", code))


def test(environment: Path, work: Path, cell: dict) -> None:
    """Count the tests that passed, and name those that failed with the first line of their error."""
    report = work / "tests.xml"
    pytest = [f"{environment}/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # Composer imports both; Python 3.14 deprecates what they call. All other warnings are errors, as in script/test.
    pytest += [f"-Wignore::DeprecationWarning:{module}" for module in ("backoff._decorator", "coolname.loader")]
    pytest += ["-Wignore:Guards may run slower on Python 3.13.0:RuntimeWarning"]  # torch.compile; 3.13.1 mends it.
    done = run(*pytest, f"--junitxml={report}", *cell["tests"], cwd=ROOT, check=False)
    if not report.exists():
        raise subprocess.CalledProcessError(1, "pytest", done)
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [*case.findall("failure"), *case.findall("error")]
        if bad:
            lines = [line[1:].strip() for line in (bad[0].text or "").splitlines() if line.startswith("E ")]
            name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
            cell["failed"].append(f"{name}: {lines[0] if lines else bad[0].get('message')}"[:400])
        elif case.find("skipped") is not None:
            cell["skipped"] += 1
        else:
            cell["passed"] += 1


def call(environment: Path, *arguments: str, cwd: Path | None = None) -> str:
    """What an environment's Python prints."""
    return run(f"{environment}/bin/python", *arguments, cwd=cwd, PATH=f"{environment}/bin:{os.environ['PATH']}")


def run(*command: str, cwd: Path | None = None, check: bool = True, **environment: str) -> str:
    """What a command prints, on either stream."""
    done = subprocess.run(
        command, cwd=cwd, check=check, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.stdout


def row(cell: dict) -> str:
    """A cell on one line, and its failures below."""
    found = " ".join(f"{name} {version}" for name, version in cell["versions"].items())
    counts = f"{cell['passed']} passed, {cell['skipped']} skipped, {len(cell['failed'])} failed"
    lines = [f"Python {cell['python']}, torch {cell['asked']}: {counts}; {found}; {cell['minutes']} min"]
    return "\n  ".join([*lines, *cell["failed"], *cell["error"].splitlines()])


if __name__ == "__main__":
    main()
