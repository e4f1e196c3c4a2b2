"""What every room speaks: errors, grids, label tables, codes, findings, files written whole."""
