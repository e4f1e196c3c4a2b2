"""Models of several networks: parts whose labels are joined, cascades, ensembles, crops around a rough result."""
