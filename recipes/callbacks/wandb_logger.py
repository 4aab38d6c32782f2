"""Composer's logger for Weights & Biases, for which a service that is gone is no reason to end a run."""

from __future__ import annotations

import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from composer.core import State
from composer.loggers import Logger, WandBLogger

from mixsize.recipes.callbacks.wandb_deadline import Deadline, end_service, forget_service, service_process
from mixsize.recipes.records.run_record import RunRecord
from mixsize.recipes.records.wandb_log import log_record

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 10
#: That the record may take to be logged, and then the run to end.
_CLOSING_SECONDS = 60.0


class LenientWandBLogger(WandBLogger):
    """Logs as long as there is somebody to log to.

    A service that cannot be reached at the start, which wandb would wait for without end, gets an offline run; a wandb
    that breaks down on the way is left alone from then on. Where the service stops answering, wandb keeps what is
    logged on disk and goes on trying; at the end it is given a minute for the record and a minute for the rest. All
    this is said in the log. Arguments are Composer's.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._has_failed = False
        self._deadline: Deadline | None = None

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
        try:
            super().init(state, logger)
        except wandb.errors.CommError as error:
            if self._init_kwargs.get("mode") != "online" or "timed out" not in str(error):
                raise  # Such as an entity that is not the user's.
            log.warning("Weights & Biases answers no question (%s): the run is logged to disk", error)
            # It would go on asking, and begin no other run before it has an answer.
            end_service(service_process())
            forget_service()
            self._init_kwargs["mode"] = "offline"
            super().init(state, logger)
        if self._enabled and self._init_kwargs.get("mode") != "disabled":
            self._deadline = Deadline(wandb.run, _CLOSING_SECONDS)

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Log settings."""
        self._attempt(lambda: super(LenientWandBLogger, self).log_hyperparameters(hyperparameters))

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log numbers."""
        self._attempt(lambda: super(LenientWandBLogger, self).log_metrics(metrics, step))

    def log_record(self, record: RunRecord) -> None:
        """Log what came out."""
        import wandb

        run = wandb.run
        if not self._enabled or run is None:
            return
        # For each table wandb itself asks the service some questions, and has minutes of patience with each.
        attempt = threading.Thread(
            target=self._attempt, args=(lambda: log_record(run, record),), name="wandb record", daemon=True
        )
        attempt.start()
        attempt.join(_CLOSING_SECONDS)
        if attempt.is_alive():
            log.warning(
                "Weights & Biases has not taken the record's tables within %g s: they are in the record alone",
                _CLOSING_SECONDS,
            )

    def post_close(self) -> None:
        """End the run."""
        if self._deadline is None:  # Nothing was begun.
            self._attempt(super().post_close)
            return
        self._deadline.begin()
        if self._is_in_atexit:
            return  # wandb's own hook ends the run.
        self._attempt(super().post_close)
        if self._has_failed:
            forget_service()
        self._deadline.end()

    def _attempt(self, act: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            act()
        except Exception as error:
            # Whatever it is: no chart is worth the run. wandb raises errors of many kinds when its process is gone.
            self._has_failed = True
            if self._deadline is not None and self._deadline.has_passed:
                return  # Which is said already.
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
