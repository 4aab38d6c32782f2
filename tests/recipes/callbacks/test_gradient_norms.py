"""Since when gradients are no numbers, as an error of a later step tells it."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from mixsize.recipes.callbacks import gradient_norms
from mixsize.recipes.callbacks.gradient_norms import GradientNorms


def test_the_first_of_the_last_steps_without_a_finite_norm_is_known(monkeypatch):
    """A step that overflows is made good by the next; what counts are those with nothing finite behind them."""
    inf, nan = float("inf"), float("nan")
    norms = [1.0, inf, 2.0, nan, inf]
    monkeypatch.setattr(gradient_norms, "trained_parameters", lambda state: [])
    monkeypatch.setattr(gradient_norms, "gradient_norm", lambda parameters: torch.tensor(norms.pop(0)))
    watching = GradientNorms(SimpleNamespace(last_shape=(8, 4, 1)), None)
    assert watching.not_finite_since() is None
    found = []
    for steps_behind in range(40, 45):  # As after a resume.
        watching.after_train_batch(SimpleNamespace(timestamp=SimpleNamespace(batch=steps_behind)), None)
        found.append(watching.not_finite_since())
    assert found == [42, 42, 44, 44, 44]
    (row,) = watching.rows()
    assert (row.steps, row.mean) == (2, 1.5)


def test_a_first_step_without_a_finite_norm_is_told(monkeypatch):
    monkeypatch.setattr(gradient_norms, "trained_parameters", lambda state: [])
    monkeypatch.setattr(gradient_norms, "gradient_norm", lambda parameters: torch.tensor(float("nan")))
    watching = GradientNorms(SimpleNamespace(last_shape=(8, 4, 1)), None)
    watching.after_train_batch(SimpleNamespace(timestamp=SimpleNamespace(batch=40)), None)
    assert watching.not_finite_since() == 41
