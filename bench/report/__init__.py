"""``mixsize report``: run records side by side, as HTML, Markdown and W&B Reports. Reads records, never measures."""
