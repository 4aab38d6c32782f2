"""Networks and weights: the networks that timm lacks, reading and loading weights.

Imports ``config`` and ``records``.
"""
