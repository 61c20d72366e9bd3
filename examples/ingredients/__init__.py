"""Shared by the `prepare.py` of the examples: package downloads, models, an uneven split of data sets, data files."""
