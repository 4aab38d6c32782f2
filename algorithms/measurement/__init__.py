"""Accuracy over image sizes and the similarity of gradients, for a bare PyTorch loop.

Imports ``batchnorm``.
"""
