"""What a run's record says, against what the run did."""

from __future__ import annotations

import json
import statistics
import subprocess
from itertools import pairwise

import numpy as np
import pytest
import torch

from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.recipes.build.trainer import build
from mixsize.recipes.callbacks.finite_loss import FiniteLoss
from mixsize.recipes.commands import train as train_module
from mixsize.recipes.commands.recording import distinct_samples, plan_digest
from mixsize.recipes.commands.train import fit
from mixsize.recipes.config.compose import compose
from mixsize.recipes.records import environment
from mixsize.recipes.records.run_record import read_record


def recipe(digits, tmp_path, *items):
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={tmp_path}/runs"]
    return compose(["demo", *data, "progress_bar=false", "output.save_every=never", *items])


def plain_hits(run, size_px):
    """Labels and hits of the network as it stands, over a plain loop."""
    network = run.trainer.state.model.module.eval()
    (loader,) = [e.dataloader.dataloader for e in run.trainer.state.evaluators if e.label == f"eval_{size_px}px"]
    with torch.no_grad():
        found = [(labels, network(images).argmax(1) == labels) for images, labels in loader]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def plain_accuracy(run, size_px):
    return plain_hits(run, size_px)[1].float().mean().item()


def note_norms(run, monkeypatch):
    """Norms over all gradients as the optimiser meets them, by PyTorch's own utility."""
    optimizer = run.trainer.state.optimizers[0]
    step, noted = optimizer.step, []

    def noting(closure):
        def closed():
            loss = closure()
            gradients = [p.grad for p in run.trainer.state.model.parameters() if p.grad is not None]
            noted.append((run.sampling.last_shape[0], torch.nn.utils.get_total_norm(gradients).item()))
            return loss

        return step(closure=closed)

    monkeypatch.setattr(optimizer, "step", noting)
    return noted


MIXED = [
    "regime.mode=B+",
    "regime.sizes={16: 0.5, 32: 0.5}",
    "regime.share_of=steps",
    "regime.base.size_px=32",
    "max_duration=12ba",
]


@pytest.fixture(scope="module")
def calibrated(digits, tmp_path_factory):
    """A run with everything that a record tells of, its record, its file and the norms its optimiser met."""
    folder = tmp_path_factory.mktemp("calibrated")
    items = [*MIXED, "seed=3", "smoothing={alpha: 0.5}", "calibration={batches: 3}", "evaluation.sizes=[16,32]"]
    run = build(recipe(digits, folder, *items))
    with pytest.MonkeyPatch.context() as patch:
        noted = note_norms(run, patch)
        record = fit(run)
    return run, record, folder / "runs/demo/record.json", noted


def test_the_file_holds_the_record(calibrated):
    _, record, file, _ = calibrated
    assert read_record(file) == record
    assert (record.suite, record.label, record.outcome, record.error) == (None, "demo", "finished", None)
    assert record.recipe["calibration"]["batches"] == 3
    assert (record.train_images, record.eval_images) == (1437, 360)


def test_accuracies_are_told_by_the_networks_own_statistics_and_by_calibrated_ones(calibrated):
    run, record, _, _ = calibrated
    for size in (16, 32):
        assert record.accuracy[str(size)] == pytest.approx(plain_accuracy(run, size), abs=1e-6)
    assert record.calibrated_accuracy.keys() == record.accuracy.keys()
    network = run.trainer.state.model.module
    with run.calibration.bank.use(network, 32):
        assert record.calibrated_accuracy["32"] == pytest.approx(plain_accuracy(run, 32), abs=1e-6)
    assert record.calibrated_accuracy != record.accuracy


def test_hits_are_told_by_class(calibrated):
    run, record, _, _ = calibrated
    labels, hits = plain_hits(run, 32)
    assert list(record.class_images) == [str(digit) for digit in range(10)]
    assert list(record.class_images.values()) == torch.bincount(labels, minlength=10).tolist()
    assert record.class_hits["32"] == torch.bincount(labels[hits], minlength=10).tolist()
    for found, accuracy in (
        (record.class_hits, record.accuracy),
        (record.calibrated_class_hits, record.calibrated_accuracy),
    ):
        assert {size: sum(of_size) / 360 for size, of_size in found.items()} == pytest.approx(accuracy)


