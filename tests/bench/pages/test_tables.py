"""The tables and figures of README and the documentation stand on the result files they name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mixsize.bench.pages.page_figures import write_figures
from mixsize.bench.pages.tables import pages, refresh

from ..report.run_records import make_record

COMMAND = "python -m mixsize.bench.pages.refresh"
ROOT = Path(__file__).parents[3]
PAGES = {page: page.read_text(encoding="utf-8") for page in pages(ROOT)}


# The tables of recipes count the multiply-accumulates of every network at every size.
SLOW = ROOT / "docs/recipes.md"


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["results", "recipes"])
def test_pages_show_what_the_result_files_say(slow):
    assert sum(text.count("<!-- table:") for text in PAGES.values()) >= 10
    for page, text in PAGES.items():
        if (page == SLOW) == slow:
            assert refresh(text, ROOT) == text, f"{page.name} is stale, run: {COMMAND}"


def test_every_table_and_figure_names_its_file_on_a_page_that_is_made_anew():
    marked = {path for path in ROOT.glob("docs/**/*.md") if "<!-- table:" in path.read_text(encoding="utf-8")}
    assert marked <= set(PAGES)


def test_figures_are_made_from_the_result_files_that_pages_name(tmp_path):
    for text in PAGES.values():
        write_figures(text, ROOT, tmp_path)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.suffix for path in made} == {".md", ".png"}
    for path in made:
        assert (ROOT / path).exists(), f"{path} is missing, run: {COMMAND}"
        if path.suffix == ".md":
            found, expected = ((folder / path).read_text(encoding="utf-8") for folder in (ROOT, tmp_path))
            assert found == expected, f"{path} is stale, run: {COMMAND}"
    shown = {
        (page.parent / name).resolve().relative_to(ROOT)
        for page, text in PAGES.items()
        for name in re.findall(r"!\[[^]]*\]\((\S+)\)", text)
    }
    assert shown
    # script/rooms.py draws the rooms; the others show results.
    assert shown <= made | {Path("docs/figures/rooms.png")}


def test_a_table_is_made_anew_from_its_file(tmp_path):
    totals = {"steps": 1056, "epochs": 3, "pixels": 200, "seconds": {"training": 38.4}}
    record = make_record(accuracy={"8": 0.264, "16": 0.989}, **totals).model_dump(mode="json")
    result = {
        "records": {"fixed": [record], "mixed": [{**record, "label": "mixed", "pixels": 162, "steps": 864}]},
        "environment": {"gpu": None, "cpu": "a processor", "cores": 2, "torch": "2.7.0"},
        "measured": "2026-01-02T03:04:05+00:00",
    }
    (tmp_path / "x.json").write_text(json.dumps(result))
    text = "a\n<!-- table: regimes x.json -->\nold\n<!-- end table -->\nb\n"
    assert refresh(text, tmp_path) == (
        "a\n<!-- table: regimes x.json -->\n"
        "| regime | runs | steps | training time, s | pixels | 8 px | 16 px* |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| fixed | 1 | 1,056 | 38 | 1.00x | 26.4 | 98.9 |\n"
        "| mixed | 1 | 864 | 38 | 0.81x | 26.4 | 98.9 |\n"
        "\nTop-1 accuracy in per cent, own statistics, by evaluation size (*: the size of fixed-size training); "
        "one seed.\n"
        "\na processor, 2 cores, PyTorch 2.7.0, 2026-01-02.\n"
        "<!-- end table -->\nb\n"
    )
    with pytest.raises(FileNotFoundError):
        refresh(text.replace("x.json", "y.json"), tmp_path)


def test_a_table_of_the_matrix_has_a_row_for_each_environment(tmp_path):
    versions = {"torch": "2.15.0", "torchvision": "0.29.2", "mosaicml": "0.32.1", "timm": "1.0.31", "numpy": "2.5.5"}
    cell = {"python": "3.14.10", "versions": versions, "passed": 1234, "skipped": 5, "failed": [], "error": ""}
    cells = [cell | {"system": "Debian"}, cell | {"system": "Ubuntu", "failed": ["a", "b"], "error": "it broke"}]
    (tmp_path / "x.json").write_text(json.dumps({"cells": cells, "measured": "2026-01-02 03:04"}))
    assert refresh("<!-- table: matrix x.json -->\n<!-- end table -->\n", tmp_path).splitlines()[3:] == [
        "| 3.14 | 2.15.0 | 0.32.1 | 1.0.31 | 2.5.5 |  | 1,234 | 5 | 0 | runs |",
        "| 3.14 | 2.15.0 | 0.32.1 | 1.0.31 | 2.5.5 |  | 1,234 | 5 | 2 | does not run |",
        "",
        "Debian, Ubuntu, 2026-01-02.",
        "<!-- end table -->",
    ]
