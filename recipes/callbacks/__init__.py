"""Composer callbacks and loggers that watch a run and save it. Imports ``records`` and the algorithms."""
