"""The page of documentation that lists Composer's algorithms and callbacks.

python -m mixsize.recipes.config.composer_page docs/composer-algorithms.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from mixsize.display.markdown import escape
from mixsize.recipes.config.composer_arguments import Kind, classes, parameters, plain_type
from mixsize.recipes.config.composer_table import ALGORITHMS, CALLBACKS, Part
from mixsize.system.files import write_text

_HEAD = """# Composer's algorithms and callbacks

`algorithms` and `callbacks` of a recipe hold them by name, each with its arguments, `{}` for the defaults:

```yaml
algorithms:
  blurpool: {}
  ema: {half_life: 100ba}
callbacks:
  speed_monitor: {window_size: 10}
```

Names are those of Composer's modules, the snake case of the classes. `algorithms.ema=null` takes one out of a recipe
again. [Recipes](recipes.md#composers-algorithms-and-callbacks) says in which order they act. A name of another version
of Composer, which is not on this page, is passed on as it is.

This page is written from `recipes/config/composer_table.py`:
`python -m mixsize.recipes.config.composer_page docs/composer-algorithms.md`.
"""
_ALGORITHMS = """## Algorithms

"Works" means: trained at changing sizes, batches and duplicates, with a resume in the middle that is bit-exact. Those
that change the network do so when it is built, for training, `mixsize plan`, `mixsize eval` and `mixsize predict`
alike; `mixsize export` refuses a network whose layers have other names than timm's. The rest is refused when the recipe
is read, with the reason given here.
"""
_CALLBACKS = """## Callbacks

What they log goes to Weights & Biases (`output.wandb`).
"""


def composer_page() -> str:
    """Return the page in Markdown."""
    parts = (_HEAD, _ALGORITHMS, _table("algorithms", ALGORITHMS), _CALLBACKS, _table("callbacks", CALLBACKS))
    return "\n".join(parts)


def _table(kind: Kind, parts: dict[str, Part]) -> str:
    rows = [[f"`{name}`", part.verdict, escape(_meaning(part)), _arguments(kind, name)] for name, part in parts.items()]
    lines = [["name", "verdict", "what it does here, or why not", "arguments"], ["---"] * 4, *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _meaning(part: Part) -> str:
    return f"{part.words}; changes the network" if part.surgery else part.words


def _arguments(kind: Kind, name: str) -> str:
    part = (ALGORITHMS if kind == "algorithms" else CALLBACKS)[name]
    if part.verdict == "refused":
        return ""
    cls = classes(kind)[name]
    return ", ".join(f"`{one}`" for one in parameters(cls) if plain_type(cls, one) is not None)


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), composer_page())
