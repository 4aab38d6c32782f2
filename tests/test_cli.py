"""The ``mixsize`` command as a person types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mixsize import cli
from mixsize.cli import main
from mixsize.completion import script


def test_plan_reproduces_the_papers_steps(capsys):
    assert main(["plan", "imagenet/resnet50", "regime/s144_dplus", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps_total"] == pytest.approx(450_000, rel=0.005)
    # 500 + 500 + 3,003 * 3 + 1,001 * 5 duplicates in 5,004 steps of equal batches
    assert plan["mean_duplicates"] == pytest.approx(15_014 / 5_004)
    keys = {"steps_per_epoch", "mean_size_px", "mean_batch_size", "lr_scale", "pixels_per_epoch_ratio", "choices"}
    assert keys <= plan.keys()
    assert {"size_px", "batch_size", "duplicates", "share", "steps_per_epoch"} <= plan["choices"][0].keys()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["plan", "cifar10/resnet4"], "cifar10/resnet44"),
        (["plan", "cifar10/resnet44", "regime.mode=C"], "regime.mode"),
        (["plan", "cifar10/resnet44", "optimiser.lr=1"], "optimizer"),
        (["plan", "cifar10/resnet44", "regime/s28_bplus", "regime.sizes={0: 1.0}"], "regime.sizes"),
        (
            ["plan", "cifar10/resnet44", "regime/s28_bplus", "regime.base.batch_size=2", "regime.base.size_px=4"],
            "rounds",
        ),
        (["plan", "cifar10/resnet44", "data.train_images=null"], "data.train_images"),
        (["train", "demo", "data.train=/nowhere.beton"], "/nowhere.beton"),
        (["convert", "/nowhere", "out.beton"], "/nowhere"),
        (["bench", "regimes", "digit"], "did you mean digits"),
        (["bench", "regimes", "digits", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["bench", "regimes", "digits", "optimizer.lr=-1"], "suite digits, fixed: optimizer.lr"),
        (["bench", "regimes", "digits", "data.eval=/nowhere.beton"], "data.eval: /nowhere.beton does not exist"),
        (["bench", "loader", "/nowhere.beton"], "/nowhere.beton"),
    ],
)
def test_mistakes_end_in_one_line_and_code_two(argv, words, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert "Traceback" not in captured.err


def test_recipes_are_listed(capsys):
    assert main(["recipes"]) == 0
    assert {"demo", "cifar10/resnet44", "regime/s144_bplus"} <= set(capsys.readouterr().out.split())


def test_help_does_not_wait_for_pytorch():
    code = (
        "import sys; from mixsize.cli import COMMANDS, main\n"
        "for argv in (['--help'], *([command, '--help'] for command in COMMANDS)):\n"
        "    try: main(argv)\n"
        "    except SystemExit: assert 'torch' not in sys.modules, argv"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


@pytest.mark.data
def test_cifar_from_its_image_folder_trains(real_images, tmp_path, capsys):
    assert main(["convert", str(real_images / "cifar10"), str(tmp_path / "cifar10"), "--no-progress"]) == 0
    items = [
        "cifar10/resnet20",
        "regime/s28_bplus",
        f"data.train={tmp_path}/cifar10/train.beton",
        f"data.eval={tmp_path}/cifar10/test.beton",
        f"output.folder={tmp_path}/runs",
        "max_duration=2ba",
        "evaluation={sizes: [24]}",
    ]
    assert main(["train", *items]) == 0
    record = json.loads((tmp_path / "runs/cifar10-resnet20/record.json").read_text())
    assert set(record["accuracy"]) == {"24"}


def modules_after(*argv: str) -> set[str]:
    """The packages that a command line has imported by its end."""
    code = f"import sys; from mixsize.cli import main\ncode = main({list(argv)!r})\nprint(code, *sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, *modules = run.stdout.split()
    assert (status, run.stderr.startswith("error: ")) == ("2", True)
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize(
    "argv",
    [
        ("train", "typo"),
        ("train", "demo", "optimizer.lrr=1"),
        ("plan", "demo", "optimizer.lrr=1"),
        ("eval", __file__, "demo", "optimizer.lrr=1"),
        ("export", __file__, "demo", "optimizer.lrr=1", "--out", "out"),
        ("bench", "regimes", "digit"),
        ("bench", "regimes", "digits", "optimizer.lrr=1"),
        ("bench", "regimes", "cifar10", "data.train=/nowhere.beton"),
    ],
)
def test_a_mistake_in_a_recipe_does_not_wait_for_pytorch(argv):
    assert not {"torch", "timm", "composer", "matplotlib"} & modules_after(*argv)


OWN_NETWORK = """
import timm
from timm.models import register_model

