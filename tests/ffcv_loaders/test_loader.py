"""The loader: the plan's batches, the same for any threads, ranks and resume; nothing left behind."""

from __future__ import annotations

import atexit
import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch

from mixsize.algorithms.regime.plan import plan_epoch
from mixsize.algorithms.regime.regime import Base, Choice, Regime
from mixsize.ffcv_loaders.beton.reader import Beton, BetonError
from mixsize.ffcv_loaders.decode.augment import PadCrop, RandomResizedCrop, Resize
from mixsize.ffcv_loaders.loader import EvalLoader, MixSizeLoader
from mixsize.ffcv_loaders.pipeline import stream

MIX = {20: 0.2, 16: 0.3, 12: 0.3, 8: 0.2}
B_PLUS = Regime.from_sizes(MIX, Base(16, 32), "B+", batch_multiple=4)
D_PLUS = Regime.from_sizes(MIX, Base(16, 32), "D+")


def make(data, regime=B_PLUS, **kwargs):
    options = {"augment": PadCrop(1), "num_workers": 1, "seed": 7, "device": "cpu", **kwargs}
    return MixSizeLoader(data, regime, **options)


def batches(loader):
    return [(images.clone(), labels.clone()) for images, labels in loader]


def assert_same(left, right):
    assert len(left) == len(right)
    for (images, labels), (other_images, other_labels) in zip(left, right, strict=True):
        assert images.numpy().tobytes() == other_images.numpy().tobytes()
        assert labels.tolist() == other_labels.tolist()


@pytest.mark.parametrize("regime", [B_PLUS, D_PLUS], ids=["B+", "D+"])
def test_batches_have_the_plans_shapes_and_the_datas_labels(digits, regime):
    loader = make(digits / "train.beton", regime)
    labels = Beton.open(digits / "train.beton").labels
    plan = plan_epoch(regime, 1437, 7, 0)
    served = list(loader)
    assert len(served) == len(plan) == len(loader)
    for step, (images, targets) in zip(plan, served, strict=True):
        assert images.shape == (step.batch_size * step.duplicates, 3, step.size_px, step.size_px)
        assert images.dtype == torch.float32
        np.testing.assert_array_equal(targets, np.repeat(labels[step.samples], step.duplicates))


def test_duplicates_are_different_views_of_one_image_side_by_side(photos):
    regime = Regime.from_choices(Base(32, 4), [Choice(32, 4, 3, 1.0)])
    images, labels = next(iter(make(photos, regime, augment=RandomResizedCrop((0.1, 0.4)))))
    assert labels.view(4, 3).unique(dim=1).shape == (4, 1)
    for views in images.view(4, 3, -1):
        assert not torch.equal(views[0], views[1])
        assert not torch.equal(views[0], views[2])


def test_pixels_are_normalised_with_imagenets_constants_or_those_given(digits):
    fixed = Regime.fixed(Base(8, 100))
    plain = next(iter(make(digits / "train.beton", fixed, augment=Resize(), mean=(0, 0, 0), std=(1, 1, 1))))[0]
    assert plain.min() == 0
    assert plain.max() == 1
    info = Beton.open(digits / "train.beton").info
    for mean, std, given in (
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), {}),
        (info.mean, info.std, {"mean": info.mean, "std": info.std}),
    ):
        normalised = next(iter(make(digits / "train.beton", fixed, augment=Resize(), **given)))[0]
        expected = (plain - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(normalised, expected, atol=1e-5, rtol=1e-5)


def test_memory_format_and_dtype_are_what_was_asked_for(digits):
    images = next(iter(make(digits / "train.beton", channels_last=True, dtype=torch.bfloat16)))[0]
    assert images.dtype == torch.bfloat16
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images.float(), next(iter(make(digits / "train.beton")))[0], atol=0.02, rtol=0.01)


STRONG = RandomResizedCrop(policy="rand-m9-mstd0.5-inc1", magnitude={8: 4, 20: 9}, color_jitter=0.4, erasing=0.25)


def test_changed_batches_are_the_same_byte_for_byte_for_any_number_of_threads(photos):
    regime = Regime.from_sizes(MIX, Base(16, 4), "D+")
    one = batches(make(photos, regime, augment=STRONG))
    for threads in (2, 3):
        assert_same(batches(make(photos, regime, augment=STRONG, num_workers=threads)), one)
    assert not torch.equal(batches(make(photos, regime, augment=RandomResizedCrop()))[0][0], one[0][0])


@pytest.mark.parametrize("regime", [B_PLUS, D_PLUS], ids=["B+", "D+"])
def test_batches_are_the_same_byte_for_byte_for_any_number_of_threads(photos, digits, regime):
    one = batches(make(digits / "train.beton", regime))
    for threads in (2, 8):
        assert_same(batches(make(digits / "train.beton", regime, num_workers=threads, batches_ahead=threads)), one)
    jpeg = Regime.from_choices(Base(32, 4), [Choice(32, 4, 2, 0.5), Choice(48, 4, 1, 0.5)])
    crop = RandomResizedCrop()
    assert_same(batches(make(photos, jpeg, augment=crop, num_workers=4)), batches(make(photos, jpeg, augment=crop)))


