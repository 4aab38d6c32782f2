"""``MixSizeSampling`` and ``ProgressiveResize``.

Imports ``regime``, ``training``, ``execution`` and ``batchnorm``.
"""
