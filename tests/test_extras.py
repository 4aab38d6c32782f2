"""What runs without the packages of the extras, and the one line that names the command where one is missing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from PIL import Image
from safetensors.torch import save_file

from mixsize import algorithms
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.network import create_network

ROOT = Path(__file__).parent.parent
#: Modules of the extras, and those that Composer alone brings.
EXTRAS = [
    "onnxscript",
    "composer",
    "torchmetrics",
    "torch_optimizer",
    "mcli",
    "matplotlib",
    "scipy",
    "wandb",
    "wandb_workspaces",
]
PEERS = ["ffcv", "numba", "cv2", "simplejpeg"]
CLASSES = {
    "BNCalibrate", "Curriculum", "EpochSchedule", "GradSmoothing", "MixSizeSampling", "Mixing", "ModelEMA", "Preflight",
    "ProgressiveResize", "StepSeed", "TrainingClock",
}  # fmt: skip
START = "from mixsize.cli import main\n"
COMPOSER = "Composer is not installed; get it with: "


def test_every_plain_name_loads_without_the_extras_and_the_classes_name_the_command(python_without):
    code = """
import mixsize, mixsize.algorithms as algorithms, mixsize.ffcv_loaders as loaders
for package in (algorithms, loaders):
    for name in package.__all__:
        try:
            getattr(package, name)
        except ImportError as error:
            print(error)
try:
    from mixsize.algorithms import MixSizeSampling
except ImportError as error:
    print(error)
"""
    lines = python_without([*EXTRAS, *PEERS, "sklearn"], code)
    assert all(COMPOSER in line and "mixsize[composer]" in line for line in lines)
    assert [line.partition(":")[0] for line in lines] == [*sorted(CLASSES), "MixSizeSampling"]


def test_the_plain_functions_and_the_loop_of_the_example_run_without_the_extras(python_without):
    code = f"""
import runpy, sys
sys.argv = ["plain_loop.py", "--epochs", "3", "--images", "1200"]
runpy.run_path({str(ROOT / "examples/plain_loop.py")!r}, run_name="__main__")
import mixsize
from mixsize.cli import main
main(["convert", "digits", "out", "--no-progress"])
loader = mixsize.EvalLoader("out/test.beton", size_px=8, batch_size=360, device="cpu")
print(*(tuple(images.shape) for images, _ in loader))
"""
    # The digits come with scikit-learn, which needs SciPy.
    lines = python_without(["composer", "torchmetrics", "mcli", "wandb", "matplotlib", *PEERS], code)
    assert [line.split()[0] for line in lines[:8]] == ["epoch", "epoch", "epoch", "size", "24", "32", "48", "64"]
    assert float(lines[2].split()[-1]) < float(lines[0].split()[-1])  # The loss.
    assert all(0 <= float(value) <= 100 for line in lines[4:8] for value in line.split()[1:])
    assert lines[-1] == "(360, 3, 8, 8)"


def test_plan_recipes_and_doctor_run_without_the_extras(python_without):
    code = """
print("plan", main(["plan", "cifar10/resnet20", "regime/s28_bplus"]))
print("recipes", main(["recipes"]))
print("doctor", main(["doctor", "--json"]))
"""
    lines = python_without([*EXTRAS, *PEERS, "sklearn"], START + code)
    assert {"plan 0", "recipes 0", "doctor 0"} <= set(lines)
    found = json.loads("\n".join(lines[lines.index("recipes 0") + 1 : lines.index("doctor 0")]))
    assert (found["runs"], found["trains"]) == (True, False)
    (composer,) = (finding for finding in found["findings"] if finding["blocks"])
    assert (composer["name"], composer["value"]) == ("Composer", "not installed")


def test_a_folder_is_converted_and_weights_are_evaluated_without_the_extras(digits, photos, tmp_path, python_without):
    recipe = compose(["demo"])
    network = create_network(recipe.model, 10)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", "loader.num_workers=1"]
    argv = ["eval", "weights.safetensors", "demo", *data, "--sizes", "8,16", "--calibration-batches", "2"]
    source = str(photos.parent / "source")
    export = ["export", "weights.safetensors", "demo", *data, "calibration.batches=2"]
    Image.new("RGB", (8, 8)).save(tmp_path / "digit.png")
    code = f"""
