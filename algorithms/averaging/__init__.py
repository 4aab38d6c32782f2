"""The moving average of the weights: ``ModelEMA``. Imports ``execution``."""
