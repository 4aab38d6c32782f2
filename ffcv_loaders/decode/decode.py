"""From stored bytes to views: a pool of threads that run the engine on one batch after another.

A view that is read from the full image at its full size has, to within one level, the pixels that Pillow gives:
libjpeg's accurate transform, a crop, and ``Image.resize``, as torchvision's and timm's transforms use them. A JPEG that
fails to decode is an error that names its image.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mixsize.ffcv_loaders.beton.reader import Beton, BetonError
from mixsize.ffcv_loaders.decode.augment import Interpolation, resample_of
from mixsize.ffcv_loaders.engine.native import UNREADABLE, Batch, Policy, ViewChanges, Workspace, explain

#: Default of ``min_oversampling`` for training, by `mixsize bench fidelity`: 35 dB or more on average at every size.
MIN_OVERSAMPLING = 0.8
#: The default for evaluation, where a figure is reported.
EVALUATION_MIN_OVERSAMPLING = 1.0

_BYTES_A_THREAD = 1 << 19


class Decoder:
    """Decodes batches of one data set with a pool of threads.

    Args:
        beton: the data set.
        num_workers: decoding threads, at least 1.
        min_oversampling: a view is read from a smaller copy of its image where its window measures this many times the
            view's side S or more in the copy, along both axes; above 0. With ``math.inf`` every view is read from the
            full image at its full size.
        interpolation: ``bilinear`` or ``bicubic``, both antialiased.

    Raises:
        ValueError: ``num_workers`` below 1, ``min_oversampling`` not above 0, or an unknown interpolation.
    """

    def __init__(
        self,
        beton: Beton,
        num_workers: int,
        min_oversampling: float = MIN_OVERSAMPLING,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}; it must be at least 1")
        if not min_oversampling > 0:
            raise ValueError(f"min_oversampling is {min_oversampling}; it must be above 0")
        self._file = beton.file
        self._levels = beton.levels
        self._num_workers = num_workers
        self._min_oversampling = float(min_oversampling)
        self._resample = resample_of(interpolation)
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="mixsize-decode") if num_workers > 1 else None
        self._workspaces: queue.SimpleQueue[Workspace] = queue.SimpleQueue()
        for _ in range(num_workers):
            self._workspaces.put(Workspace())

    def decode(
        self,
        samples: np.ndarray,
        duplicates: int,
        windows: np.ndarray,
        out: np.ndarray,
        policy: Policy | None = None,
        changes: ViewChanges | None = None,
    ) -> None:
        """Fill a batch.

        Args:
            samples: image indices, shape ``(B,)``.
            duplicates: views D of each image.
            windows: shape ``(B * D, 7)``, from :func:`~mixsize.ffcv_loaders.decode.augment.draw_windows`.
            out: destination, uint8, C-contiguous, shape ``(B * D, S, S, 3)``, RGB.
            policy: what changes the views before their resize, from
                :func:`~mixsize.ffcv_loaders.decode.policy.open_policy`.
            changes: what changes them after it, from :meth:`~mixsize.ffcv_loaders.decode.views.ViewChanges.at`.

        Raises:
            BetonError: an image that does not decode, named by its index.
        """
        self.submit(samples, duplicates, windows, out, policy, changes)()

    def submit(
        self,
        samples: np.ndarray,
        duplicates: int,
        windows: np.ndarray,
        out: np.ndarray,
        policy: Policy | None = None,
        changes: ViewChanges | None = None,
    ) -> Callable[[], None]:
        """Begin to fill a batch, queued after earlier batches, so no thread idles.

        Arguments are those of :meth:`decode`; ``out`` must not be touched until it is filled.

        Returns:
            A function that waits until the batch is filled; raises as :meth:`decode` does.
        """
        batch = Batch(
            self._file.descriptor,
            self._levels,
            samples,
            duplicates,
            windows,
            out.shape[1],
            self._min_oversampling,
            out,
            self._resample,
            policy,
            changes,
        )

        def work() -> None:
            workspace = self._workspaces.get()
            try:
                batch.fill(workspace)
            finally:
                self._workspaces.put(workspace)

        # To wake a thread takes as long as some of its work: the batch after a small one keeps the other half busy.
        threads = min(self._num_workers, max((self._num_workers + 1) // 2, 1 + out.size // _BYTES_A_THREAD))
        futures = [] if self._pool is None else [self._pool.submit(work) for _ in range(threads)]

        def wait() -> None:
            if self._pool is None:
                work()
            for future in futures:
                future.result()
            if batch.failure is not None:
                place, code, words = batch.failure
                raise self._error(int(samples[place]), code, words)

        return wait

    def _error(self, sample: int, code: int, words: str) -> BetonError:
        image = f"{self._file.path}: image {sample}"
        if code == UNREADABLE:
            return BetonError(f"{image} cannot be read: the file was cut short, or its disk or network failed")
        return BetonError(
            f"{image} does not decode as a JPEG: {explain(code, words)}; the file is damaged: convert the images again"
        )

    def close(self) -> None:
        """End the threads; waits for the batch in hand."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