print("convert", main(["convert", {source!r}, "photos.beton", "--no-progress"]))
print("eval", main({argv!r}))
print("export", main([*{export!r}, "--sizes", "8", "--out", "out"]))
print("predict", main(["predict", "out", "digit.png", "--size", "8"]))
print("onnx", main([*{export!r}, "--onnx", "8", "--out", "other"]))
print("compare", main([*{argv!r}, "--compare", "eval/weights/weights.json"]))
"""
    lines = python_without([*EXTRAS, *PEERS, "sklearn"], START + code)
    assert (tmp_path / "photos.beton").is_file()
    assert {"convert 0", "eval 0", "export 0", "predict 0", "onnx 2", "compare 2"} <= set(lines)
    assert any('get it with: pip install "mixsize[onnx]"' in line for line in lines)
    record = json.loads((tmp_path / "eval/weights/weights.json").read_text())
    assert [row["size_px"] for row in record["sizes"]] == [8, 16]
    assert record["environment"]["composer"] is not None  # Of the distribution, which is installed.
    matplotlib = 'Matplotlib is not installed; get it with: pip install "mixsize[report]"'
    assert f"plot: not drawn; {matplotlib}" in lines
    assert lines[-3] == "onnx 2"  # Nothing is measured before the error.
    assert lines[-2].startswith(f"error: {matplotlib}")


def test_commands_that_need_an_extra_name_its_command_on_one_line(python_without):
    report = 'get it with: pip install "mixsize[report]"'
    wanted = {
        "train demo": COMPOSER,
        "bench regimes digits": COMPOSER,
        "report runs": report,
        "plan cifar10/resnet20 --plot plan.png": f"Matplotlib is not installed; {report}",
        "convert digits out": "scikit-learn is not installed; get it with: pip install",
    }
    code = f"for line in {list(wanted)}: print('status', main(line.split()))"
    lines = python_without([*EXTRAS, "jinja2", "sklearn"], START + code)
    assert lines[1::2] == ["status 2"] * len(wanted)
    for line, words in zip(lines[::2], wanted.values(), strict=True):
        assert line.startswith("error: ")
        assert words in line


def test_a_run_that_logs_to_wandb_names_the_command_before_it_writes_anything(digits, tmp_path, python_without):
    argv = ["train", "demo", f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton",
            "output.wandb={project: mine}"]  # fmt: skip
    code = f"from mixsize.cli import main\nprint('status', main({argv!r}))"
    lines = python_without(["wandb"], code)
    assert lines[-2].startswith('error: Weights & Biases is not installed; get it with: pip install "mixsize[wandb]"')
    assert lines[-1] == "status 2"
    assert not (tmp_path / "runs").exists()


def test_plain_names_do_not_import_composer_where_it_is_installed():
    plain = sorted(set(algorithms.__all__) - CLASSES)
    code = (
        "import sys, mixsize.algorithms\n"
        f"for name in {plain!r}: getattr(mixsize.algorithms, name)\n"
        "import mixsize.recipes.build.checks, mixsize.recipes.planning.costs, mixsize.recipes.commands.evaluate\n"
        "print(*{'composer', 'matplotlib', 'torchmetrics'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "\n"


def test_composers_classes_are_those_of_modules_that_import_it():
    found = set()
    for module, names in algorithms._MODULES.items():
        path = ROOT / "algorithms" / f"{module.replace('.', '/')}.py"
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        if any((node.module or "").startswith("composer") for node in imports):
            found |= set(names)
    assert found == CLASSES
