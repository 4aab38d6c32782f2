"""Imported once by the process that the fault tests' runs are forked from."""

import os
from pathlib import Path

from composer.utils import get_composer_env_dict

import mixsize.recipes.commands.train  # noqa: F401
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.ffcv_loaders.decode.augment import PadCrop, Resize
from mixsize.ffcv_loaders.loader import EvalLoader, MixSizeLoader

# Composer asks for the processor in every run, which takes half a second, and remembers the answer.
get_composer_env_dict()
digits = Path(os.environ["FAULTS_DIGITS"]) / "train.beton"
for loader in (
    MixSizeLoader(digits, Regime.fixed(Base(16, 100)), augment=PadCrop(1), num_workers=1, device="cpu"),
    EvalLoader(digits, 16, 100, augment=Resize(), num_workers=1, device="cpu"),
):
    for _ in loader:
        pass
