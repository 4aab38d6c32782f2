"""``mixsize bench overhead``: the cost of the algorithms beside a plain training step."""
