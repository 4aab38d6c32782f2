"""Every code block of the documentation works: Python runs, commands parse, YAML composes.

Pages name large networks and data. Before a block runs, ``SMALL`` exchanges sizes, networks and lengths for small ones,
and the files are scikit-learn's digits.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

from mixsize.algorithms.smoothing.gradient_smoother import GradientSmoother
from mixsize.bench.regimes.suite import load_suite
from mixsize.bench.regimes.suite_runs import runs_of
from mixsize.cli import _parser, main
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.build.preparation import preparation_of, with_preparation
from mixsize.recipes.config import yamltext
from mixsize.recipes.config.compose import compose, packaged_recipes, to_yaml
from mixsize.recipes.models import networks
from mixsize.recipes.models.hub_config import config_text
from mixsize.recipes.models.weights import save_weights

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")],
    key=str,
)
#: Pages that a program writes from records.
WRITTEN = {"docs/cifar10_cpu/report.md"}
_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*) -->\n\n?)?^(?P<fence>`{3,})(?P<kind>\w*)\n(?P<text>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)
_NOT_RUN = re.compile(r"<!-- not run:")

#: Text on a page -> its exchange.
SMALL = {
    '"resnet50"': '"cifar_resnet20"',
    '"90ep"': '"2ba"',
    "num_classes=1000": "num_classes=10",
    ", pretrained=True": "",
    "range(90)": "range(1)",
    '"s144"': "{16: 0.5, 8: 0.5}",
    "size_px=224, batch_size=256": "size_px=16, batch_size=16",
    "size_px=size_px, batch_size=256": "size_px=size_px, batch_size=64",
    "size_px=size_px, batch_size=100": "size_px=size_px, batch_size=50",
    "(128, 224, 288)": "(8, 16, 24)",
    "bank.use(network, 288)": "bank.use(network, 24)",
    'val.beton", 288': 'val.beton", 24',
    "load_into(network, 224)": "load_into(network, 16)",
    "max_batches=200": "max_batches=2",
    "num_batches=200": "num_batches=1",
    "Phase(128, 30": "Phase(8, 1",
    "Phase(192, 30": "Phase(12, 1",
    "Phase(224, 30": "Phase(16, 1",
    "[96, 128, 224, 256]": "[8, 12, 16, 24]",
    "network_stride(network) == 32": "network_stride(network) == 4",
    "num_workers=8": "num_workers=0",
    "num_workers=12": "num_workers=1",
    "batch_size=500": "batch_size=180",
    # Compiling takes a minute.
    '"compile", len(shapes)': '"eager", len(shapes)',
}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def blocks() -> tuple[Block, ...]:
    found = []
    for page in PAGES:
        name, text = page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
        if name in WRITTEN:
            continue
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start("fence")) + 1
            found.append(Block(name, line, match["kind"], match["text"], match["reason"]))
    return tuple(found)


def of_kind(*kinds: str) -> list[Block]:
    return [block for block in blocks() if block.kind in kinds and block.reason is None]


def test_every_block_is_tried():
    assert {block.kind for block in blocks()} <= {"python", "bash", "console", "yaml"}
    assert len(of_kind("python")) >= 15
    assert [str(block) for block in blocks() if block.reason is not None] == []
    marks = sum(len(_NOT_RUN.findall(page.read_text(encoding="utf-8"))) for page in PAGES)
    # CONTRIBUTING.md says how the mark is written.
    assert marks == 1


def test_links_lead_to_files_and_headings_that_exist():
    for page in PAGES:
        text = re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"https?:", target):
                continue
            path, _, heading = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            if heading:
                assert heading in headings(file), f"{page.name}: {target}"


def headings(page: Path) -> set[str]:
    """As GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# ---- Python ----


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory) -> Path:
    """A folder with the files that pages name, all of them digits."""
    root = tmp_path_factory.mktemp("files")
    for name in ("data/imagenet", "data/mine", "data"):
        (root / name).mkdir(parents=True, exist_ok=True)
        # The 360 test digits suffice to train on for a moment.
        for split in ("train", "val", "test"):
            shutil.copy(digits / "test.beton", root / name / f"{split}.beton")
    images, labels = load_digits(return_X_y=True)
    for split, chosen in (("train", range(200)), ("test", range(200, 300))):
        for index in chosen:
            folder = root / "path/to" / split / str(labels[index])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (images[index].reshape(8, 8) * 255 / 16).astype("uint8")
            Image.fromarray(pixels).save(folder / f"{index}.png")
    if find_spec("datasets"):
        save_hugging_face(root / "path/to/train", root / "path/to/saved")
    Image.fromarray(pixels).save(root / "digit.png")
    network = timm.create_model("cifar_resnet20")
    recipe = with_preparation(compose(["demo"]), network, Beton.open(digits / "test.beton"))
    (root / "runs/demo").mkdir(parents=True)
    save_weights(network, root / "runs/demo/model.safetensors")
    (root / "runs/demo/config.json").write_text(config_text(network, preparation_of(recipe), None))
    return root


