"""Where Composer 0.32.1 does not fit newer releases of what it is built on: what breaks, and why.

Nothing else in mixsize works around a version.
"""

from __future__ import annotations


def restore_get_url() -> None:
    """Give runs of wandb ``get_url`` again, which Composer's ``WandBLogger`` calls; newer wandb has ``url`` alone."""
    from wandb.sdk.wandb_run import Run

    if not hasattr(Run, "get_url"):
        Run.get_url = lambda self: self.url