@pytest.mark.parametrize("regime", [B_PLUS, D_PLUS], ids=["B+", "D+"])
def test_ranks_together_serve_the_batches_of_one(digits, regime):
    whole = batches(make(digits / "train.beton", regime, rank=0, world_size=1))
    for world_size in (2, 4):
        parts = [
            batches(make(digits / "train.beton", regime, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        joined = [
            (torch.cat([images for images, _ in step]), torch.cat([labels for _, labels in step]))
            for step in zip(*parts, strict=True)
        ]
        assert_same(joined, whole)


def test_epochs_follow_each_other_and_can_be_chosen(digits):
    loader = make(digits / "train.beton")
    first, second = batches(loader), batches(loader)
    assert not torch.equal(first[0][1], second[0][1])
    loader.set_epoch(0)
    assert_same(batches(loader), first)
    loader.set_epoch(1)
    assert_same(batches(loader), second)


@pytest.mark.parametrize("steps", [0, 1, 5, -1])
def test_a_restored_loader_goes_on_where_it_stood_without_decoding_what_came_before(digits, steps, monkeypatch):
    loader = make(digits / "train.beton", D_PLUS)
    loader.set_epoch(3)
    whole = batches(loader)
    steps = len(whole) if steps < 0 else steps
    plan = plan_epoch(D_PLUS, 1437, 7, 3)
    stopped = make(digits / "train.beton", D_PLUS)
    stopped.set_epoch(3)
    for _ in zip(range(steps), stopped, strict=False):
        pass
    state = stopped.dataset.state_dict(int(plan.batch_size[:steps].sum()), True)

    decoded = []
    from mixsize.ffcv_loaders.pipeline import stream

    original = stream.Decoder.submit

    def noting(self, samples, *rest):
        decoded.append(samples)
        return original(self, samples, *rest)

    monkeypatch.setattr(stream.Decoder, "submit", noting)
    resumed = make(digits / "train.beton", D_PLUS)
    resumed.dataset.load_state_dict(state)
    assert_same(batches(resumed), whole[steps:])
    assert len(decoded) == len(whole) - steps
    # The position counts once: what follows is the next epoch, whole.
    assert len(batches(resumed)) == len(plan_epoch(D_PLUS, 1437, 7, 4))


def test_a_state_taken_between_epochs_resumes_at_the_next(digits):
    loader = make(digits / "train.beton")
    batches(loader)
    state = loader.dataset.state_dict(0, True)
    resumed = make(digits / "train.beton")
    resumed.dataset.load_state_dict(state)
    assert_same(batches(resumed), batches(loader))


def test_state_is_plain_values_that_load_with_weights_only(digits, tmp_path):
    state = make(digits / "train.beton", D_PLUS).dataset.state_dict(0, True)
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 8}, "seed was 7, is 8"),
        ({"regime": D_PLUS}, r"regime.choices was .* is "),
        ({"data": "test.beton"}, "images was 1437, is 360"),
    ],
)
def test_a_state_of_another_run_is_refused_with_what_differs(digits, change, words):
    state = make(digits / "train.beton").dataset.state_dict(0, True)
    options = {"regime": B_PLUS, "seed": 7, **change}
    data = digits / options.pop("data", "train.beton")
    other = make(
        data,
        Regime.fixed(Base(16, 32)) if data.name == "test.beton" else options.pop("regime"),
        **{key: value for key, value in options.items() if key != "regime"},
    )
    other.dataset.load_state_dict(state)
    with pytest.raises(ValueError, match=words):
        next(iter(other))


def test_a_state_inside_a_step_or_of_another_version_is_refused(digits):
    loader = make(digits / "train.beton")
    loader.dataset.load_state_dict(loader.dataset.state_dict(1, True))
    with pytest.raises(ValueError, match="not the start of a step"):
        next(iter(loader))
    with pytest.raises(ValueError, match="version 99"):
        loader.dataset.load_state_dict({"version": 99})


def test_leaving_early_ends_the_threads_and_frees_the_buffers(digits):
    loader = make(digits / "train.beton", num_workers=3)
    before = set(threading.enumerate())
    buffers = []
    original = loader.dataset.source.stager.buffer

    def watched(num_bytes):
        buffer = original(num_bytes)
        buffers.append(weakref.ref(buffer))
        return buffer

    loader.dataset.source.stager.buffer = watched
    for _ in range(20):
        for _batch in loader:
            break
        iterator = iter(loader)
        next(iterator)
        del iterator
    gc.collect()
    assert not set(threading.enumerate()) - before
    assert len(buffers) == 20 * 2 * 3
    assert not any(buffer() is not None for buffer in buffers)


def test_iterations_leave_nothing_behind_for_the_interpreters_end(digits):
    loader = make(digits / "train.beton")
    next(iter(loader))
    before = atexit._ncallbacks()
    for _ in range(5):
        next(iter(loader))
    assert atexit._ncallbacks() == before


