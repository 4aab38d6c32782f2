"""The compiled engine, in C, and its binding: what turns stored bytes into the views of a batch.

Imports nothing of the package. ``engine.h`` says what each part does.
"""
