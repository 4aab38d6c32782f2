"""A folder of JPEGs, converted, trained on in a plain loop and evaluated; called by script/try-wheel."""

import platform
import subprocess
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import mixsize
from mixsize import Base, GradientSmoother, MixSizeLoader, RandomResizedCrop, Regime

print(f"mixsize {mixsize.__version__}, Python {platform.python_version()}, torch {torch.__version__}", flush=True)

# Two classes that a network tells apart at once: warm and cold noise.
rng = np.random.default_rng(0)
for split, count in (("train", 48), ("test", 16)):
    for name, colour in (("cold", (60, 90, 190)), ("warm", (200, 110, 60))):
        folder = Path("images") / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.normal(colour, 40, (80 + i, 120 - i, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:03}.jpg", quality=90)

subprocess.run(["mixsize", "convert", "images", "data"], check=True)

torch.manual_seed(0)
network = timm.create_model("resnet10t", num_classes=2)
optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
regime = Regime.from_sizes({48: 0.3, 32: 0.7}, Base(size_px=32, batch_size=16), "B+")
loader = MixSizeLoader("data/train.beton", regime, augment=RandomResizedCrop(), device="cpu")
smoother = GradientSmoother()
losses = []
for _ in range(4):
    for images, labels in loader:
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        smoother.smooth(network.parameters())
        optimizer.step()
        losses.append(loss.item())
print(f"plain loop: {len(losses)} steps, loss {losses[0]:.3f} to {losses[-1]:.3f}", flush=True)
assert losses[-1] < losses[0]

save_file(network.state_dict(), "network.safetensors")
settings = ["model={name: resnet10t}", "data.classes=2", "data.train=data/train.beton", "data.eval=data/test.beton"]
subprocess.run(["mixsize", "eval", "network.safetensors", "demo", *settings, "--sizes", "24,32,48"], check=True)