def test_a_half_used_iterator_ends_with_the_interpreter(digits):
    before = set(threading.enumerate())
    iterator = iter(make(digits / "train.beton"))
    next(iterator)
    assert {thread.name for thread in set(threading.enumerate()) - before} == {"mixsize-prefetch"}
    stream._end_all()  # As the interpreter does at its exit.
    assert not set(threading.enumerate()) - before


@pytest.mark.soak  # A process of its own, which imports and compiles everything again: 15 s of CPU time.
def test_a_half_used_iterator_kept_to_the_end_of_a_program_ends_with_it(digits):
    program = (
        "import atexit, os, threading\n"
        "names = lambda: [thread.name for thread in threading.enumerate()]\n"
        # The first to be registered is the last to be called.
        "atexit.register(lambda: os._exit('mixsize-prefetch' in names()))\n"
        "from mixsize import Base, MixSizeLoader, PadCrop, Regime\n"
        f"loader = MixSizeLoader({str(digits / 'train.beton')!r}, Regime.fixed(Base(16, 100)), augment=PadCrop(1))\n"
        "iterator = iter(loader)\n"
        "next(iterator)\n"
        "assert 'mixsize-prefetch' in names()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_batches_outlive_the_buffers_they_were_decoded_into(digits):
    kept = list(make(digits / "train.beton"))
    assert_same(kept, batches(make(digits / "train.beton")))


def test_iterating_does_not_touch_the_models_random_state(digits):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(make(digits / "train.beton"))
    assert torch.equal(torch.get_rng_state(), before)


def test_buffers_hold_the_costliest_step_and_no_more(digits):
    loader = make(digits / "train.beton", D_PLUS)
    asked = []
    original = loader.dataset.source.stager.buffer
    loader.dataset.source.stager.buffer = lambda num_bytes: asked.append(num_bytes) or original(num_bytes)
    list(loader)
    # 20 px x 32 = 12,800 pixels; 16 x 32 = 8,192; 12 x 32 x 2 = 9,216; 8 x 32 x 4 = 8,192
    assert asked == [12_800 * 3] * 3


def test_a_failure_in_the_thread_reaches_the_loop_and_ends_it(photos, tmp_path):
    beton = Beton.open(photos)
    data = bytearray(photos.read_bytes())
    start = int(beton.data_ptr[5])
    data[start + 2 : start + 600] = bytes(598)
    (tmp_path / "damaged.beton").write_bytes(data)
    before = set(threading.enumerate())
    loader = make(tmp_path / "damaged.beton", Regime.fixed(Base(32, 4)), augment=Resize(), num_workers=2)
    with pytest.raises(BetonError, match="image 5 does not decode"):
        list(loader)
    gc.collect()
    assert not set(threading.enumerate()) - before


def test_binding_another_regime_takes_effect_or_changes_nothing(digits):
    loader = make(digits / "train.beton", Regime.fixed(Base(16, 32)))
    loader.bind(D_PLUS)
    assert_same(batches(loader), batches(make(digits / "train.beton", D_PLUS)))
    with pytest.raises(ValueError, match="too few"):
        loader.bind(Regime.fixed(Base(16, 5_000)))
    assert loader.regime is D_PLUS


@pytest.mark.parametrize("world_size", [1, 2, 7])
@pytest.mark.parametrize("size_px", [8, 12])
def test_evaluation_serves_each_image_once_in_order(digits, world_size, size_px):
    parts = []
    for rank in range(world_size):
        loader = EvalLoader(
            digits / "test.beton",
            size_px,
            50,
            augment=Resize(),
            num_workers=2,
            device="cpu",
            rank=rank,
            world_size=world_size,
        )
        served = list(loader)
        assert len(served) == len(loader)
        assert all(images.shape[1:] == (3, size_px, size_px) for images, _ in served)
        parts.append(torch.cat([labels for _, labels in served]))
    np.testing.assert_array_equal(torch.cat(parts), Beton.open(digits / "test.beton").labels)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda data: make(data, seed=-1), "seed is -1"),
        (lambda data: make(data, Regime.fixed(Base(16, 1_438))), "1437 images are too few"),
        (lambda data: make(data, world_size=3, rank=0), "does not divide into 3 ranks"),
        (lambda data: make(data, rank=4, world_size=4), "rank is 4"),
        (lambda data: list(make(data, batches_ahead=0)), "batches_ahead is 0"),
        (lambda data: list(make(data, num_workers=0)), "num_workers is 0"),
        (lambda data: make(data, std=(1, 0, 1)), "std is"),
        (lambda data: make(data, mean=(1, 0)), "mean has 2 values"),
        (lambda data: EvalLoader(data, 0, 8, device="cpu"), "size_px is 0"),
        (lambda data: make(data.with_name("absent.beton")), "absent.beton"),
    ],
)
def test_what_cannot_be_served_is_refused(digits, call, words):
    with pytest.raises(ValueError, match=words):
        call(digits / "train.beton")
