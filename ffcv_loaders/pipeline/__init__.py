"""From an epoch plan to batches: streaming, staging on the device, read-ahead.

Imports ``decode``, ``beton`` and the regime.
"""
