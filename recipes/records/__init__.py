"""The run record, the files of a run's folder, and the environment of a run.

Imports nothing of the other rooms of recipes.
"""
