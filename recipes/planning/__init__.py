"""Steps, pixels, arithmetic and time of a recipe's regime, before training.

Imports ``config``, ``models`` and ``records``.
"""
