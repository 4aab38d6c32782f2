"""How results look: the console, Markdown tables, the style of plots. Imports :mod:`mixsize.system`."""
