"""Tables of the paper on one's own runs: ``mixsize bench gradients``."""
