"""Each room imports only rooms before it: script/rooms.py has the order."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "script"))
import rooms  # noqa: E402

#: Rooms that may build a Trainer: recipes do; the others measure without recipes.
BUILD_TRAINERS = {"recipes.build", "bench.peers", "bench.overhead"}


@pytest.fixture(scope="module")
def imports() -> list[rooms.Import]:
    return rooms.imports()


def package(folder: Path, **sources: str) -> Path:
    """A tree of modules; double underscores in a name stand for slashes."""
    for name, source in sources.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


def test_every_folder_with_modules_has_its_place_in_the_order():
    assert {rooms.room_of(module) for module in rooms.modules()} <= set(rooms.ROOMS)
    assert len(rooms.modules()) > 100  # Those behind links too.


def test_no_room_imports_one_after_it(imports):
    assert [f"{one.importer}:{one.line} imports {one.imported}" for one in rooms.backward(imports)] == []


def test_algorithms_import_no_loaders(imports):
    assert [
        one for one in imports if one.importer.startswith("mixsize.algorithms") and "ffcv_loaders" in one.imported
    ] == []


def test_loaders_import_of_ours_the_regime_and_system_alone(imports):
    ours = [one for one in rooms.between_rooms(imports) if one.importer.startswith("mixsize.ffcv_loaders")]
    reached = {one.arrow[1] for one in ours}
    assert {room for room in reached if not room.startswith("ffcv_loaders")} == {"algorithms.regime", "system"}


def test_loaders_import_composer_inside_of_functions_alone(imports):
    loaders = [one for one in imports if one.importer.startswith("mixsize.ffcv_loaders")]
    assert [one for one in loaders if one.imported.startswith("composer") and one.on_import] == []


def test_the_loader_bench_alone_imports_ffcv_and_what_it_is_built_on(imports):
    users = {one.importer for one in imports if one.imported.split(".")[0] in ("ffcv", "numba", "cv2")}
    assert users == {"mixsize.bench.loader.ffcv_loader"}


def test_trainers_are_built_in_few_rooms():
    builders = set()
    for name, path in rooms.modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Trainer":
                builders.add(rooms.room_of(name))
    assert "recipes.build" in builders
    assert builders <= BUILD_TRAINERS


def test_an_import_against_the_order_is_found_wherever_it_stands(tmp_path):
    behind = package(tmp_path / "bench", report__html="", gpu__case="import mixsize.bench.report.html")
    source = package(
        tmp_path / "source",
        system__files="def late():\n    from mixsize.recipes.config import schema",
        display__console="if TYPE_CHECKING:\n    import mixsize.cli",
        recipes__config__schema="from mixsize.system import files",
    )
    (source / "bench").symlink_to(behind)
    wrong = [(one.importer, one.imported, one.on_import) for one in rooms.backward(rooms.imports(source))]
    assert sorted(wrong) == [
        ("mixsize.display.console", "mixsize.cli", False),
        ("mixsize.system.files", "mixsize.recipes.config.schema", False),
    ]


@pytest.mark.parametrize(
    ("module", "room"),
    [
        ("mixsize", "front"),
        ("mixsize.cli", "front"),
        ("mixsize.system.files", "system"),
        ("mixsize.ffcv_loaders.loader", "ffcv_loaders"),
        ("mixsize.ffcv_loaders.decode", "ffcv_loaders.decode"),
        ("mixsize.bench.gpu.case", "bench.gpu"),
        ("mixsize.bench.cellar.wine", "bench.cellar"),
    ],
)
def test_the_room_of_a_module_is_its_folder(module, room):
    assert rooms.room_of(module) == room


def test_each_room_opens_with_a_docstring():
    for name, path in rooms.modules().items():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name


def test_the_picture_of_the_rooms_shows_the_imports_of_the_code(imports):
    with Image.open(ROOT / "docs/figures/rooms.png") as picture:
        drawn = picture.info["Description"]
    assert drawn == rooms.describe(imports), "stale, run: python script/rooms.py docs/figures/rooms.png"
