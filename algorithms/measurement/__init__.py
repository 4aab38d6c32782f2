"""Accuracy over image sizes and similarity of gradients, for a bare PyTorch loop.

Imports ``batchnorm``.
"""
