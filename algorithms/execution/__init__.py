"""Eager, compiled and CUDA-graph training passes, the visit to every shape, preserved networks.

Imports ``regime``.
"""
