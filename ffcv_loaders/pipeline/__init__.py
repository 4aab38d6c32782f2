"""From an epoch plan to batches: streaming, read-ahead, staging. Imports ``decode``, ``beton`` and the regime.

A sample's way from file to batch, one sentence a step:

1. ``PlannedDataset.__iter__`` asks for the epoch's plan: a table of steps, each with its size and its samples.
2. ``Source.stream`` starts a ``_Producer`` for the plan, with a thread and a ring of ``batches_ahead + 1`` buffers.
3. ``_Producer._announced_steps`` takes the steps in order and draws the window of each view (``draw_windows``).
4. ``ImageReadahead.announce`` asks the kernel for the step's bytes, where the file is larger than memory.
5. ``_Producer._begin`` takes a free buffer and hands the step to ``Decoder.submit``.
6. ``Decoder.submit`` queues the step for its threads, each of which takes a few samples at a time.
7. ``_decode_piece``, compiled, runs over these samples without the interpreter lock.
8. ``group_image`` chooses for each sample the stored copy, the ratio, and which views share a decode.
9. ``_read`` copies the stored bytes into the thread's scratch memory with ``pread``.
10. ``jpeg_crop`` (C) decodes the part that the views show; raw pixels skip this step.
11. ``cut`` (C or FFCV's OpenCV) cuts each view out, resizes and mirrors it into its place in the buffer.
12. ``PolicyStage.finish``, where the augmentation has a policy or a cutout, changes the views and then resizes them.
13. ``_Producer._publish`` waits for the batch, checks that the file is unchanged, and queues the batch.
14. ``_staged`` takes the batch, and ``Stager.stage`` copies it to the device, normalised, in the format asked for.
15. ``PlannedDataset.__iter__`` notes the step and yields ``(images, labels)``, which ``DataLoader`` passes on as it is.
"""
