"""The table of regimes, as the terminal, README and result pages show it."""

from __future__ import annotations

from mixsize.bench.report.tables import regime_notes, regime_table

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
