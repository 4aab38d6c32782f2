"""The machine and its files: cores, memory, ranks, packages, signals, atomic writes. Imports nothing of mixsize."""
