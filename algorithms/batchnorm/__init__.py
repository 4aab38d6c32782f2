"""Batch-norm calibration: the plain function, the bank of statistics and ``BNCalibrate``.

Imports ``execution``.
"""
