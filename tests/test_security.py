"""What SECURITY.md promises, each against input that really tries."""

from __future__ import annotations

import os
import re
import shutil
import struct
import sys
import zlib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.bench.regimes.suite import SuiteError, load_suite
from mixsize.bench.report.html import render_html
from mixsize.bench.report.markdown import render_markdown
from mixsize.bench.report.sections import make_report
from mixsize.cli import main
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.convert import convert, convert_splits
from mixsize.recipes.build.trainer import build
from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import RecipeError, compose, to_yaml
from mixsize.recipes.models.network import create_network
from mixsize.recipes.models.weights import read_weights, running_nothing

sys.path.insert(0, str(Path(__file__).parent / "bench" / "report"))
from run_records import make_suite

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>](javascript:alert(1)) `|*_ $x^{$ [/red] \"'&"
KEY = "c0ffee0123456789c0ffee0123456789c0ffee01"


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


ITEMS = ["demo", "name='[red]a :smile:'", "schedule={name: constant}", "evaluation.sizes=[16]", "progress_bar=false"]
SECRETS = dict.fromkeys(("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MOSAICML_ACCESS_TOKEN"), KEY)
_reached: list[str] = []


def items_of(digits: Path, folder: Path, *more: str) -> list[str]:
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={folder}/runs"]
    return [*ITEMS, *data, *more]


@pytest.fixture(scope="module")
def reached() -> list[str]:
    """The network addresses that this process has asked for."""

    def note(event: str, arguments: tuple) -> None:
        if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
            _reached.append(str(arguments[0]))
        elif event in ("socket.connect", "socket.sendto"):
            _reached.append(str(arguments[1]))

    sys.addaudithook(note)  # For good: there is no way to remove it.
    return _reached


@dataclass
class Trained:
    """A run with a hostile name, secrets in its environment: its folder, its output, the addresses it asked for."""

    folder: Path
    output: str
    reached: list[str]


@pytest.fixture(scope="module")
def trained(digits, reached, tmp_path_factory) -> Trained:
    folder, output = tmp_path_factory.mktemp("trained"), StringIO()
    reached.clear()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(output):
        for name, key in SECRETS.items():
            patch.setenv(name, key)
        assert main(["train", *items_of(digits, folder, "max_duration=1ba")]) == 0
    return Trained(folder, output.getvalue(), list(reached))


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


# ---- YAML ----

OBJECTS = ["!!python/object/apply:os.mkdir [{mark}]", "!!python/name:os.system ''", "!mine 3", "!!binary aGk="]


@pytest.mark.parametrize("value", OBJECTS)
def test_a_recipe_cannot_construct_objects(value, tmp_path):
    mark, file = tmp_path / "mark", tmp_path / "hostile.yaml"
    file.write_text(f"name: {value.format(mark=mark)}\n")
    with pytest.raises(RecipeError, match=re.escape(str(file))):
        compose(["demo", str(file)])
    with pytest.raises(RecipeError, match="is not a YAML value"):
        compose(["demo", f"name={value.format(mark=mark)}"])
    assert not mark.exists()


@pytest.mark.parametrize("value", OBJECTS)
def test_a_suite_cannot_construct_objects(value, tmp_path):
    mark, file = tmp_path / "mark", tmp_path / "hostile.yaml"
    file.write_text(f"name: {value.format(mark=mark)}\n")
    with pytest.raises(SuiteError, match=re.escape(str(file))):
        load_suite(str(file))
    assert not mark.exists()


def test_nothing_in_a_recipe_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("MY_SECRET", KEY)
    texts = ["${MY_SECRET}", "$MY_SECRET", "${oc.env:MY_SECRET}", "{MY_SECRET}", "%(MY_SECRET)s", "~", "~/x"]
    for text in texts[:-2]:
        recipe = compose(["demo", f"data.train='{text}/x.beton'", f"output.wandb={{project: '{text}'}}"])
        assert recipe.data.train == f"{text}/x.beton"
        assert recipe.output.wandb.project == text
        assert KEY not in to_yaml(recipe)
    assert compose(["demo", "data.train='~/x.beton'"]).data.train == "~/x.beton"


# ---- checkpoints, weights and banks ----


def test_a_training_state_that_would_run_code_is_refused_when_a_run_goes_on(trained, digits, tmp_path):
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    (checkpoint,) = tmp_path.glob("runs/*/checkpoints/*.pt")
    state = torch.load(checkpoint, weights_only=False)
    torch.save({**state, "more": Hostile(tmp_path / "mark")}, checkpoint)
    words = (
        rf"{re.escape(str(checkpoint))} holds more than weights: (posix|nt)\.mkdir, which could run code when loaded"
    )
    with pytest.raises(ValueError, match=words):
        build(compose(items_of(digits, tmp_path, "max_duration=2ba")))
    assert not (tmp_path / "mark").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_pytorchs_switches_are_as_they_were_after_a_load_that_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file = tmp_path / "hostile.pt"
    torch.save({"state": Hostile(tmp_path / "mark")}, file)
    with pytest.raises(ValueError, match="which could run code"), running_nothing(file):
        torch.load(file, weights_only=False)
    assert not (tmp_path / "mark").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_weights_and_banks_that_would_run_code_are_refused(tmp_path):
    for zipped in (True, False):
        file = tmp_path / f"hostile-{zipped}.pt"
        torch.save({"w": torch.ones(2), "x": Hostile(tmp_path / "mark")}, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            read_weights(file)
        with pytest.raises(ValueError, match=f"{re.escape(str(file))} is not a file of"):
            StatisticsBank.load(file)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            create_network(schema.Model(name="resnet10t", checkpoint=str(file)), 10)
    assert not (tmp_path / "mark").exists()


def test_a_bank_of_the_wrong_values_is_refused_with_its_name(tmp_path):
    StatisticsBank().save(tmp_path / "bank.pt")
    good = torch.load(tmp_path / "bank.pt", weights_only=True)
    for sizes in ({"24": 3}, {24: {}}, {"x": {}}, {"24": {"bn": 3}}, [], None):
        torch.save({**good, "sizes": sizes}, tmp_path / "bad.pt")
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / "bad.pt"))):
            StatisticsBank.load(tmp_path / "bad.pt")


# ---- conversion ----


@pytest.fixture
def folder(tmp_path) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / split / name / "0.png")
    return tmp_path / "images"


def test_a_split_that_is_a_link_out_of_the_folder_is_not_converted(folder, tmp_path):
    (folder / "test").rename(tmp_path / "private")
    (folder / "test").symlink_to(tmp_path / "private")
    with pytest.raises(
        ValueError, match="links that lead out of the folder, which are followed with --follow-links: test"
    ):
        convert_splits(folder, tmp_path / "out", workers=1, progress=False)
    assert not (tmp_path / "out").exists()
    (folder / "test").unlink()
    (folder / "test").symlink_to("train")
    assert len(convert_splits(folder, tmp_path / "out", workers=1, progress=False)) == 2


def test_a_link_to_a_file_outside_is_not_read(folder, tmp_path):
    (tmp_path / "private.png").write_bytes((folder / "train/cat/0.png").read_bytes())
    (folder / "train/cat/1.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(ValueError, match=r"holds links that lead out of the folder.*cat/1\.png"):
        convert(folder / "train", tmp_path / "out.beton", workers=1, progress=False)


def png_that_declares(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("side", "words"),
    [(10_000, "declares 10000 x 10000 pixels, more than 89478485"), (60_000, r"3600000000 pixels\) exceeds limit")],
)
def test_images_that_declare_more_pixels_than_a_machine_holds_are_refused_unread(folder, tmp_path, side, words):
    (folder / "train/cat/bomb.png").write_bytes(png_that_declares(side, side))
    with pytest.raises(ValueError, match=rf"cat/bomb\.png.*{words}"):
        convert(folder / "train", tmp_path / "out.beton", workers=1, progress=False)


def test_a_file_that_is_longer_than_a_page_is_refused_unread(folder, tmp_path):
    with open(folder / "train/cat/huge.jpg", "wb") as file:
        file.truncate(1 << 40)  # Takes no space on the disk, and would take it all in memory.
    with pytest.raises(ValueError, match=r"cat/huge\.jpg.*takes 1099511627776 bytes"):
        convert(folder / "train", tmp_path / "out.beton", workers=1, progress=False)


def test_names_that_would_act_on_a_terminal_are_kept_as_escapes(folder, tmp_path):
    (folder / "train/cat").rename(folder / "train/cat\x1b[31m\u202e\n")
    convert(folder / "train", tmp_path / "out.beton", workers=1, progress=False)
    assert Beton.open(tmp_path / "out.beton").info.classes == (r"cat\x1b[31m\u202e\n", "dog")


# ---- reports and the terminal ----


class Page(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


def hostile_records():
    records = []
    for record in make_suite(seeds=2):
        environment = record.environment.model_copy(update={"cpu": MARKUP, "torch": MARKUP})
        update = {"label": f"{record.label}{MARKUP}", "name": MARKUP, "environment": environment, "suite": MARKUP}
        update |= {"commit": MARKUP, "error": None if record.error is None else f"{MARKUP}\n```\n# {MARKUP}"}
        records.append(record.model_copy(update=update))
    return records