@register_model
def own_network(pretrained=False, **kwargs):
    return timm.create_model("cifar_resnet20", pretrained, **kwargs)
"""


@pytest.fixture
def own_module(monkeypatch):
    """A module in the working directory that registers own_network, with a name that no other test imports."""
    Path("own_networks.py").write_text(OWN_NETWORK)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_networks"
    sys.modules.pop("own_networks", None)


def test_a_module_of_the_users_registers_networks(own_module, digits, tmp_path, capsys):
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "name: own\nrecipes: {own: [demo, model.name=own_network, 'model.kwargs={}', device=cpu]}\n"
        "regimes: {fixed: [regime/fixed]}\nbudget: {pixels: 10000}\nevaluation_sizes: [16]\n"
    )
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton"]
    items = [*data, "regime.base.batch_size=32"]
    assert main(["plan", "demo", "model.name=own_network", *data]) == 2
    assert "unknown timm model 'own_network'" in (said := capsys.readouterr().err)
    assert "--import MODULE" in said
    assert main(["plan", "demo", "model.name=own_network", *data, "--import", own_module]) == 0
    # Its run is a process of its own.
    assert (
        main(["bench", "regimes", str(suite), *items, "--import", own_module, "--folder", str(tmp_path / "runs")]) == 0
    )
    run = tmp_path / "runs/own-fixed-seed17"
    assert main(["eval", str(run), "--sizes", "16", "--no-calibrate", "--import", own_module]) == 0


def test_a_module_that_does_not_exist_is_named(capsys):
    assert main(["plan", "demo", "--import", "no_such_module"]) == 2
    assert (
        capsys.readouterr().err == "error: --import no_such_module: no module 'no_such_module' here or on PYTHONPATH\n"
    )


def test_a_module_without_its_own_imports_fails_with_its_own_error(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("needs_another.py").write_text("import no_such_module\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main(["plan", "demo", "--import", "needs_another"])


def all_commands() -> list[list[str]]:
    return [[], *([name] for name in cli.COMMANDS), ["bench"], *(["bench", name] for name in cli.BENCHES)]


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_help_holds_no_markup(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert [mark for mark in ("`", ":mod:", ":class:", ":func:", "**") if mark in text] == []


def completed(line: str) -> list[str]:
    """What bash offers for the last word of a command line."""
    code = (
        'eval "$SCRIPT"; read -ra COMP_WORDS <<< "$LINE"; [[ "$LINE" == *" " ]] && COMP_WORDS+=("");'
        'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _mixsize; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {"SCRIPT": script("bash"), "LINE": line}
    run = subprocess.run(["bash", "-c", code], env=environment, capture_output=True, text=True, check=True)
    return [word for word in run.stdout.split("\n") if word]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_recipes_and_keys():
    assert {word.strip() for word in completed("mixsize ")} == {*cli.COMMANDS, "bench"}
    assert completed("mixsize tr") == ["train "]
    assert completed("mixsize bench re") == ["regimes "]
    assert completed("mixsize train cifar10/resnet4") == ["cifar10/resnet44 "]
    assert completed("mixsize plan demo regime/s28") == ["regime/s28_bplus ", "regime/s28_dplus "]
    assert completed("mixsize train demo optimizer.lr") == ["optimizer.lr=", "optimizer.lr_scaling="]
    assert completed("mixsize convert cif") == []  # Files.


def test_the_completion_script_is_printed(capsys):
    assert main(["completion", "zsh"]) == 0
    out = capsys.readouterr().out
    assert "bashcompinit" in out
    assert out.endswith(script("bash"))
