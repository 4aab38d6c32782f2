"""What a recipe's regime amounts to before training: steps, pixels, arithmetic, time.

Imports ``config``, ``models`` and ``records``.
"""
