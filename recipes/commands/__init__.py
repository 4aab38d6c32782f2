"""``mixsize train``, ``eval``, ``plan`` and ``recipes``. May import every room of recipes."""
