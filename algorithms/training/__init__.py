"""Learning-rate schedules by epoch, a curriculum of strengths, the seed of each step, the training clock.

Imports ``regime``.
"""
