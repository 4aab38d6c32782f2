"""``mixsize bench loader``: the loaders beside those of other libraries."""
