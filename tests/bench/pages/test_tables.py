"""The tables and figures of README and the documentation stand on the result files they name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixsize.bench.pages.page_figures import write_figures
from mixsize.bench.pages.tables import pages, refresh

ROOT = Path(__file__).parents[3]
PAGES = {page: page.read_text(encoding="utf-8") for page in pages(ROOT)}


def test_pages_show_what_the_result_files_say():
    assert sum(text.count("<!-- table:") for text in PAGES.values()) >= 10
    for page, text in PAGES.items():
        assert refresh(text, ROOT) == text, f"{page.name} is stale, run: python -m mixsize.bench.pages.tables"


def test_every_table_and_figure_names_its_file_on_a_page_that_is_made_anew():
    marked = {path for path in ROOT.glob("docs/**/*.md") if "<!-- table:" in path.read_text(encoding="utf-8")}
    assert marked <= set(PAGES)


def test_figures_are_what_the_result_files_give(tmp_path):
    for text in PAGES.values():
        write_figures(text, ROOT, tmp_path)
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in made} == {".html", ".md", ".png"}
    for path in made:
        name = path.relative_to(tmp_path)
        stale = f"{name} is stale, run: python -m mixsize.bench.pages.tables"
        if path.suffix == ".png":
            found, expected = (np.asarray(Image.open(side / name).convert("RGB"), int) for side in (ROOT, tmp_path))
            # Another build of the plotting library may round a pixel's shade another way.
            assert found.shape == expected.shape, stale
            assert np.abs(found - expected).mean() < 0.1, stale
        else:
            assert (ROOT / name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), stale
    shown = {
        (page.parent / name).resolve()
        for page, text in PAGES.items()
        for name in re.findall(r"!\[[^]]*\]\((\S+)\)", text)
    }
    assert shown
    assert {path.relative_to(ROOT) for path in shown} <= {path.relative_to(tmp_path) for path in made}


def test_a_table_is_made_anew_from_its_file(tmp_path):
    run = {
        "recipe": {"regime": {"base": {"size_px": 16}}},
        "steps": 1056,
        "seconds": {"training": 38.4},
        "pixels": 200,
        "accuracy": {"8": 0.264, "16": 0.989},
    }
    result = {
        "records": {"fixed": [run], "mixed": [{**run, "pixels": 162, "steps": 864}]},
        "environment": {"gpu": None, "cpu": "a processor", "cores": 2, "torch": "2.7.0"},
        "measured": "2026-01-02T03:04:05+00:00",
    }
    (tmp_path / "x.json").write_text(json.dumps(result))
    text = "a\n<!-- table: regimes x.json -->\nold\n<!-- end table -->\nb\n"
    assert refresh(text, tmp_path) == (
        "a\n<!-- table: regimes x.json -->\n"
        "| regime | steps | seconds | pixels | 8 px | **16 px** |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| fixed | 1,056 | 38 | 1.00x | 26.4 | 98.9 |\n"
        "| mixed | 864 | 38 | 0.81x | 26.4 | 98.9 |\n"
        "\na processor, 2 cores, PyTorch 2.7.0, 2026-01-02.\n"
        "<!-- end table -->\nb\n"
    )
    with pytest.raises(FileNotFoundError):
        refresh(text.replace("x.json", "y.json"), tmp_path)
