"""``mixsize bench regimes``: trains suites of recipes, regimes and seeds."""
