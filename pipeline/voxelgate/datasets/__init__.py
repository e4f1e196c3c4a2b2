"""Data sets: their manifest, what is in them, what is wrong with them."""
