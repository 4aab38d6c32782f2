"""The table of regimes, as the terminal, README and result pages show it."""

from __future__ import annotations

from mixsize.bench.report.comparison import compare
from mixsize.bench.report.tables import class_table, regime_notes, regime_table

from .run_records import make_record


def run(label, seed, seconds, accuracy, **changes):
    totals = {"steps": 1056, "epochs": 3, "pixels": 200, "seconds": {"training": seconds}}
    return make_record(label, seed, accuracy={"8": 0.264, "16": accuracy}, **{**totals, **changes})


RECORDS = [
    run("fixed", 17, 38.4, 0.75),
    run("fixed", 18, 40.4, 0.625),
    run("mixed", 17, 38.4, 0.875, pixels=162, calibrated_accuracy={"8": 0.5, "16": 0.9}),
    make_record("mixed", 18, outcome="failed", error="x"),
    make_record("broken", 17, outcome="failed", error="x"),
]


def test_a_regime_has_means_and_deviations_of_its_finished_runs_by_kind_of_statistics():
    assert regime_table(RECORDS) == (
        ["regime", "runs", "steps", "training time, s", "pixels", "8 px", "16 px*"],
        [
            # The standard deviation of 38.4 and 40.4 is 1.41, of 75 and 62.5 it is 12.5 / sqrt(2) = 8.84.
            ["fixed, own statistics", "2", "1,056", "39 ± 1", "1.00x", "26.4 ± 0.0", "68.8 ± 8.8"],
            ["mixed, own statistics", "1/2", "1,056", "38", "0.81x", "26.4", "87.5"],
            ["mixed, calibrated", "", "", "", "", "50.0", "90.0"],
            ["broken", "0/1", *["\N{EN DASH}"] * 5],
        ],
    )


def test_where_nothing_is_calibrated_the_note_names_the_statistics():
    assert [row[0] for row in regime_table(RECORDS[:2])[1]] == ["fixed"]
    (note,) = regime_notes(RECORDS)
    assert note == (
        "Top-1 accuracy in per cent by evaluation size (*: the size of fixed-size training); mean ± standard deviation "
        "of 2 seeds."
    )
    assert regime_notes(RECORDS[:1]) == [
        "Top-1 accuracy in per cent, own statistics, by evaluation size (*: the size of fixed-size training); one seed."
    ]


def by_class(label, seed, hits, calibrated=None):
    """Four classes, one of which has no image; ``hits`` at 16 px."""
    images = {"cat": 4, "dog": 10, "emu": 0, "fox": 5}
    changes = {} if calibrated is None else {"calibrated_class_hits": {"16": calibrated}}
    recipe = {"seed": seed, "calibration": calibrated and {"when": "each"}, "regime": {"base": {"size_px": 16}}}
    changes |= {"class_images": images, "class_hits": {"16": hits}, "recipe": recipe}
    changes |= {"calibrated_accuracy": {"16": 0.5}} if calibrated else {}
    return make_record(label, seed, curve=[(1, 1, 1.0, 1, 0.5)], **changes)


def test_the_worst_classes_come_first_with_the_accuracy_under_each_regime():
    hits = {("fixed", 17): [4, 5, 0, 1], ("fixed", 18): [2, 5, 0, 2], ("mixed", 17): [4, 1, 0, 4]}
    (found,) = compare([by_class(*run, of_run) for run, of_run in hits.items()])
    table = class_table(found)
    assert table.caption == "Top-1 by class at 16 px, %: all classes"
    assert list(table.head) == ["class", "images", "fixed", "mixed"]
    assert [list(row) for row in table.rows] == [
        ["dog", "10", "50.0", "10.0"],
        # 1 and 2 of 5 images: 30 %.
        ["fox", "5", "30.0", "80.0"],
        ["cat", "4", "75.0", "100.0"],
    ]


def test_classes_are_told_by_the_statistics_that_are_compared_and_by_records_that_count_them():
    (found,) = compare([by_class("fixed", 17, [4, 5, 0, 1], calibrated=[0, 10, 0, 5])])
    assert [list(row) for row in class_table(found).rows] == [
        ["cat", "4", "0.0"],
        ["dog", "10", "100.0"],
        ["fox", "5", "100.0"],
    ]
    (found,) = compare([by_class("fixed", 17, [4, 5, 0, 1]), make_record("mixed", 17, curve=[(1, 1, 1.0, 1, 0.5)])])
    assert class_table(found).rows == []


def test_of_many_classes_the_worst_are_shown():
    images, hits = {f"c{i}": 50 for i in range(100)}, [*range(50), *range(50)]
    record = make_record(curve=[(1, 1, 1.0, 1, 0.5)], class_images=images, class_hits={"16": hits})
    (found,) = compare([record])
    table = class_table(found)
    assert table.caption == "Top-1 by class at 16 px, %: the 20 worst of 100 classes"
    assert [row[0] for row in table.rows][:4] == ["c0", "c50", "c1", "c51"]
    assert len(table.rows) == 20
