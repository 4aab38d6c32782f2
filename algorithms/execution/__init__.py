"""How a training step runs: eager, compiled or as CUDA graphs, and the visit to every shape.

Imports ``regime``.
"""