def test_the_curve_ends_at_the_runs_end_with_its_own_accuracies(calibrated):
    _, record, _, _ = calibrated
    (point,) = record.curve
    assert (point.step, point.epoch, point.pixels) == (12, 0, record.pixels)
    assert point.accuracy == record.accuracy
    assert 0 < point.seconds <= record.seconds.training
    assert 0 < point.train_loss < 10


def test_calibration_is_not_counted_as_evaluation(calibrated):
    run, record, _, _ = calibrated
    assert record.seconds.calibration == pytest.approx(run.calibration.seconds)
    assert record.seconds.evaluation > 0
    parts = record.seconds.data_wait + record.seconds.steps + record.seconds.evaluation + record.seconds.calibration
    assert parts < record.seconds.fit
    assert record.seconds.wall_clock == record.seconds.set_up + record.seconds.fit


@pytest.mark.parametrize(
    ("calibration", "kinds"),
    [
        ("null", ["own statistics", "own statistics"]),
        ("{batches: 1, when: last}", ["own statistics", "calibrated"]),
        ("{batches: 1, when: each}", ["calibrated", "calibrated"]),
    ],
)
def test_each_epochs_line_names_the_batch_norm_statistics_of_its_accuracies(
    digits, tmp_path, capfd, calibration, kinds
):
    items = ["regime.base={size_px: 16, batch_size: 512}", "max_duration=2ep"]
    items += ["evaluation.sizes=[16]", "evaluation.every_epochs=1"]
    record = fit(build(recipe(digits, tmp_path, *items, f"calibration={calibration}", "progress_bar=true")))
    out, err = capfd.readouterr()
    lines = [line[line.index("epoch") :] for line in err.splitlines() if "top-1 %" in line]
    shown = (record.calibrated_accuracy or record.accuracy)["16"]
    assert [line.partition(", at ")[0] for line in lines] == [
        f"epoch {epoch}: top-1 %, {kind}" for epoch, kind in enumerate(kinds, start=1)
    ]
    assert lines[-1].endswith(f"16px {100 * shown:.1f}")
    (head,) = [line for line in out.splitlines() if "loss, own statistics" in line]
    words = [cell.strip() for cell in head.strip("┃").split("┃")]
    assert words == ["size px", "own statistics", *["calibrated"] * (calibration != "null"), "loss, own statistics"]


def test_gradient_norms_are_those_of_the_whole_network_before_and_after_smoothing(calibrated):
    """After: what the optimiser met. Before: by the recurrence, undone by hand: after = gbar / (g + eps) * g."""
    _, record, _, noted = calibrated
    assert [row.size_px for row in record.gradient_norms] == [32, 16]
    for row in record.gradient_norms:
        met = [norm for size, norm in noted if size == row.size_px]
        assert row.steps == len(met) >= 2
        assert row.smoothed_mean == pytest.approx(statistics.fmean(met), rel=1e-5)
        assert row.smoothed_std == pytest.approx(statistics.stdev(met), rel=1e-3)
    # The first step is left as it is; from then on gbar_t = (gbar_{t-1} + g_t) / 2 is the norm that is met.
    before = [noted[0][1]]
    before += [2 * now - last for (_, last), (_, now) in pairwise(noted)]
    for row in record.gradient_norms:
        own = [norm for (size, _), norm in zip(noted, before, strict=True) if size == row.size_px]
        assert row.mean == pytest.approx(statistics.fmean(own), rel=1e-3)
        assert row.std == pytest.approx(statistics.stdev(own), rel=1e-2)


