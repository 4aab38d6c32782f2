"""Write the tables and figures of README and the documentation anew from their result files.

python -m mixsize.bench.pages.refresh [ROOT]
"""

from __future__ import annotations

import sys
from pathlib import Path

from mixsize.bench.pages.page_figures import write_figures
from mixsize.bench.pages.tables import pages, refresh
from mixsize.system.files import write_text


def main(root: Path) -> None:
    """Refresh the pages of the repository at ``root``."""
    for page in pages(root):
        text = refresh(page.read_text(encoding="utf-8"), root)
        write_text(page, text)
        write_figures(text, root, root)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
