"""One forward pass over a volume of any length, slab by slab, each voxel computed once."""
