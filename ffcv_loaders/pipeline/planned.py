"""The common part of all loaders of planned batches: epochs, length, resume, and Composer's ``DataSpec``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from mixsize.algorithms.regime.checks import check_count
from mixsize.algorithms.regime.drawing import MAX_SEED
from mixsize.algorithms.regime.plan import EpochPlan, Step, check_plannable, plan_epoch, plan_length
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.quasi_random import QuasiRandom
from mixsize.algorithms.regime.regime import Regime
from mixsize.system.ranks import process_rank

if TYPE_CHECKING:
    from composer.core import DataSpec

_STATE_VERSION = 2


class PlannedDataset(IterableDataset):
    """Batches of the current epoch's plan; a subclass says how a plan is served.

    Args:
        regime: sizes, batch sizes and duplicates to draw from.
        seed: everything that is drawn derives from it; at least 0.
        num_samples: images in the data set.
        fingerprint: tells this data set from others when a run resumes.
        rank: by default the process group's or the launcher's.
        world_size: as for ``rank``.
        quasi_random: the pages of the file, for a quasi-random order; by default the order is fully random.
    """

    def __init__(
        self,
        regime: Regime | Progression,
        seed: int,
        num_samples: int,
        fingerprint: str,
        rank: int | None = None,
        world_size: int | None = None,
        quasi_random: QuasiRandom | None = None,
    ) -> None:
        check_count("seed", seed, MAX_SEED, least=0)
        default_rank, default_world_size = process_rank()
        self.rank = default_rank if rank is None else rank
        self.world_size = default_world_size if world_size is None else world_size
        self.num_samples = num_samples
        self.fingerprint = fingerprint
        self.seed = seed
        self.quasi_random = quasi_random
        self.epoch = 0
        #: The step that the last batch belongs to; None before the first.
        self.current_step: Step | None = None
        self._delivered = False
        self._restored: dict[str, Any] | None = None
        self.bind(regime)

    def bind(self, regime: Regime | Progression) -> None:
        """Draw from ``regime`` from the next iteration on.

        Raises:
            ValueError: a regime that this many images or ranks cannot serve; the one before stays.
        """
        check_plannable(regime, self.num_samples, self.rank, self.world_size)
        self.regime = regime

    def plan(self) -> EpochPlan:
        """The current epoch's steps on this rank."""
        regime = self.regime.at_epoch(self.epoch)
        return plan_epoch(
            regime, self.num_samples, self.seed, self.epoch, self.rank, self.world_size, self.quasi_random
        )

    def num_steps(self) -> int:
        """Steps of the current epoch."""
        return plan_length(self.regime.at_epoch(self.epoch), self.num_samples, self.seed, self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Serve ``epoch`` next, from its first step unless a restored state says otherwise."""
        self.epoch = epoch
        self._delivered = False

    def identity(self) -> dict[str, Any]:
        """The settings that a run must keep when it resumes: plain values, comparable one by one."""
        # As JSON keeps it: the keys of a mixture's sizes are texts there.
        regime = json.loads(json.dumps(asdict(self.regime)))
        del regime["stride_px"]
        identity = {"regime": regime, "images": self.num_samples, "data": self.fingerprint, "seed": self.seed}
        if self.quasi_random is not None:
            identity["window_pages"] = self.quasi_random.window
        return identity

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._delivered:
            self.set_epoch(self.epoch + 1)
        plan = self.plan()
        first = self._take_restored(plan)
        self._delivered = first == len(plan)
        for index, (step, images, labels) in enumerate(self.serve(plan, first), start=first):
            self.current_step = step
            self._delivered = index + 1 == len(plan)
            yield images, labels

    def serve(self, plan: EpochPlan, first_step: int) -> Iterator[tuple[Step, torch.Tensor, torch.Tensor]]:
        """Yield each step from ``first_step`` on with its images ``(B * D, 3, S, S)`` and labels ``(B * D,)``."""
        raise NotImplementedError

    def peek(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The current epoch's batches from its start, without taking part in the count of epochs and steps."""
        for _, images, labels in self.serve(self.plan(), 0):
            yield images, labels

    def state_dict(self, num_samples: int, from_beginning: bool = True) -> dict[str, Any]:
        """The run's position, in plain values.

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
        """Continue from :meth:`state_dict`; the next iteration starts there and decodes nothing before it.

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
        """The first step to serve; a restored position counts once, and only in its own epoch."""
        state, self._restored = self._restored, None
        if state is None:
            return 0
        changed = differences(state["identity"], self.identity())
        if changed:
            raise ValueError("the checkpoint belongs to another run: " + "; ".join(changed))
        return plan.step_at(state["num_samples"]) if state["epoch"] == plan.epoch else 0


class WholeBatchLoader(DataLoader):
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
    def batch_size(self, value: int | None) -> None:
        """Ignored: Composer reads the property, and ``DataLoader.__init__`` sets None for data in batches."""

    def _max_images(self) -> int:
        raise NotImplementedError


class PlannedLoader(WholeBatchLoader):
    """A loader of planned batches, to which :class:`~mixsize.algorithms.MixSizeSampling` binds a regime."""

    dataset: PlannedDataset

    def __len__(self) -> int:
        return self.dataset.num_steps()

    @property
    def regime(self) -> Regime | Progression:
        """The regime that epochs are planned from."""
        return self.dataset.regime

    @property
    def world_size(self) -> int:
        """Ranks that share each batch."""
        return self.dataset.world_size

    def plan(self) -> EpochPlan:
        """The current epoch's steps on this rank."""
        return self.dataset.plan()

    def bind(self, regime: Regime | Progression) -> None:
        """Draw from another regime from the next iteration on.

        Raises:
            ValueError: a regime that this many images or ranks cannot serve; the loader keeps the one it had.
        """
        self.dataset.bind(regime)

    def set_epoch(self, epoch: int) -> None:
        """Serve ``epoch``, counted from 0, at the next iteration."""
        self.dataset.set_epoch(epoch)

    def data_spec(self) -> DataSpec:
        """The loader as Composer's Trainer takes it.

        Time in samples counts distinct images, and microbatches never separate an image's duplicates.
        """
        from composer.core import DataSpec

        return DataSpec(
            self,
            num_samples=self.dataset.num_samples,
            split_batch=self._split_batch,
            get_num_samples_in_batch=self._count_samples,
        )

    def _count_samples(self, batch: Sequence[torch.Tensor]) -> int:
        step = self.dataset.current_step
        assert step is not None
        return len(batch[1]) // step.duplicates

    def _split_batch(
        self, batch: Sequence[torch.Tensor], microbatch_images: int | float
    ) -> list[Sequence[torch.Tensor]]:
        step = self.dataset.current_step
        assert step is not None
        images, labels = batch
        chunk = max(1, int(microbatch_images) // step.duplicates) * step.duplicates
        return list(zip(images.split(chunk), labels.split(chunk), strict=True))

    def _max_images(self) -> int:
        return self.regime.max_images // self.dataset.world_size


def _as_is(batch: Any) -> Any:
    return batch


def differences(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """The differences of two nested mappings of plain values, a line each, with dotted keys."""
    lines = []
    for key in sorted(saved.keys() | current.keys()):
        before, now = saved.get(key), current.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += differences(before, now, f"{prefix}{key}.")
        elif _plain(before) != _plain(now):
            lines.append(f"{prefix}{key} was {before!r}, is {now!r}")
    return lines


def _plain(value: Any) -> Any:
    """Tuples and lists compare equal, as a checkpoint may turn one into the other."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
