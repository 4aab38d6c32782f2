"""Mixed image sizes, gradient smoothing and calibrated batch norm in a plain PyTorch loop: torch and timm, no Composer.

    python examples/plain_loop.py

Trains a small timm network on scikit-learn's handwritten digits for a few epochs on the CPU, then prints its
accuracy at several sizes with its own batch-norm statistics and with statistics measured at each size.
"""

import argparse

import numpy as np
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.smoothing.gradient_smoother import GradientSmoother
from mixsize.ffcv_loaders import PadCrop, Resize, TorchMixSizeLoader


class Digits:
    """(image, label) pairs: (8, 8, 3) uint8 arrays and class indices."""

    def __init__(self, images: np.ndarray, targets: np.ndarray) -> None:
        self.images = np.repeat((images * 255 / 16).round().astype(np.uint8)[..., None], 3, axis=3)
        self.targets = targets.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], self.targets[index]


def main() -> None:
    """Train, then evaluate at several sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    epochs = parser.parse_args().epochs
    data = load_digits()
    halves = train_test_split(data.images, data.target, test_size=0.2, random_state=0, stratify=data.target)
    train, test = Digits(halves[0], halves[2]), Digits(halves[1], halves[3])

    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=10, in_chans=3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    regime = Regime.from_sizes({64: 0.2, 48: 0.3, 32: 0.5}, Base(size_px=48, batch_size=32), "B+")
    loader = TorchMixSizeLoader(train, regime, augment=PadCrop(1, flip=False), device="cpu")
    smoother = GradientSmoother()

    for epoch in range(epochs):
        for images, labels in loader:  # Another image side and batch size at every step.
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            smoother.smooth(network.parameters())
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    bank = StatisticsBank()
    print("size px   own statistics %   calibrated %")
    for size_px in (32, 48, 64, 96):
        bank.calibrate(network, size_px, whole(train, size_px), max_batches=20)
        own = accuracy(network, whole(test, size_px))
        with bank.use(network, size_px):
            calibrated = accuracy(network, whole(test, size_px))
        print(f"{size_px:7}   {100 * own:16.1f}   {100 * calibrated:12.1f}")


def whole(data: Digits, size_px: int) -> TorchMixSizeLoader:
    """The images at one size, unaugmented."""
    return TorchMixSizeLoader(data, Regime.fixed(Base(size_px, 36)), augment=Resize(), device="cpu")


def accuracy(network: torch.nn.Module, loader: TorchMixSizeLoader) -> float:
    """Top-1, as a fraction."""
    network.eval()
    with torch.no_grad():
        hits = [(network(images).argmax(1) == labels).float() for images, labels in loader]
    network.train()
    return torch.cat(hits).mean().item()


if __name__ == "__main__":
    main()
