"""A report as a person sees it: on a desk and on a phone, in light and in dark, nothing is cut off or out of reach."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from mixsize.cli import main
from mixsize.recipes.records.run_record import write_records

from .browser import CHROMIUM, open_browser
from .run_records import make_record, make_suite

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

RESULTS = Path(__file__).parents[3] / "bench/results"
WIDTHS = {"desktop": 1280, "phone": 390}
SCHEMES = ("light", "dark")

# What is on the page, measured where it stands, with every table unfolded.
PROBE = """
(() => {
  document.querySelectorAll('details').forEach(details => details.open = true);
  // A phone's innerWidth grows with what is too wide for it.
  const width = document.documentElement.clientWidth;
  const box = element => { const b = element.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
  const name = element => `${element.tagName} ${(element.textContent || '').trim().slice(0, 40)}`;
  const scrolls = element => element.closest('.scroll') !== null;
  const all = [...document.body.querySelectorAll('*')];
  const html = all.filter(element => !element.closest('svg'));
  const style = getComputedStyle(document.documentElement);
  return {
    width: document.documentElement.scrollWidth,
    outside: html.filter(element => !scrolls(element) || element.classList.contains('scroll'))
      .filter(element => { const [l, , r] = box(element); return l < -0.5 || r > width + 0.5; }).map(name),
    clipped: html.filter(element => ['hidden', 'clip'].includes(getComputedStyle(element).overflowX)).map(name),
    squeezed: html.filter(element => !scrolls(element) && element.scrollWidth > element.clientWidth + 1
      && element.clientWidth > 0).map(name),
    unreachable: [...document.querySelectorAll('.scroll, pre')].filter(element =>
      element.scrollWidth > element.clientWidth && getComputedStyle(element).overflowX !== 'auto'
      || element.tabIndex !== 0).map(name),
    plots: [...document.querySelectorAll('figure svg')].map(svg => ({
      name: svg.closest('figure').id,
      label: svg.getAttribute('aria-label'),
      box: box(svg),
      drawn: [svg.getBBox().width, svg.getBBox().height],
      texts: [...svg.querySelectorAll('text')].map(text => [text.textContent,
        parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width,
        ...box(text)]),
      table: svg.closest('figure').querySelectorAll('tbody tr').length,
    })),
    colours: Object.fromEntries(['page', 'paper', 'ink', 'faint', 'link', 'series-1', 'series-2', 'series-3',
      'series-4', 'series-5', 'series-6', 'series-7'].map(name => [name, style.getPropertyValue('--' + name).trim()])),
    background: getComputedStyle(document.body).backgroundColor,
    smallest: Math.min(...html.filter(element => element.childElementCount === 0 && element.textContent.trim())
      .map(element => parseFloat(getComputedStyle(element).fontSize))),
  };
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Reports by name: of a full suite, of a record of version 2, and of what strains a page most."""
    folder = tmp_path_factory.mktemp("reports")
    write_records(folder / "full.jsonl", make_suite())
    write_records(folder / "strained.jsonl", strained())
    (old,) = RESULTS.glob("cifar10_cpu-*.json")
    found = {}
    for name, records in (("full", folder / "full.jsonl"), ("strained", folder / "strained.jsonl"), ("old", old)):
        assert main(["report", str(records), "--out", str(folder / name)]) == 0
        found[name] = folder / name / "report.html"
    return found


def strained():
    """Nine regimes with long names, 25 sizes, and an error of one long line."""
    sizes = range(32, 417, 16)
    by_size = {str(size): 0.1 + size / 1000 for size in sizes}
    records = []
    for number in range(9):
        label = f"a_regime_with_a_name_of_unusual_length_and_number_{number}"
        shapes = [
            {"size_px": size, "batch_size": 256, "duplicates": 2, "steps": 34_000, "seconds": 0.2} for size in sizes
        ]
        curve = [
            (epoch, 5004 * epoch, 40_000.0 * epoch, 64_000_000_000 * epoch, by_size if epoch == 2 else {"224": 0.1})
            for epoch in (1, 2)
        ]
        norms = [
            {"size_px": size, "steps": 9, "mean": 1.0, "std": 0.5, "smoothed_mean": 1.0, "smoothed_std": 0.1}
            for size in sizes
        ]
        records.append(
            make_record(
                label,
                17,
                curve,
                macs={str(size): 4_000_000_000 * size // 224 for size in sizes},
                shapes=shapes,
                gradient_norms=norms,
                calibrated_accuracy=by_size,
                recipe={"calibration": None, "regime": {"base": {"size_px": 224}}},
            )
        )
    return [*records, make_record("no", 17, outcome="failed", error="RuntimeError: " + "x" * 2000)]


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    """WCAG 2's contrast ratio."""
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def overlap(first, second):
    """By how many pixels two boxes lie over each other, in the direction in which it is less."""
    (l1, t1, r1, b1), (l2, t2, r2, b2) = first, second
    return min(min(r1, r2) - max(l1, l2), min(b1, b2) - max(t1, t2))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("screen", WIDTHS)
@pytest.mark.parametrize("name", ["full", "strained", "old"])
def test_nothing_is_cut_off_fetched_or_complained_of(page, reports, name, screen, scheme):
    page.open(reports[name], WIDTHS[screen], scheme=scheme)
    found = page.evaluate(PROBE)
    assert page.requests == [reports[name].resolve().as_uri()]
    assert page.errors == []
    assert found["width"] == WIDTHS[screen]
    for fault in ("outside", "clipped", "squeezed", "unreachable"):
        assert found[fault] == [], fault
    assert found["smallest"] >= 13
    assert found["plots"]
    for plot in found["plots"]:
        left, top, right, bottom = plot["box"]
        assert plot["label"]
        assert plot["table"] > 0
        assert right - left > 250, plot["name"]
        assert bottom - top > 100, plot["name"]
        assert min(plot["drawn"]) > 100, plot["name"]
        assert plot["texts"]
        for text, points, *box in plot["texts"]:
            # Letters reach a little beyond the line that they stand on.
            inside = box[0] >= left - 1 and box[1] >= top - 1 and box[2] <= right + 1 and box[3] <= bottom + 1
            assert inside, (plot["name"], text)
            assert points >= 9, (plot["name"], text)
        for (one, _, *here), (other, _, *there) in itertools.combinations(plot["texts"], 2):
            assert overlap(here, there) < 2, (plot["name"], one, other)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_and_lines_stand_out_from_their_background(page, reports, scheme):
    page.open(reports["full"], 1280, scheme=scheme)
    found = page.evaluate(PROBE)
    colours = found["colours"]
    drawn = [int(channel) for channel in re.findall(r"\d+", found["background"])]
    assert drawn == [int(colours["page"][i : i + 2], 16) for i in (1, 3, 5)]
    assert (luminance(colours["page"]) < 0.05) == (scheme == "dark")
    for ground in ("page", "paper"):
        for text in ("ink", "faint", "link"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for number in range(1, 8):
        assert contrast(colours[f"series-{number}"], colours["paper"]) >= 3, number


def test_the_browser_notices_what_the_report_must_not_do(page, tmp_path):
    file = tmp_path / "bad.html"
    file.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><img src='http://127.0.0.1:9/x.png'>"
        "<script>throw new Error('broken')</script><div style='width:600px'>wide</div>"
        "<figure id=p><svg viewBox='0 0 10 10' width=300><text x=9>outside</text></svg></figure>"
    )
    page.open(file, 390)
    found = page.evaluate(PROBE)
    assert "http://127.0.0.1:9/x.png" in page.requests
    assert any("broken" in error for error in page.errors)
    assert found["width"] > 390
    assert "DIV wide" in found["outside"]
    ((_, _, _, _, right, _),) = found["plots"][0]["texts"]
    assert right > found["plots"][0]["box"][2] + 1
