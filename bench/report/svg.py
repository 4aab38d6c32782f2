"""Plots as SVG that stands inside a page and takes on its colours."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from mixsize.display.figures import COLOURS, GRID, INK

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
#: Colour as drawn -> the page's variable for it.
VARIABLES = {
    INK.lower(): "var(--ink)",
    GRID.lower(): "var(--grid)",
    "#ffffff": "var(--paper)",
    **{colour.lower(): f"var(--series-{number})" for number, colour in enumerate(COLOURS, start=1)},
}


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """An ``<svg>`` element for an HTML page, the same for the same figure.

    Args:
        figure: drawn in :mod:`mixsize.display.figures`' colours, which become the page's variables.
        name: put before every id, so that plots in one page do not take each other's parts.
        label: what is to be seen, for those who cannot.
    """
    text = io.StringIO()
    # Text stays text: it is read aloud, found and copied, and drawn in the page's font.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mixsize"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue())
    for part in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(part)
    for parent in list(root.iter(f"{{{_SVG}}}defs")):
        # Its rules would hold for the whole page, which has them itself.
        for style in parent.findall(f"{{{_SVG}}}style"):
            parent.remove(style)
    for element in root.iter():
        _adapt(element, name)
    # The page says how wide it is.
    for attribute in ("width", "height"):
        root.attrib.pop(attribute)
    root.set("role", "img")
    root.set("aria-label", label)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str) -> None:
    for attribute in ("id", f"{{{_XLINK}}}href", "clip-path"):
        value = element.get(attribute)
        if value is not None:
            element.set(attribute, re.sub(r"^(url\(#|#|)", rf"\g<1>{name}-", value))
    style = element.get("style")
    if style is not None:
        style = re.sub(r"#[0-9a-f]{6}\b", lambda found: VARIABLES.get(found[0], found[0]), style)
        element.set("style", re.sub(r"(font: [^;]*?[\d.]+px) [^;]+", r"\1 var(--font)", style))
    elif element.tag == f"{{{_SVG}}}text":
        element.set("style", "fill: var(--ink)")
