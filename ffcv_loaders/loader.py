"""Loaders that Composer, and any PyTorch loop, take for ordinary ``DataLoader`` objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from mixsize.algorithms.regime import Regime
from mixsize.ffcv_loaders.augment import Augment, CenterCrop, RandomResizedCrop
from mixsize.ffcv_loaders.beton import Beton, BetonInfo
from mixsize.ffcv_loaders.plan import EpochPlan, Step, plan_epoch, plan_evaluation, plan_length
from mixsize.ffcv_loaders.ranks import default_threads, process_rank
from mixsize.ffcv_loaders.staging import Stager
from mixsize.ffcv_loaders.stream import stream_batches

if TYPE_CHECKING:
    from composer.core import DataSpec

#: The usual statistics of ImageNet, for a file that carries none of its own.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_STATE_VERSION = 1


@dataclass(frozen=True)
class _Delivery:
    """How batches get from the file to the network; the loaders document each field."""

    mean: Sequence[float] | None
    std: Sequence[float] | None
    threads: int | None
    prefetch: int
    device: str | torch.device | None
    dtype: torch.dtype
    channels_last: bool
    rank: int | None
    world_size: int | None

    def stager(self, info: BetonInfo | None) -> Stager:
        device = self.device if self.device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        mean = self.mean if self.mean is not None else info.mean if info else IMAGENET_MEAN
        std = self.std if self.std is not None else info.std if info else IMAGENET_STD
        return Stager(mean, std, torch.device(device), self.dtype, self.channels_last)


class _Images(IterableDataset):
    """What the training and the evaluation data set share: a file and the way from it to a device."""

    def __init__(self, data: str | Path | Beton, augment: Augment, delivery: _Delivery) -> None:
        self.beton = data if isinstance(data, Beton) else Beton.open(data)
        self.augment = augment
        self.threads = default_threads() if delivery.threads is None else delivery.threads
        self.prefetch = delivery.prefetch
        self.stager = delivery.stager(self.beton.info)
        rank, world_size = process_rank()
        self.rank = rank if delivery.rank is None else delivery.rank
        self.world_size = world_size if delivery.world_size is None else delivery.world_size


class PlannedImages(_Images):
    """Batches of the current epoch's plan; see :class:`MixSizeLoader`, which is the public face of it."""

    def __init__(
        self, data: str | Path | Beton, augment: Augment, delivery: _Delivery, regime: Regime, seed: int
    ) -> None:
        super().__init__(data, augment, delivery)
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must be at least 0")
        self.regime = regime
        self.seed = seed
        self.epoch = 0
        #: The step that the last batch belongs to; None before the first.
        self.current_step: Step | None = None
        self._delivered = False
        self._restored: dict[str, Any] | None = None
        self.plan()  # An impossible regime is an error now, not at the first batch.

    def plan(self) -> EpochPlan:
        """The current epoch's steps on this rank."""
        return plan_epoch(self.regime, self.beton.num_samples, self.seed, self.epoch, self.rank, self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Serve ``epoch`` next, from its first step unless a restored state says otherwise."""
        self.epoch = epoch
        self._delivered = False

    def identity(self) -> dict[str, Any]:
        """What a run must not change when it resumes: plain values, comparable one by one."""
        regime = asdict(self.regime)
        del regime["stride_px"]
        return {
            "regime": regime,
            "images": self.beton.num_samples,
            "data": self.beton.fingerprint,
            "seed": self.seed,
        }

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._delivered:
            self.set_epoch(self.epoch + 1)
        plan = self.plan()
        first = self._take_restored(plan)
        batches = stream_batches(
            self.beton,
            plan,
            self.augment,
            self.stager,
            seed=self.seed,
            threads=self.threads,
            prefetch=self.prefetch,
            first_step=first,
        )
        self._delivered = first == len(plan)
        for index, (step, images, labels) in enumerate(batches, start=first):
            self.current_step = step
            self._delivered = index + 1 == len(plan)
            yield images, labels

    def state_dict(self, num_samples: int, from_beginning: bool = True) -> dict[str, Any]:
        """Where the run stands, in plain values.

        Args:
            num_samples: distinct images trained on in this epoch, over all ranks.
            from_beginning: must be True: samples are counted from the epoch's start.
        """
        assert from_beginning
        finished = self._delivered and num_samples == 0
        return {
            "version": _STATE_VERSION,
            "epoch": self.epoch + int(finished),
            "num_samples": int(num_samples),
            "identity": self.identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` stood; the next iteration starts there without decoding what came before.

        Raises:
            ValueError: a state of another version.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"the checkpoint's loader state has version {state.get('version')!r}; this one reads {_STATE_VERSION}"
            )
        self.set_epoch(int(state["epoch"]))
        self._restored = state

    def _take_restored(self, plan: EpochPlan) -> int:
        """The first step to serve; a restored position counts once and only for the epoch it was taken in."""
        state, self._restored = self._restored, None
        if state is None:
            return 0
        differences = _differences(state["identity"], self.identity())
        if differences:
            raise ValueError("the checkpoint belongs to another run: " + "; ".join(differences))
        return plan.step_at(state["num_samples"]) if state["epoch"] == plan.epoch else 0


class EvaluationImages(_Images):
    """Every image once at one size; see :class:`EvalLoader`, which is the public face of it."""

    def __init__(
        self, data: str | Path | Beton, augment: Augment, delivery: _Delivery, size_px: int, batch_size: int
    ) -> None:
        super().__init__(data, augment, delivery)
        self.plan = plan_evaluation(self.beton.num_samples, size_px, batch_size, self.rank, self.world_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches = stream_batches(
            self.beton, self.plan, self.augment, self.stager, seed=0, threads=self.threads, prefetch=self.prefetch
        )
        for _, images, labels in batches:
            yield images, labels


class _WholeBatchLoader(DataLoader):
    """A ``DataLoader`` whose data set yields finished batches."""

    def __init__(self, dataset: IterableDataset) -> None:
        # A generator of its own: DataLoader draws a seed at every iteration, which would advance the model's
        # random state by the number of times that a loader was started.
        super().__init__(dataset, batch_size=None, collate_fn=_as_is, generator=torch.Generator())

    @property
    def batch_size(self) -> int:
        """Images in this rank's largest batch, duplicates counted.

        Composer splits batches larger than this into microbatches, so none is.
        """
        return self._max_images()

    @batch_size.setter
    def batch_size(self, value: None) -> None:
        assert value is None

    def _max_images(self) -> int:
        raise NotImplementedError


class MixSizeLoader(_WholeBatchLoader):
    """Training batches whose side, batch size and duplicates follow a regime, read from a ``.beton`` file.

    Images are decoded straight to the step's size by a prefetching thread. The same (data, regime, seed)
    gives the same batches for any number of threads and ranks and after any resume. Iterating it again
    after a whole epoch serves the next one; :meth:`set_epoch` chooses.

    Args:
        data: a ``.beton`` file or one already open.
        regime: what is drawn at each step.
        augment: how views are cut.
        mean: of each channel on the 0..1 scale; by default the file's own, else ImageNet's.
        std: likewise.
        seed: everything that is drawn derives from it; at least 0.
        threads: decoding threads; by default the machine's cores divided among its ranks.
        prefetch: batches decoded ahead; memory is ``prefetch + 1`` times the regime's costliest batch.
        device: where batches go; by default CUDA where there is one.
        dtype: of the images.
        channels_last: memory format of the images.
        rank: by default the process group's or the launcher's.
        world_size: likewise.

    Raises:
        BetonError: a file that cannot be read.
        ValueError: a regime that this many images or ranks cannot serve.

    Example:
        >>> base = Base(size_px=32, batch_size=64)
        >>> loader = MixSizeLoader("train.beton", Regime.from_sizes("s28", base, "B+"), augment=PadCrop())
        >>> for images, labels in loader:  # (B * D, 3, S, S), (B * D,)
        ...     ...
    """

    dataset: PlannedImages

    def __init__(
        self,
        data: str | Path | Beton,
        regime: Regime,
        *,
        augment: Augment | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        threads: int | None = None,
        prefetch: int = 2,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        augment = RandomResizedCrop() if augment is None else augment
        delivery = _Delivery(mean, std, threads, prefetch, device, dtype, channels_last, rank, world_size)
        super().__init__(PlannedImages(data, augment, delivery, regime, seed))

    def __len__(self) -> int:
        images = self.dataset
        return plan_length(images.regime, images.beton.num_samples, images.seed, images.epoch)

    @property
    def regime(self) -> Regime:
        """What is drawn at each step."""
        return self.dataset.regime

    def bind(self, regime: Regime) -> None:
        """Draw from another regime from the next iteration on.

        Raises:
            ValueError: a regime that this many images or ranks cannot serve; the loader keeps the one it had.
        """
        images = self.dataset
        plan_epoch(regime, images.beton.num_samples, images.seed, images.epoch, images.rank, images.world_size)
        images.regime = regime

    def set_epoch(self, epoch: int) -> None:
        """Serve ``epoch``, counted from 0, at the next iteration."""
        self.dataset.set_epoch(epoch)

    def data_spec(self) -> DataSpec:
        """What Composer must know beside the batches; give this to the Trainer.

        Time in samples counts distinct images, and microbatches, where asked for, never part an image's duplicates.
        """
        from composer.core import DataSpec

        return DataSpec(
            self,
            num_samples=self.dataset.beton.num_samples,
            split_batch=self._split_batch,
            get_num_samples_in_batch=self._count_samples,
        )

    def _count_samples(self, batch: Sequence[torch.Tensor]) -> int:
        step = self.dataset.current_step
        assert step is not None
        return len(batch[1]) // step.duplicates

    def _split_batch(self, batch: Sequence[torch.Tensor], microbatch_images: int) -> list[Sequence[torch.Tensor]]:
        step = self.dataset.current_step
        assert step is not None
        images, labels = batch
        chunk = max(1, int(microbatch_images) // step.duplicates) * step.duplicates
        return list(zip(images.split(chunk), labels.split(chunk), strict=True))

    def _max_images(self) -> int:
        choices = self.regime.choices
        return max(choice.batch_size * choice.duplicates for choice in choices) // self.dataset.world_size


class EvalLoader(_WholeBatchLoader):
    """Evaluation batches at one size: every image of a ``.beton`` file once, over all ranks.

    Args:
        data: a ``.beton`` file or one already open.
        size_px: image side S in pixels.
        batch_size: images in a batch on one rank, at most.
        augment: how the view is cut; by default the paper's for ImageNet, :class:`CenterCrop`.
        mean: see :class:`MixSizeLoader`, as for all that follow.
        std: likewise.
        threads: likewise.
        prefetch: likewise.
        device: likewise.
        dtype: likewise.
        channels_last: likewise.
        rank: likewise.
        world_size: likewise.

    Raises:
        BetonError: a file that cannot be read.
        ValueError: a size or batch below 1, or more ranks than images.
    """

    dataset: EvaluationImages

    def __init__(
        self,
        data: str | Path | Beton,
        size_px: int,
        batch_size: int,
        *,
        augment: Augment | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        threads: int | None = None,
        prefetch: int = 2,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        augment = CenterCrop() if augment is None else augment
        delivery = _Delivery(mean, std, threads, prefetch, device, dtype, channels_last, rank, world_size)
        super().__init__(EvaluationImages(data, augment, delivery, size_px, batch_size))

    def __len__(self) -> int:
        return len(self.dataset.plan)

    def _max_images(self) -> int:
        return int(np.max(self.dataset.plan.batch_size))


def _as_is(batch: Any) -> Any:
    return batch


def _differences(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted(saved.keys() | current.keys()):
        before, now = saved.get(key), current.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += _differences(before, now, f"{prefix}{key}.")
        elif _plain(before) != _plain(now):
            lines.append(f"{prefix}{key} was {before!r}, is {now!r}")
    return lines


def _plain(value: Any) -> Any:
    """Tuples and lists compare equal, as a checkpoint may turn one into the other."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