def save_hugging_face(images: Path, out: Path) -> None:
    """Class folders as a saved data set."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()
    found = sorted(images.rglob("*.png"))
    names = sorted({path.parent.name for path in found})
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    rows = {"image": list(map(str, found)), "label": [path.parent.name for path in found]}
    DatasetDict(train=Dataset.from_dict(rows, features=features)).save_to_disk(out)


@pytest.fixture
def workplace(files, monkeypatch) -> Path:
    """The working directory with these files, on a machine without a GPU."""
    monkeypatch.chdir(files)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return files


def given() -> dict:
    """The names that README's first block may use: a network, its optimiser, a smoother; LOADER makes a loader."""
    assert networks.__all__
    network = timm.create_model("cifar_resnet20")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return {"network": network, "optimizer": optimizer, "smoother": GradientSmoother(), "F": F, "torch": torch}


LOADER = """
import timm
from mixsize import Base, CenterCrop, EvalLoader, MixSizeLoader, Regime
loader = MixSizeLoader("data/imagenet/train.beton", Regime.from_sizes({16: 0.5, 8: 0.5}, Base(16, 16), "B+"))
"""


def test_every_exchange_is_used():
    text = "".join(block.text for block in of_kind("python"))
    assert [words for words in SMALL if words not in text] == []


@pytest.mark.parametrize("page", sorted({block.page for block in of_kind("python")}))
def test_the_python_of_a_page_runs_from_top_to_bottom(page, workplace, capfd):
    needed = {"docs/ffcv-loader.md": "ffcv", "docs/sources.md": "datasets"}
    if page in needed:
        pytest.importorskip(needed[page])
    names = {}
    if page == "README.md":
        names = given()
        exec(compile(LOADER, "given", "exec"), names)
    for block in of_kind("python"):
        if block.page == page:
            text = block.text
            for words, small in SMALL.items():
                text = text.replace(words, small)
            # Lines count as in the page.
            exec(compile("\n" * block.line + text, str(ROOT / page), "exec"), names)


# ---- commands ----


def commands(block: Block) -> list[list[str]]:
    text = block.text.replace("\\\n", " ")
    if block.kind == "console":
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words for words in lines if words]


ALL_COMMANDS = [(block, words) for block in of_kind("bash", "console") for words in commands(block)]


@pytest.mark.parametrize(
    ("block", "words"), ALL_COMMANDS, ids=[f"{block} {' '.join(words)[:60]}" for block, words in ALL_COMMANDS]
)
def test_every_command_exists_and_takes_its_arguments(block, words, workplace):
    write_yaml_files()
    program, *rest = words
    if program == "composer":
        rest = rest[rest.index("mixsize") + 1 :]
        program = "mixsize"
    if program == "mixsize":
        check_arguments(rest)
    elif program == "python":
        assert (ROOT / rest[0]).is_file()
    elif program.startswith("script/"):
        assert os.access(ROOT / program, os.X_OK)
        subprocess.run(["bash", "-n", str(ROOT / program)], check=True)
    else:
        assert program in ("pip", "uv", "apt-get")


