"""``mixsize bench gpu``: the cost of changing shapes and of each algorithm on a GPU."""
