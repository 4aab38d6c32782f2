"""Write the API reference of the public modules as web pages; script/docs calls this.

python script/api_reference.py FOLDER
"""

import re
import sys
from importlib import import_module
from inspect import isclass
from pathlib import Path
from typing import Any, get_type_hints

import pdoc
from jinja2 import pass_context

from mixsize.recipes.config import regimes, schema
from mixsize.recipes.config.section import Section

#: Packages whose public names load on first use, and the modules that a user's code or recipes meet beside them.
PACKAGES = ("mixsize.algorithms", "mixsize.ffcv_loaders")
MODULES = (
    "mixsize.algorithms.training.epoch_schedule",
    "mixsize.ffcv_loaders.conversion.convert",
    "mixsize.recipes.build.trainer",
    "mixsize.recipes.config.compose",
    "mixsize.recipes.models.network",
    "mixsize.recipes.records.run_record",
    "mixsize.recipes.config.schema",
    "mixsize.recipes.config.regimes",
    "mixsize.recipes.commands.train",
    "mixsize.recipes.models.weights",
    "mixsize.bench.regimes.suite",
)


def main(folder: Path) -> None:
    """Write ``index.html`` and a page for each module."""
    for name in PACKAGES:
        package = import_module(name)
        for public in package.__all__:
            setattr(package, public, getattr(package, public))
    # A recipe's sections, without the types that their keys are made of.
    for module in (schema, regimes):
        module.__all__ = [name for name, value in vars(module).items() if _is_section(value)]
        for section in map(vars(module).get, module.__all__):
            plain = get_type_hints(section)  # Without what checks a value's range, which its description tells.
            section.__annotations__ = {key: plain[key] for key in section.__annotations__}
    templates = Path(__file__).with_name("api_templates")
    pdoc.render.configure(docformat="google", show_source=False, footer_text="mixsize", template_directory=templates)
    filters = pdoc.render.env.filters
    convert = filters["to_markdown"]
    filters["to_markdown"] = pass_context(lambda context, text: convert(context, as_markdown(text)))
    # The sub-modules of a package whose names are public are not shown a second time.
    inside = f"!({'|'.join(PACKAGES)})\\..*(?<!{')(?<!'.join(MODULES)})$"
    pdoc.pdoc(*PACKAGES, *MODULES, inside, output_directory=folder)


def _is_section(value: Any) -> bool:
    return isclass(value) and issubclass(value, Section) and not value.__name__.startswith("_")


def as_markdown(docstring: str) -> str:
    """What pdoc does not read of reStructuredText in Markdown: tables drawn with lines, and shortened references."""
    docstring = re.sub(r"(:\w+:`)~", r"\1", docstring)
    return re.sub(r"(?:^ *[+|].*[+|]$\n?)+", lambda table: _pipe_table(table[0]), docstring, flags=re.MULTILINE)


def _pipe_table(grid: str) -> str:
    rows: list[list[str]] = [[]]
    for line in map(str.strip, grid.splitlines()):
        if line.startswith("+"):
            rows.append([])
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        # Lines between two rules are one row.
        rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1] or [""] * len(cells), cells, strict=True)]
    head, *body = [row for row in rows if row]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
