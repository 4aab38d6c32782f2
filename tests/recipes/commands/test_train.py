"""What ``mixsize train`` says of a run that ends or is stopped."""

from __future__ import annotations

import shlex

import pytest
from composer import Trainer

from mixsize.cli import main
from mixsize.recipes.commands.train import time_line
from mixsize.recipes.records.run_record import Seconds


def test_the_time_of_training_is_told_from_everything_else():
    seconds = Seconds(
        fit=100.0, set_up=7.0, training=60.0, evaluation=20.5, calibration=15.0, data_wait=1.0, steps=59.0
    )
    assert time_line(seconds) == (
        "time: 60.0 s of training; besides it 7.0 s of set-up, 20.5 s of evaluation, 15.0 s of calibration, "
        "4.5 s of checkpoints and the rest"
    )


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(130)], ids=["Python's", "Composer's"])
def test_a_run_that_is_stopped_says_what_is_saved_and_how_to_go_on(digits, tmp_path, capsys, monkeypatch, stop):
    argv = [
        "train", "demo", f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton",
        f"output.folder={tmp_path}/my runs", "max_duration=6ba", "evaluation.sizes=[16]", "output.save_every=2ba",
        "progress_bar=false",
    ]  # fmt: skip
    trained = Trainer._train_batch

    def stopped_at(steps):
        def train_batch(trainer, *args):
            if int(trainer.state.timestamp.batch) == steps:
                raise stop
            return trained(trainer, *args)

        monkeypatch.setattr(Trainer, "_train_batch", train_batch)
        try:
            code = main([*argv, "output.restart=true"])
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr().err.splitlines()[-1]

    code, words = stopped_at(1)
    assert code == 130
    assert words.startswith(
        "stopped; nothing is saved (output.save_every is 2ba), so it begins anew. To go on: mixsize "
    )
    code, words = stopped_at(5)
    assert code == 130
    saved, command = words.split(". To go on: ")
    assert saved == f"stopped; {tmp_path}/my runs/demo/checkpoints/ep0-ba4.pt is saved: epoch 0, step 4"
    # The command that is given does not remove what is saved.
    assert shlex.split(command) == ["mixsize", *argv, "output.restart=true", "output.restart=false"]
    monkeypatch.setattr(Trainer, "_train_batch", trained)
    assert main(shlex.split(command)[1:]) == 0
    out = capsys.readouterr().out
    assert "ep0-ba4.pt: epoch 0, step 4" in out
    assert "s of training; besides it " in out
