"""Progress bars: what they count, and where they show."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
import tqdm.std
from composer.core import Time

from mixsize.recipes.build.trainer import build
from mixsize.recipes.callbacks import progress
from mixsize.recipes.callbacks.progress import Progress
from mixsize.recipes.commands.train import fit
from mixsize.recipes.config.compose import compose


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved; the bar reads it as well."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(time=lambda: clock.now))
    monkeypatch.setattr(tqdm.std, "time", lambda: clock.now)
    return clock


def test_rate_and_time_left_are_those_of_training_alone(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    state = SimpleNamespace(
        timestamp=SimpleNamespace(batch=0, epoch=0, batch_in_epoch=0),
        max_duration=Time.from_timestring("100ba"),
        total_loss_dict={"loss/train/total": 1.0},
        eval_metrics={},
    )
    bar = Progress(SimpleNamespace(last_shape=(16, 32, 1)), "accuracy")
    bar.fit_start(state, None)
    clock.now += 500  # of set-up between the first event and the first batch
    for step in range(1, 41):
        bar.before_dataloader(state, None)
        clock.now += 2
        state.timestamp.batch = step
        bar.batch_end(state, None)
        if step % 10 == 0:
            clock.now += 300  # of evaluation
            bar.eval_after_all(state, None)
            clock.now += 70  # of saving a checkpoint
    shown = bar._bar.format_dict
    assert shown["rate"] == pytest.approx(0.5)
    bar.fit_end(state, None)
    shown = bar._bar.format_dict
    assert (shown["n"], shown["total"], shown["elapsed"]) == (40, 100, pytest.approx(80))
    assert "40/100 [01:20<02:00" in str(bar._bar)
    bar.close(state, None)


@pytest.mark.parametrize("terminal", [Terminal, io.StringIO])
def test_evaluation_and_calibration_show_on_a_terminal_alone(digits, tmp_path, monkeypatch, terminal):
    stderr = terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={tmp_path}"]
    items = ["max_duration=1ba", "evaluation.sizes=[8,16]", "calibration={batches: 2}", "output.save_every=never"]
    fit(build(compose(["demo", *data, *items])))
    shown = stderr.getvalue()
    for words in (
        "calibrating at 8px:   0%|          | 0/2 ",
        "evaluating at 8px:   0%|          | 0/2 ",
        "evaluating at 16px:   0%|          | 0/2 ",
    ):
        assert (words in shown) == (terminal is Terminal)
    # Once at the end of training, once with the network's own statistics.
    assert shown.count("evaluating at 16px:   0%") == (2 if terminal is Terminal else 0)
