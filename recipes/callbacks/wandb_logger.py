"""Composer's logger for Weights & Biases, made to survive a service that fails."""

from __future__ import annotations

import contextlib
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from composer.core import State
from composer.loggers import Logger, WandBLogger

from mixsize.recipes.callbacks.composer_compat import restore_get_url
from mixsize.recipes.records.run_record import RunRecord
from mixsize.recipes.records.wandb_log import log_record

log = logging.getLogger(__name__)

_REACHABLE_SECONDS = 10


class LenientWandBLogger(WandBLogger):
    """Composer's logger, with two differences; the arguments are the same.

    A run is logged to disk if the service cannot be reached at the start. An error of wandb after the start ends the
    logging and not the run. A warning in the log reports either. wandb itself retries requests that are not answered,
    and its public settings do not limit how long.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._has_failed = False

    def init(self, state: State, logger: Logger) -> None:
        """Begin the run."""
        import wandb

        if self._enabled and self._init_kwargs.get("mode") == "online":
            session = wandb.setup()
            assert session is not None
            url = session.settings.base_url
            reason = why_unreachable(url)
            if reason is not None:
                log.warning(
                    "%s cannot be reached (%s): the run is logged to disk; send it with wandb sync", url, reason
                )
                self._init_kwargs["mode"] = "offline"
        restore_get_url()
        super().init(state, logger)

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Log settings."""
        self._attempt(lambda: super(LenientWandBLogger, self).log_hyperparameters(hyperparameters))

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log numbers."""
        self._attempt(lambda: super(LenientWandBLogger, self).log_metrics(metrics, step))

    def log_record(self, record: RunRecord) -> None:
        """Log the record of the finished run."""
        import wandb

        run = wandb.run
        if self._enabled and run is not None:
            self._attempt(lambda: log_record(run, record))

    def post_close(self) -> None:
        """End the run."""
        import wandb

        self._attempt(super().post_close)
        if self._has_failed:
            # Otherwise wandb's exit hook would wait for its process, which may have died.
            with contextlib.suppress(Exception, SystemExit):
                wandb.teardown()

    def _attempt(self, act: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            act()
        except Exception as error:  # wandb raises errors of many classes when its process has died.
            self._has_failed = True
            log.warning("Weights & Biases has failed (%r): the run goes on without it", error)


def why_unreachable(url: str) -> str | None:
    """Return why no server answers at an address, or None if one answers, with whatever status."""
    try:
        with urllib.request.urlopen(url, timeout=_REACHABLE_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
