"""Run records at Weights & Biases: one run for each, grouped by suite, and a W&B Report over them.

Everything is made from records, so it can be repeated at any time and on any machine; a record that is published again
replaces its run. Without an account or a network the runs are written to disk, to be sent later.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import requests
import wandb

from mixsize.bench.report.comparison import reports_calibrated
from mixsize.recipes.records.run_record import CALIBRATED, OWN, RunRecord
from mixsize.recipes.records.wandb_log import accuracy_key, log_record, make_id, settings, summary_of

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report  # pyright: ignore[reportMissingImports]

_PATIENCE_SECONDS = 5


def publish(
    records: Sequence[RunRecord], entity: str | None, project: str, *, comparison: str, folder: Path = Path(".")
) -> str:
    """Send finished runs to Weights & Biases and make a report over them; returns a message for the user.

    Args:
        records: of runs; failed ones are skipped.
        entity: user or team; None for the account's default.
        project: the runs' project.
        comparison: Markdown for the report.
        folder: the runs are kept in its sub-folder ``wandb``.

    Raises:
        ValueError: no finished run, or, with an account, no package that makes reports.
    """
    finished = [record for record in records if record.finished]
    if not finished:
        raise ValueError("there is no finished run to publish")
    reason = why_offline()
    if reason is None:
        _reports()  # Raises before the runs are sent rather than after.
    mode: Literal["online", "offline"] = "online" if reason is None else "offline"
    folders = [log_run(record, entity, project, mode, folder) for record in finished]
    if reason is not None:
        return (
            f"{reason}; {len(folders)} runs were written below {folders[0].parent}. To send them, log in with "
            f"wandb login and run: wandb sync {folders[0].parent}/offline-run-*\n"
            "The report itself can only be made online: run this command again then"
        )
    entity = entity or wandb.Api().default_entity
    assert entity is not None
    return f"report: {build_report(finished, entity, project, comparison).save().url}"


def why_offline() -> str | None:
    """The reason why nothing can be sent; None where it can."""
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return f"WANDB_MODE is {os.environ['WANDB_MODE']}"
    url = os.environ.get("WANDB_BASE_URL")
    if url is None:
        session = wandb.setup()
        assert session is not None
        url = session.settings.base_url
    # wandb login keeps the key in .netrc.
    if not (os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(url)):
        return "there is no Weights & Biases account"
    try:
        # requests follows the environment's proxies, as wandb does. Any answer will do.
        requests.head(url, timeout=_PATIENCE_SECONDS)
    except requests.RequestException:
        return f"{url} cannot be reached"
    return None


def log_run(
    record: RunRecord, entity: str | None, project: str, mode: Literal["online", "offline"], folder: Path
) -> Path:
    """Log a finished run's recipe, learning curve, totals and tables; returns the folder of the W&B run."""
    content = record.model_dump_json(include={"suite", "name", "seed", "plan_digest", "recipe", "commit"})
    run = wandb.init(
        project=project,
        entity=entity,
        mode=mode,
        id=make_id(record.suite, record.name, hashlib.sha256(content.encode()).hexdigest()[:8]),
        name=record.name,
        group=record.suite,
        job_type=record.label,
        config={**record.recipe, "suite": record.suite, "label": record.label, "commit": record.commit},
        dir=folder,
        settings=settings(quiet=True),
        reinit=True,
    )
    try:
        run.define_metric("seconds")
        run.define_metric("*", step_metric="seconds", step_sync=True)
        for point in record.curve:
            accuracies = {accuracy_key(_kind(record), size): value for size, value in point.accuracy.items()}
            costs = point.model_dump(include={"epoch", "seconds", "pixels", "train_loss"}, exclude_none=True)
            run.log({**costs, **accuracies}, step=point.step)
        log_record(run, record)
        return Path(run.dir).parent
    finally:
        run.finish()


def build_report(records: Sequence[RunRecord], entity: str, project: str, comparison: str) -> Report:
    """A W&B Report over published records of finished runs; only its ``save()`` sends anything.

    For each suite it has the comparison and panels whose runs are grouped by regime: accuracy at the base's size over
    seconds, steps and pixels, final accuracies, costs and shapes.
    """
    wr = _reports()
    blocks: list[Any] = [wr.TableOfContents(), wr.MarkdownBlock(text=comparison)]
    suites: dict[str | None, list[RunRecord]] = {}
    for record in records:
        suites.setdefault(record.suite, []).append(record)
    for suite, runs in suites.items():
        runset = wr.Runset(
            entity=entity,
            project=project,
            name="runs by regime",
            groupby=["config.label"],
            filters=f"Config('suite') = '{suite}'" if suite else "",
        )
        blocks += [
            wr.H1(text=suite or "runs"),
            wr.P(text=_where(runs)),
            wr.PanelGrid(runsets=[runset], panels=_panels(wr, runs)),
        ]
    title = " and ".join(str(suite or "runs") for suite in suites)
    return wr.Report(entity=entity, project=project, title=f"mixsize: {title}", width="fluid", blocks=blocks)


def _panels(wr: ModuleType, records: Sequence[RunRecord]) -> list[Any]:
    size = str(records[0].base_size_px)
    size = size if size in records[0].accuracy else next(iter(records[0].accuracy))
    lines = [("seconds", "s of training"), ("Step", "steps"), ("pixels", "pixels trained on")]
    panels: list[Any] = [
        wr.LinePlot(
            title=f"top-1 at {size} px over {words}",
            x=x,
            y=[accuracy_key(kind, size) for kind in dict.fromkeys(map(_kind, records))],
            title_x=words,
            title_y="top-1",
            layout=wr.Layout(x=8 * place, y=0, w=8, h=7),
        )
        for place, (x, words) in enumerate(lines)
    ]
    panels.append(
        wr.BarPlot(
            title=f"final top-1 by evaluation size, {OWN}",
            metrics=[wr.SummaryMetric(f"final_{accuracy_key(OWN, size)}") for size in records[0].accuracy],
            orientation="v",
            layout=wr.Layout(x=0, y=7, w=12, h=8),
        )
    )
    costs = [key for key in ("steps", "seconds/training") if key in summary_of(records[0])]
    for place, key in enumerate(costs):
        layout = wr.Layout(x=12 + 6 * place, y=7, w=6, h=8)
        panels.append(wr.BarPlot(title=key, metrics=[wr.SummaryMetric(key)], orientation="h", layout=layout))
    for place, name in enumerate(("accuracy_by_size", "shapes", "gradient_norms_by_size")):
        panels.append(wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(x=8 * place, y=15, w=8, h=8)))
    return panels


def _kind(record: RunRecord) -> str:
    """The batch-norm statistics of its learning curve."""
    return CALIBRATED if reports_calibrated(record) else OWN


def _where(records: Sequence[RunRecord]) -> str:
    found = records[0].environment
    model = records[0].recipe["model"]["name"]
    return f"{model}; {found.gpu or found.cpu}, {found.ranks} ranks, PyTorch {found.torch}."


def _reports() -> ModuleType:
    try:
        from wandb_workspaces.reports import v2  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            'W&B Reports need a package that is not installed; get it with: pip install "mixsize[wandb-reports]"'
        ) from error
    return v2
