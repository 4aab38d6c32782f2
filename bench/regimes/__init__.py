"""``mixsize bench regimes``: a suite of recipes, regimes and seeds, run by run. Imports ``report`` and recipes."""
