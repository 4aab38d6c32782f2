"""A report as one HTML file that needs nothing besides itself."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from mixsize.bench.report.content import Plot, Report
from mixsize.bench.report.svg import inline_svg


def render_html(report: Report) -> str:
    """The page: everything that comes from records is escaped, and the same report gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("mixsize.bench", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def svg(plot: Plot) -> str:
        return inline_svg(plot.figure, plot.name, plot.alt)

    return environment.get_template("report.html.jinja").render(report=report, svg=svg)
