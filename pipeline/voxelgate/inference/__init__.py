"""Run a network over a whole volume and bring its labels back onto the grid of the file that was read."""
