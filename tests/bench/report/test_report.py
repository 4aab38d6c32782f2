"""A report says what the records say, in one file, and nothing in a record can break it."""

from __future__ import annotations

import base64
import html.parser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mixsize.bench.report import quantities
from mixsize.bench.report.html import render_html
from mixsize.bench.report.intervals import difference, estimate
from mixsize.bench.report.markdown import escape, render_markdown
from mixsize.bench.report.sections import make_report
from mixsize.cli import main
from mixsize.recipes.records.run_record import write_records
from mixsize.system.files import write_text

from .run_records import make_record, make_suite

PLOTS = ["accuracy-over-time", "accuracy-by-size", "accuracy-by-gmacs"]
MINUS = "\N{MINUS SIGN}"
VOID = {"meta", "link", "br", "img"}


@pytest.fixture(scope="module")
def suite():
    return make_report("digits", make_suite())


def plots_of(report):
    return {plot.name: plot for section in report.sections for plot in section.plots}


def section(report, title):
    (found,) = [section for section in report.sections if section.title == title]
    return found


def table(report, caption):
    """Rows of the table whose caption begins so, by their first cell."""
    tables = [t for s in report.sections for t in (*s.tables, *(p.table for p in s.plots))]
    (found,) = [t for t in tables if t.caption.startswith(caption)]
    return {row[0]: dict(zip(found.head[1:], row[1:], strict=True)) for row in found.rows}


