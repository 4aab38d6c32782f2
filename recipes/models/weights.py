"""Trained weights from the usual kinds of files, read without running code from the file."""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import clean_state_dict, load_state_dict
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from mixsize.system.files import in_one_piece

# Types in a training state of Composer besides plain values and tensors: its version, times, and numpy's random state
# as an array of uint32. The array's constructor is private and moved between numpy 1 and 2.
_make_array = np.empty(0).__reduce__()[0]
_COMPOSERS: list[Any] = [
    TorchVersion,
    datetime.timedelta,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    (_make_array, "numpy._core.multiarray._reconstruct"),
    (_make_array, "numpy.core.multiarray._reconstruct"),
]
_NAMED = 3
log = logging.getLogger(__name__)
_FORCED, _UNFORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the network's weights from a file, under the network's own names.

    Reads training states of Composer, checkpoints of timm and other scripts (the first of their keys
    ``state_dict_ema``, ``model_ema``, ``state_dict`` and ``model``, so averaged weights come first), plain state
    dictionaries, and safetensors. Removes the prefixes that DDP, ``torch.compile`` and Composer add to names.

    Raises:
        OSError: a file that cannot be read.
        ValueError: a file that would run code when loaded, is damaged, or holds no weights.
    """
    with open(path, "rb"):  # timm's reader does not name an absent file.
        pass
    try:
        with torch.serialization.safe_globals(_COMPOSERS):
            found: Mapping[str, Any] = load_state_dict(str(path))
    except Exception as error:  # Unpickling bytes of another kind can raise any exception.
        raise ValueError(_unreadable(path, error)) from error
    training = found.get("state")
    if isinstance(training, Mapping) and isinstance(training.get("model"), Mapping):
        found = clean_state_dict(dict(training["model"]))
    others = [key for key, value in found.items() if not isinstance(value, Tensor)]
    if others or not found:
        raise ValueError(
            f"{path} holds no weights under state_dict_ema, model_ema, state_dict, model or by themselves; its keys "
            f"are {_some(map(str, found)) or 'none'}"
        )
    return dict(found)


@contextmanager
def running_nothing(checkpoint: Path | None) -> Iterator[None]:
    """Let a Trainer load a training state in this block without running code from the file.

    Composer 0.32 asks PyTorch to unpickle everything. PyTorch's own environment switch limits that to tensors, plain
    values and the types that Composer writes, and refuses all others before they are called.

    Args:
        checkpoint: for messages; None if nothing is loaded.

    Raises:
        ValueError: a file that would run code when loaded.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCED, _UNFORCED)}
    os.environ[_FORCED] = "1"
    try:
        with torch.serialization.safe_globals(_COMPOSERS):
            yield
    except pickle.UnpicklingError as error:
        assert checkpoint is not None
        raise ValueError(_refused(checkpoint, error) or f"{checkpoint} is not a training state of Composer") from error
    finally:
        del os.environ[_FORCED]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def load_weights(
    network: nn.Module, weights: Mapping[str, Tensor], path: Path, name: str, *, other_classes: bool = False
) -> None:
    """Load all weights of a network.

    Args:
        network: a timm network.
        weights: by name, as :func:`read_weights` finds them.
        path: their file, for messages.
        name: of the network, for messages.
        other_classes: keep the network's own last layer, and log so, where the file has none or one for another number
            of classes.

    Raises:
        ValueError: weights of another network; the message names missing and unexpected keys and other shapes. The
            network is not changed.
    """
    own = network.state_dict()
    # PyTorch supplies the counters, which its early versions did not save.
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in own]
    reshaped = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if not (missing or unexpected or reshaped):
        network.load_state_dict(weights)
        return
    head = _classifier_keys(network)
    if other_classes and not unexpected and {*missing, *reshaped} <= head:
        network.load_state_dict({key: value for key, value in weights.items() if key not in head}, strict=False)
        found = f"is for {len(weights[reshaped[0]])} classes" if reshaped else "has no last layer"
        log.warning("%s %s; the last layer starts from random weights", path, found)
        return
    if not missing and not unexpected and set(reshaped) <= head:
        classes = len(weights[reshaped[0]])
        raise ValueError(
            f"{path} was trained for {classes} classes ({_shapes(reshaped[0], weights, own)}), and the data or "
            f"model.num_classes says {len(own[reshaped[0]])}; give its own data, or model.num_classes={classes}"
        )
    shapes = [_shapes(key, weights, own) for key in reshaped]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    told = "; ".join(f"{fault}: {_some(keys)}" for fault, keys in faults.items() if keys)
    raise ValueError(f"{path} does not fit {name}; {told}")


def save_weights(network: torch.nn.Module, path: Path) -> None:
    """Write a network's weights for ``timm.create_model(..., checkpoint_path=path)``.

    Raises:
        OSError: the file cannot be written; an older one stays.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with in_one_piece(path) as partial:
        try:
            save_file(weights, str(partial), metadata={"format": "pt"})
        except SafetensorError as error:  # Its class for all errors, those of the disk included.
            raise OSError(f"{path}: cannot be written: {error}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _unreadable(path: Path, error: Exception) -> str:
    refused = _refused(path, error.__cause__)
    if refused:
        return f"{refused}; where you trust it, save its state dictionary alone"
    if isinstance(error.__cause__, pickle.UnpicklingError):
        return f"{path} is not a file of tensors and plain values"
    if isinstance(error, AttributeError):
        return f"{path} holds no dictionary of weights"
    words = str(error).strip().split("\n")[0]
    return f"{path} cannot be read as weights: {type(error).__name__}" + (f" ({words})" if words else "")


def _refused(path: Path, error: BaseException | None) -> str | None:
    """Return the name that PyTorch refused to load, as a message; None if it failed for another reason."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found and f"{path} holds more than weights: {found[1]}, which could run code when loaded"


def _classifier_keys(network: nn.Module) -> set[str]:
    names = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    names = (names,) if isinstance(names, str) else names
    return {f"{name}.{part}" for name in names for part in ("weight", "bias")}


def _shapes(key: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    return f"{key}: {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in the network"


def _some(words: Iterable[str]) -> str:
    listed = list(words)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
