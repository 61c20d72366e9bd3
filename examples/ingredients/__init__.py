"""What the examples' `prepare.py` share: packages as files, models from them, an uneven split, the sites' files."""
