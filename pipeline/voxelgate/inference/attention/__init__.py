"""The maps of attention gates on the grid of the image, and what they say."""
