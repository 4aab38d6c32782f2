"""Names the step and the shape at which a run ran out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from composer.core import State

from mixsize.algorithms.execution.visit import is_out_of_memory
from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.recipes.records.step_times import describe_shape


@contextmanager
def naming_shape_that_does_not_fit(state: State, sampling: MixSizeSampling) -> Iterator[None]:
    """Turn PyTorch's out-of-memory errors into one that names the step and its shape.

    Args:
        state: the Trainer's.
        sampling: gives the shape of the current step.

    Raises:
        MemoryError: its cause is PyTorch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"too little memory {_place(state, sampling)}: {str(error).splitlines()[0]}; train with a smaller batch, "
            "or set microbatch_images. execution.preflight=true visits every shape before the first step"
        ) from error


def _place(state: State, sampling: MixSizeSampling) -> str:
    done = int(state.timestamp.batch)
    if sampling.shapes.total() > done:  # Inside a step.
        assert sampling.last_shape is not None
        return f"in step {done + 1}, in epoch {int(state.timestamp.epoch)}, at {describe_shape(sampling.last_shape)}"
    return f"after step {done}, with the batches of {state.dataloader_label}"