def test_without_smoothing_there_are_norms_all_the_same(digits, tmp_path, monkeypatch):
    # What ends such a run otherwise.
    monkeypatch.setattr(FiniteLoss, "batch_end", lambda self, state, logger: None)
    monkeypatch.setattr(train_module, "check_finite", lambda network, path: None)
    items = [*MIXED, "evaluation.sizes=[32]", "max_duration=6ba", "output.save_every=never"]
    run = build(recipe(digits, tmp_path, *items))
    noted = note_norms(run, monkeypatch)
    # A step whose norm is not finite does not count.
    original = run.gradient_norms.after_train_batch

    def poison(state, logger):
        if int(state.timestamp.batch) == 3:
            next(p for p in state.model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        original(state, logger)

    monkeypatch.setattr(run.gradient_norms, "after_train_batch", poison)
    record = fit(run)
    assert sum(row.steps for row in record.gradient_norms) == 3
    for row in record.gradient_norms:
        met = [norm for size, norm in noted[:3] if size == row.size_px]
        assert row.mean == pytest.approx(statistics.fmean(met), rel=1e-5)
        assert (row.smoothed_mean, row.smoothed_std) == (None, None)
    # The weights are NaN from then on: JSON has no word for that, and no reader should stumble over it.
    text = (tmp_path / "runs/demo/record.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] == {"32": None}


def test_macs_are_told_at_every_size_trained_or_evaluated_at(calibrated, digits, tmp_path):
    _, record, _, _ = calibrated
    # ResNet-20 has 40.8 M multiply-accumulates at 32 px (He et al. 2016 say 0.041 G), and convolutions cost by area.
    assert record.macs["32"] == pytest.approx(40.8e6, rel=0.02)
    assert record.macs["16"] == pytest.approx(record.macs["32"] / 4, rel=0.01)


def test_distinct_samples_are_counted_over_epochs():
    """Against a set filled epoch by epoch, by hand: 10 images in batches of 4 leave 2 out of each epoch."""
    regime = Regime.fixed(Base(32, 4))
    from mixsize.algorithms.regime.plan import plan_epoch

    first, second = (set(plan_epoch(regime, 10, 3, epoch).samples.tolist()) for epoch in (0, 1))
    assert len(first) == len(second) == 8
    assert distinct_samples(regime, 10, 3, 4) == 4
    assert distinct_samples(regime, 10, 3, 8) == 8
    assert distinct_samples(regime, 10, 3, 16) == len(first | second)
    assert distinct_samples(regime, 10, 3, 8 * 50) == 10
    assert distinct_samples(regime, 10, 3, 0) == 0


def test_the_plans_digest_tells_what_is_drawn_apart(monkeypatch):
    regime = Regime.from_sizes({32: 0.5, 16: 0.5}, Base(32, 8), "B+")
    plain = plan_digest(regime, 100, 1)
    assert plan_digest(regime, 100, 1) == plain
    others = [(regime, 101, 1), (regime, 100, 2), (Regime.fixed(Base(32, 8)), 100, 1)]
    assert len({plain, *(plan_digest(*other) for other in others)}) == 4
    # Another way of drawing from the same regime shows too.
    from mixsize.recipes.commands import recording

    drawn = recording.plan_epoch

    def reversed_order(*args):
        plan = drawn(*args)
        return type(plan)(
            plan.epoch, plan.world_size, plan.size_px, plan.batch_size, plan.duplicates, np.flip(plan.samples).copy()
        )

    monkeypatch.setattr(recording, "plan_epoch", reversed_order)
    assert plan_digest(regime, 100, 1) != plain


def test_the_source_is_its_commit_and_whether_tracked_files_were_changed(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, text=True)

    file = tmp_path / "environment.py"
    file.write_text("x = 1\n")
    git("init", "-q")
    monkeypatch.setattr(environment, "__file__", str(file))
    # Installed inside of a repository that does not hold it.
    assert environment.source_version() == (None, None)
    git("add", "environment.py")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD").stdout.strip()
    (tmp_path / "runs.txt").write_text("left behind by a run")
    assert environment.source_version() == (commit, False)
    file.write_text("x = 2\n")
    assert environment.source_version() == (commit, True)


def test_peak_memory_is_of_this_process():
    before = environment.peak_memory()
    held = np.ones(2**26, dtype=np.uint8)
    after = environment.peak_memory()
    # At least what PyTorch alone takes, and it never falls.
    assert 2**27 < before.host <= after.host < 2**40
    assert held.nbytes == 2**26
