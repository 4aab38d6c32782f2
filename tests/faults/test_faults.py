"""Faults injected into training: the error that ends the run, and the files that are left."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mixsize.cli import main
from mixsize.recipes.build.trainer import build
from mixsize.recipes.callbacks import checkpoints
from mixsize.recipes.callbacks.finite_loss import FiniteLoss
from mixsize.recipes.commands.train import fit
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.weights import save_weights


def items(digits, folder, *more):
    return [
        "demo", f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={folder}/runs",
        "regime/digits_bplus", "evaluation.sizes=[16]", "max_duration=8ba", "output.save_every=4ba",
        "progress_bar=false", *more,
    ]  # fmt: skip


@pytest.fixture
def run(digits, tmp_path):
    return build(compose(items(digits, tmp_path)))


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """The weights of the same run without a fault."""
    folder = tmp_path_factory.mktemp("whole")
    fit(build(compose(items(digits, folder))))
    return (folder / "runs/demo/model.safetensors").read_bytes()


@contextmanager
def full_disk(limit_bytes):
    """Writing a file beyond a size fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def left(tmp_path):
    folder = tmp_path / "runs/demo"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_loss_that_is_not_finite_ends_the_run_and_the_last_checkpoint_is_sound(digits, tmp_path, run, whole):
    def spoil(network, inputs, outputs):
        spoilt = network.training and int(run.trainer.state.timestamp.batch) == 5
        return outputs * float("nan") if spoilt else outputs

    run.trainer.state.model.module.register_forward_hook(spoil)
    words = r"the loss of step 6, in epoch 0, at \d+ px x \d+ x 1 is nan: training has diverged. The learning rate was"
    with pytest.raises(FloatingPointError, match=words):
        fit(run)
    assert left(tmp_path) == {"recipe.yaml", "data.json", "config.json", "checkpoints/ep0-ba4.pt"}
    fit(build(compose(items(digits, tmp_path))))
    assert (tmp_path / "runs/demo/model.safetensors").read_bytes() == whole


def test_loss_scaling_may_overflow_a_few_steps_in_a_row():
    callback = FiniteLoss(SimpleNamespace(last_shape=None), patience_steps=3)
    ended = []
    for loss in (float("inf"), float("nan"), 1.0, float("inf"), float("inf"), float("inf")):
        state = SimpleNamespace(
            total_loss_dict={"loss/train/total": loss},
            timestamp=SimpleNamespace(batch=1, epoch=0),
            optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])],
        )
        try:
            callback.batch_end(state, None)
            ended.append(False)
        except FloatingPointError:
            ended.append(True)
    assert ended == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("save_every", "words"),
    [
        ("4ba", r"ep0-ba4\.pt is not written: .* is not finite; .* the checkpoint before stays the newest"),
        ("never", r"model\.safetensors is not written: .* is not finite; training has diverged$"),
    ],
)
def test_weights_that_are_not_finite_are_not_written(digits, tmp_path, monkeypatch, save_every, words):
    run = build(compose(items(digits, tmp_path, "max_duration=4ba", f"output.save_every={save_every}")))

    def spoil(callback, state, logger):
        if int(state.timestamp.batch) == 4:
            next(state.model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(FiniteLoss, "batch_end", spoil)
    with pytest.raises(FloatingPointError, match=words):
        fit(run)
    assert left(tmp_path) == {"recipe.yaml", "data.json", "config.json"}


def test_a_disk_that_fills_up_during_a_checkpoint_leaves_the_one_before(digits, tmp_path, run, whole, monkeypatch):
    save, saved = checkpoints.save_checkpoint, []

    def saving(state, filename):
        with full_disk(100_000 if saved else resource.RLIM_INFINITY):
            saved.append(save(state, filename))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", saving)
        with pytest.raises(OSError, match=r"ep0-ba8\.pt: the checkpoint is not saved, the one before stays: "):
            fit(run)
    assert left(tmp_path) == {"recipe.yaml", "data.json", "config.json", "checkpoints/ep0-ba4.pt"}
    fit(build(compose(items(digits, tmp_path))))
    assert (tmp_path / "runs/demo/model.safetensors").read_bytes() == whole


def test_a_disk_that_fills_up_while_weights_are_written_keeps_the_older_file(tmp_path):
    file = tmp_path / "model.safetensors"
    older, newer = torch.nn.Linear(100, 100), torch.nn.Linear(100, 100)
    save_weights(older, file)
    with full_disk(20_000), pytest.raises(OSError, match=r"model\.safetensors: cannot be written: .*File too large"):
        save_weights(newer, file)
    assert torch.equal(load_file(file)["weight"], older.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (True, r"too little memory in step 3, in epoch 0, at \d+ px x \d+ x 1: .*can't allocate memory"),
        (False, r"too little memory after step 8, with the batches of eval_16px: .*can't allocate memory"),
    ],
    ids=["training", "evaluation"],
)
def test_a_step_that_does_not_fit_into_memory_is_named(run, training, words):
    def ask(network, images):
        if network.training == training and int(run.trainer.state.timestamp.batch) >= 2:
            torch.empty(2**50)

    run.trainer.state.model.module.register_forward_pre_hook(ask)
    with pytest.raises(MemoryError, match=words):
        fit(run)


def test_an_output_folder_that_is_a_file_is_refused_in_one_line(digits, tmp_path, capsys):
    (tmp_path / "runs").touch()
    assert main(["train", *items(digits, tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: [Errno 20] Not a directory: '{tmp_path}/runs/demo'\n"


def test_a_missing_evaluation_file_is_refused_before_anything_is_written(digits, tmp_path, capsys):
    assert main(["train", *items(digits, tmp_path, f"data.eval={tmp_path}/none.beton")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/none.beton: cannot be read: No such file or directory\n"
    assert not (tmp_path / "runs").exists()
