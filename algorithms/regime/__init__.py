"""Regimes and epoch plans: sizes, batches, duplicates. Arithmetic only.

Imports nothing of mixsize.
"""
