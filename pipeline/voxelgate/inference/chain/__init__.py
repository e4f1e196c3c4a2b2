"""The labels of a stock MONAI bundle: by its own steps as they are, or by the same steps slab by slab."""
