"""The ``.beton`` file format: reading it, and the facts that mixsize keeps in it. Imports nothing of mixsize."""
