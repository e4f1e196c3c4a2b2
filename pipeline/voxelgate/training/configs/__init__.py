"""The files of a bundle that a plan becomes."""
