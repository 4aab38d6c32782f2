"""From an epoch plan to batches: streaming, read-ahead, staging. Imports ``decode``, ``beton`` and the regime.

A sample's way from file to batch, one sentence a step:

1. ``PlannedDataset.__iter__`` asks for the epoch's plan: a table of steps, each with its size and its samples.
2. ``Source.stream`` starts a ``_Producer`` for the plan, with a thread and a ring of ``batches_ahead + 1`` buffers.
3. ``_Producer._announced_steps`` takes the steps in order and draws the window of each view (``draw_windows``).
4. ``ImageReadahead.announce`` asks the kernel for the step's bytes, where the file is larger than memory.
5. ``_Producer._begin`` takes a free buffer and hands the step to ``Decoder.submit``.
6. ``Decoder.submit`` makes a ``native.Batch`` and queues it for its threads, which work on it together.
7. ``mixsize_fill`` (C) takes one image after another, without the interpreter lock.
8. ``group_views`` chooses for each image the stored copy, the ratio, and which views share a decode.
9. ``read_copy`` copies the stored bytes into the thread's memory with ``pread``.
10. ``mixsize_jpeg_crop`` decodes the part that the views show; raw pixels skip this step.
11. ``mixsize_apply_policy`` changes a view that has the policy ``cifar10`` or a cutout, at its stored size.
12. ``resize`` brings each view to its side, mirrored or not, in its place in the buffer.
13. ``mixsize_change_view`` changes it there by any other policy, by colour jitter and by random erasing.
14. ``_Producer._publish`` waits for the batch, checks that the file is unchanged, and queues the batch.
15. ``_staged`` takes the batch, and ``Stager.stage`` copies it to the device, normalised, in the format asked for.
16. ``PlannedDataset.__iter__`` notes the step and yields ``(images, labels)``, which ``DataLoader`` passes on as it is.
"""
