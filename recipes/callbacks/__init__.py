"""Composer callbacks and loggers of a run. Imports ``records`` and the algorithms."""
