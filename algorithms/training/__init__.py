"""Learning-rate schedules by epoch, the seed of each step, the training clock. Imports nothing of mixsize."""
