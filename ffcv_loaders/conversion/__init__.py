"""From images to a ``.beton`` file: sources, encoding, writing, ``mixsize convert``.

Imports :mod:`~mixsize.ffcv_loaders.beton`, and of :mod:`~mixsize.ffcv_loaders.decode` how data sets of other libraries
are read.
"""
