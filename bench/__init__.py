"""Suites that measure, and the records they leave in ``bench/results/``."""
