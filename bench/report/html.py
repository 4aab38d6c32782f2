"""A report as one HTML file, which needs no other file, no script and no network."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from mixsize.bench.report.content import Report
from mixsize.display.figures import png


def render_html(report: Report) -> str:
    """The page, with its plots embedded as PNG; all text from records is escaped."""
    environment = Environment(
        loader=PackageLoader("mixsize.bench.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64_png"] = lambda figure: base64.b64encode(png(figure)).decode("ascii")
    return environment.get_template("report.html.jinja").render(report=report)
