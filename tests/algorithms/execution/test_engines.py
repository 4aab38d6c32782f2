"""Training passes that are compiled or captured for each shape."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from composer.metrics import CrossEntropy
from torch import nn

from mixsize.algorithms.execution import engines
from mixsize.algorithms.execution.composer_model import EngineClassifier
from mixsize.algorithms.execution.engines import ShapeGraphs, training_passes


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*layers)


def batches(count, sizes=(8, 12, 16)):
    generator = torch.Generator().manual_seed(1)
    for index in range(count):
        size = sizes[index % len(sizes)]
        images = torch.randn((4, 3, size, size), generator=generator)
        yield images, torch.randint(0, 2, (4,), generator=generator)


def losses(model, passes, count=12):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = []
    for images, labels in batches(count):
        loss = F.cross_entropy(passes(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


class Compilations:
    """A backend that counts what it is given to compile, and runs it as it is."""

    def __init__(self, monkeypatch):
        self.count = 0
        torch._dynamo.reset()
        compile_with = torch.compile
        monkeypatch.setattr(torch, "compile", lambda model, **options: compile_with(model, backend=self, **options))

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def test_eager_is_the_network_itself():
    model = network()
    assert training_passes(model, "eager", 3) is model


@pytest.mark.parametrize("engine", ["fast", "Eager", ""])
def test_another_engine_is_refused(engine):
    with pytest.raises(ValueError, match=r"engine is .*; it must be one of eager, compile, cuda_graphs"):
        training_passes(network(), engine, 1)


def test_graphs_need_a_gpu():
    with pytest.raises(ValueError, match="'cuda_graphs', which needs a CUDA device; the network is on cpu"):
        training_passes(network(), "cuda_graphs", 1)


def test_every_shape_is_compiled_once_also_beyond_pytorchs_own_limit(monkeypatch):
    compilations = Compilations(monkeypatch)
    model = network().train()
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"  # PyTorch 2.6
    with torch._dynamo.config.patch(**{limit: 8}):
        passes = training_passes(model, "compile", 11)
        for _ in range(2):
            for images, _ in batches(11, sizes=range(8, 30, 2)):
                passes(images)
            assert compilations.count == 11


def test_compiled_passes_train_as_eager_ones_do(monkeypatch):
    Compilations(monkeypatch)
    plain, compiled = network(), network()
    expected = losses(plain, plain)
    assert losses(compiled, training_passes(compiled, "compile", 3)) == pytest.approx(expected, rel=1e-5)
    assert list(compiled.state_dict()) == list(plain.state_dict())


class Captures:
    """Stands in for CUDA graphs: passes run as they are, after trial passes as capturing makes them."""

    def __init__(self):
        self.shapes = []

    def __call__(self, model, images):
        self.shapes.append(tuple(images.shape))
        for _ in range(3):
            model(torch.randn_like(images)).sum()

        def replay(batch):
            assert batch.shape == images.shape
            return model(batch)

        return replay


def test_each_shape_is_captured_at_its_first_step_and_its_trials_leave_no_trace():
    plain, graphed = network().train(), network().train()
    captures = Captures()
    torch.manual_seed(5)
    expected = losses(plain, plain)
    torch.manual_seed(5)
    drawn = torch.random.get_rng_state()
    assert losses(graphed, ShapeGraphs(graphed, 3, captures)) == expected
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert captures.shapes == [(4, 3, 8, 8), (4, 3, 12, 12), (4, 3, 16, 16)]
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), graphed.buffers(), strict=True))


def test_evaluation_and_shapes_beyond_the_expected_run_without_a_graph(caplog):
    model, captures = network(), Captures()
    passes = ShapeGraphs(model, 1, captures)
    images = torch.randn(4, 3, 8, 8)
    model.eval()
    passes(images)
    model.train()
    with torch.no_grad():
        passes(images)
    assert captures.shapes == []
    with caplog.at_level(logging.WARNING, engines.__name__):
        for size in (8, 12, 12, 16):
            passes(torch.randn(4, 3, size, size))
    assert captures.shapes == [(4, 3, 8, 8)]
    (record,) = caplog.records
    assert "(4, 3, 12, 12) exceeds the 1 shapes captured" in record.getMessage()


def test_a_batch_in_another_memory_format_has_a_graph_of_its_own():
    model, captures = network().train(), Captures()
    passes = ShapeGraphs(model, 2, captures)
    images = torch.randn(4, 3, 8, 8)
    passes(images)
    passes(images.to(memory_format=torch.channels_last))
    assert len(captures.shapes) == 2


def test_composers_model_trains_through_the_engine_and_evaluates_and_saves_without(monkeypatch):
    compilations = Compilations(monkeypatch)
    model = EngineClassifier(network(), num_classes=2, val_metrics=CrossEntropy())
    names = list(model.state_dict())
    model.use_engine("compile", 2)
    assert list(model.state_dict()) == names
    images, labels = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    model.train()
    model.loss(model((images, labels)), (images, labels)).backward()
    assert compilations.count == 1
    model.eval()
    model((images, labels))
    model.eval_forward((images, labels))
    assert compilations.count == 1


@pytest.mark.gpu
def test_graphs_train_as_eager_passes_do():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    plain, graphed = network().cuda().train(), network().cuda().train()

    def on_gpu(passes):
        return lambda images: passes(images.cuda()).cpu()

    expected = losses(plain, on_gpu(plain))
    assert losses(graphed, on_gpu(training_passes(graphed, "cuda_graphs", 3))) == pytest.approx(expected, rel=1e-3)
    assert all(torch.allclose(a, b) for a, b in zip(plain.buffers(), graphed.buffers(), strict=True))
