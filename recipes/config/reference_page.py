"""The page of all keys of a recipe, from the schema.

python -m mixsize.recipes.config.reference_page docs/recipe-keys.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from mixsize.display.markdown import escape
from mixsize.recipes.config.reference import OF_ITS_KEYS, REQUIRED, Key, recipe_keys, variant_meanings
from mixsize.system.files import write_text

_HEAD = """# Keys of a recipe

`mixsize recipes KEY` prints a key with its values, default and meaning; [Recipes](recipes.md) says how files and
settings combine. This page is written from the schema:
`python -m mixsize.recipes.config.reference_page docs/recipe-keys.md`.
"""


def recipe_keys_page() -> str:
    """Return the page in Markdown: a table of each section."""
    keys = recipe_keys()
    sections = [key.name for key in keys if "section" in key.value and "." not in key.name]
    parts = [_HEAD, _table([key for key in keys if "." not in key.name])]
    for section in sections:
        meanings = [f"- `{name}`: {meaning}\n" for name, meaning in variant_meanings(section).items()]
        inside = [key for key in keys if key.name.startswith(f"{section}.") or key.name.startswith(f"{section}[")]
        parts += [f"## {section}\n", "".join(meanings), _table(inside)]
        for key in inside:
            lines = [f"- `{key.name}` `{name}`: {meaning}\n" for name, meaning in variant_meanings(key.name).items()]
            parts.append("".join(lines))
    return "\n".join(part for part in parts if part)


def _table(keys: list[Key]) -> str:
    rows = [[f"`{key.name}`", escape(key.value), _default(key), escape(_meaning(key))] for key in keys]
    lines = [["key", "value", "default", "meaning"], ["---"] * 4, *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _default(key: Key) -> str:
    return f"`{key.default}`" if key.default not in ("", REQUIRED, OF_ITS_KEYS) else key.default


def _meaning(key: Key) -> str:
    return f"{key.meaning} (with {', '.join(key.variants)})" if key.variants else key.meaning


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), recipe_keys_page())
