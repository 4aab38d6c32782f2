"""What may be drawn and what is drawn: sizes, batches, duplicates, epoch plans. Arithmetic only.

Imports nothing of mixsize.
"""
