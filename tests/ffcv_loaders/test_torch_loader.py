"""Full plans from a map-style data set, without FFCV."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.models import ComposerClassifier
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import nn

from mixsize.algorithms import Base, Choice, MixSizeSampling, Regime
from mixsize.ffcv_loaders import CenterCrop, MixSizeLoader, PadCrop, RandomResizedCrop, Resize, TorchMixSizeLoader
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.convert import convert

MIX = {20: 0.2, 16: 0.3, 12: 0.3, 8: 0.2}
D_PLUS = Regime.from_sizes(MIX, Base(16, 32), "D+")


class Digits:
    """scikit-learn's digits as a map-style data set of arrays."""

    def __init__(self):
        data = load_digits()
        self.images = np.repeat((data.images * 15.9375).astype(np.uint8)[..., None], 3, axis=3)
        self.targets = data.target.tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


class Photos:
    """Pillow images of different sides."""

    def __init__(self):
        china, flower = load_sample_images().images
        self.images = [china, flower, china[:300, :200], flower[100:250, 50:400]]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return Image.fromarray(self.images[index]), index % 2


def batches(loader):
    return [(images.clone(), labels.clone()) for images, labels in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_plan_is_the_ffcv_loaders_own_and_so_are_the_batches_of_any_number_of_workers(workers):
    data = Digits()
    loader = TorchMixSizeLoader(data, D_PLUS, augment=PadCrop(1), seed=7, num_workers=workers, device="cpu")
    alone = batches(TorchMixSizeLoader(data, D_PLUS, augment=PadCrop(1), seed=7, device="cpu"))
    served = batches(loader)
    loader.set_epoch(0)
    plan = loader.dataset.plan()
    assert len(served) == len(plan)
    for step, (images, labels), (expected, _) in zip(plan, served, alone, strict=True):
        assert images.shape == (step.batch_size * step.duplicates, 3, step.size_px, step.size_px)
        assert labels.tolist() == np.repeat(np.array(data.targets)[step.samples], step.duplicates).tolist()
        assert torch.equal(images, expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "augment", [RandomResizedCrop(), PadCrop(40), Resize(), CenterCrop()], ids=lambda a: type(a).__name__
)
def test_its_pixels_are_the_ffcv_loaders_to_within_one_level(tmp_path, augment, interpolation):
    data = Photos()
    for index in range(4):
        (tmp_path / "source" / str(index % 2)).mkdir(parents=True, exist_ok=True)
        data[index][0].save(tmp_path / "source" / str(index % 2) / f"{index}.png")
    convert(tmp_path / "source", tmp_path / "photos.beton", store="raw", workers=1, progress=False)
    # The folder's order is by class: 0, 2, 1, 3.
    data.images = [data.images[i] for i in (0, 2, 1, 3)]
    regime = Regime.from_choices(Base(64, 4), [Choice(64, 4, 2, 1.0)])
    options = {"augment": augment, "mean": (0, 0, 0), "std": (1, 1, 1), "seed": 3, "device": "cpu"}
    options["interpolation"] = interpolation
    ours, _ = next(iter(TorchMixSizeLoader(data, regime, **options)))
    ffcvs, _ = next(iter(MixSizeLoader(tmp_path / "photos.beton", regime, num_workers=1, **options)))
    assert (ours - ffcvs).abs().max() < 1.001 / 255
    assert Beton.open(tmp_path / "photos.beton").num_samples == 4


class StoredDigits(Digits):
    """Those of ``train.beton``, in its order."""

    def __init__(self, digits):
        with Beton.open(digits / "train.beton") as beton:
            self.images = [np.frombuffer(beton.stored(i), np.uint8).reshape(8, 8, 3) for i in range(beton.num_samples)]
            self.targets = beton.labels.tolist()


STRONG = {"color_jitter": (0.4, 0.4, 0.4, 0.1), "erasing": 0.5}


@pytest.mark.parametrize(
    "augment",
    [
        PadCrop(1, policy="rand-m6-n3-mstd0.5-inc1", magnitude={8: 9, 16: 4}, **STRONG),
        PadCrop(1, policy="trivial"),
        PadCrop(1, policy="cifar10", cutout_px=4, **STRONG),
    ],
    ids=["rand", "trivial", "cifar10"],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_both_loaders_change_views_alike(digits, augment, workers):
    """At the stored size, where neither resizes, bit for bit."""
    regime = Regime.from_choices(Base(8, 100), [Choice(8, 100, 3, 1.0)])
    options = {"augment": augment, "mean": (0.4, 0.5, 0.6), "std": (1, 1, 1), "seed": 3, "device": "cpu"}
    ours = TorchMixSizeLoader(StoredDigits(digits), regime, num_workers=workers, **options)
    ffcvs = batches(MixSizeLoader(digits / "train.beton", regime, num_workers=workers + 1, **options))
    assert len(ffcvs) == 14
    for (images, _), (expected, _) in zip(ours, ffcvs, strict=True):
        assert torch.equal(images, expected)
        views = images.view(100, 3, -1)
        assert (views[:, 0] == views[:, 1]).all(dim=1).float().mean() < 0.1
    plain = MixSizeLoader(digits / "train.beton", regime, **{**options, "augment": PadCrop(1)})
    assert (next(iter(plain))[0] == ffcvs[0][0]).flatten(1).all(dim=1).float().mean() < 0.3


def test_both_loaders_erase_the_same_rectangles_after_any_resize(digits):
    options = {"augment": RandomResizedCrop(erasing=0.5), "mean": (0.4, 0.5, 0.6), "seed": 3, "device": "cpu"}
    ours = batches(TorchMixSizeLoader(StoredDigits(digits), D_PLUS, **options))
    ffcvs = batches(MixSizeLoader(digits / "train.beton", D_PLUS, num_workers=1, **options))
    found = 0
    for (images, _), (expected, _) in zip(ours, ffcvs, strict=True):
        # Digits are grey, the mean colour is not: it is a normalised zero in all channels alone where it was erased.
        erased = (images.abs() < 0.01).all(dim=1)
        assert torch.equal(erased, (expected.abs() < 0.01).all(dim=1))
        found += int(erased.any(dim=(1, 2)).sum())
    views = sum(len(images) for images, _ in ours)
    assert 0.4 * views < found < 0.6 * views


def test_a_policy_at_the_stored_size_needs_images_of_one():
    data = Digits()
    data.images = [*data.images[:30], data.images[30][:6]]
    data.targets = data.targets[:31]
    loader = TorchMixSizeLoader(data, Regime.fixed(Base(8, 31)), augment=PadCrop(policy="cifar10"), device="cpu")
    with pytest.raises(ValueError, match=r"sample 30: policy 'cifar10' and .* need images of one stored size"):
        next(iter(loader))


def train(loader, duration, load_path=None):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    model = ComposerClassifier(module, num_classes=10)
    trainer = Trainer(
        model=model,
        train_dataloader=loader.data_spec(),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        algorithms=[MixSizeSampling()],
        max_duration=duration,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
        load_path=load_path,
    )
    trainer.fit()
    return trainer


def test_training_with_strong_augmentation_goes_on_bit_for_bit(tmp_path):
    augment = RandomResizedCrop(policy="rand-m9-mstd0.5-inc1", magnitude={8: 3, 20: 9}, **STRONG)

    def loader():
        return TorchMixSizeLoader(Digits(), D_PLUS, augment=augment, seed=7, device="cpu")

    whole = train(loader(), "30ba")
    stopped = train(loader(), "13ba")
    stopped.save_checkpoint(str(tmp_path / "checkpoint.pt"))
    resumed = train(loader(), "30ba", str(tmp_path / "checkpoint.pt"))
    assert int(resumed.state.timestamp.batch) == 30
    for left, right in zip(whole.state.model.parameters(), resumed.state.model.parameters(), strict=True):
        assert torch.equal(left, right)
    for trainer in (whole, stopped, resumed):
        trainer.close()


def test_it_resumes_inside_an_epoch_without_touching_what_came_before():
    data = Digits()
    whole = batches(TorchMixSizeLoader(data, D_PLUS, augment=PadCrop(1), seed=7, device="cpu"))
    loader = TorchMixSizeLoader(data, D_PLUS, augment=PadCrop(1), seed=7, device="cpu")
    state = loader.dataset.state_dict(32 * 9, True)
    resumed = TorchMixSizeLoader(data, D_PLUS, augment=PadCrop(1), seed=7, device="cpu")
    resumed.dataset.load_state_dict(state)
    rest = batches(resumed)
    assert len(rest) == len(whole) - 9
    for (images, labels), (expected, expected_labels) in zip(rest, whole[9:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_another_interpolation_is_another_run():
    begun = TorchMixSizeLoader(Digits(), D_PLUS, device="cpu")
    other = TorchMixSizeLoader(Digits(), D_PLUS, interpolation="bicubic", device="cpu")
    other.dataset.load_state_dict(begun.dataset.state_dict(0, True))
    with pytest.raises(ValueError, match="interpolation was 'bilinear', is 'bicubic'"):
        next(iter(other))


def test_the_same_algorithm_attaches_to_it():
    loader = TorchMixSizeLoader(Digits(), D_PLUS, augment=PadCrop(1), seed=7, device="cpu")
    trainer = train(loader, "1ep")
    assert int(trainer.state.timestamp.sample) == 32 * len(loader)
    trainer.close()


def test_it_works_where_ffcv_is_not_installed():
    code = (
        "import sys; sys.modules['ffcv'] = None\n"
        "from mixsize.algorithms import Base, MixSizeSampling, Regime\n"
        "from mixsize.ffcv_loaders import TorchMixSizeLoader\n"
        "import numpy as np\n"
        "class Data:\n"
        "    def __len__(self): return 64\n"
        "    def __getitem__(self, i): return np.zeros((8, 8, 3), np.uint8), 0\n"
        "loader = TorchMixSizeLoader(Data(), Regime.fixed(Base(8, 16)), device='cpu')\n"
        "print(len(list(loader)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4"]


class Samples:
    """A map-style data set of one sample, many times."""

    def __init__(self, sample):
        self.sample = sample

    def __len__(self):
        return 640

    def __getitem__(self, index):
        return self.sample


class Stream(torch.utils.data.IterableDataset):
    """Without a length, though it inherits ``__getitem__``."""

    def __iter__(self):
        yield from Digits()


GREY, COLOUR = np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (Stream(), "data is a Stream"),
        (iter([]), "data is a list_iterator"),
        (Samples({"image": COLOUR, "label": 1}), "sample 0 is a dict with the keys image, label"),
        (Samples((COLOUR, 1, "path")), "sample 0 is a tuple of length 3"),
        (Samples(COLOUR), r"sample 0 is a ndarray \(8, 8, 3\) of uint8"),
        (Samples((torch.zeros(3, 8, 8), 1)), r"the image of sample 0 is a Tensor \(3, 8, 8\) of torch.float32"),
        (Samples((np.zeros((8, 8, 3)), 1)), r"the image of sample 0 is a ndarray \(8, 8, 3\) of float64"),
        (Samples((COLOUR.transpose(2, 0, 1), 1)), r"the image of sample 0 is a ndarray \(3, 8, 8\) of uint8"),
        (Samples((COLOUR, "cat")), "the label of sample 0 is a str"),
        (Samples((COLOUR, np.eye(10)[1])), r"the label of sample 0 is a ndarray \(10,\) of float64"),
    ],
)
def test_a_data_set_of_something_else_is_refused_with_what_was_found(data, found):
    with pytest.raises(ValueError, match=rf"^{found}; expected a map-style data set of pairs .image, label."):
        TorchMixSizeLoader(data, D_PLUS, device="cpu")


@pytest.mark.parametrize("image", [COLOUR, GREY, Image.fromarray(COLOUR), Image.fromarray(GREY)])
@pytest.mark.parametrize("label", [1, np.int64(1), torch.tensor(1)])
def test_images_and_labels_may_be_of_several_types(image, label):
    images, labels = next(iter(TorchMixSizeLoader(Samples((image, label)), D_PLUS, device="cpu")))
    assert images.shape[1] == 3
    assert set(labels.tolist()) == {1}


def test_a_later_sample_of_another_kind_is_named():
    class Mixed(Digits):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return (image / 255, label) if index == 5 else (image, label)

    with pytest.raises(ValueError, match="the image of sample 5 is"):
        list(TorchMixSizeLoader(Mixed(), Regime.fixed(Base(8, 1)), device="cpu"))


@pytest.fixture
def split():
    """The digits as a split of Hugging Face's datasets, with a column that is neither image nor label."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    digits = Digits()
    names = [str(label) for label in range(10)]
    features = {"at": datasets.Value("int32"), "img": datasets.Image(), "digit": datasets.ClassLabel(names=names)}
    rows = {
        "at": range(400),
        "img": [Image.fromarray(image) for image in digits.images[:400]],
        "digit": digits.targets[:400],
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def trained(loader, state=None):
    """Weights and optimiser after each step that a loader still has, and the sizes of the steps."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    if state is not None:
        network.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
    states, sizes = [], []
    for images, labels in loader:
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        states.append(copy.deepcopy((network.state_dict(), optimizer.state_dict())))
        sizes.append(images.shape[-1])
    return states, sizes


def test_a_hugging_face_split_trains_as_the_same_pairs_do_and_goes_on_where_it_stopped(split):
    regime = Regime.from_sizes(MIX, Base(16, 12), "D+")
    options = {"augment": PadCrop(1), "seed": 7, "device": "cpu"}
    pairs = list(zip(Digits().images[:400], Digits().targets[:400], strict=True))
    states, sizes = trained(TorchMixSizeLoader(split, regime, **options))
    expected, _ = trained(TorchMixSizeLoader(pairs, regime, **options))
    assert len(states) == len(expected) > 30
    assert set(sizes) == set(MIX)
    resumed = TorchMixSizeLoader(split, regime, **options)
    resumed.dataset.load_state_dict(resumed.dataset.state_dict(12 * 15, True))
    rest, _ = trained(resumed, state=states[14])
    assert len(rest) == len(states) - 15
    for ours, theirs in ((states, expected), (rest, states)):
        for weights, theirs_weights in zip(ours[-1][0].values(), theirs[-1][0].values(), strict=True):
            assert torch.equal(weights, theirs_weights)


def test_a_hugging_face_split_of_other_columns_or_labels_is_refused(split):
    datasets = pytest.importorskip("datasets")
    with pytest.raises(ValueError, match=r"no column of the type ClassLabel; expected one, which class_encode_column"):
        TorchMixSizeLoader(split.remove_columns("digit"), D_PLUS, device="cpu")
    unlabelled = split.remove_columns("digit").add_column("digit", [3] * 399 + [-1])
    unlabelled = unlabelled.cast_column("digit", datasets.ClassLabel(num_classes=10))
    with pytest.raises(ValueError, match=r"the label of sample 399 is -1 \(digit\); it must be from 0 to 9"):
        TorchMixSizeLoader(unlabelled, D_PLUS, device="cpu")
    with pytest.raises(ValueError, match=r"data is a DatasetDict with the keys train; expected a map-style data set"):
        TorchMixSizeLoader(datasets.DatasetDict(train=split), D_PLUS, device="cpu")


def test_another_order_of_labels_is_another_data_set(split):
    begun = TorchMixSizeLoader(split, D_PLUS, device="cpu")
    other = TorchMixSizeLoader(split.select(range(399, -1, -1)), D_PLUS, device="cpu")
    other.dataset.load_state_dict(begun.dataset.state_dict(0, True))
    with pytest.raises(ValueError, match="data"):
        next(iter(other))


def test_webdataset_is_refused_with_the_way_to_go():
    webdataset = pytest.importorskip("webdataset")
    data = webdataset.WebDataset("train-{000000..000003}.tar", shardshuffle=False)
    with pytest.raises(ValueError, match="for shards of WebDataset, give their names to mixsize convert"):
        TorchMixSizeLoader(data, D_PLUS, device="cpu")
