"""From stored bytes to pixels: views, choice of copy, decoding, resizing, augmentation.

Imports ``beton`` and the regime.
"""
