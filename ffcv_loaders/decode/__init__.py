"""From stored bytes to pixels: views, choice of copy, decoding, resizing, colour policies.

Imports ``beton`` and the regime.
"""
