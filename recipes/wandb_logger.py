"""Composer's logger for Weights & Biases, for which a service that is gone is no reason to end a run."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from composer.core import State
from composer.loggers import Logger, WandBLogger

from mixsize.recipes.run_record import RunRecord
from mixsize.recipes.wandb_log import log_record

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 10


class LenientWandBLogger(WandBLogger):
    """Logs as long as there is somebody to log to.

    A service that cannot be reached at the start, which wandb would wait for without end, gets an offline run; a wandb
    that breaks down on the way is left alone from then on. Both are said in the log. Arguments are Composer's.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._has_failed = False

    def init(self, state: State, logger: Logger) -> None:
        """Begin the run, on disk where there is no service."""
        import wandb

        if self._enabled and self._init_kwargs.get("mode") == "online":
            url = wandb.setup().settings.base_url
            reason = why_unreachable(url)
            if reason is not None:
                log.warning(
                    "%s cannot be reached (%s): the run is logged to disk; send it with wandb sync", url, reason
                )
                self._init_kwargs["mode"] = "offline"
        super().init(state, logger)

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Log settings."""
        self._attempt(lambda: super(LenientWandBLogger, self).log_hyperparameters(hyperparameters))

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log numbers."""
        self._attempt(lambda: super(LenientWandBLogger, self).log_metrics(metrics, step))

    def log_record(self, record: RunRecord) -> None:
        """Log what came out."""
        import wandb

        if self._enabled and wandb.run is not None:
            self._attempt(lambda: log_record(wandb.run, record))

    def post_close(self) -> None:
        """End the run."""
        self._attempt(super().post_close)

    def _attempt(self, act: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            act()
        except Exception as error:
            # Whatever it is: no chart is worth the run. wandb raises errors of many kinds when its process is gone.
            self._has_failed = True
            log.warning("Weights & Biases has failed (%r): the run goes on without it", error)


def why_unreachable(url: str, patience_seconds: float = _PATIENCE_SECONDS) -> str | None:
    """Why nobody answers at an address, or None where somebody does, whatever the answer."""
    try:
        with urllib.request.urlopen(url, timeout=patience_seconds):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
