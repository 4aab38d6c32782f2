"""Run records at Weights & Biases: a run for each, grouped by suite, and a W&B Report over them.

All of it is made from records, so it can be done again at any time and on any machine; a record that is published a
second time takes its own place. Without an account or a network the runs are written to disk, to be sent later.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import requests
import wandb

from mixsize.bench.report.spread import mean_and_spread
from mixsize.display.markdown import escape, markdown_table
from mixsize.recipes.records.run_record import RunRecord, by_label
from mixsize.recipes.records.wandb_log import log_record, make_id, settings, summary_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wandb_workspaces.reports.v2 import Report

_PATIENCE_SECONDS = 5


@dataclass(frozen=True)
class Published:
    """What became of the records.

    Attributes:
        url: of the report; None where nothing was sent.
        offline: folders of the runs that were written to disk instead.
        reason: why they were; None where they were sent.
    """

    url: str | None
    offline: tuple[Path, ...]
    reason: str | None

    @property
    def advice(self) -> str:
        """What to tell the person who asked for it."""
        if self.reason is None:
            return f"report: {self.url}"
        folder = self.offline[0].parent
        return (
            f"{self.reason}; {len(self.offline)} runs were written below {folder}. To send them, log in with "
            f"wandb login and run: wandb sync {folder}/offline-run-*\n"
            "The report itself can be made online only: run this command again then"
        )


def publish(
    records: Sequence[RunRecord],
    entity: str | None,
    project: str,
    *,
    comparison: str | None = None,
    folder: Path = Path("."),
) -> Published:
    """Send finished runs to Weights & Biases and make a report over them.

    Args:
        records: those of failed runs are passed over.
        entity: user or team; None for the account's default, where there is an account.
        project: that the runs go to.
        comparison: table in Markdown for the report; None for one of means and standard deviations.
        folder: in whose sub-folder ``wandb`` the runs are kept.

    Raises:
        ValueError: no finished run, or, with an account at hand, no package that makes reports.
    """
    finished = [record for record in records if record.finished]
    if not finished:
        raise ValueError("there is no finished run to publish")
    reason = why_offline()
    if reason is None:
        _reports()  # Missed now rather than after the runs were sent.
    mode: Literal["online", "offline"] = "online" if reason is None else "offline"
    folders = tuple(log_run(record, entity, project, mode, folder) for record in finished)
    if reason is not None:
        return Published(None, folders, reason)
    entity = entity or wandb.Api().default_entity
    report = build_report(finished, entity, project, comparison)
    return Published(report.save().url, (), None)


def why_offline() -> str | None:
    """Why nothing can be sent, in words; None where it can."""
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return f"WANDB_MODE is {os.environ['WANDB_MODE']}"
    if not wandb.api.api_key:
        return "there is no Weights & Biases account at hand"
    url = os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url
    try:
        # Through the proxy that the environment names, as wandb itself goes. Any answer will do.
        requests.head(url, timeout=_PATIENCE_SECONDS)
    except requests.RequestException:
        return f"{url} cannot be reached"
    return None


def log_run(
    record: RunRecord, entity: str | None, project: str, mode: Literal["online", "offline"], folder: Path
) -> Path:
    """Give a record a run of its own: the resolved recipe, the learning curve, totals and tables.

    Args:
        record: of a finished run.
        entity: user or team, or None.
        project: that it goes to.
        mode: whether to send it.
        folder: whose sub-folder ``wandb`` holds the run's files.

    Returns:
        The run's folder.
    """
    config = {**record.recipe, "suite": record.suite, "label": record.label, "commit": record.commit}
    with _quietly(record, entity, project, mode, folder, config) as run:
        run.define_metric("seconds")
        run.define_metric("*", step_metric="seconds", step_sync=True)
        for point in record.curve:
            accuracies = {f"accuracy/{size}px": value for size, value in point.accuracy.items()}
            costs = point.model_dump(include={"epoch", "seconds", "pixels", "train_loss"})
            run.log({**{k: v for k, v in costs.items() if v is not None}, **accuracies}, step=point.step)
        log_record(run, record)
        return Path(run.dir).parent


def build_report(records: Sequence[RunRecord], entity: str, project: str, comparison: str | None = None) -> Report:
    """A W&B Report over published records; nothing is sent before its ``save()``.

    For each suite a table and panels whose runs are grouped by regime: accuracy at the base's size over seconds, steps
    and pixels, and the final accuracies, costs and shapes.

    Args:
        records: of finished runs.
        entity: user or team.
        project: that the runs are in.
        comparison: table in Markdown; None for one of means and standard deviations.
    """
    wr = _reports()
    blocks: list[Any] = [wr.TableOfContents()]
    suites: dict[str | None, list[RunRecord]] = {}
    for record in records:
        suites.setdefault(record.suite, []).append(record)
    for suite, runs in suites.items():
        blocks += [wr.H1(text=suite or "runs"), wr.P(text=_where(runs))]
        blocks.append(wr.MarkdownBlock(text=comparison or accuracy_markdown(runs)))
        runset = wr.Runset(
            entity=entity,
            project=project,
            name="runs by regime",
            groupby=["config.label"],
            filters=f"Config('suite') = '{suite}'" if suite else "",
        )
        blocks.append(wr.PanelGrid(runsets=[runset], panels=_panels(wr, runs)))
    title = " and ".join(str(suite or "runs") for suite in suites)
    return wr.Report(entity=entity, project=project, title=f"mixsize: {title}", width="fluid", blocks=blocks)


def accuracy_markdown(records: Sequence[RunRecord]) -> str:
    """Runs, steps, seconds and final accuracy at each size of every regime."""
    groups = by_label(records)
    sizes = list(records[0].accuracy)
    rows = []
    for label, runs in groups.items():
        seconds = [run.seconds.training for run in runs if run.seconds.training is not None]
        found = [[100 * run.accuracy[size] for run in runs if size in run.accuracy] for size in sizes]
        cells = [mean_and_spread(values) if values else "" for values in (seconds, *found)]
        rows.append([escape(label), str(len(runs)), f"{runs[0].steps:,}", *cells])
    return markdown_table(["regime", "runs", "steps", "seconds", *(f"{size} px" for size in sizes)], rows)


def _panels(wr: ModuleType, records: Sequence[RunRecord]) -> list[Any]:
    size = str(records[0].base_size_px)
    size = size if size in records[0].accuracy else next(iter(records[0].accuracy))
    lines = [("seconds", "s of training"), ("Step", "steps"), ("pixels", "pixels trained on")]
    panels: list[Any] = [
        wr.LinePlot(
            title=f"top-1 at {size} px over {words}",
            x=x,
            y=[f"accuracy/{size}px"],
            title_x=words,
            title_y="top-1",
            layout=wr.Layout(x=8 * place, y=0, w=8, h=7),
        )
        for place, (x, words) in enumerate(lines)
    ]
    panels.append(
        wr.BarPlot(
            title="final top-1 by evaluation size",
            metrics=[wr.SummaryMetric(f"final_accuracy/{size}px") for size in records[0].accuracy],
            orientation="v",
            layout=wr.Layout(x=0, y=7, w=12, h=8),
        )
    )
    costs = [key for key in ("steps", "seconds/training") if key in summary_of(records[0])]
    panels += [
        wr.BarPlot(
            title=key, metrics=[wr.SummaryMetric(key)], orientation="h", layout=wr.Layout(x=12 + 6 * i, y=7, w=6, h=8)
        )
        for i, key in enumerate(costs)
    ]
    tables = ("accuracy_by_size", "shapes", "gradient_norms_by_size")
    panels += [
        wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(x=8 * i, y=15, w=8, h=8))
        for i, name in enumerate(tables)
    ]
    return panels


def _where(records: Sequence[RunRecord]) -> str:
    found = records[0].environment
    model = records[0].recipe["model"]["name"]
    return f"{model}; {found.gpu or found.cpu}, {found.ranks} ranks, PyTorch {found.torch}."


@contextmanager
def _quietly(
    record: RunRecord, entity: str | None, project: str, mode: str, folder: Path, config: dict[str, Any]
) -> Iterator[Any]:
    content = record.model_dump_json(include={"suite", "name", "seed", "plan_digest", "recipe", "commit"})
    run = wandb.init(
        project=project,
        entity=entity,
        mode=mode,
        id=make_id(record.suite, record.name, hashlib.sha256(content.encode()).hexdigest()[:8]),
        name=record.name,
        group=record.suite,
        job_type=record.label,
        config=config,
        dir=folder,
        settings=settings(),
        reinit=True,
    )
    try:
        yield run
    finally:
        run.finish(quiet=True)


def _reports() -> ModuleType:
    try:
        from wandb_workspaces.reports import v2
    except ImportError as error:
        raise ValueError(
            "W&B Reports are made by a package of their own, which is not there: pip install 'wandb-workspaces<0.4.8' "
            "(later versions need a wandb that Composer does not take)"
        ) from error
    return v2
