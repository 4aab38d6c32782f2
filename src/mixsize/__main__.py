"""``python -m mixsize``."""

import sys

from mixsize.cli import main

sys.exit(main())