def write_yaml_files() -> None:
    """The YAML blocks of the pages, as the files that commands name."""
    for block in of_kind("yaml"):
        if is_suite(block):
            Path("my_suite.yaml").write_text(block.text)
    for block in of_kind("yaml"):
        if not is_suite(block) and block.page == "docs/your-model.md":
            Path("mine.yaml").write_text(block.text)
    # The recipe that `mixsize start path/to/images` writes.
    Path("images.yaml").write_text(to_yaml(compose(["demo"])))


def check_arguments(argv: list[str]) -> None:
    """Parse a command line with the real parser; compose the recipes and suites that it names."""
    argv = ["demo" if word == "..." else word for word in argv]
    args = _parser().parse_args(argv)
    if argv[0] in ("train", "plan") or (argv[0] == "eval" and args.items):
        compose(args.items)
    elif argv[:2] == ["bench", "regimes"]:
        runs_of(load_suite(args.suite), Path("runs"), args.seeds or 1, args.items)


def test_commands_that_touch_no_data_run(capsys):
    """In an empty folder: a plan looks at the data files that exist."""
    write_yaml_files()
    ran = []
    for block in of_kind("bash"):
        for words in commands(block):
            if words[:2] in (["mixsize", "plan"], ["mixsize", "recipes"]) and words not in ran:
                assert main(words[1:]) == 0, capsys.readouterr().err
                ran.append(words)
    assert len(ran) >= 5
    assert Path("plan.png").exists()


@pytest.mark.parametrize("block", of_kind("console"), ids=str)
def test_the_output_on_a_page_is_the_commands_output(block, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    (words,) = commands(block)
    assert main(words[1:]) == 0
    lines = iter([line.strip() for line in capsys.readouterr().out.splitlines()])
    for wanted in map(str.strip, block.text.splitlines()[1:]):
        if wanted != "...":
            assert wanted in lines, wanted  # Later than the one before.


# ---- YAML ----


def is_suite(block: Block) -> bool:
    return "budget" in yamltext.load(block.text)


@pytest.mark.parametrize("block", of_kind("yaml"), ids=str)
def test_yaml_is_a_suite_or_part_of_a_recipe(block, tmp_path):
    file = tmp_path / "block.yaml"
    file.write_text(block.text)
    if is_suite(block):
        assert runs_of(load_suite(str(file)), tmp_path, 1, [])
        return
    assert compose(["imagenet/resnet50", str(file)])


def test_the_packaged_recipes_that_pages_name_exist():
    names = set(packaged_recipes())
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(regime/\w+|finetune/\w+|cifar10/\w+|imagenet/\w+)`", text):
            assert name in names, f"{page.name}: {name}"


# ---- API reference ----


def test_the_api_reference_shows_every_public_name_and_reads_every_table(tmp_path):
    script = ROOT / "script/api_reference.py"
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    from mixsize import algorithms, ffcv_loaders

    for package in (algorithms, ffcv_loaders):
        page = (tmp_path / f"{package.__name__.replace('.', '/')}.html").read_text(encoding="utf-8")
        shown = set(re.findall(r'id="(\w+)"', page))
        assert set(package.__all__) <= shown
        assert "+====" not in page
    schema = (tmp_path / "mixsize/recipes/config/schema.html").read_text(encoding="utf-8")
    assert 'id="Recipe.max_duration"' in schema
    assert "PydanticUndefined" not in schema
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert algorithms.__doc__.splitlines()[0] in index
    assert (tmp_path / "mixsize/algorithms/training/epoch_schedule.html").exists()
    assert not (tmp_path / "mixsize/algorithms/batchnorm/calibration.html").exists()
