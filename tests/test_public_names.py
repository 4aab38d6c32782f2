"""The public names: listed in one place, typed, and each on docs/public-names.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import mixsize
from mixsize import algorithms, ffcv_loaders, recipes

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/public-names.md").read_text(encoding="utf-8")


def test_the_page_lists_every_public_name_once_and_no_other():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert sorted(rows) == sorted([*algorithms.__all__, *ffcv_loaders.__all__, *recipes.__all__])


def test_the_code_of_the_page_imports_no_other_name_of_the_packages():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    imported = {
        alias.name
        for node in ast.walk(ast.parse("".join(blocks)))
        if isinstance(node, ast.ImportFrom) and node.module == "mixsize"
        for alias in node.names
    }
    assert len(imported) > 30
    assert imported <= {*algorithms.__all__, *ffcv_loaders.__all__, *recipes.__all__}


@pytest.mark.parametrize("package", [algorithms, ffcv_loaders, recipes], ids=lambda package: package.__name__)
def test_imports_for_type_checkers_agree_with_the_names_that_load_on_first_use(package):
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = set()
    for node in checked.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "only `import X as X` exports a name"
            imports.add((node.module, alias.name))
    listed = {(f"{package.__name__}.{module}", name) for module, names in package._MODULES.items() for name in names}
    assert imports == listed
    assert len({name for _, name in listed}) == len(listed)


def test_public_names_stand_in_mixsize_and_others_do_not():
    assert {*algorithms.__all__, *ffcv_loaders.__all__, *recipes.__all__} <= set(dir(mixsize))
    assert mixsize.Base is algorithms.Base
    with pytest.raises(AttributeError, match="'mixsize' has no attribute 'NoSuchName'"):
        mixsize.NoSuchName  # noqa: B018
    with pytest.raises(AttributeError, match=r"'mixsize\.algorithms' has no attribute 'NoSuchName'"):
        algorithms.NoSuchName  # noqa: B018