class Outline(html.parser.HTMLParser):
    """Reads a page as a browser's parser would, and notes what would be fetched, run or said twice."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.text = [], [], [], set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self._note(attrs)

    def _note(self, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("src", "href", "xlink:href", "srcset", "data") if name in values]
        assert not [name for name in values if name.startswith("on")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_full_suite_has_every_plot_with_its_table_and_nothing_left_out(suite):
    plots = [plot for section in suite.sections for plot in section.plots]
    assert [plot.name for plot in plots] == PLOTS
    assert all(plot.alt and plot.note and plot.table.rows for plot in plots)
    assert all(len(row) == len(plot.table.head) for plot in plots for row in plot.table.rows)
    assert suite.left_out == []
    assert suite.subtitle == "13 runs of 5 regimes over 3 seeds, 1 failed."


def test_the_headline_has_each_regimes_mean_its_difference_and_what_may_be_said_of_it():
    accuracies = {"fixed": (0.50, 0.60, 0.70), "mixed": (0.53, 0.62, 0.74), "same": (0.49, 0.62, 0.70)}
    records = [
        make_record(label, seed, [(2, 100 if label == "fixed" else 80, 60.0 + seed, 5_000_000, accuracy)])
        for label, of_label in accuracies.items()
        for seed, accuracy in enumerate(of_label)
    ]
    report = make_report("x", records)
    rows = table(report, "Regimes at the end")
    # 60 % with s = 10 points: 4.3027 * 10 / sqrt(3) = 24.8
    assert rows["fixed"]["top-1 at 16 px, own statistics, %"] == "60.0 (35.2 to 84.8)"
    assert rows["fixed"]["difference, points"] == "baseline"
    # 3, 2 and 4 points: 3 +- 4.3027 * 1 / sqrt(3) = 2.5
    assert rows["mixed"]["difference, points"] == "+3.0 (+0.5 to +5.5)\nhigher"
    assert rows["same"]["difference, points"].endswith("3 seeds cannot tell;\n100 would not either")
    assert rows["mixed"]["steps"] == "80 (0.80x)"
    assert rows["mixed"]["training time"] == "61.0 s (1.00x)\n3 seeds cannot tell;\n100 would not either"
    sentences = section(report, "Comparison").sentences
    against = "fixed at 16 px, own statistics"
    assert sentences[0].startswith(f"mixed: 3.0 points above {against} (+0.5 to +5.5); 0.80x the steps, 1.00x the")
    # -1, 2 and 0 points: 0.33 +- 4.3027 * 1.528 / sqrt(3) = 3.79
    verdict = "3 seeds cannot tell; 100 would not either"
    assert sentences[1].startswith(f"same: +0.3 points against {against} ({MINUS}3.5 to +4.1): {verdict}; ")


def test_one_seed_is_said_to_have_no_interval():
    report = make_report("x", [make_record(label, 1, [(1, 1, 1.0, 1, 0.5)]) for label in ("fixed", "mixed")])
    assert table(report, "Regimes at the end")["mixed"]["difference, points"] == "0.0\none seed: no interval"
    assert "one seed: no interval" in section(report, "Comparison").sentences[0]


def test_it_is_said_by_which_batch_norm_statistics_accuracies_are():
    def headline(when, in_curve=0.25, **changes):
        recipe = {"calibration": when and {"when": when}, "regime": {"base": {"size_px": 16}}}
        record = make_record("fixed", 1, [(1, 1, 1.0, 1, in_curve)], recipe=recipe, **changes)
        found = section(make_report("x", [record]), "Comparison")
        (row,) = found.tables[0].rows
        return dict(zip(found.tables[0].head, row, strict=True)), found.notes[0]

    own, calibrated = "top-1 at 16 px, own statistics, %", "top-1 at 16 px, calibrated, %"
    row, note = headline(None)
    assert (row[own], calibrated in row) == ("25.0", False)
    assert note.startswith("Own statistics: batch norm as trained. Ratios")
    row, note = headline("last", calibrated_accuracy={"16": 0.5})
    assert (row[own], row[calibrated]) == ("25.0", "50.0")
    assert "Own statistics: " in note
    assert "Calibrated: " in note
    row, note = headline("each", 0.5, accuracy={"16": 0.25}, calibrated_accuracy={"16": 0.5})
    assert (row[calibrated], own in row) == ("50.0", False)
    assert note.startswith("Calibrated: ")


def test_where_regimes_differ_in_their_statistics_each_name_tells_which_it_has():
    def run(label, when, accuracy):
        recipe = {"calibration": when and {"when": when}, "regime": {"base": {"size_px": 16}}}
        return make_record(label, 1, [(1, 1, 1.0, 1, accuracy)], recipe=recipe, calibrated_accuracy={"16": accuracy})

    report = make_report("x", [run("fixed", None, 0.25), run("mixed", "each", 0.5)])
    comparison = section(report, "Comparison")
    assert [row[0] for row in comparison.tables[0].rows] == ["fixed, own statistics", "mixed, calibrated"]
    assert comparison.sentences[0].startswith("mixed, calibrated: +25.0 points against fixed, own statistics at 16 px")
    assert "include the effect of calibration" in comparison.notes[0]
    for found in section(report, "At equal budgets").tables:
        assert [row[0] for row in found.rows] == ["fixed, own statistics", "mixed, calibrated"]


def test_the_setting_stands_first_and_tells_what_differs():
    def run(label, seed, mode, rate):
        recipe = {
            "max_duration": "9ep", "seed": seed, "calibration": None, "smoothing": None,
            "model": {"name": "resnet18"}, "schedule": {"name": "cosine"},
            "data": {"train": "data/x/train.beton", "eval": "data/x/test.beton", "train_images": None},
            "optimizer": {"name": "sgd", "lr": rate, "lr_scaling": "none", "momentum": 0.9, "weight_decay": 1e-4},
            "regime": {"mode": mode, "base": {"size_px": 16, "batch_size": 32}},
        }  # fmt: skip
        shapes = [{"size_px": s, "batch_size": 8, "duplicates": 1, "steps": 1} for s in (24, 8)]
        return make_record(
            label, seed, [(1, 1, 1.0, 1, 0.5)], recipe=recipe, shapes=shapes, train_images=1437, eval_images=360
        )

    records = [run("fixed", 1, "fixed", 0.1), run("fixed", 2, "fixed", 0.1), run("mixed", 1, "B+", 0.1)]
    first = make_report("x", records).sections[0]
    common, differing = first.tables
    assert dict(common.rows) == {
        "training images": "1,437, data/x/train.beton",
        "test images": "360, data/x/test.beton",
        "network": "resnet18",
        "optimiser": "sgd, momentum 0.9, weight_decay 0.0001",
        "peak learning rate": "0.1",
        "schedule": "cosine",
        "length": "9ep",
        "sizes, px": "8, 24",
        "gradient smoothing": "no",
    }
    assert list(differing.head) == ["regime", "kind of regime", "seeds"]
    assert list(differing.rows) == [
        ["fixed", "fixed, base 16 px x 32", "1, 2"],
        ["mixed", "B+, base 16 px x 32", "1"],
    ]
    (alone,) = make_report("x", records[:1]).sections[0].tables
    assert ["kind of regime", "fixed, base 16 px x 32"] in [list(row) for row in alone.rows]


def test_intervals_have_the_error_of_the_test_images_where_the_records_give_their_number():
    def report(images):
        records = [
            make_record(label, seed, [(1, 1, 1.0, 1, accuracy)], eval_images=images)
            for label, accuracy in (("fixed", 0.7), ("mixed", 0.9))
            for seed in (1, 2)
        ]
        return make_report("x", records)

    # By hand in test_intervals: 6.3 points around 90 % of 100 images, 11.0 points around the difference to 70 %.
    row = table(report(100), "Regimes at the end")["mixed"]
    assert row["top-1 at 16 px, own statistics, %"] == "90.0 (83.7 to 96.3)"
    assert row["difference, points"] == "+20.0 (+9.0 to +31.0)\nhigher"
    assert table(report(100), "Top-1 accuracy by evaluation size")["mixed, own statistics"]["16 px"] == (
        "90.0 (83.7 to 96.3)"
    )
    assert "The error that 100 test images leave" in section(report(100), "Comparison").notes[0]
    assert table(report(None), "Regimes at the end")["mixed"]["difference, points"].startswith("+20.0 (+20.0 to +20.0)")
    assert "do not give the number of test images" in section(report(None), "Comparison").notes[0]


def test_wall_clock_is_set_up_training_and_evaluation_together():
    seconds = {"set_up": 3.0, "fit": 50.0, "training": 40.0, "evaluation": 8.0}
    record = make_record("fixed", 1, [(1, 1, 40.0, 1, 0.5)], seconds=seconds)
    row = table(make_report("x", [record]), "Time and memory")["fixed"]
    assert (row["wall-clock"], row["training time"], row["evaluation"]) == ("53.0 s", "40.0 s", "8.00 s")


def test_a_report_is_made_without_pytorch(tmp_path):
    write_records(tmp_path / "runs.jsonl", make_suite(seeds=1))
    code = "import sys; from mixsize.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "report", str(tmp_path)], capture_output=True, check=True)
    assert done.stdout.split()[-1] == b"False"


def test_gmacs_are_billions_of_multiply_accumulates():
    record = make_record("fixed", 1, [(1, 1, 1.0, 1, 0.5)], macs={"16": 4_100_000_000})
    rows = table(make_report("x", [record]), "Top-1 accuracy by computation")
    assert rows["fixed, own statistics"]["GMACs"] == "4.1"


def test_long_learning_curves_are_told_in_a_dozen_rows_with_the_last_among_them():
    curve = [(epoch, 10 * epoch, 2.0 * epoch, 100 * epoch, epoch / 200) for epoch in range(1, 102)]
    rows = plots_of(make_report("x", [make_record("fixed", 1, curve)]))["accuracy-over-time"].table.rows
    assert [row[1] for row in rows] == [str(epoch) for epoch in range(2, 102, 9)]
    assert list(rows[-1]) == ["fixed", "101", "1,010", "3.37 min", "50.5"]


def test_shares_of_shapes_add_up_over_batches_and_seeds():
    def shape(size_px, steps, batch_size=8):
        return {"size_px": size_px, "batch_size": batch_size, "duplicates": 1, "steps": steps, "seconds": 0.5}

    records = [make_record("fixed", 1, [(1, 1, 1.0, 1, 0.5)], shapes=[shape(24, 6), shape(8, 1), shape(8, 3, 4)])]
    records.append(make_record("fixed", 2, [(1, 1, 1.0, 1, 0.5)], shapes=[shape(24, 6), shape(8, 4)]))
    (shapes,) = [t for s in make_report("x", records).sections for t in s.tables if t.caption.startswith("Step shapes")]
    # Sizes in the order of numbers, not of letters; steps are means over seeds.
    assert [row[1:] for row in shapes.rows] == [
        ["8", "4", "1", "2", "15.0", "500 ms"],
        ["8", "8", "1", "2", "25.0", "500 ms"],
        ["24", "8", "1", "6", "60.0", "500 ms"],
    ]


def test_gradient_norms_of_several_runs_are_pooled_as_over_all_their_steps():
    def norms(values):
        mean = sum(values) / len(values)
        std = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
        return [{"size_px": 16, "steps": len(values), "mean": mean, "std": std,
                 "smoothed_mean": None, "smoothed_std": None}]  # fmt: skip

    records = [
        make_record("fixed", seed, [(1, 1, 1.0, 1, 0.5)], gradient_norms=norms(values))
        for seed, values in ((1, [1.0, 2.0]), (2, [3.0, 4.0, 5.0]))
    ]
    # Of 1 to 5: mean 3, standard deviation sqrt(2.5) = 1.58
    rows = table(make_report("x", records), "Gradient norm")
    assert rows["fixed"]["before smoothing"] == "3 ± 1.58"
    assert rows["fixed"]["after smoothing"] == quantities.NONE


def test_records_without_curves_and_counts_are_reported_on_as_far_as_they_go(tmp_path, capsys):
    write_records(tmp_path / "runs.jsonl", [make_record("fixed", 1, accuracy={"8": 0.25, "16": 0.5})])
    assert main(["report", str(tmp_path)]) == 0
    assert "left out: Accuracy over training time" in capsys.readouterr().out
    text = (tmp_path / "report/report.html").read_text()
    assert "Accuracy by computation: the records have no counts of multiply-accumulates" in text
    assert {path.stem for path in (tmp_path / "report/figures").iterdir()} == {"accuracy-by-size"}


def test_a_page_needs_nothing_besides_itself_and_is_well_formed(suite):
    text = render_html(suite)
    page = Outline(text)
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    inside = {f"#{name}" for name in page.ids}
    assert [link for link in page.links if link not in inside and not link.startswith("data:")] == []
    assert "@import" not in text
    assert "url(" not in text
    images = [link for link in page.links if link.startswith("data:image/png;base64,")]
    assert len(images) == len(PLOTS)
    assert all(base64.b64decode(link.partition(",")[2]).startswith(b"\x89PNG") for link in images)
    # A table that is wider than the screen scrolls in its own box.
    assert text.count('<div class="scroll"') == text.count("<table")
    assert ".scroll { overflow-x: auto; }" in text
    assert {"h1", "h2", "h3", "main", "nav", "figure", "figcaption", "table", "details"} <= page.tags


def test_what_records_say_is_shown_and_never_run_or_parsed():
    vile = "</text><script>alert(1)</script> & |x| $\\frac{$ `_*"
    label = vile.replace("/", "")  # A slash would part a recipe's name from the regime's.
    record = make_record(label, 1, [(1, 1, 1.0, 10, 0.25), (2, 2, 2.0, 20, 0.5)], name=vile, suite=vile, commit=vile)
    failed = make_record("_hidden", 2, outcome="failed", error=f"{vile}\n```\n# no heading")
    report = make_report(vile, [record, failed, make_record("_other", 1, [(1, 1, 1.0, 10, 0.5)])])
    text = render_html(report)
    page = Outline(text)
    assert "script" not in page.tags
    shown = "".join(page.text)
    assert shown.count(vile) >= 3
    assert shown.count(label) >= 5
    # In the plots' legends too, where matplotlib would parse a formula.
    (legend,) = plots_of(report)["accuracy-over-time"].figure.legends
    assert [entry.get_text() for entry in legend.get_texts()] == [label, "_other"]
    markdown = render_markdown(report, "figures")
    assert "<script>" not in re.sub(r"````text.*?````", "", markdown, flags=re.DOTALL)
    assert "````text\n" in markdown  # The fence is longer than the one in the error.


def test_markdown_shows_a_pipe_or_a_star_and_leaves_names_alone():
    assert escape("s28_bplus | a*b\nc <d> _e_") == r"s28_bplus \| a\*b c &lt;d&gt; \_e\_"


def test_markdown_names_every_plot_that_is_written(tmp_path):
    write_records(tmp_path / "runs.jsonl", make_suite())
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report/report.md").read_text()
    named = re.findall(r"\]\((figures/[\w-]+\.png)\)", text)
    assert [Path(name).stem for name in named] == PLOTS
    assert all((tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG") for name in named)
    assert "| digits_bplus | 3 |" in text


def test_several_recipes_are_reported_on_one_after_the_other():
    records = [
        record.model_copy(update={"label": f"{model}/{record.label}"})
        for model in ("resnet", "vgg")
        for record in make_suite(seeds=1)
        if record.finished
    ]
    report = make_report("x", records)
    assert [s.title for s in report.sections][:2] == ["resnet: Setting", "resnet: Comparison"]
    names = [plot.name for section in report.sections for plot in section.plots]
    assert len(names) == len(set(names)) == 2 * len(PLOTS)
    assert len(Outline(render_html(report)).ids) == len(set(Outline(render_html(report)).ids))


def test_a_suite_in_which_every_run_failed_still_shows_why():
    report = make_report("x", [make_record("fixed", 1, outcome="failed", error="RuntimeError: no")])
    assert report.left_out == ["Comparison: no run finished with an accuracy."]
    assert report.sections[0].quotes == [("digits-fixed-seed1", "RuntimeError: no")]
    assert "RuntimeError: no" in render_html(report)


def test_runs_of_different_places_are_said_not_to_compare_in_time():
    here = make_record("fixed", 1, [(1, 1, 1.0, 1, 0.5)])
    there = make_record("mixed", 1, [(1, 1, 1.0, 1, 0.5)], environment={**here.environment.model_dump(), "cores": 64})
    assert make_report("x", [here]).sections[-1].notes == []
    (note,) = make_report("x", [here, there]).sections[-1].notes
    assert "times do not compare" in note


def test_quantities_have_three_digits_and_their_unit():
    times = {0.5: "0.500 s", 47.6: "47.6 s", 119.0: "119 s", 1011.0: "16.9 min", 7199: "120 min", 9000: "2.50 h"}
    assert {value: quantities.time(value) for value in times} == times
    counts = {7: "7", 999: "999", 17_244: "17.2 k", 92_012_544: "92.0 M", 7.5e10: "75.0 G", 2e13: "20.0 T"}
    assert {value: quantities.count(value) for value in counts} == counts
    assert quantities.percent_interval(estimate([0.1234])) == "12.3"
    assert quantities.points_interval(difference({1: 0.5}, {1: 0.5211})) == f"{MINUS}2.1"
    assert quantities.signed(-0.04) == "0.0"


def test_intervals_of_accuracies_end_where_accuracies_do():
    # Of two seeds, Student's interval is 25 times as wide as the values are apart.
    assert quantities.percent_interval(estimate([0.5, 0.6])) == "55.0 (0.0 to 100.0)"
    records = [make_record("fixed", seed, [(1, 1, 1.0, 1, accuracy)]) for seed, accuracy in ((1, 0.5), (2, 0.6))]
    low, high = plots_of(make_report("x", records))["accuracy-by-size"].figure.axes[0].get_ylim()
    assert -5 <= low < high <= 105


def test_without_a_network_runs_are_kept_for_weights_and_biases_and_how_to_send_them_is_said(
    tmp_path, wandb_runs, capsys
):
    write_records(tmp_path / "runs.jsonl", make_suite(seeds=1)[:1])
    assert main(["report", str(tmp_path), "--wandb", "someone/digits"]) == 0
    out = capsys.readouterr().out
    assert "report.html" in out
    assert f"wandb sync {tmp_path}/report/wandb/offline-run-*" in out
    (run,) = wandb_runs()
    assert (run["project"], run["name"]) == ("digits", "digits-fixed-seed17")


def test_runs_are_compared_side_by_side_by_their_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for place, name, accuracy in (("runs", "a", 0.25), ("runs", "b", 0.5), ("other", "b", 0.75)):
        record = make_record(name, 17, [(1, 1, 1.0, 1, accuracy)])
        write_text(tmp_path / place / name / "record.json", record.model_dump_json())
    assert main(["report", "runs/a", "runs/b"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"│ a +│ +1 │.* 25\.0 │", out)
    assert re.search(r"│ b +│ +1 │.* 50\.0 │", out)
    text = (tmp_path / "runs/report/report.md").read_text()
    assert text.startswith("# a, b\n")
    assert "- b: +25.0 points against a at 16 px, own statistics, one seed: no interval" in text
    # Two runs of one name and seed are told apart by their place in the command.
    assert main(["report", "runs/b", "other/b", "--out", "twice"]) == 0
    assert "- b (2): +25.0 points against b (1) at 16 px" in (tmp_path / "twice/report.md").read_text()
    assert main(["report", "runs/a", "--out", "alone"]) == 0
    assert (tmp_path / "alone/report.html").exists()


def test_what_is_published_are_the_last_records_and_the_tables_that_compare(tmp_path, monkeypatch, capsys):
    sent = []

    def publish(records, entity, project, *, comparison, folder):
        sent.append((len(records), entity, project, re.findall(r"^\*\*(.*)\*\*$", comparison, re.MULTILINE), folder))
        return "report: https://example.org/report"

    monkeypatch.setattr("mixsize.bench.report.wandb_report.publish", publish)
    first = make_suite(seeds=1)
    write_records(tmp_path / "runs.jsonl", [*first, first[0]])
    assert main(["report", str(tmp_path), "--wandb", "digits"]) == 0
    captions = [
        "Regimes at the end of training, against fixed",
        "Top-1 accuracy at 16 px, own statistics, after equal epochs, training time and pixels",
        "Cost of fixed's accuracy at 16 px, own statistics",
    ]
    assert sent == [(len(first), None, "digits", captions, tmp_path / "report")]
    assert "https://example.org/report" in capsys.readouterr().out


def test_failed_runs_alone_are_not_published(tmp_path, capsys):
    write_records(tmp_path / "runs.jsonl", [make_record("fixed", 1, outcome="failed", error="no")])
    assert main(["report", str(tmp_path), "--wandb", "digits"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: --wandb: there is no finished run to publish\n"
    assert (tmp_path / "report/report.html").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere"], "nowhere"),
        (["runs.jsonl", "--baseline", "fixd"], "baseline fixd"),
        (["runs.jsonl", "--size", "17"], "size 17"),
        (["empty.jsonl"], "holds no run records"),
        (["runs.jsonl", "empty.jsonl"], "empty.jsonl: holds no run records"),
        (["folder"], "folder: holds neither the runs.jsonl of a suite nor the record.json of a run"),
        (["runs.jsonl", "--wandb", "a/b/c"], "--wandb a/b/c"),
        (["runs.jsonl", "--wandb", "/b"], "--wandb /b"),
    ],
)
def test_mistakes_end_in_one_line(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "runs.jsonl", make_suite(seeds=1))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    assert main(["report", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report").exists()
