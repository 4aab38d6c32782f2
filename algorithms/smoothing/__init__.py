"""Gradient smoothing: the plain function and ``GradSmoothing``.

Imports ``execution``.
"""
