"""The rooms of mixsize: their order, the imports between them and their lines of code.

    python script/rooms.py                              prints lines by room, and each import against the order
    python script/rooms.py docs/figures/rooms.png       draws rooms and imports

A room is a folder below ``src/mixsize``. A room may import those before it in ``ROOMS``, and none after it.
"""

from __future__ import annotations

import ast
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src/mixsize"
#: Folders that hold rooms. Their own modules form a room of their name.
HOUSES = ("algorithms", "ffcv_loaders", "recipes", "bench")
ROOMS = (
    "system",
    "display",
    "algorithms.regime",
    "algorithms.training",
    "algorithms.mixing",
    "algorithms.execution",
    "algorithms.averaging",
    "algorithms.batchnorm",
    "algorithms.smoothing",
    "algorithms.sampling",
    "algorithms.measurement",
    "algorithms",
    "ffcv_loaders.engine",
    "ffcv_loaders.beton",
    "ffcv_loaders.decode",
    "ffcv_loaders.conversion",
    "ffcv_loaders.pipeline",
    "ffcv_loaders",
    "recipes.config",
    "recipes.records",
    "recipes.models",
    "recipes.planning",
    "recipes.callbacks",
    "recipes.build",
    "recipes.commands",
    "recipes",
    "bench",
    "bench.report",
    "bench.regimes",
    "bench.loader",
    "bench.overhead",
    "bench.gpu",
    "bench.paper",
    "bench.peers",
    "bench.pages",
    "front",
)


@dataclass(frozen=True)
class Import:
    """One import statement's target, as module names.

    Attributes:
        importer: the module that holds the statement.
        imported: the module that it imports, of mixsize or of another package.
        line: of the statement.
        on_import: whether it runs when the importer is imported; false inside of functions and for type checkers.
    """

    importer: str
    imported: str
    line: int
    on_import: bool

    @property
    def arrow(self) -> tuple[str, str]:
        """From the importing room to the imported one."""
        return room_of(self.importer), room_of(self.imported)


def modules(source: Path = SOURCE) -> dict[str, Path]:
    """Name -> file of every module, those behind links included."""
    found = {}
    for folder, _, files in os.walk(source, followlinks=True):
        for file in files:
            if file.endswith(".py"):
                path = Path(folder, file)
                parts = ("mixsize", *path.relative_to(source).with_suffix("").parts)
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """The room that a module of mixsize lives in."""
    house, *rest = module.split(".")[1:] or [""]
    if house in HOUSES and rest and (len(rest) > 1 or f"{house}.{rest[0]}" in ROOMS):
        return f"{house}.{rest[0]}"
    return house if house in ROOMS else "front"


def imports(source: Path = SOURCE) -> list[Import]:
    """Every import statement of every module."""
    known = modules(source)
    return [
        Import(name, target, line, on_import)
        for name, path in known.items()
        for target, line, on_import in _targets(ast.parse(path.read_text(encoding="utf-8")), known, True)
    ]


def _targets(node: ast.AST, known: Iterable[str], on_import: bool) -> Iterator[tuple[str, int, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno, on_import) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.module is not None, "imports are absolute"
            for alias in child.names:
                submodule = f"{child.module}.{alias.name}"
                yield (submodule if submodule in known else child.module), child.lineno, on_import
        else:
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from _targets(child, known, on_import and not later and not typing)


def between_rooms(found: Iterable[Import]) -> list[Import]:
    """Imports between different rooms."""
    ours = [one for one in found if one.imported.split(".")[0] == "mixsize"]
    return [one for one in ours if one.arrow[0] != one.arrow[1]]


def backward(found: Iterable[Import]) -> list[Import]:
    """Imports of a room that stands after the importer's."""
    return [one for one in between_rooms(found) if ROOMS.index(one.arrow[0]) < ROOMS.index(one.arrow[1])]


def lines_by_room(source: Path = SOURCE) -> Counter[str]:
    """Lines of Python in each room."""
    lines: Counter[str] = Counter()
    for name, path in modules(source).items():
        lines[room_of(name)] += len(path.read_text(encoding="utf-8").splitlines())
    return lines


def draw(path: Path) -> None:
    """Draw a table with a dot where the row's room imports the column's: red above the diagonal."""
    from mixsize.display.figures import COLOURS, GRID, new_figure, save

    found = imports()
    arrows = {one.arrow for one in between_rooms(found)}
    rooms = [room for room in ROOMS if any(room in arrow for arrow in arrows)]
    wrong = {one.arrow for one in backward(found)}
    figure, (plot,) = new_figure(width=9, height=8)
    last = len(rooms) - 0.5
    plot.set(xlim=(-0.5, last), ylim=(last, -0.5), xticks=range(len(rooms)), yticks=range(len(rooms)))
    plot.set_xticklabels(rooms, rotation=90)
    plot.set_yticklabels(rooms)
    plot.tick_params(labeltop=True, labelbottom=False, length=0)
    plot.spines[:].set_visible(False)
    plot.plot([-0.5, last], [-0.5, last], color=GRID, linewidth=8, marker="", zorder=0)
    houses = list(dict.fromkeys(room.split(".")[0] for room in rooms))
    for importer, imported in arrows:
        colour = "red" if (importer, imported) in wrong else COLOURS[houses.index(importer.split(".")[0])]
        plot.plot(rooms.index(imported), rooms.index(importer), marker="o", markersize=7, color=colour)
    save(figure, path, describe(found))


def describe(found: Iterable[Import]) -> str:
    """The arrows between rooms in words, which the picture keeps in its metadata."""
    return "; ".join(sorted({" -> ".join(one.arrow) for one in between_rooms(found)}))


def main(arguments: list[str]) -> int:
    """Draw, or print."""
    if arguments:
        draw(Path(arguments[0]))
        return 0
    lines = lines_by_room()
    for room in ROOMS:
        print(f"{room:24} {lines[room]:6,}")
    print(f"{'all':24} {lines.total():6,}")
    wrong = backward(imports())
    for one in wrong:
        print(f"{one.importer}:{one.line} imports {one.imported}, which stands after it")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
