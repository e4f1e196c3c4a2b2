"""From class scores on the network grid to labels on the grid of the file."""
