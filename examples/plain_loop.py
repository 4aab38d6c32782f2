"""Mixed image sizes, gradient smoothing and calibrated batch norm in a plain PyTorch loop: torch and timm, no Composer.

    python examples/plain_loop.py

Trains a small timm network on scikit-learn's handwritten digits for a few epochs on the CPU. Then prints its accuracy
at several sizes, with its own batch-norm statistics and with statistics measured at each size.
"""

import argparse

import numpy as np
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from mixsize import Base, GradientSmoother, PadCrop, Regime, Resize, StatisticsBank, TorchMixSizeLoader

AUGMENT = PadCrop(1, flip=False)


class Digits:
    """(image, label) pairs: (8, 8, 3) uint8 arrays and class indices."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = np.repeat((images * 255 / 16).round().astype(np.uint8)[..., None], 3, axis=3)
        self.labels = labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], self.labels[index]


def main() -> None:
    """Train, then evaluate at several sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=1437, help="training images")
    args = parser.parse_args()
    data = load_digits()
    train, test = (Digits(data.images[part], data.target[part]) for part in (slice(args.images), slice(1437, None)))

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    regime = Regime.from_sizes({48: 0.2, 32: 0.3, 24: 0.5}, Base(size_px=32, batch_size=32), "B+")
    loader = TorchMixSizeLoader(train, regime, augment=AUGMENT, device="cpu")
    smoother = GradientSmoother()

    for epoch in range(args.epochs):
        for images, labels in loader:  # Another image side and batch size at every step.
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            smoother.smooth(network.parameters())
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    bank = StatisticsBank()
    print("size px   own statistics %   calibrated %")
    for size_px in (24, 32, 48, 64):
        bank.calibrate(network, size_px, at_one_size(train, size_px, AUGMENT), max_batches=20)
        own = accuracy(network, at_one_size(test, size_px, Resize()))
        with bank.use(network, size_px):
            calibrated = accuracy(network, at_one_size(test, size_px, Resize()))
        print(f"{size_px:7}   {100 * own:16.1f}   {100 * calibrated:12.1f}")


def at_one_size(data: Digits, size_px: int, augment: PadCrop | Resize) -> TorchMixSizeLoader:
    """The images at one size."""
    return TorchMixSizeLoader(data, Regime.fixed(Base(size_px, 36)), augment=augment, device="cpu")


def accuracy(network: torch.nn.Module, loader: TorchMixSizeLoader) -> float:
    """Top-1 accuracy, as a fraction."""
    network.eval()
    with torch.no_grad():
        hits = [(network(images).argmax(1) == labels).float() for images, labels in loader]
    network.train()
    return torch.cat(hits).mean().item()


if __name__ == "__main__":
    main()