@pytest.fixture(scope="module")
def hostile_report():
    return make_report(MARKUP, hostile_records())


def test_no_text_of_a_record_becomes_markup_of_the_page(hostile_report):
    page, plain = Page(), Page()
    page.feed(render_html(hostile_report))
    plain.feed(render_html(make_report("digits", make_suite(seeds=2))))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}
    assert "script" not in {tag for tag, _ in page.elements}
    assert {name for _, attributes in page.elements for name in attributes} <= {
        name for _, attributes in plain.elements for name in attributes
    }
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links
    assert all(link.startswith("#") for link in links)


def test_no_text_of_a_record_becomes_markup_of_the_markdown(hostile_report):
    text = render_markdown(hostile_report, "figures")
    outside_quotes = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "alert(1)" in outside_quotes
    assert set(re.findall(r"<(\w+)", outside_quotes)) <= {"details", "summary"}
    links = re.findall(r"(?<!\\)\]\(([^)]*)\)", outside_quotes)
    assert links
    assert all(link.startswith("figures/") for link in links)
    meant = re.sub(r"\\[\\`*|\[\]~_]", "", outside_quotes)
    assert "`" not in meant
    assert not [line for line in meant.splitlines() if not re.fullmatch(r"[^*]*(\*\*[^*]+\*\*)?[^*]*", line)]
    for table in re.findall(r"(?:^\|.*\n)+", meant, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    # The error's own fence ends nothing: there is a longer one around it.
    assert "````text\n" in text


def test_a_run_with_a_hostile_name_is_trained_and_shown(trained):
    assert "[red]a :smile:: what was drawn" in " ".join(trained.output.split())


def test_a_plan_under_a_hostile_name_is_printed_and_drawn(tmp_path, capsys):
    items = ["cifar10/resnet20", "regime/s28_bplus", "name='[/x] $x^{$ <b>'"]
    assert main(["plan", *items, "--plot", str(tmp_path / "plan.png")]) == 0
    assert "[/x] $x^{$ <b>: B+" in capsys.readouterr().out
    assert (tmp_path / "plan.png").stat().st_size > 1000


# ---- network and secrets ----


def test_training_speaks_to_nobody(trained):
    assert trained.reached == []


def test_no_secret_of_the_environment_is_written_or_printed(trained):
    assert {"record.json", "recipe.yaml", "model.safetensors"} <= {path.name for path in trained.folder.rglob("*")}
    assert files_with(KEY, trained.folder) == []
    assert KEY not in trained.output


def test_offline_logging_speaks_to_this_machine_alone_and_writes_no_secret(
    digits, reached, tmp_path, monkeypatch, wandb_runs
):
    for name, key in SECRETS.items():
        monkeypatch.setenv(name, key)
    reached.clear()
    assert (
        main(["train", *items_of(digits, tmp_path, "max_duration=1ba", "output.wandb={project: a, mode: offline}")])
        == 0
    )
    assert len(wandb_runs()) == 1
    assert [address for address in reached if "127.0.0.1" not in address and "localhost" not in address] == []
    assert list(tmp_path.rglob("*.wandb"))
    assert files_with(KEY, tmp_path) == []


def test_wandbs_reports_of_its_own_errors_are_switched_off_unless_the_user_sets_them(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    main(["recipes"])
    assert os.environ["WANDB_ERROR_REPORTING"] == "true"
    monkeypatch.delenv("WANDB_ERROR_REPORTING")
    main(["recipes"])
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
