"""Mixup and CutMix of the images of a batch, on its device.

Imports ``regime``.
"""
