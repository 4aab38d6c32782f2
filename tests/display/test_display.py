"""Tables on the terminal and in Markdown, and the style of plots."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from mixsize.display.console import plain_console, print_table
from mixsize.display.figures import COLOURS, MARKERS, new_figure, save
from mixsize.display.markdown import escape, markdown_table


def printed(width: int, **options) -> list[str]:
    console = Console(file=StringIO(), width=width, markup=False)
    print_table(console, ["size", "top-1 %"], [["[b]24", "90"], ["a long name", "1234.5"]], **options)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_table_is_aligned_and_its_notes_stand_below():
    lines = printed(60, notes=["n = 3"], title="Accuracy")
    assert lines[0].strip() == "Accuracy"
    assert lines[4:] == [
        "│ [b]24       │      90 │",
        "│ a long name │  1234.5 │",
        "└─────────────┴─────────┘",
        "n = 3",
    ]


def test_a_table_too_wide_for_the_terminal_is_split_and_every_name_stays_whole():
    names = ["digits_bplus_without", "digits_bplus_with"]
    head = ["regime", *(f"{size} px" for size in (8, 12, 16, 20))]
    console = Console(file=StringIO(), width=48)
    print_table(console, head, [[names[0], "1.0", "2.0", "3", "4"], [names[1], "1.0", "2.0", "", ""]])
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 48
    # 24 characters of names and lines, 7 of the first size and 8 of each other: three sizes fit, and one is left.
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows == [[names[0], "1.0", "2.0", "3"], [names[1], "1.0", "2.0", ""], [names[0], "4"]]


def test_a_name_too_long_for_the_terminal_is_folded_without_loss():
    text = "".join(printed(12))
    assert "…" not in text
    assert "alongname" in re.sub(r"[^a-z]", "", text)


def test_names_are_printed_literally(capsys):
    plain_console().print("[red]a[/x] :smile:")
    assert capsys.readouterr().out == "[red]a[/x] :smile:\n"


def test_a_markdown_table_has_its_first_column_left_and_the_others_right():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b\n c", r"a\|b c"),
        ("*x* `y` [z](u) ~~s~~", r"\*x\* \`y\` \[z\](u) \~\~s\~\~"),
        ("s28_bplus _x_", r"s28_bplus \_x\_"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("\\", "\\\\"),
    ],
)
def test_text_is_shown_by_markdown_as_it_is(text, escaped):
    assert escape(text) == escaped


def test_plots_cycle_through_colours_and_markers_and_the_same_figure_gives_the_same_bytes(tmp_path):
    assert len(MARKERS) == len(COLOURS)
    for name in ("a", "b"):
        figure, (left, right) = new_figure(columns=2, width=3, height=2)
        lines = [left.plot([0, 1], [i, i])[0] for i in range(2)]
        right.plot([0], [0])
        save(figure, tmp_path / name)
    assert [line.get_color() for line in lines] == list(COLOURS[:2])
    assert [line.get_marker() for line in lines] == list(MARKERS[:2])
    assert tuple(figure.get_size_inches()) == (6, 2)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
